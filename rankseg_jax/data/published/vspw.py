"""VSPW at 480 rows: 124 classes, every pixel of videos in the wild (Miao et al., CVPR 2021).

    VSPW_480p/
      train.txt  val.txt  test.txt      names of videos, one per line
      data/<video>/origin/00000123.jpg  mask/00000123.png

A label value v is class v - 1; 0 (others) and 255 (void) are ignored. The videos of the test split
have no masks: all their pixels are ignored.
"""

from pathlib import Path

import numpy as np

from rankseg_jax.data import images
from rankseg_jax.data.published import IGNORED, codecs, files
from rankseg_jax.data.published.builder import VideoBuilder
from rankseg_jax.data.published.label_maps import read_classes, to_labels

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
        """Leaves out the test split if none of its videos exists."""
        path = root / LISTS['test']
        found = path.is_file() and any(
            (root / 'data' / video).is_dir() for video in read_list(path)
        )
        return tuple(LISTS) if found else ('train', 'validation')

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
                    for name in files.listing(video_dir / kind)
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
        name, video_dir, labeled = entry
        frame = name.rpartition('/')[2]
        image_path = video_dir / 'origin' / f'{frame}.jpg'
        image = codecs.read_bytes(image_path)
        if labeled:
            path = video_dir / 'mask' / f'{frame}.png'
            ids = read_classes(cls.CLASSES)['ids']
            labels = to_labels(images.read_values(path), ids, ignored=(OTHERS, VOID), path=path)
        else:
            size = codecs.decode_image(image, image_path).shape[:2]
            labels = np.full(size, IGNORED, np.uint16)
        return {'image': image, 'labels': labels, 'original_size': labels.shape}


def read_list(path: Path) -> list[str]:
    """Reads names of videos.

    Raises:
      ValueError: the list is empty, or a name is there twice.
    """
    names = [line.strip() for line in path.read_text('utf-8-sig').splitlines() if line.strip()]
    if not names:
        raise ValueError(f'{path} must name videos, one per line; it is empty')
    if len(set(names)) < len(names):
        raise ValueError(f'{path} must name videos, one per line, each once')
    return names
