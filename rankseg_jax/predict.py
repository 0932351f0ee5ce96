"""Prediction on any image or video: label map, segments, ranked categories, drawings.

    predictor = rankseg_jax.predict.load(workdir)
    result = predictor('street.jpg')
    result.labels, result.categories, result.overlay()
    for result in predictor.video('street.mp4'):
        result.labels, result.frame_overlay()

The result is the task's, such as `tasks.semantic.Result`.
"""

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.export
import numpy as np
import orbax.checkpoint as ocp
from ml_collections import ConfigDict
from PIL import Image

from rankseg_jax import checkpoint, export, inference, models, sharding, storage, tasks
from rankseg_jax.data import CorruptExample, batching, fitting, images, video_files, videos
from rankseg_jax.tasks.semantic import Result


class Predictor:
    """A trained model, ready for images: calls take uint8 arrays [H, W, 3], PIL images or paths.

    Attributes:
      fit: image uint8 [H, W, 3], or clip [t, H, W, 3] → {'views', 'size'}, see `batching.stack`.
      segment: batch, `inference.Stream` or None → the arrays that `inference.served` returns, on
        the device; of a clip, those of one frame after another.
      task: a `tasks.Task`.
      num_devices: a batch is a multiple of it.
      batch_size: of many images.
    """

    def __init__(
        self,
        fit: Callable,
        segment: Callable,
        task: tasks.Task,
        *,
        num_devices: int = 1,
        batch_size: int = 1,
    ):
        self.fit, self.segment, self.task = fit, segment, task
        self.num_devices, self.batch_size = num_devices, batch_size

    @property
    def class_names(self) -> tuple[str, ...]:
        """K names in label order."""
        return self.task.class_names

    def __call__(self, image, label: np.ndarray | None = None) -> Result:
        """Predicts one image.

        Args:
          label: [H, W], the ground truth, for the oracle alone.

        Raises:
          CorruptExample: the file cannot be read.
          ValueError: an array of another shape or type; the oracle without `label`.
        """
        if self.task.takes_clips:
            (result,) = self.video([self.read(image)])
            return result
        example = self.example(image)
        if label is not None:
            example['label'] = np.asarray(label)
        ((_, result),) = self.results([example])
        return result

    def many(self, paths: Sequence[str | Path]) -> Iterator[tuple[int, Result | CorruptExample]]:
        """Predicts files in batches; threads read ahead while the device works.

        Yields:
          The place of a path in `paths` and its result, or the reason why it cannot be read; each
          place once, in the order in which they are done.
        """

        if self.task.takes_clips:
            for place, path in enumerate(paths):
                try:
                    yield place, self(path)
                except CorruptExample as error:
                    yield place, error
            return

        def read(place):
            try:
                return self.example(paths[place]) | {'index': place}
            except CorruptExample as error:
                return place, error

        corrupt = []

        def examples():
            for example in batching.read_ahead(read, range(len(paths)), ahead=2 * size):
                if isinstance(example, dict):
                    yield example
                else:
                    corrupt.append(example)

        whole = -(-len(paths) // self.num_devices) * self.num_devices
        size = min(self.batch_size, whole)
        yield from self.results(examples(), size)
        yield from corrupt

    def video(self, frames: str | Path | Iterable[np.ndarray]) -> 'Video':
        """Predicts a video frame by frame, with a clip of it in memory.

        A model of images sees each frame alone.

        Args:
          frames: a video file, an animated image, a folder of frames, or uint8 arrays [H, W, 3].

        Returns:
          An iterator of the frames' results.

        Raises:
          CorruptExample: while iterating, the video cannot be read.
          ValueError: while iterating, an array of another shape or type.
        """
        if isinstance(frames, str | Path):
            frames = video_files.read_frames(frames, self.max_pixels)
        return Video(self, frames)

    @property
    def max_pixels(self) -> int:
        """Of an image or frame that is read."""
        config = self.task.config
        return config.data.max_pixels if 'data' in config else images.MAX_PIXELS

    def read(self, image) -> np.ndarray:
        """An image as uint8 [H, W, 3]; arguments and errors as `__call__`."""
        if isinstance(image, str | Path | Image.Image):
            image = images.read_image(image, self.max_pixels)
        image = np.asarray(image)
        if image.ndim != 3 or image.shape[-1] != 3 or image.dtype != np.uint8 or not image.size:
            raise ValueError(
                f'an image must be uint8 [H, W, 3], got {image.dtype} {list(image.shape)}'
            )
        return image

    def example(self, image) -> dict[str, Any]:
        """What `results` needs of an image; arguments and errors as `__call__`."""
        image = self.read(image)
        return self.fit(image) | {'image': image, 'index': 0}

    def results(self, examples: Iterable[dict[str, Any]], batch_size: int = 0):
        """Yields ('index', result) of each example; `batch_size` 0: as small as possible."""
        kept = {}  # by index, until the result is there

        def keep():
            for example in examples:
                kept[example['index']] = example
                yield example

        def run(batch):
            return batch, next(self.segment(batch, None))

        batches = batching.batches(keep(), batch_size or self.num_devices)
        for batch, found in batching.delayed(map(run, batches)):
            found = jax.device_get(found)
            for i in np.flatnonzero(batch['mask']):
                example = kept.pop(int(batch['index'][i]))
                yield example['index'], self.result(example, {k: x[i] for k, x in found.items()})

    def result(self, example: dict[str, Any], found: dict[str, np.ndarray]) -> Result:
        """The result of one image from its arrays, of which maps take the image's size."""
        image, found = example['image'], self.cut(found, example)
        return self.task.result(image, found, self.categories(found))

    def cut(self, found: dict[str, np.ndarray], example: dict[str, Any]) -> dict[str, np.ndarray]:
        """The arrays of one image or frame, of which maps take the image's size."""
        found, size = self.task.cut(found, example['size']), example['image'].shape[-3:-1]
        return {
            name: nearest(x, size) if name in self.task.maps and x.shape[-2:] != size else x
            for name, x in found.items()
        }

    def categories(self, found: dict[str, np.ndarray]) -> list[tuple[str, float]]:
        """(name, confidence) of the ranked categories, best first."""
        ranked = zip(
            found.get('categories', np.array([])).tolist(),
            found.get('confidences', np.array([])).tolist(),
            strict=True,
        )
        return [(self.class_names[c], confidence) for c, confidence in ranked]


class Video:
    """The results of a video's frames, one after another; see `Predictor.video`.

    Attributes:
      length: number of frames done.
    """

    def __init__(self, predictor: Predictor, frames: Iterable[np.ndarray]):
        self.predictor, self.length = predictor, 0
        self.stream = inference.Stream()
        self.follower = predictor.task.follower()
        by_clip = predictor.task.takes_clips
        frames = video_files.check_one_size(map(predictor.read, frames), 'the video')
        self.results = self.by_clip(frames) if by_clip else self.by_frame(frames)

    def __iter__(self) -> Iterator[Result]:
        for result in self.results:
            self.length += 1
            yield result

    def by_frame(self, frames: Iterable[np.ndarray]) -> Iterator[Result]:
        """Results of a model that sees each frame alone."""
        predictor = self.predictor
        examples = (predictor.example(frame) | {'index': i} for i, frame in enumerate(frames))
        for _, result in predictor.results(examples, predictor.batch_size):
            yield result

    def by_clip(self, frames: Iterable[np.ndarray]) -> Iterator[Result]:
        """Results of a model that sees clips."""
        options, predictor = self.predictor.task.config.eval, self.predictor
        clips = videos.stream_windows(frames, options.clip_length, options.clip_overlap)
        for window, clip in clips:
            found = self.predict_clip(clip, begins=window.frames[0] == 0)
            new = clip[window.first_new - window.frames[0] :]
            for image, arrays in zip(new, self.follower.add(window, found), strict=True):
                yield predictor.task.result(image, arrays, predictor.categories(arrays))

    def predict_clip(self, frames: list[np.ndarray], *, begins: bool) -> list[dict[str, Any]]:
        """What is found in each frame of a clip, encoded; `begins`: it is the video's first."""
        predictor, length = self.predictor, len(frames)
        most = predictor.task.config.eval.clip_length
        clip = videos.pad({'image': np.stack(frames)}, videos.padded_length(length, most))
        example = predictor.fit(clip['image']) | clip
        example |= {'counted': clip['shown'], 'begins': begins, 'index': 0}
        batch = batching.stack([example], predictor.num_devices)
        segmented = itertools.islice(predictor.segment(batch, self.stream), length)
        return [
            self.follower.encode(
                predictor.cut({name: x[0] for name, x in jax.device_get(found).items()}, example)
            )
            for found in batching.delayed(segmented)
        ]

    def content(self) -> dict[str, Any]:
        """What the JSON file says of the video; complete once all frames are done."""
        return self.follower.content(self.length)


def nearest(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """[…, h, w] → […, *size]: each pixel takes the value of the one that its center lies in."""
    rows, columns = (
        (2 * np.arange(new) + 1) * old // (2 * new)
        for old, new in zip(maps.shape[-2:], size, strict=True)
    )
    return maps[..., rows[:, None], columns]


def load(workdir, which: str | int = 'last', config=None) -> Predictor:
    """The predictor of a run, or of an exported model.

    Args:
      workdir: of the run; or the folder of an exported model, which ignores the other arguments.
      which: 'last', 'best' or the step of a checkpoint.
      config: of the model and its input; None: the one it was trained with.

    Raises:
      FileNotFoundError: no such checkpoint.
      ValueError: `config` describes another model.
    """
    workdir = storage.path(workdir)
    if (workdir / export.ARTIFACT).is_file():
        return from_artifact(storage.copied(workdir) if storage.is_remote(workdir) else workdir)
    saved = checkpoint.open_run(workdir, which)
    config = config or saved.config
    task = tasks.build(config, saved.class_names, saved.things)
    model = models.build(config, task.num_classes)
    try:
        mesh = sharding.make_mesh(**config.mesh)
    except ValueError:  # it was trained on other devices
        mesh = sharding.make_mesh()
    mesh = sharding.local_mesh(mesh)
    variables = models.restore(saved, model, config, mesh)
    return from_model(model, variables, config, task, mesh)


def from_model(model, variables, config, task: tasks.Task, mesh=None) -> Predictor:
    """The predictor of a Flax model and its variables.

    Args:
      mesh: of this host's devices, which hold `variables`; None: one device.
    """
    mesh = mesh or sharding.one_device()
    segment = inference.compiled(
        model, config, task, mesh, lambda prediction, _: inference.served(prediction, config)
    )

    def fit(image):
        return {'views': fitting.eval_views(image, config), 'size': image.shape[-3:-1]}

    def run(batch, stream):
        canvas = batching.canvas_of(batch['size'])
        return segment(variables, sharding.shard_batch(batch, mesh), canvas, stream)

    parts = sharding.batch_parts(mesh)
    return Predictor(
        fit, run, task, num_devices=parts, batch_size=batching.batch_size(config, parts)
    )


def read_artifact(path: Path) -> jax.export.Exported:
    """An exported function; ValueError if the file holds none."""
    try:
        return jax.export.deserialize(bytearray(path.read_bytes()))
    except OSError:
        raise
    except Exception as error:  # struct.error, AttributeError, TypeError, …
        raise ValueError(
            f'{path} is no exported model or is damaged: export it again (--mode=export); '
            f'{type(error).__name__}: {error}'
        ) from error


def from_artifact(folder: Path) -> Predictor:
    """The predictor of files that `export` wrote.

    Maps come at the exported size and are resized: each pixel takes its nearest one's value.

    Raises:
      ValueError: an earlier version wrote the files, or one is damaged.
    """
    if not (folder / export.ABOUT).is_file():
        raise ValueError(f'the export to {folder} was cut off: export it again (--mode=export)')
    about = json.loads((folder / export.ABOUT).read_text())
    if 'task' not in about:
        raise ValueError(
            f'{folder} was exported by an earlier version: export it again (--mode=export)'
        )
    options = export.OBJECT_OPTIONS + export.CLIP_OPTIONS
    evaluation = {name: about[name] for name in options if name in about}
    config = ConfigDict({'task': about['task'], 'eval': evaluation})
    task = tasks.build(config, about['labels'], about['things'])
    call = jax.jit(read_artifact(folder / export.ARTIFACT).call)
    variables = ocp.StandardCheckpointer().restore(folder.absolute() / 'params')

    def fit(image):
        fitted, size = fitting.fit(
            image,
            about['size'],
            antialias=about['antialias'],
            resample=about.get('resample', ''),  # not in the files of earlier versions
            stretch=about.get('stretch', False),
        )
        return {'views': ({'image': fitted, 'content': size},), 'size': size}

    def run(batch, stream):
        del stream  # no exported model goes on from clip to clip
        (view,) = batch['views']
        if not task.takes_clips:
            yield call(variables, view['image'], view['content'])
            return
        missing = about['clip_length'] - view['image'].shape[1]
        clips = np.pad(view['image'], [(0, 0), (0, missing), *[(0, 0)] * 3])
        found = call(variables, clips, view['content'], batch['shown'].sum(1, dtype=np.int32))
        of_clip = {name: found.pop(name) for name in inference.OF_CLIP if name in found}
        for number in range(batch['shown'].shape[1]):
            yield {name: x[:, number] for name, x in found.items()} | of_clip

    return Predictor(fit, run, task)
