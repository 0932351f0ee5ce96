"""Batches for training through tf.data.

Training is an endless stream of samples, numbered over all steps and hosts. Which example sample n
is, and how it is augmented, follows from (seed, n) alone: a run repeats bit by bit, and a resumed
one goes on as if it had never stopped.
"""

import atexit
import itertools
import weakref
from collections.abc import Generator
from typing import Any

import jax
import numpy as np
import tensorflow as tf
from ml_collections import ConfigDict

from rankseg_jax.data import CorruptExample, Source, reading, transforms

tf.config.set_visible_devices([], 'GPU')  # accelerator memory is JAX's
_running = weakref.WeakSet()


@atexit.register
def _close_all():  # before the interpreter kills the threads; see _Loader._iterate
    for batches in list(_running):
        batches.close()


class _Loader:
    """Reads examples in tf.data's threads and keeps what went wrong for the main thread."""

    def __init__(self, read, stand_in, max_corrupt: int):
        """Prepares to read.

        Args:
          read: (index, number of the sample) → example, a dict of arrays.
          stand_in: an example in place of one that cannot be read; 'image' and 'label' may have
            any number of rows and columns.
          max_corrupt: the most corrupt examples that are tolerated.
        """
        self.read, self.stand_in = read, stand_in
        self.corrupt = reading.Corrupt(max_corrupt)
        self.failure = None
        self.closed = False

    def __call__(self, index, sample) -> list:
        """The arrays of example `index`, in the order of `stand_in`'s, and whether it is valid."""
        example = self.stand_in
        if not self.closed:
            try:
                example = self.read(int(index), int(sample))
            except CorruptExample as error:
                self.failure = self.corrupt.add(int(index), str(error)) or self.failure
            except Exception as error:  # an exception must not cross tf.data, which buries it
                self.failure = error
        valid = example is not self.stand_in
        return [*(np.asarray(example[k], v.dtype) for k, v in self.stand_in.items()), valid]

    def tensors(self, index, sample) -> dict[str, tf.Tensor]:
        """The example as tensors, and 'mask', whether it is valid."""
        types = [x.dtype for x in self.stand_in.values()]
        *arrays, valid = tf.numpy_function(self, [index, sample], [*types, tf.bool])
        shapes = {name: x.shape for name, x in self.stand_in.items()}
        shapes['image'] = (*shapes['image'][:-3], None, None, 3)
        shapes['label'] = (*shapes['label'][:-2], None, None)
        tensors = map(tf.ensure_shape, arrays, shapes.values())
        return dict(zip(self.stand_in, tensors, strict=True)) | {'mask': tf.ensure_shape(valid, [])}

    def indices(self, rows):
        """A tf.data.Dataset of the entries, one by one, of the int64 [n] rows."""

        def until_closed():
            yield from itertools.takewhile(lambda _: not self.closed, rows)

        spec = tf.TensorSpec([None], tf.int64)
        return tf.data.Dataset.from_generator(until_closed, output_signature=spec).unbatch()

    def batches(self, dataset):
        """Iterates over the data set's batches; a failure in a thread is raised here."""
        iterator = self._iterate(dataset)
        _running.add(iterator)
        return iterator

    def _iterate(self, dataset):
        iterator = dataset.as_numpy_iterator()
        try:
            for batch in iterator:
                if self.failure is not None:
                    raise self.failure
                yield batch
        finally:
            # Run dry: an iterator that is freed waits for its threads, and for ever if the exiting
            # interpreter has killed one of them inside Python.
            self.closed = True
            for _ in iterator:
                pass


def _host_slice(batch_size):
    """The (start, stop) of this host's part of a global batch."""
    hosts = jax.process_count()
    if batch_size < 1 or batch_size % hosts:
        raise ValueError(
            f'config.batch_size = {batch_size} must be a positive multiple of {hosts} hosts'
        )
    local = batch_size // hosts
    return jax.process_index() * local, (jax.process_index() + 1) * local


def train_batches(
    source: Source, config: ConfigDict, task: Any, *, start_step: int
) -> Generator[dict[str, np.ndarray]]:
    """Endless training batches of this host, from step `start_step` on.

    Step s, at any `start_step` <= s, gives the same batch bit by bit, and nothing before
    `start_step` is read. Its examples are `reading.example_indices(len(source), seed, s,
    batch_size)`; a source smaller than a batch is repeated in it.

    Args:
      source: as `task.samples` returns it.
      config: the run's config; reads `seed`, `batch_size`, `data` and `augment`.
      task: a `rankseg_jax.tasks.Task`, which reads the examples.

    Returns:
      An iterator of {'image': float32 [B, (t,) H, W, 3] normalized, 'label': int32 [B, (…,) H, W],
      'mask': bool [B]} and the further arrays of `task.example`. A corrupt example is named in the
      log; in its place are zeros, all ignored, with mask False.

    Raises:
      ValueError: the source is empty, or the hosts cannot share a batch. While iterating: more than
        `data.max_corrupt` corrupt examples; whatever else the source raises.
    """
    reading.check_not_empty(source, config.data.train_split)
    start, stop = _host_slice(config.batch_size)
    local, own = stop - start, slice(start, stop)

    def read(index, sample):
        rng = np.random.default_rng([config.seed, sample])
        example = task.example(source, index, rng)
        reading.check_size(example, source.ids[index])
        return example

    loader = _Loader(read, task.stand_in(), config.data.max_corrupt)
    rows = (
        reading.example_indices(len(source), config.seed, step, batch_size=config.batch_size)[own]
        for step in itertools.count(start_step)
    )

    @tf.autograph.experimental.do_not_convert  # looking for Python loops takes a second
    def transform(count, index):
        sample = count // local * config.batch_size + start + count % local
        seed = tf.stack([tf.constant(config.seed, tf.int64), sample])
        example = loader.tensors(index, sample)
        image, label = transforms.train_transform(
            example['image'], example['label'], seed, config=config
        )
        return example | {'image': tf.where(example['mask'], image, 0.0), 'label': label}

    workers = config.data.num_workers or tf.data.AUTOTUNE
    dataset = (
        loader.indices(rows)
        .enumerate(start_step * local)
        .map(transform, num_parallel_calls=workers, deterministic=True)
        .batch(local)
        .prefetch(tf.data.AUTOTUNE)
    )
    return loader.batches(dataset)
