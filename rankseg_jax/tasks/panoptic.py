"""Panoptic segmentation: a label map and its segments, from per-query outputs."""

import dataclasses
from pathlib import Path
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from PIL import Image

from rankseg_jax.data import IGNORE_LABEL, PanopticSource, coco
from rankseg_jax.metrics.panoptic import PanopticMetric
from rankseg_jax.outputs import QueryOutput
from rankseg_jax.postprocessing import View, covered, map_tiles
from rankseg_jax.ranking import from_ranks, gather
from rankseg_jax.tasks import queries
from rankseg_jax.tasks.query_task import QueryTask
from rankseg_jax.tasks.result import Result


@dataclasses.dataclass
class PanopticResult(Result):
    """The label map of an image and its segments.

    Attributes:
      segment_ids: int32 [H, W], 1 + place in `segments`; 0: void.
      segments: (class id, score) of each segment.
    """

    segment_ids: np.ndarray = dataclasses.field()  # without a default; `Result` has None
    segments: list[tuple[int, float]] = dataclasses.field()

    def segment_labels(self) -> np.ndarray:
        """[H, W] int32, the class of each pixel's segment; IGNORE_LABEL for void."""
        table = np.array([IGNORE_LABEL, *(label for label, _ in self.segments)], np.int32)
        return table[self.segment_ids]

    def summary(self):
        """The number of segments, and a way out if there are none."""
        found = f'{len(self.segments)} segments'
        if not self.segments:
            found = 'no segment reaches config.eval.threshold, lower it to see more'
        return '; '.join(filter(None, [found, super().summary()]))

    def save(self, path, source=''):
        """As `Result.save`, and `<path>_panoptic.png`: its colors are segment ids, as in COCO."""
        super().save(path, source)
        Image.fromarray(coco.ids_to_rgb(self.segment_ids)).save(f'{path}_panoptic.png')

    def content(self):
        labels = [label for label, _ in self.segments]
        infos = coco.segments_info(self.segment_ids, labels, range(len(self.class_names)))
        segments = [
            info
            | {
                'category': self.class_names[info['category_id']],
                'score': round(self.segments[info['id'] - 1][1], 6),
            }
            for info in infos
        ]
        return super().content() | {'segments_info': segments}


class Panoptic(QueryTask):
    """Also learns the segments of an image, and scores panoptic quality."""

    maps = ('labels', 'segment_ids')
    suffixes = ('', '_overlay', '_panoptic')
    columns = ('PQ', 'IoU', 'Acc')
    best_by = 'PQ'
    image_score_name = 'PQ'
    scores_images = True

    def __init__(self, config, class_names, things=()):
        super().__init__(config, class_names, things)
        if not self.things:
            raise ValueError(
                "config.task = 'panoptic', but the run was not trained for it: "
                'set --config.task=semantic'
            )

    @classmethod
    def from_source(cls, config, source):
        if not isinstance(source, PanopticSource):
            raise ValueError(
                f"config.task = 'panoptic' needs data with segments, which "
                f'{config.data.name} does not have'
            )
        return cls(config, source.class_names, source.things)

    def example(self, source, index, rng):
        """As `Task.example`; 'label' holds the place of each pixel's segment.

        Further arrays: 'segment_labels' [N] int32, the class of each segment, and 'left_out' int32,
        the number of segments without a place.
        """
        max_targets = self.config.data.max_targets
        labels, places, left_out = targets(*source.segments(index), max_targets)
        return {
            'image': source.load(index)['image'],
            'label': places,
            'segment_labels': labels,
            'left_out': left_out,
        }

    def stand_in(self):
        max_targets = self.config.data.max_targets
        return super().stand_in() | {
            'segment_labels': np.full([max_targets], IGNORE_LABEL, np.int32),
            'left_out': np.int32(0),
        }

    def targets(self, batch) -> queries.Targets:
        """The segments of a training batch."""
        return queries.visible_targets(batch['segment_labels'], batch['label'], batch['left_out'])

    def postprocess(self, views, selection, size, canvas):
        things = jnp.array(self.things)  # [K]
        if selection is None:
            things = jnp.broadcast_to(things, (size.shape[0], *things.shape))  # [B, K]
        else:
            things = gather(things, selection, 0)  # [B, κ]
        options = self.config.eval
        segments = panoptic_segments(
            views[0],
            things,
            size,
            threshold=options.threshold,
            overlap=options.overlap,
            keep_unsure=any(options.mask_size),
        )
        labels = segments.labels
        if selection is not None:
            labels = from_ranks(labels, selection)
        return super().postprocess(views, selection, size, canvas) | {
            'segment_ids': segments.ids,
            'segment_labels': labels,
            'segment_scores': segments.scores,
        }

    def result(self, image, found, categories):
        pairs = zip(found['segment_labels'].tolist(), found['segment_scores'].tolist(), strict=True)
        return PanopticResult(
            image=image,
            labels=found['labels'],
            categories=categories,
            class_names=self.class_names,
            segment_ids=found['segment_ids'],
            segments=[(label, score) for label, score in pairs if label >= 0],
        )

    def truth(self, source, index, label):
        truth = super().truth(source, index, label)
        if isinstance(source, PanopticSource):
            truth['segment_ids'] = source.segments(index)[0]
        return truth

    def empty_statistics(self):
        return super().empty_statistics() | {'segments': PanopticMetric.empty(self.num_classes)}

    def image_statistics(self, source, index, found):
        labels = [label for label in found['segment_labels'].tolist() if label >= 0]
        predicted = [{'id': i, 'category_id': label} for i, label in enumerate(labels, 1)]
        metric = PanopticMetric.from_image(
            *source.segments(index), found['segment_ids'], predicted, self.num_classes
        )
        return {'segments': metric}

    def image_score(self, metrics):
        return metrics['segments'].quality()

    def scores(self, statistics):
        quality = statistics['segments'].compute(self.things, self.class_names)
        quality['panoptic_classes'] = quality.pop('classes')
        scores = super().scores(statistics)
        for row, other in zip(scores['classes'], quality['panoptic_classes'], strict=True):
            row['PQ'] = other['PQ']
        return quality | scores

    def writer(self, output, source):
        return coco.Writer(Path(output) / 'predictions.json', coco.categories(source))

    def write(self, writer, source, index, found):
        labels = [label for label in found['segment_labels'].tolist() if label >= 0]
        name = Path(source.ids[index]).with_suffix('').as_posix().replace('/', '_')
        writer.write(source.image_ids[index], name, found['segment_ids'], labels)


def targets(ids, segments, max_targets: int) -> tuple[np.ndarray, np.ndarray, np.int32]:
    """The segments that queries learn: all but crowds, the `max_targets` largest.

    Args:
      ids: [H, W] integers.
      segments: dicts with 'id', 'category_id' in 0..K-1 and perhaps 'iscrowd'; an id without a dict
        is void.

    Returns:
      labels [max_targets] int32, IGNORE_LABEL after the last; int32 [H, W] places in them,
      IGNORE_LABEL for void and crowds; and the number of segments without a place.
    """
    values, index, areas = np.unique(ids, return_inverse=True, return_counts=True)
    area = dict(zip(values.tolist(), areas.tolist(), strict=True))
    held = [s for s in segments if s['id'] in area and not s.get('iscrowd')]
    chosen = sorted(held, key=lambda segment: -area[segment['id']])[:max_targets]
    labels = np.full(max_targets, IGNORE_LABEL, np.int32)
    labels[: len(chosen)] = [segment['category_id'] for segment in chosen]
    places = np.full(len(values), IGNORE_LABEL, np.int32)
    places[np.searchsorted(values, [segment['id'] for segment in chosen])] = np.arange(len(chosen))
    return labels, places[index.reshape(ids.shape)], np.int32(len(held) - len(chosen))


@struct.dataclass
class Segments:
    """Panoptic segments of a batch of images.

    Attributes:
      ids: [B, R, C] int32, 1 + place in the lists below; 0: void.
      labels: [B, Q] int32, the rank of each segment; -1 after the last.
      scores: [B, Q] float32, the class probability of the query that a segment comes from; for
        stuff, of the first one.
    """

    ids: jax.Array
    labels: jax.Array
    scores: jax.Array


def panoptic_segments(
    view: View,
    things,
    size,
    *,
    threshold: float = 0.8,
    overlap: float = 0.8,
    keep_unsure: bool = False,
) -> Segments:
    """Gives each pixel to the query with the greatest p(class) · σ(mask); merges stuff by class.

    The rule of Cheng et al. (CVPR 2022).

    Args:
      view: of a QueryOutput.
      things: [B, κ] bool, the ranks whose queries are segments of their own.
      size: [B, 2] int32, rows and columns of the image within the result; the rest is void.
      threshold: queries below this class probability, and those for no-object, are dropped.
      overlap: a query that keeps a smaller share of its mask (σ ≥ 0.5) is dropped too, and its
        pixels become void.
      keep_unsure: False, as released: pixels where the winner's σ is below 0.5 are void. True, as
        in HF transformers: they are the winner's, and its mask is where p(class) · σ ≥ 0.5.
    """
    output = cast(QueryOutput, view.output)  # `Panoptic.check` refuses the other kind
    num_queries, no_object = output.class_logits.shape[1], output.class_logits.shape[-1] - 1
    probabilities = jax.nn.softmax(output.class_logits.astype(jnp.float32))  # [B, Q, κ + 1]
    scores, labels = probabilities.max(-1), probabilities.argmax(-1)  # [B, Q]
    kept = (labels != no_object) & (scores > threshold)  # [B, Q]

    def winners(views, place, size, scores, kept):
        (tile,), (row, column) = views, place
        masks = tile.output.mask_probabilities(tile.rows, tile.columns)  # [1, Q, ROWS, COLUMNS]
        rows, columns = row + jnp.arange(masks.shape[2]), column + jnp.arange(masks.shape[3])
        inside = (rows[:, None] < size[0, 0]) & (columns < size[0, 1])  # [ROWS, COLUMNS]
        weighted = masks * scores[..., None, None]
        winner = jnp.where(kept[..., None, None], weighted, -1).argmax(1)  # [1, ROWS, COLUMNS]
        own = (winner[:, None] == jnp.arange(num_queries)[:, None, None]) & inside
        sure = ((weighted if keep_unsure else masks) >= 0.5) & inside
        shown = own if keep_unsure else own & sure
        areas = [x.sum((2, 3)) for x in (own, sure, shown)]  # [1, Q] each
        return jnp.where(shown.any(1), winner, num_queries), areas

    # [B, R, C], Q: nobody; [B, Q] each
    winner, (own, sure, shown) = map_tiles(winners, [view], size, size, scores, kept)
    inside = covered(size, winner.shape[1:])
    winner = jnp.where(inside, winner, num_queries)
    exists = kept & (shown > 0) & (sure > 0) & (own / jnp.maximum(sure, 1) >= overlap)

    # The first query of a class stands for all stuff of that class; others only for themselves.
    stuff = ~jnp.take_along_axis(things, jnp.minimum(labels, no_object - 1), -1)  # [B, Q]
    same = labels[:, :, None] == labels[:, None]  # [B, Q, Q]
    same &= stuff[:, :, None] & exists[:, None]
    place = jnp.arange(num_queries)
    first = jnp.where(stuff, same.argmax(-1), place)  # [B, Q]
    new = exists & (first == place)
    ids = jnp.where(exists, jnp.take_along_axis(jnp.cumsum(new, -1), first, -1), 0)  # [B, Q]
    slots = jnp.where(new, ids - 1, num_queries)

    def assemble(winner, ids, slots, labels, scores):  # of one image
        table = jnp.pad(ids, (0, 1))  # [Q + 1]
        labels = jnp.full(num_queries, -1, jnp.int32).at[slots].set(labels, mode='drop')
        scores = jnp.zeros(num_queries).at[slots].set(scores, mode='drop')
        return Segments(table[winner], labels, scores)

    return jax.vmap(assemble)(winner, ids, slots, labels, scores)
