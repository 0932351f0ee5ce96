"""The built-in data set for video tasks: composed scenes of moving emoji, with exact tracks.

Drawings: Twemoji (CC-BY 4.0). A record is a frame; the frames of a video follow one another.
"""

from collections.abc import Sequence
from typing import Any

import tensorflow_datasets as tfds
from ml_collections import ConfigDict

from rankseg_jax.data import TrackSource, emoji_scenes, moving_scenes, rle

VIDEOS = {'train': 400, 'validation': 60, 'test': 60}
LONG = {'long': 4}


class EmojiVideosConfig(emoji_scenes.EmojiScenesConfig):
    """K categories (background included), side in pixels and number of videos per split.

    The name follows from them: k40_96, or k40_96_train64 if a number is not the default.
    """

    @staticmethod
    def default_examples() -> tuple[dict[str, int], dict[str, int]]:
        """See `EmojiScenesConfig.default_examples`."""
        return VIDEOS, LONG


class EmojiVideos(emoji_scenes.EmojiScenes):
    """Moving emoji over panning backgrounds with exact label maps and tracks."""

    VERSION = tfds.core.Version('1.0.0')
    BUILDER_CONFIGS = [
        EmojiVideosConfig(num_classes=num_classes, image_size=size, examples=videos)
        for num_classes in (40, 124)
        for size in (96, 128)
        for videos in (VIDEOS, LONG)
    ]
    CONFIG = EmojiVideosConfig
    UNIT = 'videos'
    DESCRIPTION = 'Composed videos of moving Twemoji drawings.'
    LICENSE = 'Drawings: Twemoji CC-BY 4.0'

    def _features(self):
        features = super()._features()
        return features | {'objects': features['categories']}  # of the video, by their numbers

    def _generate_examples(self, split):
        config = self.builder_config
        count = config.examples[split]
        yield from enumerate(
            moving_scenes.generate(config.num_classes, config.image_size, split, count=count)
        )


class EmojiVideosSource(emoji_scenes.EmojiScenesSource, TrackSource):
    """Random access to a prepared split; every object is a track, the background is not."""

    def __init__(self, builder: EmojiVideos, split: str):
        super().__init__(builder, split)
        length = moving_scenes.LENGTHS[split]
        self.videos = [
            (name, range(place * length, (place + 1) * length))
            for place, name in enumerate(self.ids)
        ]
        self.ids = [f'{name}/{frame:05d}' for name, _ in self.videos for frame in range(length)]

    def tracks(self, video: int, frames: Sequence[int] | None = None) -> list[dict[str, Any]]:
        """See `TrackSource.tracks`; an id is the object's number in the maps of `panoptic`."""
        indices = self.videos[video][1]
        chosen = indices if frames is None else [indices[frame] for frame in frames]
        maps = [self.panoptic(index) for index in chosen]  # t times [H, W]
        (categories,) = self._read(indices[0], 'objects')
        return [
            {
                'id': number,
                'category_id': int(category),
                'iscrowd': 0,
                'segmentations': [rle.encode(numbers == number) for numbers in maps],
            }
            for number, category in enumerate(categories, 1)
        ]


def get_source(data_config: ConfigDict, split: str) -> EmojiVideosSource:
    """Opens a split; generates it first, into data_config.dir (default ~/tensorflow_datasets).

    Uses num_classes, image_size and num_train (training videos; 0: 400) of the config. Videos have
    24 frames; the 4 of the split `long`, which is generated on demand, have 300.

    Raises:
      ValueError: the split does not exist, or a size is out of range.
      ImportError: the package of the drawings is missing; the message names it.
    """
    return EmojiVideosSource(emoji_scenes.prepared(EmojiVideos, data_config, split), split)
