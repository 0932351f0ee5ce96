"""User data: videos as folders of frames, with label PNGs or with tracks in a JSON file.

    <data.dir>/
      classes.txt                        one name per line, in label order
      videos/<split>/<video>/0.jpg       frames, in natural order of their names: 2 before 10
      labels/<split>/<video>/0.png       the label map of each frame, as in `folder`

or, for objects that are followed,

    <data.dir>/
      <split>.json                       videos and tracks, see `tracks`
      videos/<split>/<video>/0.jpg       or <split>/JPEGImages/<video>/0.jpg, as in YouTubeVIS

For the split `validation`, the JSON file and the folders may also be named `valid` or `val`, each
in its own way. A JSON file may leave out what the rest tells: ids (numbers from 1 on), 'file_names'
of a video whose 'name' is its folder, 'height' and 'width', 'iscrowd', 'annotations', and, if there
is a classes.txt, 'categories' (with ids from 1 on).
"""

import contextlib
import json
from collections import Counter
from collections.abc import Generator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from rankseg_jax import storage
from rankseg_jax.data import (
    CorruptExample,
    TrackSource,
    VideoSource,
    check,
    folder,
    images,
    tracks,
    videos,
)
from rankseg_jax.data.published import LISTED
from rankseg_jax.data.report import Report, listed

ALIASES = {'validation': ('valid', 'val')}  # other names of a split


class LabeledVideos(folder.PairedFiles, VideoSource):
    """Videos whose frames have label files; takes the arguments of `PairedFiles`."""

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self.videos = videos.group(self.ids)


class TrackedVideos(TrackSource):
    """Videos with the tracks of a JSON file; a label map has the class of the smallest track.

    Attributes:
      class_names: K names, in the order of the categories' ids.
      category_ids: K ids.
      json_path: of the file.
      image_dir: the folder that the file names of frames start from.
      unlisted: frames that the JSON file leaves out.
      max_pixels: images with more are not read.
    """

    def __init__(
        self,
        categories: dict[int, str],
        found: list[tracks.Video],
        *,
        json_path: Path,
        image_dir: Path,
        unlisted: Sequence[Path] = (),
        max_pixels: int = images.MAX_PIXELS,
    ):
        self.category_ids, self.class_names = tuple(categories), tuple(categories.values())
        self.ids = [name for video in found for name in video.file_names]
        self.videos = videos.group(self.ids)
        self.annotated = any(video.tracks for video in found)
        self.json_path, self.image_dir, self.unlisted = json_path, image_dir, unlisted
        self.max_pixels = max_pixels
        self._found = found
        self._frames = [(video, t) for video in found for t in range(len(video.file_names))]

    def load(self, index: int) -> dict[str, np.ndarray]:
        """See `Source.load`."""
        path, label = self.image_dir / self.ids[index], self.label(index)
        image = images.read_image(path, self.max_pixels)  # [H, W, 3]
        if image.shape[:2] != label.shape:
            raise CorruptExample(images.size_mismatch(path, image.shape[:2], label.shape))
        return {'image': image, 'label': label}

    def label(self, index: int) -> np.ndarray:
        """The label map of a frame, int32 [H, W] in 0..K-1 or IGNORE_LABEL."""
        video, t = self._frames[index]
        return tracks.paint([x | {'counts': x['counts'][t]} for x in video.tracks], video.size)

    def tracks(self, video: int, frames: Sequence[int] | None = None) -> list[dict[str, Any]]:
        """See `TrackSource.tracks`."""
        found = self._found[video]
        frames = range(len(found.file_names)) if frames is None else frames
        return [
            {key: track[key] for key in ('id', 'category_id', 'iscrowd')}
            | {
                'segmentations': [
                    {'size': list(found.size), 'counts': counts} if counts else None
                    for counts in (track['counts'][t] for t in frames)
                ]
            }
            for track in found.tracks
        ]

    def size(self, video: int) -> tuple[int, int]:
        """(H, W) of a video's frames, as the JSON file has it."""
        return self._found[video].size

    def video_id(self, video: int) -> int:
        """The id of a video in the JSON file."""
        return self._found[video].id

    def check(self, max_corrupt: int | None = None) -> Report:
        """Reads the header of every frame and counts the labels that the tracks make."""
        report = check.count(
            self,
            ((self.image_dir / name, partial(self.label, i)) for i, name in enumerate(self.ids)),
            max_pixels=self.max_pixels,
            max_corrupt=max_corrupt,
        )
        if not self.annotated:
            report.warnings.append(f'{self.json_path} has no annotations')
        if self.unlisted:
            message = f'{len(self.unlisted)} frames that {self.json_path.name} does not list'
            report.warnings.append(listed(message, [str(path) for path in self.unlisted]))
        return report


def get_source(data_config: ConfigDict, split: str) -> LabeledVideos | TrackedVideos:
    """Opens `<split>.json` below `data_config.dir` if there is one, otherwise `labels/<split>`.

    Raises:
      FileNotFoundError: a file or folder is missing, or frames or their labels.
      ValueError: the JSON file contradicts itself or lacks what cannot be derived, a class has no
        name or another's, or `num_classes` is another number.
    """
    root = storage.path(data_config.dir)
    names = (split, *ALIASES.get(split, ()))
    layout = (
        f'config.data.dir = {data_config.dir!r} must hold videos/{split}/<video>/*.jpg and either '
        f'{split}.json or labels/{split}/<video>/*.png with classes.txt'
    )
    for path in (root / f'{name}.json' for name in names):
        if path.is_file():
            places = [
                root / place
                for name in dict.fromkeys([path.stem, *names])  # its own name first
                for place in (f'videos/{name}', f'{name}/JPEGImages')
            ]
            return _open_tracks(path, places, data_config, layout=layout)
    name = next((name for name in names if (root / 'videos' / name).is_dir()), split)
    return _open_labels(root, name, data_config, layout=layout)


def _open_labels(root: Path, split: str, data_config, layout: str) -> LabeledVideos:
    image_dir = root / 'videos' / split
    matched = folder.match_files(image_dir, root / 'labels' / split, layout)
    lacking = [path for path in matched.unmatched if path.is_relative_to(image_dir)]
    if lacking:
        raise FileNotFoundError(
            f'{_some(lacking)} without a label file; every frame needs a .png of its name. {layout}'
        )
    if loose := [image for image, _ in matched.pairs if image.parent == image_dir]:
        raise ValueError(f'{_some(loose)} outside the folder of a video. {layout}')
    if not matched.pairs:
        raise FileNotFoundError(f'no frames in {image_dir}. {layout}')
    order = sorted(range(len(matched.ids)), key=lambda i: _place(matched.ids[i]))
    matched = matched._replace(
        ids=tuple(matched.ids[i] for i in order), pairs=tuple(matched.pairs[i] for i in order)
    )
    names = folder.read_class_names(root / 'classes.txt', layout)
    folder.check_num_classes(data_config.num_classes, names, root / 'classes.txt')
    return LabeledVideos(
        class_names=names,
        files=matched,
        ignore_label=data_config.ignore_label,
        reduce_zero_label=data_config.reduce_zero_label,
        max_pixels=data_config.max_pixels,
    )


def _place(name: str):
    """Sorts frames named '<video>/<frame>', both in natural order."""
    video, _, frame = name.rpartition('/')
    return images.natural_order(video), images.natural_order(frame)


def _open_tracks(path: Path, places: Sequence[Path], data_config, layout: str) -> TrackedVideos:
    """`places`: where the folders of frames may be."""
    image_dir = next((place for place in places if place.is_dir()), None)
    if image_dir is None:
        raise FileNotFoundError(f'no folder {" or ".join(map(str, places))}. {layout}')
    with _parsing(path):
        content = tracks.read_json(path)
        categories = _categories(content, path.with_name('classes.txt'))
        for number, video in enumerate(content['videos'], 1):
            video.setdefault('id', number)
            _complete_names(video, image_dir)
        tracks.check_videos(content['videos'])
    listed_names = [name for video in content['videos'] for name in video['file_names']]
    folders = {image_dir / name.rpartition('/')[0]: None for name in listed_names}
    present = [frame for path in folders for frame in images.find_frames(path)]
    missing = sorted({image_dir / name for name in listed_names} - set(present))
    if missing:
        raise FileNotFoundError(f'{_some(missing)} missing, which {path} lists. {layout}')
    with _parsing(path):
        for video in content['videos']:
            if video.get('height') is None or video.get('width') is None:
                first = image_dir / video['file_names'][0]
                video['height'], video['width'] = images.read_size(first, data_config.max_pixels)
            for side in (video['height'], video['width']):
                if not isinstance(side, int) or side < 1:
                    raise ValueError(
                        f'the video {video["id"]} has {video["height"]!r} rows and '
                        f'{video["width"]!r} columns; both must be whole numbers above 0'
                    )
        for number, track in enumerate(content.get('annotations') or (), 1):
            _complete_track(track, number)
        found = tracks.parse(content, {key: label for label, key in enumerate(categories)})
    folder.check_num_classes(data_config.num_classes, categories, path)
    return TrackedVideos(
        categories,
        found,
        json_path=path,
        image_dir=image_dir,
        unlisted=sorted(set(present) - {image_dir / name for name in listed_names}),
        max_pixels=data_config.max_pixels,
    )


@contextlib.contextmanager
def _parsing(path: Path) -> Generator[None]:
    """Turns the errors of the code inside, which parses a JSON file, into one that names it."""
    try:
        yield
    except (json.JSONDecodeError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(
            f'{path} is broken or not a JSON file of videos and tracks, as in '
            f'docs/howto/own_data.md: {type(error).__name__}: {error}'
        ) from error
    except ValueError as error:
        raise ValueError(f'{path}: {error}') from error


def _categories(content: dict, classes: Path) -> dict[int, str]:
    """The names of the categories by their ids, in the order of the ids."""
    if not content.get('categories'):
        if not classes.is_file():
            raise ValueError(f'it has no "categories", and there is no file {classes}')
        return dict(enumerate(folder.read_class_names(classes, ''), 1))
    for place, category in enumerate(content['categories'], 1):
        category.setdefault('id', place)
    categories = {category['id']: category['name'] for category in content['categories']}
    number = len(content['categories'])
    if len(categories) < number or len(set(categories.values())) < number:
        raise ValueError('each of its categories must have an id and a name of its own')
    for key, name in categories.items():
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f'its category {key} has the name {name!r}, which is no text')
    return dict(sorted(categories.items()))


def _complete_names(video: dict, image_dir: Path) -> None:
    """Derives 'file_names', with the folder in them; compares their number with 'length'."""
    names, name = video.get('file_names'), video.get('name')
    if not names:
        if not name:
            raise ValueError(
                f'the video {video["id"]} has neither "file_names" nor the "name" of a folder'
            )
        names = [f'{name}/{path.name}' for path in images.find_frames(image_dir / name)]
        if not names:
            raise ValueError(f'the video {video["id"]} has no frames in {image_dir / name}')
    elif name and not any('/' in file_name for file_name in names):
        names = [f'{name}/{file_name}' for file_name in names]
    if outside := [x for x in names if Path(x).is_absolute() or '..' in Path(x).parts]:
        raise ValueError(
            f'the video {video["id"]} has the file name {outside[0]}; names are paths within '
            f'{image_dir}, which predictions repeat'
        )
    if repeated := [x for x, count in Counter(names).items() if count > 1]:
        raise ValueError(f'the video {video["id"]} lists the frame {repeated[0]} more than once')
    video['file_names'] = names
    if video.get('length') not in (None, len(names)):
        raise ValueError(
            f'the video {video["id"]} has the length {video["length"]} but {len(names)} frames'
        )


def _complete_track(track: dict, number: int) -> None:
    """Derives 'id' and 'iscrowd'; refuses tracks without masks."""
    track.setdefault('id', number)
    track['iscrowd'] = int(track.get('iscrowd') or 0)
    masks, boxes = track.get('segmentations'), track.get('bboxes') or track.get('bbox') or ()
    if masks is None and track.get('segmentation'):
        raise ValueError(
            f'the annotation {track["id"]} has the mask of an image; a track has "segmentations", '
            'a mask or null for each frame of its video'
        )
    if masks is None or (any(boxes) and not any(masks)):
        raise ValueError(
            f'the track {track["id"]} has no masks ("segmentations")'
            + (', only boxes, as tracking data such as MOT have' if any(boxes) else '')
        )


def _some(paths: Sequence[Path]) -> str:
    """The number of paths, the first of them, and a verb."""
    more = f', … and {len(paths) - LISTED} more' if len(paths) > LISTED else ''
    verb = 'frame is' if len(paths) == 1 else 'frames are'
    return f'{", ".join(map(str, paths[:LISTED]))}{more}: {len(paths)} {verb}'
