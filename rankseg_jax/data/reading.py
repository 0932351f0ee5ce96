"""What training and evaluation share when they read examples: order, checks, corrupt ones."""

import functools
import threading

import numpy as np
from absl import logging

from rankseg_jax.data import Source


@functools.lru_cache(maxsize=4)
def _permutation(num_examples, seed, epoch):
    return np.random.default_rng([seed, epoch]).permutation(num_examples)


def example_indices(num_examples: int, seed: int, step: int, batch_size: int) -> np.ndarray:
    """Indices into the source, int64 [batch_size], of the global batch of a training step."""
    samples = range(step * batch_size, (step + 1) * batch_size)
    return np.array(
        [_permutation(num_examples, seed, n // num_examples)[n % num_examples] for n in samples]
    )


def check_not_empty(source: Source, split: str) -> None:
    """Raises a ValueError if a source has no examples."""
    if not len(source):
        raise ValueError(f'split {split!r} of the data set holds no example; check config.data')


def check_size(example: dict[str, np.ndarray], name: str) -> None:
    """Raises a ValueError if the image and the label of an example differ in size."""
    image, label = example['image'], example['label']
    if image.shape[-3:-1] != label.shape[-2:]:
        raise ValueError(f'{name}: image {image.shape} and label {label.shape} differ in size')


class Corrupt:
    """Names each corrupt example once in the log, and counts them; may be called from threads."""

    def __init__(self, limit: int):
        """More than `limit` examples are a failure."""
        self.limit, self.messages, self.lock = limit, {}, threading.Lock()

    def add(self, index: int, message: str) -> ValueError | None:
        """Counts example `index`; returns an error if there are too many."""
        with self.lock:
            if index in self.messages:
                return None
            self.messages[index] = message
            logging.error('Skipping corrupt example %d: %s', len(self.messages), message)
            if len(self.messages) <= self.limit:
                return None
            return ValueError(
                f'{len(self.messages)} examples cannot be read, more than '
                f'config.data.max_corrupt = {self.limit}; repair or remove them:\n'
                + '\n'.join(self.messages.values())
            )
