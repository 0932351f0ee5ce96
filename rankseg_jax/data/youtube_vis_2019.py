"""YouTubeVIS-2019: tracks of 40 classes of objects in videos (Yang et al., ICCV 2019).

    ytvis_2019/
      train.json  valid.json  test.json
      train/JPEGImages/<video>/00000.jpg        valid/…  test/…

The JSON files name the frames. Only train.json must have annotations: the pixels of videos without them don't count.

A record is a frame, with the run lengths of each track in it. (TFDS's own `youtube_vis` has a record a video, with its masks
decoded, which a long video with many tracks makes larger than memory.)
"""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from rankseg_jax.data import official, rle
from rankseg_jax.data.videos import VideoBuilder, VideoSource

FOLDERS = {'train': 'train', 'validation': 'valid', 'test': 'test'}


class Video(NamedTuple):
    """A video of a JSON file.

    Attributes:
      id: in the file.
      file_names: T of '<video>/<frame>.jpg'.
      size: (H, W).
      tracks: N dicts with 'id', 'category_id' in 0..39, 'iscrowd', and 'counts', T compressed run lengths, '' where it is not seen.
    """

    id: int
    file_names: list[str]
    size: tuple[int, int]
    tracks: list[dict]


class YoutubeVis2019Source(VideoSource):
    """Also has the tracks of the videos. A clip has all those of its video as 'tracks', with the run lengths of its T frames."""

    def video_id(self, video: int) -> int:
        """The id of a video in the data set's own files, where `videos` has its name."""
        return int(self.example(self.videos[video][1][0])['video_id'])

    def tracks(self, video: int) -> list[dict]:
        """N dicts as in the JSON file: 'id', 'category_id' (but in 0..39), 'iscrowd' and 'segmentations', T of `rle` or None."""
        return join(map(self.example, self.videos[video][1]))

    def _stack(self, indices, examples):
        return super()._stack(indices, examples) | {'tracks': join(examples)}


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
    def splits(cls, root):
        """Without validation and test, which have no annotations, if nothing of them is there."""
        return tuple(
            split
            for split, name in FOLDERS.items()
            if split == 'train' or (root / name).exists() or (root / f'{name}.json').exists()
        )

    @classmethod
    def find(cls, root, split):
        path, images = root / f'{FOLDERS[split]}.json', root / FOLDERS[split] / 'JPEGImages'
        if not path.is_file():
            raise cls.missing(split, [path], 1)
        videos = read_videos(path)
        if split == 'train' and not any(video.tracks for video in videos):
            raise ValueError(f'{path} has no annotations')
        entries, missing = [], []
        for video in videos:
            there = official.listing((images / video.file_names[0]).parent)
            for frame, name in enumerate(video.file_names):
                if Path(name).name not in there:
                    missing.append(images / name)
                entries.append((name.removesuffix('.jpg'), images, video, frame))
        if missing:
            raise cls.missing(split, missing, len(entries))
        return entries

    @classmethod
    def read(cls, entry):
        _, images, video, frame = entry
        tracks = [track | {'counts': track['counts'][frame].encode()} for track in video.tracks]
        return {
            'image': official.read_bytes(images / video.file_names[frame]),
            'labels': paint(tracks, video.size),
            'original_size': video.size,
            'video_id': video.id,
            'tracks': tracks,
        }

    @classmethod
    def features(cls):
        number = tfds.features.Scalar(np.int64)
        track = {
            'id': number,
            'category_id': number,
            'iscrowd': number,
            'counts': tfds.features.Text(),
        }
        return super().features() | {'video_id': number, 'tracks': tfds.features.Sequence(track)}


def read_videos(path: Path) -> list[Video]:
    """The videos of a JSON file, its masks checked and compressed.

    Raises:
      ValueError: it is broken, or of another data set.
    """
    classes = official.read_classes(YoutubeVis2019.CLASSES)
    labels = {category: label for label, category in enumerate(classes['ids'])}
    with official.parsing(path, 'JSON file of YouTubeVIS-2019'):
        content = json.loads(path.read_text('utf-8'), object_hook=pack)
        check_categories(
            {
                category['id']: category['name'].lower().replace(' ', '_')
                for category in content['categories']
            },
            dict(zip(classes['ids'], classes['names'], strict=True)),
        )
        check_videos(content['videos'])
        videos = {
            video['id']: Video(
                video['id'], video['file_names'], (video['height'], video['width']), []
            )
            for video in content['videos']
        }
        for track in content.get('annotations') or ():
            if track['video_id'] not in videos or track['category_id'] not in labels:
                raise ValueError(
                    f'it lists no video {track["video_id"]} or no category {track["category_id"]}, which the track '
                    f'{track["id"]} has'
                )
            video = videos[track['video_id']]
            video.tracks.append(
                {
                    'id': track['id'],
                    'category_id': labels[track['category_id']],
                    'iscrowd': track['iscrowd'],
                    'counts': compress(track, video),
                }
            )
        return list(videos.values())


def pack(value: dict) -> dict:
    """Run lengths as array: read as Python's numbers, those of the training split need gigabytes."""
    return (
        value | {'counts': np.array(value['counts'])}
        if isinstance(value.get('counts'), list)
        else value
    )


def check_categories(found: dict, wanted: dict):
    """Compares the names of the categories by id."""
    if found != wanted:
        other = [
            f'{i} is {found.get(i, "missing")}, not {wanted.get(i, "there")}'
            for i in sorted(found.keys() | wanted.keys())
            if found.get(i) != wanted.get(i)
        ]
        raise ValueError(
            f'{len(other)} categories differ: {", ".join(other[: official.LISTED])} (YouTubeVIS 2021 has as many, but '
            'others)'
        )


def check_videos(videos: list[dict]):
    """Each must have an id of its own, and frames, all in a folder of its own."""
    folders = [{name.rpartition('/')[0] for name in video['file_names']} for video in videos]
    ids = {video['id'] for video in videos}
    if (
        not videos
        or any(len(found) != 1 for found in folders)
        or min(len(ids), len(set.union(*folders))) < len(videos)
    ):
        raise ValueError(
            'each of its videos must have an id of its own, and frames, all in a folder of its own'
        )


def compress(track, video) -> list[str]:
    """The compressed run lengths of a track in T frames, '' where it is not seen."""
    (height, width), segmentations = video.size, track['segmentations']
    if len(segmentations) != len(video.file_names) or any(
        mask and mask['size'] != [height, width] for mask in segmentations
    ):
        raise ValueError(
            f'the track {track["id"]} needs for each of {len(video.file_names)} frames null or a mask of '
            f'{height} x {width} pixels'
        )
    try:
        return [rle.compress(mask)['counts'] if mask else '' for mask in segmentations]
    except ValueError as error:
        raise ValueError(f'the track {track["id"]}: {error}') from error


def paint(tracks, size) -> np.ndarray:
    """Labels uint16 [H, W] of the tracks in a frame, IGNORED where there is none; the smaller lies over the larger.

    Of two that are as large the later lies over the earlier. Crowds are painted like the others.
    """
    labels = np.full(size, official.IGNORED, np.uint16)
    seen = [
        (rle.decode({'size': size, 'counts': track['counts']}), track['category_id'])
        for track in tracks
        if track['counts']
    ]
    for mask, label in sorted(seen, key=lambda pair: -pair[0].sum()):
        labels[mask] = label
    return labels


def join(examples) -> list[dict]:
    """The tracks of a video, from T of its frames in order; see `YoutubeVis2019Source.tracks`."""
    frames = [
        [track | {'size': example['original_size']} for track in official.rows(example['tracks'])]
        for example in examples
    ]
    return [
        {key: track[0][key] for key in ('id', 'category_id', 'iscrowd')}
        | {
            'segmentations': [
                {'size': [int(side) for side in seen['size']], 'counts': seen['counts'].decode()}
                if seen['counts']
                else None
                for seen in track
            ]
        }
        for track in zip(*frames, strict=True)
    ]


def masks(tracks, shape) -> np.ndarray:
    """bool [N, T, H, W] of tracks as of a clip; `shape`: (T, H, W), that of the clip's labels."""
    decoded = np.zeros((len(tracks), *shape), bool)
    for track, of_track in zip(tracks, decoded, strict=True):
        for mask, of_frame in zip(track['segmentations'], of_track, strict=True):
            if mask:
                of_frame[:] = rle.decode(mask)
    return decoded


def write_results(path, predictions):
    """Writes predictions as the benchmark takes them, in a file results.json.

    Args:
      predictions: (video_id, tracks) of each video, see `YoutubeVis2019Source.video_id`; the tracks dicts with 'category_id' in
        0..39, 'score' and 'segmentations', for each frame of the video what `rle.encode` returns.
    """
    ids = official.read_classes(YoutubeVis2019.CLASSES)['ids']
    Path(path).write_text(
        json.dumps(
            [
                {
                    'video_id': video_id,
                    'category_id': ids[track['category_id']],
                    'segmentations': track['segmentations'],
                    'score': float(track['score']),
                }
                for video_id, tracks in predictions
                for track in tracks
            ]
        )
    )


get_source = YoutubeVis2019.get_source
