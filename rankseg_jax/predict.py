"""Prediction on any image: label map, segments, ranked categories, drawings.

    predictor = rankseg_jax.predict.load(workdir)
    result = predictor('street.jpg')
    result.labels, result.categories, result.overlay()

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
from rankseg_jax.data import CorruptExample, batching, fitting, images
from rankseg_jax.tasks.semantic import Result

LONGEST_NAME = 255  # bytes, on most file systems


class Predictor:
    """A trained model, ready for images: calls take uint8 arrays [H, W, 3], PIL images or paths.

    Attributes:
      fit: image uint8 [H, W, 3] → {'views', 'size'}, see `batching.stack`.
      segment: batch → the arrays that `inference.served` returns, on the device.
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

    def example(self, image) -> dict[str, Any]:
        """What `results` needs of an image; arguments and errors as `__call__`."""
        if isinstance(image, str | Path | Image.Image):
            config = self.task.config
            max_pixels = config.data.max_pixels if 'data' in config else images.MAX_PIXELS
            image = images.read_image(image, max_pixels)
        image = np.asarray(image)
        if image.ndim != 3 or image.shape[-1] != 3 or image.dtype != np.uint8 or not image.size:
            raise ValueError(
                f'an image must be uint8 [H, W, 3], got {image.dtype} {list(image.shape)}'
            )
        return self.fit(image) | {'image': image, 'index': 0}

    def results(self, examples: Iterable[dict[str, Any]], batch_size: int = 0):
        """Yields ('index', result) of each example; `batch_size` 0: as small as possible."""
        kept = {}  # by index, until the result is there

        def keep():
            for example in examples:
                kept[example['index']] = example
                yield example

        def run(batch):
            return batch, self.segment(batch)

        batches = batching.batches(keep(), batch_size or self.num_devices)
        for batch, found in batching.behind(map(run, batches)):
            found = jax.device_get(found)
            for i in np.flatnonzero(batch['mask']):
                example = kept.pop(int(batch['index'][i]))
                yield example['index'], self.result(example, {k: x[i] for k, x in found.items()})

    def result(self, example: dict[str, Any], found: dict[str, np.ndarray]) -> Result:
        """The result of one image from its arrays, of which maps take the image's size."""
        image, found = example['image'], self.task.cut(found, example['size'])
        for name in self.task.maps:
            if found[name].shape != image.shape[:2]:
                resized = Image.fromarray(found[name]).resize(
                    image.shape[1::-1], Image.Resampling.NEAREST
                )
                found[name] = np.array(resized)
        ranked = zip(
            found.get('categories', np.array([])).tolist(),
            found.get('confidences', np.array([])).tolist(),
            strict=True,
        )
        categories = [(self.class_names[c], confidence) for c, confidence in ranked]
        return self.task.result(image, found, categories)


def from_model(model, variables, config, task: tasks.Task, mesh=None) -> Predictor:
    """The predictor of a Flax model and its variables.

    Args:
      mesh: of this host's devices, which hold `variables`; None: one device.
    """
    mesh = mesh or sharding.make_mesh(1)
    segment = inference.compiled(
        model, config, task, mesh, lambda prediction, _: inference.served(prediction, config)
    )

    def fit(image):
        return {'views': fitting.eval_views(image, config), 'size': image.shape[:2]}

    def run(batch):
        canvas = batching.canvas_of(batch['size'])
        return segment(variables, sharding.shard_batch(batch, mesh), canvas)

    return Predictor(
        fit, run, task, num_devices=mesh.size, batch_size=batching.batch_size(config, mesh.size)
    )


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

    def fit(image):
        fitted, size = fitting.fit(
            image,
            about['size'],
            antialias=about['antialias'],
            resample=about.get('resample', ''),  # not in the files of earlier versions
            stretch=about.get('stretch', False),
        )
        return {'views': ({'image': fitted, 'content': size},), 'size': size}

    def run(batch):
        (view,) = batch['views']
        return call(variables, view['image'], view['content'])

    return Predictor(fit, run, task)


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
    available = config.mesh_data <= jax.device_count()
    mesh = sharding.make_mesh(config.mesh_data if available else -1)
    mesh, variables = sharding.local(mesh, models.restore(saved, model, config, mesh))
    return from_model(model, variables, config, task, mesh)


def find_images(inputs: Iterable[str | Path], output: Path) -> list[tuple[Path, Path]]:
    """Images among images, folders with their subfolders, and .txt lists, a path a line.

    Args:
      output: a folder to leave out of those that it lies in.

    Returns:
      Each image's path, and its path below the folder that was searched, or its name alone.

    Raises:
      FileNotFoundError: something does not exist, or there is no image at all.
    """
    found, output = [], output.resolve()
    for path in map(Path, inputs):
        if path.is_dir():
            below = [(image, image.relative_to(path)) for image in images.find(path)]
            if path.resolve() in output.parents:  # earlier predictions
                own = output.relative_to(path.resolve())
                below = [pair for pair in below if not pair[1].is_relative_to(own)]
            found += below
        elif path.suffix == '.txt' and path.exists():
            lines = path.read_text('utf-8-sig').splitlines()
            listed = [path.parent / line.strip() for line in lines if line.strip()]
            found += [(image, Path(image.name)) for image in listed]
        else:
            found.append((path, Path(path.name)))
    missing = [str(path) for path, _ in found if not path.is_file()]
    if missing:
        raise FileNotFoundError(f'--input: no image file {", ".join(missing)}')
    if not found:
        raise FileNotFoundError(f'--input: no images in {", ".join(map(str, inputs))}')
    return found


def predict_files(predictor: Predictor, inputs, output) -> Path:
    """Predicts images from disk into the folder `output`, in the subfolders that they lie in.

    See `Result.save`. Each host predicts its share. Images that cannot be read are skipped, and
    named at the end.

    Raises:
      FileNotFoundError: as `find_images`.
      CorruptExample: not one of the images could be read.
      ValueError: `output` is a folder that images come from, which label maps might overwrite.
    """
    output = Path(output)
    found = find_images(inputs, output)
    written = {(output / name).parent.resolve() for _, name in found}
    if written & {path.resolve().parent for path, _ in found}:
        raise ValueError(f'--output={output} holds the images themselves; choose another folder')
    storage.make_folder(output)
    names = output_names(found, predictor.task.suffixes)
    share = slice(jax.process_index(), None, jax.process_count())
    paths, names = [path for path, _ in found[share]], names[share]

    def save(item):
        place, result = item
        if not isinstance(result, CorruptExample):
            result.save(output / names[place], paths[place])
        return item

    failed = []
    with batching.progress('Predicting', len(paths)) as progress:
        results = predictor.many(paths)
        for place, result in batching.read_ahead(save, results, ahead=predictor.batch_size):
            progress.update()
            if isinstance(result, CorruptExample):
                logging.error('Skipped: %s', result)
                failed.append(str(result))
                continue
            line = f'{paths[place]} -> {output / names[place]}.png  {result.summary()}'
            progress.write(line)
    if len(failed) == len(paths):
        raise CorruptExample('no image could be read: ' + '; '.join(failed))
    if failed:
        lines = '\n  '.join(failed)
        print(f'{len(paths) - len(failed)} of {len(paths)} images predicted. Skipped:\n  {lines}')
    return output


def output_names(found: Sequence[tuple[Path, Path]], suffixes: Sequence[str]) -> list[str]:
    """A name below the output for each image's files: its own, unless it is taken or too long.

    Args:
      found: see `find_images`.
      suffixes: see `tasks.Task`.
    """
    longest = LONGEST_NAME - max(len(f'{suffix}.json') for suffix in suffixes)
    taken, chosen = set(), []
    for _, below in found:
        short = below.stem.encode()[: longest - 8].decode(errors='ignore')
        names = itertools.chain(
            [below.stem, below.name], (f'{short}_{i}' for i in itertools.count(2))
        )
        name = next(
            str(below.with_name(name))
            for name in names
            if len(name.encode()) <= longest
            and not {str(below.with_name(name + suffix)) for suffix in suffixes} & taken
        )
        taken |= {name + suffix for suffix in suffixes}
        chosen.append(name)
    return chosen


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
        name = Path(source.ids[index]).with_suffix('')
        result.save(output / name, source.ids[index])
        panels.append(result.panel(**predictor.task.truth(source, index, example['label'])))
        panels[-1].save(output / f'{name}_panel.png')
    if not panels:
        raise CorruptExample(
            f'not one of the first {config.num_pictures} images of '
            f'{config.data.eval_split!r} could be read'
        )
    visualize.grid(panels).save(output / 'grid.png')
    return output / 'grid.png'
