"""Instance segmentation: objects, whose masks may overlap, from per-query outputs."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from rankseg_jax.data import IGNORE_LABEL, InstanceSource, PanopticSource, Source, rle
from rankseg_jax.data.instances import ThingSource
from rankseg_jax.metrics.instances import InstanceMetric
from rankseg_jax.metrics.multilabel import MultilabelMetric
from rankseg_jax.outputs import QueryOutput
from rankseg_jax.postprocessing import View, covered, map_tiles
from rankseg_jax.ranking import from_ranks
from rankseg_jax.tasks import queries
from rankseg_jax.tasks.query_task import QueryTask
from rankseg_jax.tasks.result import Result
from rankseg_jax.visualize import overlays


@dataclasses.dataclass
class InstanceResult(Result):
    """The objects of an image, or those of a frame of a video.

    `labels` holds the classes of the pixels, those of better objects over those of worse.

    Attributes:
      masks: bool [N, H, W], best first.
      objects: (class id, score) of each object.
      ids: of each object, from 1 on; in a video those of its track.
    """

    masks: np.ndarray
    objects: list[tuple[int, float]]
    ids: list[int]

    @property
    def segment_ids(self) -> np.ndarray:
        """int32 [H, W], the id of each pixel's object; 0: none."""
        ids = np.zeros(self.labels.shape, np.int32)
        for mask, i in zip(self.masks[::-1], self.ids[::-1], strict=True):
            ids[mask] = i
        return ids

    def frame_overlay(self):
        """The objects over the image, each with its name; a track keeps its color."""
        names = [self.class_names[label] for label, _ in self.objects]
        scores = [score for _, score in self.objects]
        return overlays.track_overlay(self.image, self.masks, self.ids, names, scores)

    def summary(self):
        """The number of objects, and a way out if there are none."""
        found = f'{len(self.objects)} objects'
        if not self.objects:
            found = 'no object reaches config.eval.threshold, lower it to see more'
        return '; '.join(filter(None, [found, super().summary()]))

    def map_image(self):
        """`segment_ids`, 16 bits each."""
        return Image.fromarray(self.segment_ids.astype(np.uint16))

    def content(self):
        objects = [
            {
                'id': i,
                'category_id': label,
                'category': self.class_names[label],
                'score': round(score, 6),
                'segmentation': rle.encode(mask),
            }
            for i, mask, (label, score) in zip(self.ids, self.masks, self.objects, strict=True)
        ]
        return super().content() | {'objects': objects}


class Instance(QueryTask):
    """Finds objects; scores average precision and, with RankSeg, how well categories are found."""

    maps = ('masks',)
    columns = ('AP',)
    best_by = 'AP'
    image_score_name = 'AR'
    scores_images = True
    recall_at_objects = (1, 10, 100)

    @classmethod
    def adapt(cls, source):
        """A panoptic source's things are objects."""
        return ThingSource(source) if isinstance(source, PanopticSource) else source

    @classmethod
    def from_source(cls, config, source):
        if not isinstance(source, InstanceSource):
            raise ValueError(
                f'config.task = {config.task!r} needs data with objects, which {config.data.name} '
                'does not have'
            )
        check_crops(config)
        return cls(config, source.class_names)

    def example(self, source, index, rng):
        """As `Task.example`; 'label' holds the objects' masks as bits, see `queries.pack`.

        Further arrays: 'object_labels' [N] int32, their classes, and 'left_out' int32, the number
        of objects without a place.
        """
        image = source.load(index)['image']
        objects = [found for found in source.instances(index) if not found['iscrowd']]
        masks = [rle.decode(found['segmentation']) for found in objects]
        labels = [found['category_id'] for found in objects]
        masks = np.stack(masks) if masks else np.zeros((0, *image.shape[:2]), bool)
        return {'image': image} | self.packed(masks, np.array(labels, np.int32))

    def packed(self, masks: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
        """The arrays of an example for objects that may overlap, the largest of them.

        Args:
          masks: bool [N, (t,) H, W]; those without a pixel are left out.
          labels: int32 [N].
        """
        max_targets = self.config.data.max_targets
        areas = masks.sum(tuple(range(1, masks.ndim)))  # [N]
        order = np.argsort(-areas, stable=True)[: (areas > 0).sum()]
        chosen = order[:max_targets]
        bits = queries.pack(masks[chosen], max_targets)  # [words, (t,) H, W]
        places = np.full(max_targets, IGNORE_LABEL, np.int32)
        places[: len(chosen)] = labels[chosen]
        return {
            'label': bits.reshape(-1, *bits.shape[-2:]),
            'object_labels': places,
            'left_out': np.int32(len(order) - len(chosen)),
        }

    def stand_in(self):
        empty = self.packed(np.zeros((0, 1, 1), bool), np.zeros(0, np.int32))
        return super().stand_in() | empty

    def targets(self, batch) -> queries.OverlappingTargets:
        """The objects of a training batch."""
        space = batch['image'].shape[1:-1]
        bits = batch['label'].reshape(len(batch['label']), -1, *space)  # [B, words, *space]
        return queries.overlapping_targets(batch['object_labels'], bits, batch['left_out'])

    def postprocess(self, views, selection, size, canvas):
        """Finds the best pairs of query and category (Cheng et al., CVPR 2022).

        Returns:
          'masks' bool [B, M, *canvas] of the M best pairs, 'object_labels' int32 [B, M], and
          'object_scores' float32 [B, M]: p(class) · mean of σ within the mask.
        """
        (view,) = views
        classes = class_probabilities(view.output)  # [B, Q, κ]
        flat = classes.reshape(classes.shape[0], -1)  # [B, Q · κ]
        count = min(self.config.eval.max_objects, flat.shape[1])
        scores, pairs = jax.lax.top_k(flat, count)  # [B, M] each
        ranks = pairs % classes.shape[-1]
        labels = ranks if selection is None else from_ranks(ranks, selection)
        masks, certainty = object_masks(view, pairs // classes.shape[-1], size, canvas)
        return {'masks': masks, 'object_labels': labels, 'object_scores': scores * certainty}

    def result(self, image, found, categories):
        order = self.shown(found)
        masks, classes = found['masks'][order], found['object_labels'][order]
        return InstanceResult(
            image=image,
            labels=self.painted(found),
            categories=categories,
            class_names=self.class_names,
            masks=masks,
            objects=list(
                zip(classes.tolist(), found['object_scores'][order].tolist(), strict=True)
            ),
            ids=found['ids'][order].tolist() if 'ids' in found else list(range(1, len(order) + 1)),
        )

    def shown(self, found) -> np.ndarray:
        """The places of the objects that score enough, best first."""
        scores = found['object_scores']
        order = np.flatnonzero((scores >= self.config.eval.threshold) & found['masks'].any((1, 2)))
        return order[np.argsort(-scores[order], stable=True)]

    def painted(self, found) -> np.ndarray:
        """[H, W] int32: the classes of the objects, those of better ones over those of worse."""
        labels = np.full(found['masks'].shape[1:], IGNORE_LABEL, np.int32)
        for place in self.shown(found)[::-1]:
            labels[found['masks'][place]] = found['object_labels'][place]
        return labels

    def label_map(self, found):
        return self.painted(found)

    def empty_statistics(self):
        empty: dict[str, Any] = {'objects': InstanceMetric.empty()}
        if self.config.rankseg:
            empty['categories'] = MultilabelMetric.empty(self.recall_at())
        return empty

    def statistics(self, batch, prediction):
        return self.category_statistics(batch, prediction)

    def encode(self, examples, index, number, found):
        encoded = [rle.encode(mask) for mask in found['masks']]
        rows = zip(
            found['object_labels'].tolist(), found['object_scores'].tolist(), encoded, strict=True
        )
        return {
            'objects': [
                {'category_id': label, 'score': score, 'segmentation': mask}
                for label, score, mask in rows
                if mask
            ]
        }

    def image_statistics(self, source, index, found):
        return {'objects': InstanceMetric.from_image(source.instances(index), found['objects'])}

    def image_score(self, metrics):
        return metrics['objects'].recall()

    def scores(self, statistics):
        scores = statistics['objects'].compute(self.class_names, self.recall_at_objects)
        if 'categories' in statistics:
            scores |= statistics['categories'].compute()
        return scores

    def writer(self, output, source):
        def save(path, entries):
            write_coco(path, source, entries)

        return ResultsWriter(Path(output) / 'results.json', save)

    def write(self, writer, source, index, found):
        writer.entries.append((source.image_ids[index], found['objects']))


def class_probabilities(output) -> jax.Array:
    """p(rank) of each query, no-object left out: [B, Q, κ] float32."""
    output = cast(QueryOutput, output)  # `check` refuses the other kind
    return jax.nn.softmax(output.class_logits.astype(jnp.float32))[..., :-1]


def object_masks(view: View, chosen, size, canvas: tuple[int, int]):
    """The masks of some queries at the images' own sizes, and how certain they are.

    Args:
      view: of a QueryOutput of images.
      chosen: [B, M] int32, queries.
      size: [B, 2] int32, rows and columns of the images.
      canvas: (R, C) of the result.

    Returns:
      bool [B, M, R, C], where σ of the mask exceeds 1/2; and float32 [B, M], the mean of σ there.
    """
    output = cast(QueryOutput, view.output)
    logits = jnp.take_along_axis(output.mask_logits, chosen[..., None, None], axis=1)
    if output.direct:
        return settled_masks(logits, cast(jax.Array, view.held), size, canvas)
    view = View(dataclasses.replace(output, mask_logits=logits), view.rows, view.columns)

    def tile_masks(views, place, size):
        (tile,), (row, column) = views, place
        masks = tile.output.mask_probabilities(tile.rows, tile.columns)  # [1, M, ROWS, COLUMNS]
        rows, columns = row + jnp.arange(masks.shape[2]), column + jnp.arange(masks.shape[3])
        within = (rows[:, None] < size[0, 0]) & (columns < size[0, 1])  # [ROWS, COLUMNS]
        inside = (masks > 0.5) & within
        return inside, ((masks * inside).sum((2, 3)), inside.sum((2, 3)))

    masks, (total, area) = map_tiles(tile_masks, [view], size, size)
    masks &= covered(size, canvas)[:, None]
    return masks, total / (area + 1e-6)


def settled_masks(probabilities, held, size, canvas: tuple[int, int]):
    """As `object_masks`, as Hugging Face does: masks are settled before they are resized.

    Each pixel takes the value of a cell, and the mean is over cells.

    Args:
      probabilities: [B, M, h, w] float32, see `QueryOutput.settle`.
      held: [B, 2] int32, rows and columns of the cells that the image covers.
    """
    inside = (probabilities > 0.5) & covered(held, probabilities.shape[2:])[:, None]
    certainty = (probabilities * inside).sum((2, 3)) / (inside.sum((2, 3)) + 1e-6)  # [B, M]

    def cells(axis):  # [B, length], with the rounding of PyTorch's nearest-neighbor interpolation
        step = held[:, axis, None].astype(jnp.float32) / size[:, axis, None]
        place = jnp.floor(jnp.arange(canvas[axis]) * step).astype(jnp.int32)
        return jnp.minimum(place, held[:, axis, None] - 1)

    masks = jnp.take_along_axis(inside, cells(0)[:, None, :, None], axis=2)  # [B, M, R, w]
    masks = jnp.take_along_axis(masks, cells(1)[:, None, None], axis=3)  # [B, M, R, C]
    return masks & covered(size, canvas)[:, None], certainty


def check_crops(config) -> None:
    """Raises a ValueError if crops are drawn again for the shares of categories."""
    if config.augment.max_category_ratio < 1:
        raise ValueError(
            f'config.augment.max_category_ratio = {config.augment.max_category_ratio}: the objects '
            f'of config.task = {config.task!r} may overlap, set it to 1'
        )


class ResultsWriter:
    """Collects what is found; leaving its `with` block writes it all. Threads may share it.

    After an error nothing is written, and a file of before stays.

    Attributes:
      entries: (image or video id, what is found there).
    """

    def __init__(self, path: str | Path, save: Callable[[Path, list], None]):
        """`save` writes the entries in the order of their ids to the file `path`."""
        self.path, self.save, self.entries = Path(path), save, []

    def __enter__(self) -> 'ResultsWriter':
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, error, *_) -> None:
        if error is None:
            self.save(self.path, sorted(self.entries, key=lambda entry: entry[0]))


def write_coco(path: Path, source: Source, entries: list) -> None:
    """Writes predictions as COCO's server takes them.

    Args:
      entries: (image id, objects) of each image.
    """
    results = [
        {
            'image_id': image_id,
            'category_id': source.category_ids[found['category_id']],
            'segmentation': found['segmentation'],
            'score': found['score'],
        }
        for image_id, objects in entries
        for found in objects
    ]
    path.write_text(json.dumps(results))
