"""Panoptic quality (Kirillov et al., CVPR 2019), counted as panopticapi counts it."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from flax import struct

VOID = 0  # id of pixels that belong to no segment


@struct.dataclass
class PanopticMetric:
    """Counts per category, on the host.

    The state is additive: over several hosts, the sum of each field is that of the whole data set.

    Attributes:
      iou: float64 [K], the sum over the matched pairs.
      matched: int64 [K] pairs (true positives).
      wrong: int64 [K] predicted segments without a partner (false positives).
      missed: int64 [K] true segments without a partner (false negatives).
    """

    iou: np.ndarray
    matched: np.ndarray
    wrong: np.ndarray
    missed: np.ndarray

    @classmethod
    def empty(cls, num_classes: int) -> 'PanopticMetric':
        return cls(np.zeros(num_classes), *(np.zeros(num_classes, np.int64) for _ in range(3)))

    @classmethod
    def from_image(
        cls,
        ids: np.ndarray,
        segments: Sequence[dict],
        predicted_ids: np.ndarray,
        predicted_segments: Sequence[dict],
        num_classes: int,
    ) -> 'PanopticMetric':
        """Counts one image; an image without a prediction has a map of 0 and no segments.

        Segments match if they have the same category and their overlap exceeds half of their union,
        which excludes predicted pixels that are void in the ground truth. Crowds match nothing. A
        prediction of which more than half lies in void or in a crowd of its category (the last one
        listed, if there are several) does not count as wrong.

        Args:
          ids: [H, W] integers, the ids of the true segments, 0 for void.
          segments: the true segments in COCO's format: dicts with 'id', 'category_id' in 0..K-1,
            and optionally 'iscrowd' (default 0) and 'area' (default: its pixels in `ids`).
          predicted_ids: [H, W] integers, the ids of the predicted segments, 0 for void.
          predicted_segments: dicts with 'id' and 'category_id'.
          num_classes: K.

        Raises:
          ValueError: the maps differ in size, the ids in `predicted_ids` are not those listed, or a
            category is not in 0..K-1.
        """
        if ids.shape != predicted_ids.shape:
            raise ValueError(
                f'the truth is {ids.shape}, but the prediction is {predicted_ids.shape}'
            )
        category = {segment['id']: segment['category_id'] for segment in segments}
        predicted = {segment['id']: segment['category_id'] for segment in predicted_segments}
        unknown = {c for c in (*category.values(), *predicted.values()) if not 0 <= c < num_classes}
        if unknown:
            raise ValueError(f'categories {sorted(unknown)} are not in 0..{num_classes - 1}')

        areas, predicted_areas, overlap = count_overlaps(ids, predicted_ids)
        if wrong := predicted.keys() ^ (predicted_areas.keys() - ({VOID} - predicted.keys())):
            raise ValueError(
                f'segments {sorted(wrong)} of the prediction are in its map or in its list, '
                'but not in both'
            )
        areas |= {segment['id']: segment['area'] for segment in segments if 'area' in segment}
        crowds = {segment['id'] for segment in segments if segment.get('iscrowd')}

        metric = cls.empty(num_classes)
        done, predicted_done = set(), set()
        for (a, b), pixels in overlap.items():
            if a in category and category[a] == predicted.get(b) and a not in crowds:
                iou = pixels / (areas[a] + predicted_areas[b] - pixels - overlap.get((VOID, b), 0))
                if iou > 0.5:
                    metric.iou[category[a]] += iou
                    metric.matched[category[a]] += 1
                    done.add(a)
                    predicted_done.add(b)
        for a in category.keys() - crowds - done:
            metric.missed[category[a]] += 1
        # The last one listed of each category.
        crowd = {category[s['id']]: s['id'] for s in segments if s['id'] in crowds}
        for b in predicted.keys() - predicted_done:
            excused = overlap.get((VOID, b), 0) + overlap.get((crowd.get(predicted[b]), b), 0)
            metric.wrong[predicted[b]] += excused / predicted_areas[b] <= 0.5
        return metric

    def merge(self, other: 'PanopticMetric') -> 'PanopticMetric':
        """Adds up two states.

        Raises:
          ValueError: they have different numbers of categories.
        """
        if self.iou.shape != other.iou.shape:
            raise ValueError(
                f'cannot merge metrics of {self.iou.size} and {other.iou.size} categories'
            )
        return PanopticMetric(
            *(
                a + b
                for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
            )
        )

    def quality(self) -> float:
        """PQ alone, as in `compute`."""
        pairs = self.matched + self.wrong / 2 + self.missed / 2  # [K]
        seen = pairs > 0
        return float((self.iou[seen] / pairs[seen]).mean()) if seen.any() else float('nan')

    def compute(
        self, things: Sequence[bool] | np.ndarray, class_names: Sequence[str] | None = None
    ) -> dict:
        """The scores, as fractions.

        Args:
          things: bool [K]; the other categories are stuff.
          class_names: K names for the table; without them, the class numbers.

        Returns:
          PQ, SQ and RQ, means over the categories that occur in the ground truth or in the
          predictions; PQ_things, PQ_stuff and so on, over those alone; classes: K rows of name, PQ,
          SQ, RQ and segments (those of the ground truth that are not crowds). Means and rows
          without any segment are nan.

        Raises:
          ValueError: not K things or names.
        """
        names = (
            [str(label) for label in range(self.iou.size)] if class_names is None else class_names
        )
        things = np.asarray(things, bool)
        if not things.size == len(names) == self.iou.size:
            raise ValueError(
                f'{things.size} things and {len(names)} class names for {self.iou.size} categories'
            )
        pairs = self.matched + self.wrong / 2 + self.missed / 2
        seen = pairs > 0
        scores = {
            'PQ': self.iou / np.where(seen, pairs, 1),
            'SQ': self.iou / np.maximum(self.matched, 1),
            'RQ': self.matched / np.where(seen, pairs, 1),
        }  # [K] each
        result = {}
        for suffix, group in (('', seen), ('_things', seen & things), ('_stuff', seen & ~things)):
            result |= {
                name + suffix: float(x[group].mean()) if group.any() else float('nan')
                for name, x in scores.items()
            }
        rows = [
            {'name': name}
            | {key: float(x[i]) if seen[i] else float('nan') for key, x in scores.items()}
            | {'segments': int(self.matched[i] + self.missed[i])}
            for i, name in enumerate(names)
        ]
        return result | {'classes': rows}


def count_overlaps(ids: np.ndarray, predicted_ids: np.ndarray) -> tuple[dict, dict, dict]:
    """Pixels of each id in two maps [H, W], by id, and of each pair of ids that meet, by pair."""
    values, places = np.unique(ids, return_inverse=True)
    others, other_places = np.unique(predicted_ids, return_inverse=True)
    shape = (len(values), len(others))
    pairs = places.ravel() * len(others) + other_places.ravel()  # [pixels]
    table = np.bincount(pairs, minlength=shape[0] * shape[1]).reshape(shape)
    areas = dict(zip(values.tolist(), table.sum(1).tolist(), strict=True))
    other_areas = dict(zip(others.tolist(), table.sum(0).tolist(), strict=True))
    overlaps = {
        (values[i].item(), others[j].item()): table[i, j].item()
        for i, j in zip(*table.nonzero(), strict=True)
    }
    return areas, other_areas, overlaps
