"""The things of a panoptic source as instances, and those of videos as tracks."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from rankseg_jax.data import IGNORE_LABEL, InstanceSource, PanopticSource, TrackSource, rle
from rankseg_jax.data.report import Report


class ThingSource(InstanceSource):
    """The examples of a panoptic source without its stuff; classes are its things, from 0 on.

    Masks do not overlap, as the segments do not.

    Args:
      source: it has at least one thing.

    Raises:
      ValueError: it has none.
    """

    def __init__(self, source: PanopticSource):
        chosen = [label for label, thing in enumerate(source.things) if thing]
        if not chosen:
            raise ValueError('none of the categories of this data set is a thing: set `things`')
        self._source: Any = source
        # A label's place among the things; index -1 is IGNORE_LABEL.
        self._labels = np.full(len(source.class_names) + 1, IGNORE_LABEL, np.int32)
        self._labels[chosen] = np.arange(len(chosen))
        self.class_names = tuple(source.class_names[label] for label in chosen)
        self.category_ids = tuple(source.category_ids[label] for label in chosen)
        self.label_values = tuple(source.label_values[label] for label in chosen)
        self.prediction_values = tuple(source.prediction_values[label] for label in chosen)
        self.ids, self.image_ids = source.ids, source.image_ids
        self.published, self.annotated = source.published, source.annotated

    def load(self, index: int) -> dict[str, np.ndarray]:
        """See `Source.load`; stuff is ignored."""
        example = self._source.load(index)
        return example | {'label': self._labels[example['label']]}

    def instances(self, index: int) -> list[dict[str, Any]]:
        """See `InstanceSource.instances`; a segment without pixels has an empty mask."""
        ids, segments = self._source.segments(index)  # [H, W]
        instances = []
        for segment in segments:
            if (label := int(self._labels[segment['category_id']])) == IGNORE_LABEL:
                continue
            mask = ids == segment['id']  # [H, W]
            instances.append(
                {
                    'id': segment['id'],
                    'category_id': label,
                    'iscrowd': segment.get('iscrowd', 0),
                    'area': segment.get('area', int(mask.sum())),
                    'segmentation': rle.encode(mask) or rle.empty(ids.shape),
                }
            )
        return instances

    def check(self, max_corrupt: int | None = None) -> Report:
        """Validates the files of the panoptic source, stuff among them."""
        return self._source.check(max_corrupt)


class ThingTracks(ThingSource, TrackSource):
    """The videos of a source without its stuff, as `ThingSource`.

    Args:
      source: a TrackSource that is a PanopticSource, too.
    """

    def __init__(self, source: Any):
        super().__init__(source)
        self.videos, self.published_videos = source.videos, source.published_videos

    def tracks(self, video: int, frames: Sequence[int] | None = None) -> list[dict[str, Any]]:
        """See `TrackSource.tracks`."""
        found = [
            track | {'category_id': int(self._labels[track['category_id']])}
            for track in self._source.tracks(video, frames)
        ]
        return [track for track in found if track['category_id'] != IGNORE_LABEL]

    def size(self, video: int) -> tuple[int, int]:
        """See `TrackSource.size`."""
        return self._source.size(video)

    def video_id(self, video: int) -> int:
        """See `TrackSource.video_id`."""
        return self._source.video_id(video)
