"""YouTubeVIS-2019: tracks of 40 classes of objects in videos (Yang et al., ICCV 2019).

    ytvis_2019/
      train.json  valid.json  test.json
      train/JPEGImages/<video>/00000.jpg        valid/…  test/…

The JSON files name the frames. Only train.json must have annotations: the pixels of videos without
annotations are ignored.

A record is a frame with the run lengths of each track in it. (TFDS's own `youtube_vis` has one
record per video with decoded masks, which can exceed memory for a long video with many tracks.)
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import tensorflow_datasets as tfds
from ml_collections import ConfigDict

from rankseg_jax.data import Source, TrackSource, videos
from rankseg_jax.data.published import LISTED, codecs, files
from rankseg_jax.data.published.builder import VideoBuilder
from rankseg_jax.data.published.label_maps import read_classes
from rankseg_jax.data.published.source import PublishedVideoSource
from rankseg_jax.data.tracks import Video, paint, parse, read_json

FOLDERS = {'train': 'train', 'validation': 'valid', 'test': 'test'}
PARTS = ('minitrain', 'minival')  # of `train`, which alone has annotations
HELD_OUT = 10  # every tenth video of `train` is in minival


class YoutubeVis2019Source(PublishedVideoSource, TrackSource):
    """Frames and tracks."""

    def video_id(self, video: int) -> int:
        """The id in the data set's own files of the video at this place in `videos`."""
        return int(self.example(self.videos[video][1][0])['video_id'])

    def size(self, video: int) -> tuple[int, int]:
        """The (rows, columns) of a video, as the JSON file has them."""
        rows, columns = self.example(self.videos[video][1][0])['original_size']
        return int(rows), int(columns)

    def tracks(self, video: int, frames: Sequence[int] | None = None) -> list[dict[str, Any]]:
        """See `TrackSource.tracks`; as in the JSON file, but for 'category_id'."""
        indices = self.videos[video][1]
        chosen = indices if frames is None else [indices[frame] for frame in frames]
        return join(map(self.example, chosen))


class YoutubeVis2019(VideoBuilder):
    """YouTubeVIS-2019, video instances; a record a frame, with run lengths."""

    name = 'youtube_vis_2019'  # TFDS would make it youtube_vis2019
    CLASSES = 'youtube_vis_2019'
    FOLDER = 'ytvis_2019'
    MARKERS = ('train.json', 'valid.json', 'test.json')
    LAYOUT = (
        '  ytvis_2019/{train,valid,test}.json\n'
        '  ytvis_2019/{train,valid,test}/JPEGImages/<video>/*.jpg'
    )
    PUBLISHED_VIDEOS = {'train': 2_238, 'validation': 302, 'test': 343}
    HOMEPAGE = 'https://youtube-vos.org/dataset/vis/'
    LICENSE = 'See the homepage'
    SOURCE = YoutubeVis2019Source

    @classmethod
    def get_source(cls, data_config: ConfigDict, split: str) -> Source:
        """As `Builder.get_source`, and the splits of PARTS."""
        if split not in PARTS:
            return super().get_source(data_config, split)
        whole = super().get_source(data_config, 'train')
        held_out = range(HELD_OUT - 1, len(whole.videos), HELD_OUT)
        kept = [video for video in range(len(whole.videos)) if video not in held_out]
        return videos.Part(cast(TrackSource, whole), held_out if split == 'minival' else kept)

    @classmethod
    def splits(cls, root: Path) -> tuple[str, ...]:
        """Leaves out validation and test, which have no annotations, if they do not exist."""
        return tuple(
            split
            for split, name in FOLDERS.items()
            if split == 'train' or (root / name).exists() or (root / f'{name}.json').exists()
        )

    @classmethod
    def has_annotations(cls, entries: list[tuple]) -> bool:
        return any(video.tracks for _, _, video, _ in entries)

    @classmethod
    def find(cls, root: Path, split: str) -> list[tuple]:
        path, image_dir = root / f'{FOLDERS[split]}.json', root / FOLDERS[split] / 'JPEGImages'
        if not path.is_file():
            raise cls.missing(split, [path], 1)
        videos = read_videos(path)
        if split == 'train' and not any(video.tracks for video in videos):
            raise ValueError(f'{path} has no annotations')
        entries, missing = [], []
        for video in videos:
            found = files.listing((image_dir / video.file_names[0]).parent)
            for frame, name in enumerate(video.file_names):
                if Path(name).name not in found:
                    missing.append(image_dir / name)
                entries.append((name.removesuffix('.jpg'), image_dir, video, frame))
        if missing:
            raise cls.missing(split, missing, len(entries))
        return entries

    @classmethod
    def read(cls, entry: tuple) -> dict[str, Any]:
        _, image_dir, video, frame = entry
        tracks = [track | {'counts': track['counts'][frame].encode()} for track in video.tracks]
        return {
            'image': codecs.read_bytes(image_dir / video.file_names[frame]),
            'labels': paint(tracks, video.size).astype(np.uint16),  # IGNORE_LABEL becomes IGNORED
            'original_size': video.size,
            'video_id': video.id,
            'tracks': tracks,
        }

    @classmethod
    def features(cls) -> dict[str, tfds.features.FeatureConnector]:
        number = tfds.features.Scalar(np.int64)
        track = {
            'id': number,
            'category_id': number,
            'iscrowd': number,
            'counts': tfds.features.Text(),
        }
        return super().features() | {'video_id': number, 'tracks': tfds.features.Sequence(track)}


def read_videos(path: Path) -> list[Video]:
    """Reads the videos of a JSON file; checks and compresses their masks.

    Raises:
      ValueError: it is broken, or belongs to another data set.
    """
    classes = read_classes(YoutubeVis2019.CLASSES)
    with files.parsing(path, 'JSON file of YouTubeVIS-2019'):
        content = read_json(path)
        check_categories(
            {
                category['id']: category['name'].lower().replace(' ', '_')
                for category in content['categories']
            },
            dict(zip(classes['ids'], classes['names'], strict=True)),
        )
        return parse(content, {number: label for label, number in enumerate(classes['ids'])})


def check_categories(found: dict[int, str], wanted: dict[int, str]) -> None:
    """Raises a ValueError if the names of the categories differ for some id."""
    if found != wanted:
        differ = [
            f'{i} is {found.get(i, "missing")}, not {wanted.get(i, "there")}'
            for i in sorted(found.keys() | wanted.keys())
            if found.get(i) != wanted.get(i)
        ]
        raise ValueError(
            f'{len(differ)} categories differ: {", ".join(differ[:LISTED])} (YouTubeVIS 2021 has '
            'as many, but others)'
        )


def join(examples: Iterable[dict]) -> list[dict[str, Any]]:
    """The tracks of a video, from its frames in order; see `YoutubeVis2019Source.tracks`."""
    frames = [
        [
            track | {'size': example['original_size']}
            for track in codecs.decode_rows(example['tracks'])
        ]
        for example in examples
    ]
    return [
        {key: track[0][key] for key in ('id', 'category_id', 'iscrowd')}
        | {
            'segmentations': [
                {'size': [int(side) for side in frame['size']], 'counts': frame['counts'].decode()}
                if frame['counts']
                else None
                for frame in track
            ]
        }
        for track in zip(*frames, strict=True)
    ]
