"""Sources of published data sets: random access to an official folder or to records."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rankseg_jax.data import (
    IGNORE_LABEL,
    CorruptExample,
    PanopticSource,
    Source,
    VideoSource,
    coco,
    images,
    videos,
)
from rankseg_jax.data.published import IGNORED, codecs
from rankseg_jax.data.published.label_maps import read_classes

if TYPE_CHECKING:
    from rankseg_jax.data.published.builder import Builder, VideoBuilder


class PublishedSource(Source):
    """Random access to a split of a published data set.

    Args:
      builder: the data set's builder class.
      split: one of `builder.PUBLISHED`.
      examples: N entries of `Builder.find`, or N records.
      ids: N file names.
    """

    def __init__(self, builder: type[Builder], split: str, examples: Sequence, ids: Sequence[str]):
        classes = read_classes(builder.CLASSES)
        self.class_names, self.category_ids = tuple(classes['names']), tuple(classes['ids'])
        self.label_values = tuple(builder.LABEL_VALUES or classes['ids'])
        self.prediction_values = tuple(builder.PREDICTION_VALUES or self.label_values)
        self.ids, self.image_ids = ids, [builder.image_id(name) for name in ids]
        self.published = builder.PUBLISHED[split]
        self._builder, self._examples = builder, examples

    def example(self, index: int) -> dict[str, Any]:
        """The features of `Builder.features`, images perhaps still encoded; raises as `load`."""
        try:
            entry = self._examples[index]
        except RuntimeError as error:  # of array_record
            raise CorruptExample(
                f'{self.ids[index]}: its record cannot be read: {error}'
            ) from error
        if isinstance(entry, tuple):  # not a record
            return self._builder.read(entry) | {'file_name': entry[0]}
        return entry

    def load(self, index: int) -> dict[str, np.ndarray]:
        """See `Source.load`."""
        return self._decode(self.example(index))

    def _decode(self, example):
        name = os.fsdecode(example['file_name'])  # bytes in a record
        image = codecs.decode_image(example['image'], name)  # [H, W, 3]
        label = codecs.decode_map(example['labels']).astype(np.int32)  # [H, W]
        if image.shape[:2] != label.shape:
            raise CorruptExample(images.size_mismatch(name, image.shape[:2], label.shape))
        label[label == IGNORED] = IGNORE_LABEL
        return {'image': image, 'label': label}


class PublishedPanopticSource(PublishedSource, PanopticSource):
    """A split of a published data set with segments."""

    def __init__(self, builder: type[Builder], split: str, examples: Sequence, ids: Sequence[str]):
        super().__init__(builder, split, examples, ids=ids)
        self.things = tuple(map(bool, read_classes(builder.CLASSES)['isthing']))

    def segments(self, index: int) -> tuple[np.ndarray, list[dict[str, Any]]]:
        """See `PanopticSource.segments`; the id 0 is void."""
        example = self.example(index)
        ids = coco.rgb_to_ids(codecs.decode_map(example['panoptic_ids']))  # [H, W]
        return ids, codecs.decode_rows(example['segments'])


class PublishedVideoSource(PublishedSource, VideoSource):
    """A split of a published data set of videos."""

    def __init__(
        self, builder: type[VideoBuilder], split: str, examples: Sequence, ids: Sequence[str]
    ):
        super().__init__(builder, split, examples, ids=ids)
        self.published_videos = builder.PUBLISHED_VIDEOS[split]
        self.videos = videos.group(ids)
