"""Prediction on any image: label map, ranked categories, pictures.

    predictor = rankseg_jax.predict.load(workdir)
    result = predictor('street.jpg')
    result.labels, result.categories, result.overlay()
"""

import dataclasses
import itertools
import json
from functools import partial
from pathlib import Path

import jax
import jax.export
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from ml_collections import ConfigDict
from PIL import Image

from rankseg_jax import checkpoint, data, export, inference, models, sharding, visualize
from rankseg_jax.data import CorruptExample, folder, transforms
from rankseg_jax.multilabel import pixel_counts
from rankseg_jax.ranking import select


@dataclasses.dataclass
class Result:
    """What is seen in one image.

    Attributes:
      image: uint8 [H, W, 3].
      labels: int32 [H, W], class ids.
      categories: (name, confidence) of the κ selected categories, best first; empty for the baseline.
      class_names: K names.
    """

    image: np.ndarray
    labels: np.ndarray
    categories: list[tuple[str, float]]
    class_names: tuple[str, ...]

    def overlay(self) -> Image.Image:
        """The label map over the image, with a legend of names."""
        return visualize.overlay(self.image, self.labels, self.class_names)

    def panel(self, label=None) -> Image.Image:
        """Image · ground truth, if given · prediction · ranked categories."""
        return visualize.panel(self.image, self.labels, self.categories[:12], self.class_names, label)

    def save(self, path):
        """Writes `<path>.png` (label map, 16-bit if K > 256), `<path>_overlay.png` and `<path>.json`."""
        dtype = np.uint8 if len(self.class_names) <= 256 else np.uint16
        Image.fromarray(self.labels.astype(dtype)).save(f'{path}.png')
        self.overlay().save(f'{path}_overlay.png')
        rows = [{'category': name, 'confidence': round(score, 6)} for name, score in self.categories]
        Path(f'{path}.json').write_text(json.dumps({'categories': rows}, indent=1))


class Predictor:
    """A trained model, ready for images: calls take uint8 arrays [H, W, 3], PIL images or paths.

    Attributes:
      segment: (image uint8 [H, W, 3], presence [1, K] bool or None) -> (labels int32 [H, W], class ids of the selected
        categories [κ], their confidences [κ]).
      class_names: K names.
    """

    def __init__(self, segment, class_names):
        self.segment, self.class_names = segment, tuple(class_names)

    def __call__(self, image, label=None) -> Result:
        """Predicts one image; `label` [H, W], the ground truth, is for the oracle alone.

        Raises:
          CorruptExample: the file cannot be read.
          ValueError: an array of another shape or type; the oracle without `label`.
        """
        if isinstance(image, str | Path):
            image = folder.read_image(Path(image))
        elif isinstance(image, Image.Image):
            image = folder.to_rgb(image)
        image = np.asarray(image)
        if image.ndim != 3 or image.shape[-1] != 3 or image.dtype != np.uint8 or not image.size:
            raise ValueError(f'an image must be uint8 [H, W, 3], got {image.dtype} {list(image.shape)}')
        presence = None if label is None else pixel_counts(np.asarray(label)[None], len(self.class_names)) > 0
        labels, categories, confidences = self.segment(image, presence)
        found = [(self.class_names[c], float(p)) for c, p in zip(categories, confidences, strict=True)]
        return Result(image, labels, found, self.class_names)


def from_model(model, variables, config):
    """The function `Predictor.segment` of a Flax model and its variables."""
    @partial(jax.jit, static_argnames='canvas')
    def forward(variables, views, size, presence, canvas):
        views, size = jax.tree.map(lambda x: x[None], (views, size))
        labels, _, class_logits = inference.segment(model, variables, views, size, config, canvas=canvas, presence=presence)
        if class_logits is None:
            return labels[0], (), ()
        selection = select(class_logits, config.rankseg.num_selected)
        return labels[0], selection.labels[0], jax.nn.sigmoid(selection.scores[0])

    def segment(image, presence):
        height, width = image.shape[:2]
        canvas = (-(-height // 64) * 64, -(-width // 64) * 64)  # few shapes to compile
        views = jax.tree.map(lambda x: x.numpy(), transforms.eval_views(image, config))
        labels, *categories = jax.device_get(forward(variables, views, np.array([height, width]), presence, canvas))
        return labels[:height, :width], *categories

    return segment


def from_artifact(folder: Path, size):
    """The function `Predictor.segment` of files that `export` wrote, for inputs of `size` (rows, columns).

    Label maps come at that size and are resized, each pixel taking its nearest one's label.
    """
    call = jax.jit(jax.export.deserialize((folder / export.ARTIFACT).read_bytes()).call)
    variables = ocp.StandardCheckpointer().restore(folder.absolute() / 'params')

    def segment(image, presence):
        rows, columns = transforms.fitted_size(image.shape[:2], size).numpy()
        images = np.zeros((1, *size, 3), np.uint8)
        images[0, :rows, :columns] = transforms.resize_image(image, (rows, columns)).numpy().round()
        found = jax.device_get(call(variables, images, np.array([[rows, columns]], np.int32)))
        labels = Image.fromarray(found['labels'][0, :rows, :columns])
        labels = labels.resize(image.shape[1::-1], Image.Resampling.NEAREST)
        return np.array(labels), *(found[key][0] if key in found else () for key in ('categories', 'confidences'))

    return segment


def load(workdir, which: str | int = 'last', config=None) -> Predictor:
    """The predictor of a run: `which` is 'last', 'best' (by mIoU) or the step of a checkpoint.

    Args:
      workdir: of the run; or the folder of an exported model, for which the rest has no meaning.
      config: of the model and its input; None: the one it was trained with.

    Raises:
      FileNotFoundError: no such checkpoint.
      ValueError: `config` describes another model.
    """
    workdir = Path(workdir)
    if (workdir / export.ARTIFACT).is_file():
        about = json.loads((workdir / 'labels.json').read_text())
        return Predictor(from_artifact(workdir, tuple(about['size'])), about['labels'])
    manager = checkpoint.open_checkpoints(workdir)
    step = checkpoint.find(manager, which)
    run = checkpoint.restore_run(manager, step)
    config = config or ConfigDict(run['config'])
    model = models.build(config, len(run['class_names']))
    mesh = sharding.make_mesh(1)
    variables = models.restore(manager, step, model, config, len(run['class_names']), sharding.copied(mesh))
    return Predictor(from_model(model, variables, config), run['class_names'])


def find_images(inputs) -> list[Path]:
    """Image files of a list of images, folders (their images, not deeper) and .txt lists of paths, a line each.

    Raises:
      FileNotFoundError: something does not exist, or there is no image at all.
    """
    found = []
    for path in map(Path, inputs):
        if path.is_dir():
            found += sorted(p for p in path.iterdir() if p.suffix.lower() in folder.IMAGE_SUFFIXES)
        elif path.suffix == '.txt' and path.exists():
            found += [path.parent / line.strip() for line in path.read_text('utf-8-sig').splitlines() if line.strip()]
        else:
            found.append(path)
    missing = [str(path) for path in found if not path.is_file()]
    if missing:
        raise FileNotFoundError(f'--input: no image file {", ".join(missing)}')
    if not found:
        raise FileNotFoundError(f'--input: no images in {", ".join(map(str, inputs))}')
    return found


def predict_files(predictor: Predictor, inputs, output) -> Path:
    """Predicts images from disk into the folder `output`; see `Result.save`. Unreadable ones are named and skipped.

    Raises:
      FileNotFoundError: as `find_images`.
      CorruptExample: not one of the images could be read.
      ValueError: `output` is a folder that images come from, which label maps might overwrite.
    """
    output = Path(output)
    paths = find_images(inputs)
    if output.resolve() in {path.resolve().parent for path in paths}:
        raise ValueError(f'--output={output} holds the images themselves; choose another folder')
    output.mkdir(parents=True, exist_ok=True)
    names, failed = set(), []
    for path in paths:
        try:
            result = predictor(path)
        except CorruptExample as error:
            logging.error('Skipped: %s', error)
            failed.append(str(error))
            continue
        candidates = itertools.chain([path.stem, path.name], (f'{path.name}_{i}' for i in itertools.count(2)))
        name = next(n for n in candidates if not {n, f'{n}_overlay'} & names)
        names |= {name, f'{name}_overlay'}
        result.save(output / name)
        best = ', '.join(f'{category} {score:.2f}' for category, score in result.categories[:5])
        print(f'{path} -> {output / name}.png  {best}', flush=True)
    if not names:
        raise CorruptExample('no image could be read: ' + '; '.join(failed))
    return output


def predict_split(predictor: Predictor, config, output) -> Path:
    """Predicts the first `config.num_pictures` images of the evaluation split and draws them beside their ground truth.

    Returns the picture `grid.png` in `output` that shows them all; each one's panel, label map, overlay and JSON lie beside it.

    Raises:
      CorruptExample: not one of the images could be read.
    """
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    source = data.get_source(config.data, config.data.eval_split)
    panels = []
    for index in range(min(config.num_pictures, len(source))):
        try:
            example = source.load(index)
        except CorruptExample as error:
            logging.error('Skipped: %s', error)
            continue
        result = predictor(example['image'], example['label'])
        name = Path(source.ids[index]).stem
        result.save(output / name)
        panels.append(result.panel(example['label']))
        panels[-1].save(output / f'{name}_panel.png')
    if not panels:
        raise CorruptExample(f'not one of the first {config.num_pictures} images of {config.data.eval_split!r} could be read')
    visualize.grid(panels).save(output / 'grid.png')
    return output / 'grid.png'
