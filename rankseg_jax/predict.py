"""Prediction on any image: label map, segments, ranked categories, drawings.

    predictor = rankseg_jax.predict.load(workdir)
    result = predictor('street.jpg')
    result.labels, result.categories, result.overlay()

The result is the task's, such as `tasks.semantic.Result`.
"""

import itertools
import json
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import jax
import jax.export
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from ml_collections import ConfigDict
from PIL import Image

from rankseg_jax import (
    checkpoint,
    data,
    export,
    inference,
    models,
    sharding,
    storage,
    tasks,
    visualize,
)
from rankseg_jax.data import CorruptExample, fitting, images
from rankseg_jax.multilabel import pixel_counts
from rankseg_jax.tasks.semantic import Result

CANVAS_MULTIPLE = 64  # of the sides of results, so that few shapes are compiled


class Predictor:
    """A trained model, ready for images: calls take uint8 arrays [H, W, 3], PIL images or paths.

    Attributes:
      segment: (image uint8 [H, W, 3], presence [1, K] bool or None) → what `inference.served` says
        of this image, its maps of the image's size.
      task: a `tasks.Task`.
    """

    def __init__(self, segment: Callable, task: tasks.Task):
        self.segment, self.task = segment, task

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
        if isinstance(image, str | Path):
            image = images.read_image(Path(image))
        elif isinstance(image, Image.Image):
            image = images.to_rgb(image)
        image = np.asarray(image)
        if image.ndim != 3 or image.shape[-1] != 3 or image.dtype != np.uint8 or not image.size:
            raise ValueError(
                f'an image must be uint8 [H, W, 3], got {image.dtype} {list(image.shape)}'
            )
        presence = None
        if label is not None:
            presence = pixel_counts(np.asarray(label)[None], self.task.num_classes) > 0
        found = self.segment(image, presence)
        ranked = zip(
            found.get('categories', np.array([])).tolist(),
            found.get('confidences', np.array([])).tolist(),
            strict=True,
        )
        categories = [(self.class_names[c], confidence) for c, confidence in ranked]
        return self.task.result(image, found, categories)


def from_model(model, variables, config, task: tasks.Task) -> Predictor:
    """The predictor of a Flax model and its variables."""

    @partial(jax.jit, static_argnames='canvas')
    def forward(variables, views, size, presence, canvas):
        views, size = jax.tree.map(lambda x: x[None], (views, size))
        prediction = inference.segment(
            model, variables, views, size, config, task, canvas=canvas, presence=presence
        )
        return jax.tree.map(lambda x: x[0], inference.served(prediction, config))

    def segment(image, presence):
        size = np.array(image.shape[:2])
        canvas = tuple((-(-size // CANVAS_MULTIPLE) * CANVAS_MULTIPLE).tolist())
        views = fitting.eval_views(image, config)
        found = jax.device_get(forward(variables, views, size, presence, canvas))
        return task.cut(found, size)

    return Predictor(segment, task)


def from_artifact(folder: Path) -> Predictor:
    """The predictor of files that `export` wrote.

    Maps come at the exported size and are resized: each pixel takes its nearest one's value.

    Raises:
      ValueError: an earlier version wrote the files.
    """
    about = json.loads((folder / 'labels.json').read_text())
    if 'task' not in about:
        raise ValueError(
            f'{folder} was exported by an earlier version: export it again (--mode=export)'
        )
    config = ConfigDict({'task': about['task']})
    task = tasks.build(config, about['labels'], about['things'])
    call = jax.jit(jax.export.deserialize(bytearray((folder / export.ARTIFACT).read_bytes())).call)
    variables = ocp.StandardCheckpointer().restore(folder.absolute() / 'params')

    def segment(image, presence):
        fitted, size = fitting.fit(image, about['size'], antialias=about['antialias'])
        found = jax.device_get(call(variables, fitted[None], size[None]))
        found = task.cut({name: x[0] for name, x in found.items()}, size)
        for name in task.maps:
            resized = Image.fromarray(found[name]).resize(
                image.shape[1::-1], Image.Resampling.NEAREST
            )
            found[name] = np.array(resized)
        return found

    return Predictor(segment, task)


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
    workdir = Path(workdir)
    if (workdir / export.ARTIFACT).is_file():
        return from_artifact(workdir)
    saved = checkpoint.open_run(workdir, which)
    config = config or saved.config
    task = tasks.build(config, saved.class_names, saved.things)
    model = models.build(config, task.num_classes)
    variables = models.restore(saved, model, config, sharding.make_mesh(1))
    return from_model(model, variables, config, task)


def find_images(inputs: Iterable[str | Path]) -> list[Path]:
    """Image files among images, folders (not their subfolders) and .txt lists, a path a line.

    Raises:
      FileNotFoundError: something does not exist, or there is no image at all.
    """
    found = []
    for path in map(Path, inputs):
        if path.is_dir():
            found += sorted(p for p in path.iterdir() if p.suffix.lower() in images.IMAGE_SUFFIXES)
        elif path.suffix == '.txt' and path.exists():
            lines = path.read_text('utf-8-sig').splitlines()
            found += [path.parent / line.strip() for line in lines if line.strip()]
        else:
            found.append(path)
    missing = [str(path) for path in found if not path.is_file()]
    if missing:
        raise FileNotFoundError(f'--input: no image file {", ".join(missing)}')
    if not found:
        raise FileNotFoundError(f'--input: no images in {", ".join(map(str, inputs))}')
    return found


def predict_files(predictor: Predictor, inputs, output) -> Path:
    """Predicts images from disk into the folder `output`; see `Result.save`.

    Unreadable images are named and skipped.

    Raises:
      FileNotFoundError: as `find_images`.
      CorruptExample: not one of the images could be read.
      ValueError: `output` is a folder that images come from, which label maps might overwrite.
    """
    output = Path(output)
    paths = find_images(inputs)
    if output.resolve() in {path.resolve().parent for path in paths}:
        raise ValueError(f'--output={output} holds the images themselves; choose another folder')
    storage.make_folder(output)
    taken, failed = set(), []
    for path in paths:
        try:
            result = predictor(path)
        except CorruptExample as error:
            logging.error('Skipped: %s', error)
            failed.append(str(error))
            continue
        names = itertools.chain(
            [path.stem, path.name], (f'{path.name}_{i}' for i in itertools.count(2))
        )
        name = next(n for n in names if not {n + suffix for suffix in result.suffixes} & taken)
        taken |= {name + suffix for suffix in result.suffixes}
        result.save(output / name)
        best = ', '.join(f'{category} {score:.2f}' for category, score in result.categories[:5])
        print(f'{path} -> {output / name}.png  {best}', flush=True)
    if not taken:
        raise CorruptExample('no image could be read: ' + '; '.join(failed))
    return output


def predict_split(predictor: Predictor, config, output) -> Path:
    """Predicts the first `config.num_pictures` images of the evaluation split, with the truth.

    Returns:
      `grid.png` in `output`, which shows them all. Each one's panel, label map, overlay and JSON
      are beside it.

    Raises:
      CorruptExample: not one of the images could be read.
      ValueError: the data has other categories than the model.
    """
    source = data.get_source(config.data, config.data.eval_split)
    checkpoint.check_categories(predictor.task, source, where='the model', data_config=config.data)
    output = storage.make_folder(output)
    panels = []
    for index in range(min(config.num_pictures, len(source))):
        try:
            example = source.load(index)
        except CorruptExample as error:
            logging.error('Skipped: %s', error)
            continue
        result = predictor(example['image'], example['label'])
        # With the folder's name, since videos have frames of the same name.
        name = Path(source.ids[index]).with_suffix('').as_posix().replace('/', '_')
        result.save(output / name)
        panels.append(result.panel(**predictor.task.truth(source, index, example['label'])))
        panels[-1].save(output / f'{name}_panel.png')
    if not panels:
        raise CorruptExample(
            f'not one of the first {config.num_pictures} images of '
            f'{config.data.eval_split!r} could be read'
        )
    visualize.grid(panels).save(output / 'grid.png')
    return output / 'grid.png'
