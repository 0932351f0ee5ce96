"""Batches for training and evaluation through tf.data.

Training is an endless stream of samples, numbered over all steps and hosts. Which example sample n
is, and how it is augmented, follows from (seed, n) alone: a run repeats bit by bit, and a resumed
one goes on as if it had never stopped.
"""

import atexit
import functools
import itertools
import threading
import weakref

import jax
import numpy as np
import tensorflow as tf
from absl import logging
from jax.experimental import multihost_utils

from rankseg_jax.data import IGNORE_LABEL, CorruptExample, fitting, transforms

CANVAS_MULTIPLE = 64  # of evaluation labels, so that few shapes are compiled

tf.config.set_visible_devices([], 'GPU')  # accelerator memory is JAX's
_running = weakref.WeakSet()


@atexit.register
def _close_all():  # before the interpreter kills the threads; see _Loader._iterate
    for batches in list(_running):
        batches.close()


@functools.lru_cache(maxsize=4)
def _permutation(num_examples, seed, epoch):
    return np.random.default_rng([seed, epoch]).permutation(num_examples)


def example_indices(num_examples, seed, step, batch_size):
    """Indices into the source, int64 [batch_size], of the global batch of a training step."""
    samples = range(step * batch_size, (step + 1) * batch_size)
    return np.array(
        [_permutation(num_examples, seed, n // num_examples)[n % num_examples] for n in samples]
    )


class _Loader:
    """Reads examples in tf.data's threads and keeps what went wrong for the main thread."""

    def __init__(self, read, stand_in, source, max_corrupt: int):
        """Args:
        read: index → example, a dict of arrays.
        stand_in: an example in the place of one that cannot be read; its arrays of two axes and
          more may have any number of rows and columns.
        source: names the examples.
        max_corrupt: more corrupt examples are a failure.
        """
        self.read, self.stand_in, self.source = read, stand_in, source
        self.max_corrupt = max_corrupt
        self.corrupt = {}  # index → message
        self.failure = None
        self.closed = False
        self.lock = threading.Lock()

    def __call__(self, index) -> list:
        """The arrays of example `index`, in the order of `stand_in`'s, and whether it is valid."""
        example = self.stand_in
        if index >= 0 and not self.closed:
            try:
                example = self.read(int(index))
            except CorruptExample as error:
                self._count(int(index), str(error))
            except Exception as error:  # an exception must not cross tf.data, which buries it
                self.failure = error
        valid = example is not self.stand_in
        return [*(np.asarray(example[k], v.dtype) for k, v in self.stand_in.items()), valid]

    def _count(self, index, message):
        with self.lock:
            if index in self.corrupt:
                return
            self.corrupt[index] = message
            logging.error('Skipping corrupt example %d: %s', len(self.corrupt), message)
            if len(self.corrupt) > self.max_corrupt:
                self.failure = ValueError(
                    f'{len(self.corrupt)} examples cannot be read, more than '
                    f'config.data.max_corrupt = {self.max_corrupt}; repair or remove them:\n'
                    + '\n'.join(self.corrupt.values())
                )

    def tensors(self, index) -> dict[str, tf.Tensor]:
        """The example as tensors, and 'mask', whether it is valid."""
        types = [x.dtype for x in self.stand_in.values()]
        *arrays, valid = tf.numpy_function(self, [index], [*types, tf.bool])
        shapes = [
            x.shape if x.ndim < 2 else [None, None, *x.shape[2:]] for x in self.stand_in.values()
        ]
        tensors = map(tf.ensure_shape, arrays, shapes)
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


def _host_slice(name, batch_size):
    """The (start, stop) of this host's part of a global batch."""
    hosts = jax.process_count()
    if batch_size < 1 or batch_size % hosts:
        raise ValueError(f'{name} = {batch_size} must be a positive multiple of {hosts} hosts')
    local = batch_size // hosts
    return jax.process_index() * local, (jax.process_index() + 1) * local


def _check_not_empty(source, split):
    if not len(source):
        raise ValueError(f'split {split!r} of the data set holds no example; check config.data')


def _parallel_calls(config):
    return config.data.num_workers or tf.data.AUTOTUNE


def _check_size(example, name):
    """Raises a ValueError if the image and the label of an example differ in size."""
    image, label = example['image'], example['label']
    if image.shape != (*label.shape, 3):
        raise ValueError(f'{name}: image {image.shape} and label {label.shape} differ in size')


def train_batches(source, config, task, *, start_step: int):
    """Endless training batches of this host, from step `start_step` on.

    Step s, at any `start_step` <= s, gives the same batch bit by bit, and nothing before
    `start_step` is read. Its examples are `example_indices(len(source), seed, s, batch_size)`; a
    source smaller than a batch is repeated in it.

    Args:
      source: a `rankseg_jax.data.Source`.
      config: the run's config; reads `seed`, `batch_size`, `data` and `augment`.
      task: a `rankseg_jax.tasks.Task`, which reads the examples.

    Returns:
      An iterator of {'image': float32 [B, h, w, 3] normalized, 'label': int32 [B, h, w], 'mask':
      bool [B]} and the further arrays of `task.example`. A corrupt example is named in the log; in
      its place are zeros, all ignored, with mask False.

    Raises:
      ValueError: the source is empty, or the hosts cannot share a batch. While iterating: more than
        `data.max_corrupt` corrupt examples; whatever else the source raises.
    """
    _check_not_empty(source, config.data.train_split)
    start, stop = _host_slice('config.batch_size', config.batch_size)
    local = stop - start

    def read(index):
        example = task.example(source, index)
        _check_size(example, source.ids[index])
        return example

    loader = _Loader(read, task.stand_in(), source, config.data.max_corrupt)
    rows = (
        example_indices(len(source), config.seed, step, config.batch_size)[start:stop]
        for step in itertools.count(start_step)
    )

    def transform(count, index):
        sample = count // local * config.batch_size + start + count % local
        seed = tf.stack([tf.constant(config.seed, tf.int64), sample])
        example = loader.tensors(index)
        image, label = transforms.train_transform(example['image'], example['label'], seed, config)
        return example | {'image': tf.where(example['mask'], image, 0.0), 'label': label}

    dataset = (
        loader.indices(rows)
        .enumerate(start_step * local)
        .map(transform, num_parallel_calls=_parallel_calls(config), deterministic=True)
        .batch(local)
        .prefetch(tf.data.AUTOTUNE)
    )
    return loader.batches(dataset)


def eval_batches(source, config):
    """Batches that hold every example of the source exactly once over all hosts.

    All hosts get the same number of batches, of the same shapes, and must go through them together.

    Args:
      source: a `rankseg_jax.data.Source`.
      config: the run's config; reads `eval` and `data`.

    Returns:
      An iterator of dicts:
        'views': for each of `eval.scales` {'image': float32 [B, h, w, 3], 'content': int32 [B, 2],
          rows and columns of the image in it}, see `fitting.eval_views`;
        'label': int32 [B, Hc, Wc] at the original size, padded with IGNORE_LABEL to a multiple of
          64;
        'size': int32 [B, 2], original rows and columns;
        'index': int32 [B], position in the source;
        'mask': bool [B]. Where it is False, an ignored pixel stands in for a corrupt example or,
          with index -1, fills up the batch.

    Raises:
      ValueError: as `train_batches`.
    """
    _check_not_empty(source, config.data.eval_split)
    batch_size = config.eval.batch_size
    start, stop = _host_slice('config.eval.batch_size', batch_size)
    num_batches = -(-len(source) // batch_size)
    indices = np.full([num_batches * batch_size], -1)
    indices[: len(source)] = np.arange(len(source))
    indices = indices.reshape(num_batches, batch_size)[:, start:stop]

    def fit(image, label):
        views = fitting.eval_views(image, config)
        arrays = {f'{key}{i}': x for i, view in enumerate(views) for key, x in view.items()}
        return arrays | {'label': label, 'size': np.array(label.shape, np.int32)}

    def read(index):
        example = source.load(index)
        _check_size(example, source.ids[index])
        return fit(example['image'], example['label'])

    stand_in = fit(np.zeros([1, 1, 3], np.uint8), np.full([1, 1], IGNORE_LABEL, np.int32))
    stand_in = {k: 0 * x if k.startswith('image') else x for k, x in stand_in.items()}
    loader = _Loader(read, stand_in, source, config.data.max_corrupt)

    def transform(index):
        example = loader.tensors(index)
        views = tuple(
            {'image': example.pop(f'image{i}'), 'content': example.pop(f'content{i}')}
            for i in range(len(config.eval.scales))
        )
        return example | {'views': views, 'index': tf.cast(index, tf.int32)}

    dataset = loader.indices(indices).map(
        transform, num_parallel_calls=_parallel_calls(config), deterministic=True
    )
    padding = tf.nest.map_structure(lambda _: None, dataset.element_spec) | {'label': IGNORE_LABEL}
    dataset = dataset.padded_batch(stop - start, padding_values=padding).prefetch(2)
    return map(_pad_to_canvas, loader.batches(dataset))


def _pad_to_canvas(batch):
    canvas = -(-_max_over_hosts(batch['size'].max(axis=0)) // CANVAS_MULTIPLE) * CANVAS_MULTIPLE
    views = [
        view | {'image': _pad(view['image'], _max_over_hosts(view['image'].shape[1:3]), 0)}
        for view in batch['views']
    ]
    return batch | {'views': tuple(views), 'label': _pad(batch['label'], canvas, IGNORE_LABEL)}


def _pad(x, size, value):
    """[B, h, w, …] -> [B, *size, …], padded below and to the right."""
    missing = np.subtract(size, x.shape[1:3])
    if not missing.any():
        return x
    width = [(0, 0), *((0, n) for n in missing), *[(0, 0)] * (x.ndim - 3)]
    return np.pad(x, width, constant_values=value)


def _max_over_hosts(size):
    sizes = multihost_utils.process_allgather(np.array(size), tiled=False)
    return np.max(sizes.reshape(-1, 2), axis=0)
