"""Data sets: what a source of examples offers, and how to open one by its name."""

from __future__ import annotations

import abc
import pkgutil
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rankseg_jax import storage
from rankseg_jax.data.report import Report

if TYPE_CHECKING:
    from ml_collections import ConfigDict

IGNORE_LABEL = -1  # in int32 labels, so that 255 stays a class like any other

# Name → the module or, for a published data set, the TFDS builder that opens it with
# `get_source(data_config, split)`. Imported on demand: builders need TensorFlow Datasets.
DATA_SETS = {
    'ade20k': 'published.ade20k:Ade20k',
    'ade20k_full': 'published.ade20k_full:Ade20kFull',
    'ade20k_panoptic': 'published.ade20k_panoptic:Ade20kPanoptic',
    'camvid': 'camvid',
    'coco_instance': 'published.coco_instance:CocoInstance',
    'coco_lvis': 'published.coco_lvis:CocoLvis',
    'coco_panoptic': 'published.coco_panoptic:CocoPanoptic',
    'coco_stuff10k': 'published.coco_stuff10k:CocoStuff10k',
    'coco_stuff164k': 'published.coco_stuff164k:CocoStuff164k',
    'emoji_scenes': 'emoji_scenes',
    'emoji_videos': 'emoji_videos',
    'folder': 'folder',
    'pascal_context59': 'published.pascal_context59:PascalContext59',
    'pascal_context60': 'published.pascal_context60:PascalContext60',
    'video_folder': 'video_folder',
    'vspw': 'published.vspw:Vspw',
    'youtube_vis_2019': 'published.youtube_vis_2019:YoutubeVis2019',
}


class CorruptExample(ValueError):
    """One example cannot be read. The message names the file and the reason."""


class Source(abc.ABC):
    """Random access to the labeled images of one split.

    A data set provides `class_names`, `ids` and `load`; the defaults of the rest suit a data set
    of images that has no file format of its own.

    Attributes:
      class_names: K names in label order.
      ids: N names by which a human finds the example.
      image_ids: N ids of the images in the data set's own files; default 0..N-1.
      category_ids: K ids of the classes in the data set's own files; default 0..K-1.
      label_values: K values of the classes in the data set's label maps; default 0..K-1.
      prediction_values: K values of the classes in label maps that its benchmark takes; default
        `label_values`.
      published: number of examples that the split should have; None: not stated.
      things: K bools of a `PanopticSource`, the other categories are stuff; otherwise empty.
      videos: (name, range of frame indices) of each video of a `VideoSource`; otherwise empty.
      published_videos: number of videos that the split should have; None: not stated.
      annotated: whether there is ground truth; without, all pixels are ignored.
    """

    class_names: tuple[str, ...]
    ids: Sequence[str]
    published: int | None = None
    things: Sequence[bool] = ()
    videos: Sequence[tuple[str, range]] = ()
    published_videos: int | None = None
    annotated: bool = True
    unit = 'images'  # what the examples are

    @cached_property
    def image_ids(self) -> Sequence[int | str]:
        return range(len(self))

    @cached_property
    def category_ids(self) -> Sequence[int]:
        return range(len(self.class_names))

    @cached_property
    def label_values(self) -> Sequence[int]:
        return range(len(self.class_names))

    @cached_property
    def prediction_values(self) -> Sequence[int]:
        return self.label_values

    def __len__(self) -> int:
        return len(self.ids)

    def share(self, place: int, count: int) -> Sequence[int]:
        """The examples that the host `place` of `count` hosts evaluates."""
        return range(place, len(self), count)

    def place(self, index: int, number: int) -> int:
        """Where the images' source holds frame `number` of an example; of images, the example."""
        return index

    @abc.abstractmethod
    def load(self, index: int) -> dict[str, np.ndarray]:
        """Reads {'image': uint8 [H, W, 3], 'label': int32 [H, W] in 0..K-1 or IGNORE_LABEL}.

        Raises:
          CorruptExample: the example cannot be read.
          ValueError: a label value is out of range.
        """

    def check(self, max_corrupt: int | None = None) -> Report:
        """Validates the files of the split before training; by default there is nothing to check.

        Args:
          max_corrupt: more unusable examples than this are a problem, not a warning.
        """
        return Report()


class PanopticSource(Source):
    """A source whose examples also have segments; it sets `things`."""

    @abc.abstractmethod
    def segments(self, index: int) -> tuple[np.ndarray, list[dict[str, Any]]]:
        """Reads the segments of an example as COCO's panoptic format has them.

        Returns:
          Segment ids int32 [H, W], and a dict for each segment: 'id', 'category_id' in 0..K-1
          and perhaps 'iscrowd', 'area' and 'bbox'. An id without a dict is void; a dict whose id
          no pixel has counts as a segment that was missed.

        Raises:
          CorruptExample: the example cannot be read.
        """


class InstanceSource(Source):
    """A source whose examples also have objects, which may overlap."""

    @abc.abstractmethod
    def instances(self, index: int) -> list[dict[str, Any]]:
        """Reads the objects of an example.

        Returns:
          A dict for each: 'id' int, 'category_id' in 0..K-1, 'iscrowd' 0 or 1, 'area' in pixels
          and 'segmentation', run lengths as `rle` has them.

        Raises:
          CorruptExample: the example cannot be read.
        """


class VideoSource(Source):
    """A source of video frames, all frames of a video in order; it sets `videos`.

    A frame is an example like any other: `for index in source.videos[v][1]: source.load(index)`
    goes through a video of any length with one frame in memory at a time.
    """

    def clip(self, video: int, frames: Sequence[int]) -> dict[str, Any]:
        """Reads some frames of a video, and nothing else of it.

        Args:
          video: place in `videos`.
          frames: t numbers in 0..length of the video - 1; `videos.sample` and `videos.windows`
            choose some.

        Returns:
          {'image': uint8 [t, H, W, 3], 'label': int32 [t, H, W] in 0..K-1 or IGNORE_LABEL}.

        Raises:
          CorruptExample: the frames differ in size; or as `load`.
          ValueError: as `load`.
        """
        indices = [self.videos[video][1][frame] for frame in frames]
        loaded = [self.load(index) for index in indices]
        size = loaded[0]['label'].shape
        for index, frame in zip(indices, loaded, strict=True):
            if frame['label'].shape != size:
                raise CorruptExample(
                    f'{self.ids[index]} has {frame["label"].shape} pixels, '
                    f'{self.ids[indices[0]]} {size}; the frames of a clip must have the same size'
                )
        return {
            'image': np.stack([frame['image'] for frame in loaded]),  # [t, H, W, 3]
            'label': np.stack([frame['label'] for frame in loaded]),  # [t, H, W]
        }

    def codes(self, index: int) -> np.ndarray:
        """Reads the values of a frame's label map, integers [H, W], for `metrics.video`.

        Unlike in `load`, ignored values that mean different things differ; by default, there is
        only one. Raises as `load`.
        """
        return self.load(index)['label']


class TrackSource(VideoSource):
    """A source whose videos also have tracks: objects that are followed from frame to frame."""

    @abc.abstractmethod
    def tracks(self, video: int, frames: Sequence[int] | None = None) -> list[dict[str, Any]]:
        """Reads the tracks of a video; their masks may overlap.

        Args:
          video: place in `videos`.
          frames: as for `clip`; None: all.

        Returns:
          A dict for each track, also for those that none of the frames shows: 'id' int,
          'category_id' in 0..K-1, 'iscrowd' 0 or 1, and 'segmentations': for each frame run
          lengths as `rle` has them, or None.

        Raises:
          CorruptExample: the tracks cannot be read.
        """

    def size(self, video: int) -> tuple[int, int]:
        """(H, W) of a video's frames; raises as `load`."""
        return self.load(self.videos[video][1][0])['label'].shape

    def video_id(self, video: int) -> int:
        """The id of a video in the data set's own files; by default its place from 1 on."""
        return video + 1


def get_source(data_config: ConfigDict, split: str) -> Source:
    """Opens a split of the data set `data_config.name`.

    Raises:
      ValueError: no data set has this name; or as the data set's own `get_source`.
    """
    return _find(data_config.name).get_source(data_config, split)


def builder_class(name: str) -> Any:
    """The TFDS builder of a published data set.

    Raises:
      ValueError: no data set has this name, or it is not a published one.
    """
    found = _find(name)
    if not isinstance(found, type):
        raise ValueError(
            f'config.data.name = {name!r} needs no preparation; --mode=prepare is for the data '
            'sets of docs/datasets.md'
        )
    return found


def prepare(data_config: ConfigDict, records: str | Path) -> Path:
    """Writes a published data set as TFDS records; `config.data.dir = records` then reads them.

    Args:
      data_config: its `dir` is the official folder of the data set `name`.
      records: folder to write to.

    Returns:
      The folder of this data set in `records`.

    Raises:
      ValueError, CorruptExample, FileNotFoundError: as `builder_class`, and as the builder's
        `find` and `read`.
    """
    return builder_class(data_config.name).prepare(storage.path(data_config.dir), records)


def _find(name: str):
    if name not in DATA_SETS:
        raise ValueError(
            f'config.data.name = {name!r} is not a data set; set it to one of '
            f'{", ".join(DATA_SETS)}'
        )
    return pkgutil.resolve_name(f'{__name__}.{DATA_SETS[name]}')
