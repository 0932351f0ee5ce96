"""Batches of images at their own sizes, for evaluation and prediction: threads read ahead."""

import collections
import itertools
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from rankseg_jax.data import IGNORE_LABEL, CorruptExample, Source, fitting, reading, videos

SMALLEST_CANVAS = 64
HELD = 4  # batches of images that wait for others of their size at most


def read_ahead(read: Callable, items: Iterable, *, ahead: int, workers: int = 0) -> Iterator:
    """`map(read, items)` in threads, `ahead` results at most before they are asked for.

    Args:
      workers: number of threads; 0: one for each core and a few.
    """
    items = iter(items)
    with ThreadPoolExecutor(workers or None) as pool:
        waiting = collections.deque(pool.submit(read, x) for x in itertools.islice(items, ahead))
        try:
            while waiting:
                result = waiting.popleft().result()
                waiting.extend(pool.submit(read, x) for x in itertools.islice(items, 1))
                yield result
        finally:
            pool.shutdown(cancel_futures=True)


def delayed(items: Iterable) -> Iterator:
    """Yields each item only after the next has been requested.

    JAX dispatches asynchronously: the device works on the next item while the host waits for this
    one.
    """
    items = iter(items)
    for item in items:
        for following in items:
            yield item
            item = following
        yield item


def progress(title: str, count: int | None, unit: str = 'images') -> tqdm:
    """A progress bar with images/s and the time left, on the first host."""
    return tqdm(
        desc=title,
        total=count,
        unit=f' {unit}',
        delay=3,
        mininterval=1,
        disable=jax.process_index() > 0,
    )


def batch_size(config: ConfigDict, num_devices: int) -> int:
    """The number of images in a batch of this host, in evaluation or prediction.

    Where images keep their own sizes, one for each device: padding them to a common size would make
    the result of each depend on the others. Otherwise `eval.batch_size`, over all devices and
    hosts, and what it takes to give each device the same number.
    """
    if any(config.eval.base_size) or not any(config.eval.size):
        return num_devices
    per_device = -(-config.eval.batch_size // (jax.process_count() * num_devices))
    return per_device * num_devices


def batches(examples: Iterable[dict[str, Any]], size: int) -> Iterator[dict[str, Any]]:
    """Stacks examples whose views have the same shapes, `size` at a time, each exactly once.

    See `stack`. At most `HELD` batches of examples wait for their like; the order of examples of
    one shape is kept.
    """
    groups = collections.defaultdict(list)  # shapes of the views → examples
    for example in examples:
        shapes = tuple(view['image'].shape for view in example['views'])
        groups[shapes].append(example)
        if len(groups[shapes]) == size:
            yield stack(groups.pop(shapes), size)
        elif sum(map(len, groups.values())) > HELD * size:
            yield stack(groups.pop(max(groups, key=lambda shapes: len(groups[shapes]))), size)
    for group in groups.values():
        yield stack(group, size)


def stack(examples: list[dict[str, Any]], size: int) -> dict[str, Any]:
    """Stacks examples to a batch of `size`.

    Args:
      examples: dicts of 'views', see `fitting.eval_views`, 'size' int32 [2], rows and columns of
        the image, 'index' int and perhaps 'label' int32 [(t,) H, W]. Those of clips also have what
        `videos.Windows.load` says.

    Returns:
      'views': for each scale {'image': float32 [B, (t,) H, W, 3], 'content': int32 [B, 2]}.
      'size': int32 [B, 2].
      'index': int32 [B]; -1 fills up the batch.
      'mask': bool [B], False for what fills up the batch.
      'label': int32 [B, (t,) *canvas], padded with IGNORE_LABEL, if the examples have it.
      'shown', 'counted': bool [B, t] of clips.
      'begins': bool [B], see `video_batches`, if the examples have it.
    """
    missing = size - len(examples)

    def fill(arrays, value):
        return np.stack([*arrays, *[np.full_like(arrays[0], value)] * missing])

    views = tuple(
        {
            'image': fill([view['image'] for view in scale], 0),
            'content': fill([view['content'] for view in scale], 1),
        }
        for scale in zip(*[example['views'] for example in examples], strict=True)
    )
    batch = {
        'views': views,
        'size': fill([np.array(x['size'], np.int32) for x in examples], 1),
        'index': np.array([x['index'] for x in examples] + [-1] * missing, np.int32),
        'mask': np.arange(size) < len(examples),
    }
    if 'label' in examples[0]:
        shape = *examples[0]['label'].shape[:-2], *canvas_of(batch['size'])
        batch['label'] = np.full((size, *shape), IGNORE_LABEL, np.int32)
        for place, example in zip(batch['label'], examples, strict=False):
            rows, columns = example['label'].shape[-2:]
            place[..., :rows, :columns] = example['label']
    for name in ('shown', 'counted', 'begins'):
        if name in examples[0]:
            batch[name] = fill([example[name] for example in examples], True)
    return batch


def canvas_of(sizes: np.ndarray) -> tuple[int, int]:
    """The (rows, columns) that results of images of `sizes` [B, 2] are computed in.

    They are powers of two, so that few programs serve all sizes.
    """
    rows, columns = (
        max(SMALLEST_CANVAS, 1 << (int(side) - 1).bit_length()) for side in sizes.max(0)
    )
    return rows, columns


def eval_batches(
    source: Source, config: ConfigDict, num_devices: int, *, alone: bool = False
) -> Iterator[dict[str, Any]]:
    """Batches that hold every example of the source exactly once over all hosts; see `stack`.

    Hosts read disjoint parts of the source, or this one all of it if it is `alone`. A corrupt
    example is named in the log and left out.

    Args:
      config: the run's config; reads `eval` and `data`.
      num_devices: of this host, which share a batch.

    Raises:
      ValueError: the source is empty. While iterating: more than `data.max_corrupt` corrupt
        examples; whatever else the source raises.
    """
    size = batch_size(config, num_devices)
    place, count = (0, 1) if alone else (jax.process_index(), jax.process_count())
    share = source.share(place, count)
    return batches(readable(source, share, config, size=size), size)


def video_batches(
    source: videos.Windows, config: ConfigDict, num_devices: int
) -> Iterator[dict[str, Any]]:
    """As `eval_batches`, for clips that go on from each other.

    The clips of a video have the same place in batches that follow each other, and 'begins' is
    True for the first that could be read.
    """
    size, begun = batch_size(config, num_devices), set()
    share = source.share(jax.process_index(), jax.process_count())
    places = {
        index: (step, place)
        for place, lane in enumerate(source.lanes(share, size))
        for step, index in enumerate(lane)
    }
    examples = readable(source, sorted(places, key=places.__getitem__), config, size=size)
    for _, group in itertools.groupby(examples, lambda example: places[example['index']][0]):
        alike = collections.defaultdict(dict)  # shapes of the views → place → example
        for example in group:
            video = source.windows[example['index']].video
            example['begins'] = video not in begun
            begun.add(video)
            shapes = tuple(view['image'].shape for view in example['views'])
            alike[shapes][places[example['index']][1]] = example
        for found in alike.values():
            free = [place for place in range(size) if place not in found]
            order = np.argsort([*found, *free])
            batch = stack(list(found.values()), size)
            yield jax.tree.map(operator.itemgetter(order), batch)


def readable(
    source: Source, indices: Sequence[int], config: ConfigDict, size: int
) -> Iterator[dict[str, Any]]:
    """The examples of a source that can be read, in order, for batches of `size`.

    Raises:
      ValueError: as `eval_batches`.
    """
    reading.check_not_empty(source, config.data.eval_split)

    def read(index):
        try:
            example = source.load(index)
        except CorruptExample as error:
            return index, str(error)
        reading.check_size(example, source.ids[index])
        views = fitting.eval_views(example.pop('image'), config)
        return example | {'views': views, 'size': example['label'].shape[-2:], 'index': index}

    def read_all():
        corrupt = reading.Corrupt(config.data.max_corrupt)
        workers = config.data.num_workers
        for example in read_ahead(read, indices, ahead=2 * size, workers=workers):
            if isinstance(example, dict):
                yield example
            elif error := corrupt.add(*example):
                raise error

    return read_all()
