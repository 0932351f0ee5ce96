"""Prediction on any image: label map, panoptic segments, ranked categories, pictures.

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
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from ml_collections import ConfigDict
from PIL import Image

from rankseg_jax import checkpoint, data, export, inference, models, sharding, visualize
from rankseg_jax.data import IGNORE_LABEL, CorruptExample, coco, fitting, images
from rankseg_jax.multilabel import pixel_counts

MAPS = {'labels', 'segment_ids'}  # of the size of the image, among what `inference.served` names


@dataclasses.dataclass
class Result:
    """What is seen in one image.

    Attributes:
      image: uint8 [H, W, 3].
      labels: int32 [H, W], class ids.
      categories: (name, confidence) of the κ selected categories, best first; empty for the baseline.
      class_names: K names.
      segment_ids: int32 [H, W], panoptic segments: 1 + place in `segments`, 0 for void; None if the model gives none.
      segments: (class id, score) of each segment.
    """

    image: np.ndarray
    labels: np.ndarray
    categories: list[tuple[str, float]]
    class_names: tuple[str, ...]
    segment_ids: np.ndarray | None = None
    segments: list[tuple[int, float]] = ()

    def overlay(self) -> Image.Image:
        """The label map, or the panoptic segments, over the image, with a legend of names."""
        labels, ids = self._drawn()
        return visualize.overlay(self.image, labels, self.class_names, segments=ids)

    def panel(self, label=None, segment_ids=None) -> Image.Image:
        """Image · ground truth, if given · prediction · ranked categories; `segment_ids` [H, W] of the ground truth."""
        labels, ids = self._drawn()
        return visualize.panel(
            self.image,
            labels,
            self.categories[:12],
            self.class_names,
            label,
            segments=ids,
            label_segments=segment_ids,
        )

    def _drawn(self):
        """The label map and segment ids that pictures show."""
        if self.segment_ids is None:
            return self.labels, None
        table = np.array([IGNORE_LABEL, *(label for label, _ in self.segments)])
        return table[self.segment_ids], self.segment_ids

    def save(self, path):
        """Writes `<path>.png` (label map, 16-bit if K > 256), `<path>_overlay.png` and `<path>.json`.

        Of panoptic segments also `<path>_panoptic.png`, whose colours are ids as in COCO's format; the JSON file lists them.
        """
        dtype = np.uint8 if len(self.class_names) <= 256 else np.uint16
        Image.fromarray(self.labels.astype(dtype)).save(f'{path}.png')
        self.overlay().save(f'{path}_overlay.png')
        content = {
            'categories': [
                {'category': name, 'confidence': round(score, 6)} for name, score in self.categories
            ]
        }
        if self.segment_ids is not None:
            Image.fromarray(coco.ids_to_rgb(self.segment_ids)).save(f'{path}_panoptic.png')
            infos = coco.segments_info(
                self.segment_ids,
                [label for label, _ in self.segments],
                range(len(self.class_names)),
            )
            content['segments_info'] = [
                info
                | {
                    'category': self.class_names[info['category_id']],
                    'score': round(self.segments[info['id'] - 1][1], 6),
                }
                for info in infos
            ]
        Path(f'{path}.json').write_text(json.dumps(content, indent=1))


class Predictor:
    """A trained model, ready for images: calls take uint8 arrays [H, W, 3], PIL images or paths.

    Attributes:
      segment: (image uint8 [H, W, 3], presence [1, K] bool or None) -> what `inference.served` says of this image.
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
            image = images.read_image(Path(image))
        elif isinstance(image, Image.Image):
            image = images.to_rgb(image)
        image = np.asarray(image)
        if image.ndim != 3 or image.shape[-1] != 3 or image.dtype != np.uint8 or not image.size:
            raise ValueError(
                f'an image must be uint8 [H, W, 3], got {image.dtype} {list(image.shape)}'
            )
        presence = (
            None
            if label is None
            else pixel_counts(np.asarray(label)[None], len(self.class_names)) > 0
        )
        found = self.segment(image, presence)
        categories, confidences, labels, scores = (
            found.get(name, np.array([])).tolist()
            for name in ('categories', 'confidences', 'segment_labels', 'segment_scores')
        )
        named = [(self.class_names[c], p) for c, p in zip(categories, confidences, strict=True)]
        segments = [
            (label, score) for label, score in zip(labels, scores, strict=True) if label >= 0
        ]
        return Result(
            image, found['labels'], named, self.class_names, found.get('segment_ids'), segments
        )


def from_model(model, variables, config, things=None):
    """The function `Predictor.segment` of a Flax model and its variables; with the bools `things` [K], panoptic."""

    @partial(jax.jit, static_argnames='canvas')
    def forward(variables, views, size, presence, canvas):
        views, size = jax.tree.map(lambda x: x[None], (views, size))
        prediction = inference.segment(
            model,
            variables,
            views,
            size,
            config,
            canvas=canvas,
            presence=presence,
            things=things and jnp.array(things),
        )
        return jax.tree.map(lambda x: x[0], inference.served(prediction, config))

    def segment(image, presence):
        height, width = image.shape[:2]
        canvas = (-(-height // 64) * 64, -(-width // 64) * 64)  # few shapes to compile
        views = fitting.eval_views(image, config)
        found = jax.device_get(
            forward(variables, views, np.array([height, width]), presence, canvas)
        )
        return {name: x[:height, :width] if name in MAPS else x for name, x in found.items()}

    return segment


def from_artifact(folder: Path, size, antialias):
    """The function `Predictor.segment` of files that `export` wrote, for inputs of `size` (rows, columns).

    Label maps come at that size and are resized, each pixel taking its nearest one's label.
    """
    call = jax.jit(jax.export.deserialize((folder / export.ARTIFACT).read_bytes()).call)
    variables = ocp.StandardCheckpointer().restore(folder.absolute() / 'params')

    def segment(image, presence):
        fitted, content = fitting.fit(image, size, antialias)
        found = jax.device_get(call(variables, fitted[None], content[None]))
        found = {name: x[0] for name, x in found.items()}
        rows, columns = content
        for name in MAPS & found.keys():
            picture = Image.fromarray(found[name][:rows, :columns])
            found[name] = np.array(picture.resize(image.shape[1::-1], Image.Resampling.NEAREST))
        return found

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
        return Predictor(
            from_artifact(workdir, tuple(about['size']), about.get('antialias', False)),
            about['labels'],
        )
    manager = checkpoint.open_checkpoints(workdir)
    step = checkpoint.find(manager, which)
    run = checkpoint.restore_run(manager, step)
    config = config or ConfigDict(run['config'])
    model = models.build(config, len(run['class_names']))
    mesh = sharding.make_mesh(1)
    variables = models.restore(
        manager, step, model, config, len(run['class_names']), sharding.copied(mesh)
    )
    return Predictor(
        from_model(model, variables, config, checkpoint.things_of(run, config)), run['class_names']
    )


def find_images(inputs) -> list[Path]:
    """Image files of a list of images, folders (their images, not deeper) and .txt lists of paths, a line each.

    Raises:
      FileNotFoundError: something does not exist, or there is no image at all.
    """
    found = []
    for path in map(Path, inputs):
        if path.is_dir():
            found += sorted(p for p in path.iterdir() if p.suffix.lower() in images.IMAGE_SUFFIXES)
        elif path.suffix == '.txt' and path.exists():
            found += [
                path.parent / line.strip()
                for line in path.read_text('utf-8-sig').splitlines()
                if line.strip()
            ]
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
        candidates = itertools.chain(
            [path.stem, path.name], (f'{path.name}_{i}' for i in itertools.count(2))
        )
        name = next(n for n in candidates if not {n, f'{n}_overlay', f'{n}_panoptic'} & names)
        names |= {name, f'{name}_overlay', f'{name}_panoptic'}
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
        name = (
            Path(source.ids[index]).with_suffix('').as_posix().replace('/', '_')
        )  # videos have frames of the same name
        result.save(output / name)
        panoptic = result.segment_ids is not None and len(source.things)
        segment_ids = source.segments(index)[0] if panoptic else None
        panels.append(result.panel(example['label'], segment_ids))
        panels[-1].save(output / f'{name}_panel.png')
    if not panels:
        raise CorruptExample(
            f'not one of the first {config.num_pictures} images of {config.data.eval_split!r} could be read'
        )
    visualize.grid(panels).save(output / 'grid.png')
    return output / 'grid.png'
