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

from rankseg_jax.data import IGNORE_LABEL, CorruptExample, coco, fitting, things, transforms

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
    """Loads examples in tf.data's threads and keeps what went wrong for the main thread.

    With `max_targets` the label map is one of segments instead, so many at most.
    """

    def __init__(self, source, max_corrupt, max_targets=None):
        self.source = source
        self.max_corrupt = max_corrupt
        self.max_targets = max_targets
        self.corrupt = {}  # index -> message
        self.failure = None
        self.closed = False
        self.lock = threading.Lock()

    def __call__(self, index):
        """index -> image uint8 [H, W, 3], label int32 [H, W], valid bool; index -1 stands in.

        Of segments also their labels int32 [max_targets] and the number left out int32; see `coco.targets`.
        """
        num_targets = self.max_targets or 0
        if index >= 0 and not self.closed:
            try:
                example = self.source.load(int(index))
                image, label, segments = example['image'], example['label'], ()
                if self.max_targets:
                    labels, label, left_out = coco.targets(
                        *self.source.segments(int(index)), num_targets
                    )
                    segments = labels, np.int32(left_out)
                if image.shape != (*label.shape, 3):
                    raise ValueError(
                        f'{self.source.ids[index]}: image {image.shape} and label {label.shape} '
                        'differ in size'
                    )
                return image.astype(np.uint8), label.astype(np.int32), True, *segments
            except CorruptExample as error:
                self._count(int(index), str(error))
            except Exception as error:  # an exception must not cross tf.data, which buries it
                self.failure = error
        nothing = np.full([num_targets], IGNORE_LABEL, np.int32), np.int32(0)
        image, label = np.zeros([1, 1, 3], np.uint8), np.full([1, 1], IGNORE_LABEL, np.int32)
        return image, label, False, *(nothing if self.max_targets else ())

    def _count(self, index, message):
        with self.lock:
            if index in self.corrupt:
                return
            self.corrupt[index] = message
            logging.error('Skipping corrupt example %d: %s', len(self.corrupt), message)
            if len(self.corrupt) > self.max_corrupt:
                self.failure = ValueError(
                    f'{len(self.corrupt)} examples cannot be read, more than '
                    f'config.data.max_corrupt = {self.max_corrupt}; mend or remove them:\n'
                    + '\n'.join(self.corrupt.values())
                )

    def tensors(self, index):
        shapes = {'image': [None, None, 3], 'label': [None, None], 'mask': []}
        types = [tf.uint8, tf.int32, tf.bool]
        if self.max_targets:
            shapes |= {'segment_labels': [self.max_targets], 'left_out': []}
            types += [tf.int32, tf.int32]
        tensors = tf.numpy_function(self, [index], types)
        return {
            name: tf.ensure_shape(tensor, shape)
            for tensor, (name, shape) in zip(tensors, shapes.items(), strict=True)
        }

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


class _EvalLoader(_Loader):
    """Also fits the image to the views that the model sees."""

    def __init__(self, source, config):
        super().__init__(source, config.data.max_corrupt)
        self.config = config

    def __call__(self, index):
        """index -> label int32 [H, W], valid bool, and image and content of each view."""
        image, label, valid = super().__call__(index)
        views = fitting.eval_views(image, self.config)
        return (
            label,
            valid,
            *(x for view in views for x in (view['image'] * valid, view['content'])),
        )

    def tensors(self, index):
        scales = len(self.config.eval.scales)
        types = [tf.int32, tf.bool, *[tf.float32, tf.int32] * scales]
        shapes = [None, None], [], *[[None, None, 3], [2]] * scales
        label, valid, *views = map(tf.ensure_shape, tf.numpy_function(self, [index], types), shapes)
        return {
            'views': tuple(
                {'image': image, 'content': content}
                for image, content in zip(views[::2], views[1::2], strict=True)
            ),
            'label': label,
            'size': tf.shape(label),
            'index': tf.cast(index, tf.int32),
            'mask': valid,
        }


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


def train_batches(source, config, *, start_step):
    """Endless training batches of this host, from step `start_step` on.

    Step s, at any `start_step` <= s, gives the same batch bit by bit, and nothing before
    `start_step` is read. Its examples are `example_indices(len(source), seed, s, batch_size)`; a
    source smaller than a batch is repeated in it.

    Args:
      source: as of `rankseg_jax.data.get_source`.
      config: the run's config; reads `seed`, `batch_size`, `data` and `augment`.
      start_step: int.

    Returns:
      An iterator of {'image': float32 [B, h, w, 3] normalised, 'label': int32 [B, h, w], 'mask':
      bool [B]}; for the task 'panoptic' also 'segments' int32 [B, h, w], 'segment_labels' int32
      [B, T] and 'left_out' int32 [B], see `coco.targets`. A corrupt example is named in the log,
      and stands there as zeros, all ignored, with mask False.

    Raises:
      ValueError: nothing in the source; no segments for the task 'panoptic'; a batch that the hosts
        cannot share. While iterating:
        more than `data.max_corrupt` corrupt examples; whatever else the source raises.
    """
    _check_not_empty(source, config.data.train_split)
    start, stop = _host_slice('config.batch_size', config.batch_size)
    panoptic = things(source, config.task) is not None
    loader = _Loader(source, config.data.max_corrupt, config.data.max_targets if panoptic else None)
    local = stop - start
    rows = (
        example_indices(len(source), config.seed, step, config.batch_size)[start:stop]
        for step in itertools.count(start_step)
    )

    def transform(count, index):
        sample = count // local * config.batch_size + start + count % local
        seed = tf.stack([tf.constant(config.seed, tf.int64), sample])
        example = loader.tensors(index)
        image, label = transforms.train_transform(example['image'], example['label'], seed, config)
        example |= {'image': tf.where(example['mask'], image, 0.0), 'label': label}
        if panoptic:
            labels = tf.concat([example['segment_labels'], [IGNORE_LABEL]], 0)  # [T + 1]
            places = tf.where(label < 0, config.data.max_targets, label)
            example |= {'segments': label, 'label': tf.gather(labels, places)}
        return example

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
      source: as of `rankseg_jax.data.get_source`.
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
    loader = _EvalLoader(source, config)
    dataset = loader.indices(indices).map(
        loader.tensors, num_parallel_calls=_parallel_calls(config), deterministic=True
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
