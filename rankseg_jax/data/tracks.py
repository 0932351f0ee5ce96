"""Tracks of objects in videos: what YouTubeVIS-style JSON files hold, and label maps of tracks.

    {"videos": [{"id": 1, "file_names": ["a/0.jpg", …], "height": 720, "width": 1280}, …],
     "categories": [{"id": 1, "name": "dog"}, …],
     "annotations": [{"id": 1, "video_id": 1, "category_id": 1, "iscrowd": 0,
                      "segmentations": [{"size": [720, 1280], "counts": …}, null, …]}, …]}

A track has a mask, or null, for each frame of its video.
"""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rankseg_jax.data import IGNORE_LABEL, TrackSource, rle

LISTED = 3  # examples that a message names


class Video(NamedTuple):
    """A video of a JSON file.

    Attributes:
      id: in the file.
      file_names: '<video>/<frame>.jpg' of each of t frames.
      size: (H, W).
      tracks: dicts with 'id', 'category_id' in 0..K-1, 'iscrowd', and 'counts': compressed run
        lengths of each of t frames, '' where the object is not visible.
    """

    id: int
    file_names: list[str]
    size: tuple[int, int]
    tracks: list[dict]


def read_json(path: Path) -> dict:
    """Reads a JSON file, its run lengths as arrays: as Python numbers they could need gigabytes.

    Raises:
      ValueError: it is not JSON.
    """

    def pack(value):
        if isinstance(value.get('counts'), list):
            return value | {'counts': np.array(value['counts'])}
        return value

    return json.loads(path.read_text('utf-8-sig'), object_hook=pack)


def parse(content: dict, labels: dict[int, int]) -> list[Video]:
    """The videos and tracks of a JSON file; checks and compresses the masks.

    Args:
      content: of the file; 'annotations' may be missing or null.
      labels: 0..K-1 of each category, by its id.

    Raises:
      ValueError: something in it contradicts something else.
      LookupError, TypeError, AttributeError: it is not of this kind.
    """
    check_videos(content['videos'])
    videos = {
        video['id']: Video(
            id=video['id'],
            file_names=video['file_names'],
            size=(video['height'], video['width']),
            tracks=[],
        )
        for video in content['videos']
    }
    annotations = content.get('annotations') or ()
    if len({track['id'] for track in annotations}) < len(annotations):
        raise ValueError('each of its tracks must have a unique id')
    for track in annotations:
        for key, known in (('video_id', videos), ('category_id', labels)):
            if track[key] not in known:
                raise ValueError(
                    f'the track {track["id"]} has the {key} {track[key]}, which the file does not '
                    'list'
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


def check_videos(videos: list[dict]) -> None:
    """Raises a ValueError unless each video has a unique id, and frames in a unique folder."""
    folders = [{name.rpartition('/')[0] for name in video['file_names']} for video in videos]
    ids = {video['id'] for video in videos}
    if (
        not videos
        or any(len(found) != 1 for found in folders)
        or min(len(ids), len(set.union(*folders))) < len(videos)
    ):
        raise ValueError(
            'each of its videos must have a unique id and frames, all of them in a unique folder'
        )


def compress(track: dict, video: Video) -> list[str]:
    """The compressed run lengths of a track in t frames, '' where it is not visible."""
    (height, width), segmentations = video.size, track['segmentations']
    if any(isinstance(mask, list) for mask in segmentations):
        raise ValueError(
            f'the track {track["id"]} has polygons; make run lengths of them (frPyObjects and '
            'merge of pycocotools.mask)'
        )
    if len(segmentations) != len(video.file_names) or any(
        mask and list(mask['size']) != [height, width] for mask in segmentations
    ):
        raise ValueError(
            f'the track {track["id"]} needs for each of {len(video.file_names)} frames null or a '
            f'mask of {height} x {width} pixels'
        )
    try:
        return [rle.compress(mask)['counts'] if mask else '' for mask in segmentations]
    except ValueError as error:
        raise ValueError(f'the track {track["id"]}: {error}') from error


def paint(tracks: list[dict], size: tuple[int, int]) -> np.ndarray:
    """Labels int32 [H, W] of the tracks in a frame, the smaller over the larger.

    Of two with the same number of pixels the later lies on top. Crowds are painted like the
    others. All other pixels are IGNORE_LABEL.

    Args:
      tracks: dicts with 'category_id' and 'counts', the compressed run lengths in this frame.
    """
    labels = np.full(size, IGNORE_LABEL, np.int32)
    visible = [
        (rle.decode({'size': size, 'counts': track['counts']}), track['category_id'])
        for track in tracks
        if track['counts']
    ]
    for mask, label in sorted(visible, key=lambda pair: -pair[0].sum()):
        labels[mask] = label
    return labels


def write_results(
    path: str | Path, source: TrackSource, predictions: Iterable[tuple[int, list[dict]]]
) -> None:
    """Writes predictions as YouTubeVIS's server takes them, in a file results.json.

    Args:
      source: the split that they are for.
      predictions: (video_id, tracks) of each video, see `TrackSource.video_id`. The tracks are
        dicts with 'category_id' in 0..K-1, 'score' and 'segmentations': for each frame of the
        video the result of `rle.encode`.

    Raises:
      ValueError: the server would refuse them, and the file is not written.
    """
    videos = {source.video_id(video): video for video in range(len(source.videos))}
    results = []
    for video_id, tracks in predictions:
        if video_id not in videos:
            raise ValueError(
                f'predictions for the video {video_id}, which is not in this split: its '
                f'{len(videos)} videos have ids such as {list(videos)[:LISTED]}, see '
                'TrackSource.video_id'
            )
        video = videos[video_id]
        size, length = source.size(video), len(source.videos[video][1])
        for number, track in enumerate(tracks):
            try:
                check_prediction(track, len(source.class_names), size=size, length=length)
            except ValueError as error:
                raise ValueError(f'prediction {number} for the video {video_id}: {error}') from None
            results.append(
                {
                    'video_id': video_id,
                    'category_id': source.category_ids[track['category_id']],
                    'segmentations': [mask or rle.empty(size) for mask in track['segmentations']],
                    'score': float(track['score']),
                }
            )
    Path(path).write_text(json.dumps(results))


def check_prediction(track: dict, num_classes: int, size: tuple[int, int], length: int) -> None:
    """Raises a ValueError unless the server takes a track of a video.

    Args:
      num_classes: K.
      size: (H, W) of the video.
      length: its number of frames.
    """
    label, masks = track['category_id'], track['segmentations']
    if label not in range(num_classes):
        raise ValueError(f'its category {label} is not in 0..{num_classes - 1}')
    if not math.isfinite(track['score']):
        raise ValueError(f'its score {track["score"]} is not a number')
    if len(masks) != length:
        raise ValueError(
            f'it has {len(masks)} segmentations, but the video has {length} frames; each needs a '
            'mask or None'
        )
    if wrong := {tuple(mask['size']) for mask in masks if mask} - {size}:
        raise ValueError(
            f'it has masks of {sorted(wrong)} pixels (rows, columns), but the video has {size}; '
            'resize them'
        )
