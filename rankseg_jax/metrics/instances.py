"""Average precision of masks in images (Lin et al., ECCV 2014) and of tracks in videos.

pycocotools matches and averages. Tracks count as in YouTubeVIS (Yang et al., ICCV 2019): the
overlap of two tracks is that of their masks in all frames together, and areas have other ranges.
"""

import contextlib
import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.cocoeval import COCOeval

from rankseg_jax.data import rle

MOST = 100  # predictions of a category that count in an image or video: those of highest score
ANY = (0, 1e10)
IMAGE_AREAS = (ANY, (0, 32**2), (32**2, 96**2), (96**2, 1e10))  # all, small, medium, large
VIDEO_AREAS = (ANY, (0, 128**2), (128**2, 256**2), (256**2, 1e10))


class Matches(NamedTuple):
    """What the predictions of a category in one image or video matched.

    Attributes:
      category_id: 0..K-1.
      pixels: of its objects, crowds among them.
      by_area: for each of the four ranges of areas, what `COCOeval.accumulate` reads of an image.
    """

    category_id: int
    pixels: int
    by_area: list[dict[str, Any]]


@dataclasses.dataclass
class InstanceMetric:
    """Matches by image or video, on the host: masks are not kept.

    Attributes:
      matches: those of an image or video follow each other.
    """

    matches: list[Matches]

    @classmethod
    def empty(cls) -> 'InstanceMetric':
        return cls([])

    @classmethod
    def from_image(cls, instances: Sequence[dict], predictions: Sequence[dict]) -> 'InstanceMetric':
        """Matches the predictions of one image with its objects, as COCO does.

        A crowd matches any number of predictions, each by the share of the prediction inside it;
        these count neither as right nor as wrong.

        Args:
          instances: see `data.InstanceSource.instances`; without an 'area', that of the mask counts
            for the ranges of areas.
          predictions: dicts with 'category_id' in 0..K-1, 'score' and 'segmentation', run lengths
            as `data.rle` has them.

        Raises:
          ValueError: masks differ in size.
        """

        def as_track(instance):
            areas = {'areas': [instance['area']]} if 'area' in instance else {}
            return instance | {'segmentations': [instance['segmentation']]} | areas

        truth, found = ([as_track(x) for x in group] for group in (instances, predictions))
        return cls(_match(truth, found, ranges=IMAGE_AREAS, inside_crowds=True))

    @classmethod
    def from_video(cls, tracks: Sequence[dict], predictions: Sequence[dict]) -> 'InstanceMetric':
        """Matches the predictions of one video with its tracks, as YouTubeVIS does.

        A crowd has the same overlap as any track, but may match several predictions, which count
        neither as right nor as wrong. The area of a track is the mean over the frames that show it.

        Args:
          tracks: see `data.TrackSource.tracks`, all frames of the video; perhaps with 'areas', for
            each frame a number or None, which then count for the ranges of areas.
          predictions: dicts with 'category_id' in 0..K-1, 'score' and 'segmentations', for each
            frame run lengths as `data.rle` has them, or None.

        Raises:
          ValueError: masks of a frame differ in size, or tracks in their number of frames.
        """
        return cls(_match(tracks, predictions, ranges=VIDEO_AREAS, inside_crowds=False))

    def merge(self, other: 'InstanceMetric') -> 'InstanceMetric':
        """Adds the matches of `other` to this metric, in place, and returns it.

        Where two predictions have the same score, those merged first come first.
        """
        self.matches.extend(other.matches)
        return self

    def recall(self) -> float:
        """The share of the objects that is found, mean over the overlaps 0.5, 0.55, …, 0.95.

        All categories count together, which suits one image or video; nan without an object.
        """
        found = total = 0
        for match in self.matches:
            areas = match.by_area[0]
            found += (areas['dtMatches'] & ~areas['dtIgnore']).sum() / len(areas['dtMatches'])
            total += (~areas['gtIgnore']).sum()
        return float(found / total) if total else float('nan')

    def curves(self, num_classes: int, recall_at: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Precision and recall of each category, from `COCOeval.accumulate`.

        Args:
          num_classes: K.
          recall_at: M numbers of predictions, see `compute`.

        Returns:
          Precision float64 [10, 101, K, 4] by overlap, recall, category and range of areas, of the
          100 best predictions; recall float64 [10, K, 4, M]. -1 without ground truth.

        Raises:
          ValueError: as `compute`.
        """
        if not all(1 <= most <= MOST for most in recall_at):
            raise ValueError(f'recall_at = {tuple(recall_at)} must be numbers in 1..{MOST}')
        by_category = [[] for _ in range(num_classes)]
        for match in self.matches:
            if not 0 <= match.category_id < num_classes:
                raise ValueError(
                    f'the category {match.category_id} is not in 0..{num_classes - 1}; name '
                    'categories by their place in class_names'
                )
            by_category[match.category_id].append(match)
        most = sorted({*recall_at, MOST})
        precision, recall = [], []
        for found in by_category:  # together, every category would take as long as the longest
            evaluation = COCOeval(iouType='segm')
            params = evaluation._paramsEval = evaluation.params
            params.catIds, params.imgIds, params.maxDets = [0], list(range(len(found))), most
            evaluation.evalImgs = [
                match.by_area[area] for area in range(len(params.areaRng)) for match in found
            ]
            with contextlib.redirect_stdout(None):
                evaluation.accumulate()
            curves: dict[str, Any] = evaluation.eval
            precision.append(curves['precision'][..., -1])  # [10, 101, 1, 4]
            recall.append(curves['recall'])  # [10, 1, 4, maxDets]
        places = [most.index(number) for number in recall_at]
        return np.concatenate(precision, 2), np.concatenate(recall, 1)[..., places]

    def compute(
        self, class_names: Sequence[str], recall_at: Sequence[int] = (1, 10, 100)
    ) -> dict[str, Any]:
        """The scores, as fractions; means over categories leave out those without ground truth.

        Args:
          class_names: K names.
          recall_at: numbers of predictions for each image or video and category, at most 100;
            YouTubeVIS reports (1, 10).

        Returns:
          AP: average precision, mean over the overlaps 0.5, 0.55, …, 0.95. AP50, AP75: at one
          overlap. APs, APm, APl: of small, medium and large objects. AR1, AR10, AR100: recall with
          so many predictions, mean over the overlaps. classes: K rows of name, AP and pixels
          (those of its objects). Without ground truth, a score is nan.

        Raises:
          ValueError: a category is not in 0..K-1, or `recall_at` not in 1..100.
        """
        precision, recall = self.curves(len(class_names), recall_at)
        scores = {
            'AP': _mean(precision[..., 0]),
            'AP50': _mean(precision[0, ..., 0]),
            'AP75': _mean(precision[5, ..., 0]),
            'APs': _mean(precision[..., 1]),
            'APm': _mean(precision[..., 2]),
            'APl': _mean(precision[..., 3]),
        }
        scores |= {f'AR{most}': _mean(recall[:, :, 0, m]) for m, most in enumerate(recall_at)}
        pixels = np.zeros(len(class_names), np.int64)
        for match in self.matches:
            pixels[match.category_id] += match.pixels
        rows = [
            {'name': name, 'AP': _mean(precision[:, :, label, 0]), 'pixels': int(pixels[label])}
            for label, name in enumerate(class_names)
        ]
        return scores | {'classes': rows}


def overlaps(
    predictions: Sequence[dict], truth: Sequence[dict], inside_crowds: bool = False
) -> np.ndarray:
    """The overlap of each prediction with each object: intersection over union in all frames.

    Args:
      predictions: D dicts with 'segmentations', for each frame compressed run lengths or None.
      truth: G such dicts.
      inside_crowds: of objects with 'iscrowd', the share of the prediction inside it instead.

    Returns:
      float64 [D, G]; 0 for two without a pixel.
    """
    common = np.zeros((len(predictions), len(truth)))  # [D, G] pixels
    frames = [
        zip(*(track['segmentations'] for track in group), strict=True)
        for group in (predictions, truth)
    ]
    for frame in zip(*frames, strict=False):  # without predictions or truth: none
        (rows, masks), (columns, others) = map(_visible, frame)
        if rows and columns:
            # To pycocotools everything is a crowd here: shares of the prediction, without a union.
            shares = coco_mask.iou(masks, others, [1] * len(others))  # [rows, columns]
            pixels = np.rint(shares * coco_mask.area(masks)[:, None])
            common[np.ix_(rows, columns)] += pixels
    areas, other_areas = (
        np.array([sum(_areas(track)) for track in group], float) for group in (predictions, truth)
    )
    union = areas[:, None] + other_areas - common  # [D, G]
    if inside_crowds:
        crowd = np.array([bool(track.get('iscrowd')) for track in truth], bool)  # [G]
        union = np.where(crowd, areas[:, None], union)
    return common / np.maximum(union, 1)


def _match(truth, predictions, *, ranges, inside_crowds) -> list[Matches]:
    _check([*truth, *predictions])
    groups = defaultdict(lambda: ([], []))  # category → its tracks, its predictions
    for place, tracks in enumerate((truth, predictions)):
        for track in tracks:
            groups[int(track['category_id'])][place].append(
                track | {'segmentations': [_compressed(mask) for mask in track['segmentations']]}
            )
    return [
        _match_category(label, *group, ranges=ranges, inside_crowds=inside_crowds)
        for label, group in sorted(groups.items())
    ]


def _match_category(label, truth, predictions, *, ranges, inside_crowds) -> Matches:
    predictions = sorted(predictions, key=lambda track: -track['score'])[:MOST]
    # The parts of `COCOeval.evaluate`, which prints, and would give crowds of videos those of
    # images.
    evaluation, key = COCOeval(iouType='segm'), (0, label)
    evaluation.ious[key] = overlaps(predictions, truth, inside_crowds)  # [D, G]
    # Ids from 1: 0 means that nothing matched.
    evaluation._gts[key] = [
        {
            'id': i,
            'area': _mean_area(track.get('areas') or _areas(track)),
            'iscrowd': int(track.get('iscrowd', 0)),
            'ignore': int(track.get('iscrowd', 0)),
        }
        for i, track in enumerate(truth, 1)
    ]
    evaluation._dts[key] = [
        {'id': i, 'area': _mean_area(_areas(track)), 'score': float(track['score'])}
        for i, track in enumerate(predictions, 1)
    ]
    by_area = []
    for limits in ranges:
        found = evaluation.evaluateImg(*key, limits, MOST)
        by_area.append(
            {'dtScores': found['dtScores']}
            | {name: found[name].astype(bool) for name in ('dtMatches', 'dtIgnore', 'gtIgnore')}
        )
    return Matches(label, sum(sum(_areas(track)) for track in truth), by_area)


def _check(tracks):
    """Raises a ValueError unless the masks of tracks are comparable."""
    lengths = {len(track['segmentations']) for track in tracks}
    if len(lengths) > 1:
        raise ValueError(
            f'tracks of one video have masks for {" and ".join(map(str, sorted(lengths)))} frames; '
            'each needs a mask or None for every frame'
        )
    for masks in zip(*(track['segmentations'] for track in tracks), strict=True):
        sizes = {tuple(mask['size']) for mask in masks if mask}
        if len(sizes) > 1:
            raise ValueError(
                f'masks of one image have the sizes {" and ".join(map(str, sorted(sizes)))}; '
                'resize the predictions to the size of the ground truth'
            )


def _compressed(mask):
    """Run lengths as pycocotools compares them, or None."""
    return rle.compress(mask) if mask and isinstance(mask['counts'], list) else mask


def _visible(masks):
    """The places of the masks that are there, and these masks."""
    places = [place for place, mask in enumerate(masks) if mask]
    return places, [masks[place] for place in places]


def _areas(track):
    """Pixels of a track in the frames that have a mask."""
    return [int(coco_mask.area(mask)) for mask in track['segmentations'] if mask]


def _mean_area(areas):
    """The mean over the frames that show something."""
    areas = [area for area in areas if area]
    return sum(areas) / len(areas) if areas else 0.0


def _mean(values):
    values = values[values > -1]
    return float(values.mean()) if values.size else float('nan')
