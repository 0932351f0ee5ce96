"""VSPW at 480 rows: 124 classes, every pixel of every frame of videos in the wild (Miao et al., CVPR 2021).

    VSPW_480p/
      train.txt  val.txt  test.txt      names of videos, one a line
      data/<video>/origin/00000123.jpg  mask/00000123.png

A label value v is class v - 1; 0 (others) and 255 (void) don't count. The videos of the test split have no masks: all their
pixels don't count.
"""

from pathlib import Path

import numpy as np

from rankseg_jax.data import folder, official
from rankseg_jax.data.videos import VideoBuilder

LISTS = {'train': 'train.txt', 'validation': 'val.txt', 'test': 'test.txt'}
OTHERS, VOID = 0, 255


class Vspw(VideoBuilder):
    """VSPW, semantic; a record a frame."""

    CLASSES = 'vspw'
    FOLDER = 'VSPW_480p'
    MARKERS = tuple(LISTS.values())
    LAYOUT = (
        '  VSPW_480p/{train,val,test}.txt\n'
        '  VSPW_480p/data/<video>/origin/*.jpg\n'
        '  VSPW_480p/data/<video>/mask/*.png'
    )
    PUBLISHED_VIDEOS = {'train': 2_806, 'validation': 343, 'test': 387}
    HOMEPAGE = 'https://www.vspwdataset.com'
    LICENSE = 'See the homepage'

    @classmethod
    def splits(cls, root):
        """Without the test split if not one of its videos is there."""
        path = root / LISTS['test']
        there = path.is_file() and any(
            (root / 'data' / video).is_dir() for video in read_list(path)
        )
        return tuple(LISTS) if there else ('train', 'validation')

    @classmethod
    def find(cls, root, split):
        path = root / LISTS[split]
        if not path.is_file():
            raise cls.missing(split, [path], 1)
        kinds = (('origin', '.jpg'), ('mask', '.png'))[: 1 if split == 'test' else 2]
        entries, missing, wanted = [], [], 0
        for video in read_list(path):
            video_dir = root / 'data' / video
            found = [
                {
                    Path(name).stem
                    for name in official.listing(video_dir / kind)
                    if name.endswith(suffix)
                }
                for kind, suffix in kinds
            ]
            frames = sorted(set.union(*found))
            for (kind, suffix), names in zip(kinds, found, strict=True):
                missing += [
                    video_dir / kind / f'{frame}{suffix}'
                    for frame in frames or ['*']
                    if frame not in names
                ]
                wanted += len(frames) or 1
            entries += [(f'{video}/{frame}', video_dir, split != 'test') for frame in frames]
        if missing:
            raise cls.missing(split, missing, wanted)
        return entries

    @classmethod
    def read(cls, entry):
        name, video_dir, labelled = entry
        frame = name.rpartition('/')[2]
        image_path, path = (
            video_dir / 'origin' / f'{frame}.jpg',
            video_dir / 'mask' / f'{frame}.png',
        )
        image = official.read_bytes(image_path)
        if labelled:
            labels = official.to_labels(
                folder.read_values(path),
                official.read_classes(cls.CLASSES)['ids'],
                (OTHERS, VOID),
                path,
            )
        else:
            labels = np.full(
                official.decode_image(image, image_path).shape[:2], official.IGNORED, np.uint16
            )
        return {'image': image, 'labels': labels, 'original_size': labels.shape}


def read_list(path: Path) -> list[str]:
    """Names of videos.

    Raises:
      ValueError: there is none, or one twice.
    """
    names = [line.strip() for line in path.read_text('utf-8-sig').splitlines() if line.strip()]
    if not names or len(set(names)) < len(names):
        raise ValueError(
            f'{path} must name videos, one a line' + (', each once' if names else '; it is empty')
        )
    return names


get_source = Vspw.get_source
