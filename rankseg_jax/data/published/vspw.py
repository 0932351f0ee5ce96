"""VSPW at 480 rows: 124 classes, every pixel of videos in the wild (Miao et al., CVPR 2021).

    VSPW_480p/
      train.txt  val.txt  test.txt      names of videos, one per line
      data/<video>/origin/00000123.jpg  mask/00000123.png

A label value v is class v - 1; 0 (others) and 255 (void) are ignored, and so are other values, such
as 252 in a few masks of the download. The videos of the test split have no masks: all their pixels
are ignored. In 'labels' an ignored value v is 65280 + v, since video consistency tells others from
void; records of version 0.1 have 65535 for both.

VSPW's script takes predictions whose value k is class k, and so they are written.
"""

from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from rankseg_jax.data import IGNORE_LABEL, images
from rankseg_jax.data.published import IGNORED, LISTED, codecs, files
from rankseg_jax.data.published.builder import VideoBuilder
from rankseg_jax.data.published.source import PublishedVideoSource

LISTS = {'train': 'train.txt', 'validation': 'val.txt', 'test': 'test.txt'}
NUM_CLASSES = 124
OTHERS, VOID = 0, 255
FIRST_IGNORED = IGNORED - VOID  # in labels: what stands for the value 0
NAMED = 10  # masks with values that mean nothing


class VspwSource(PublishedVideoSource):
    """Frames, and the values of their masks."""

    def codes(self, index: int) -> np.ndarray:
        """See `VideoSource.codes`: uint8 [H, W], the values of the official mask."""
        labels = codecs.decode_map(self.example(index)['labels']).astype(int)  # [H, W]
        ignored = labels >= FIRST_IGNORED
        return np.where(ignored, labels - FIRST_IGNORED, labels + 1).astype(np.uint8)

    def _decode(self, example):
        loaded = super()._decode(example)
        loaded['label'][loaded['label'] >= NUM_CLASSES] = IGNORE_LABEL
        return loaded


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
    SOURCE = VspwSource
    PREDICTION_VALUES = range(NUM_CLASSES)

    @classmethod
    def splits(cls, root: Path) -> tuple[str, ...]:
        """Leaves out the test split if none of its videos exists."""
        path = root / LISTS['test']
        found = path.is_file() and any(
            (root / 'data' / video).is_dir() for video in read_list(path)
        )
        return tuple(LISTS) if found else ('train', 'validation')

    @classmethod
    def has_annotations(cls, entries: list[tuple]) -> bool:
        return any(labeled for _, _, labeled in entries)

    @classmethod
    def find(cls, root: Path, split: str) -> list[tuple]:
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
    def read(cls, entry: tuple) -> dict[str, Any]:
        name, video_dir, labeled = entry
        frame = name.rpartition('/')[2]
        image_path = video_dir / 'origin' / f'{frame}.jpg'
        image = codecs.read_bytes(image_path)
        if labeled:
            path = video_dir / 'mask' / f'{frame}.png'
            labels = to_labels(images.read_values(path), path)  # [H, W]
        else:
            size = codecs.decode_image(image, image_path).shape[:2]
            labels = np.full(size, IGNORED, np.uint16)
        return {'image': image, 'labels': labels, 'original_size': labels.shape}


def to_labels(values: np.ndarray, path: str | Path) -> np.ndarray:
    """Maps the values of a mask [H, W] to uint16 [H, W]: classes, or from FIRST_IGNORED on.

    Args:
      path: named in the log if a value means nothing.
    """
    known = (values > OTHERS) & (values <= NUM_CLASSES)  # [H, W]
    unknown = values[~known & (values != OTHERS) & (values != VOID)]  # [pixels]
    if unknown.size:
        logging.log_first_n(
            logging.WARNING,
            '%s: %d pixels with the values %s are ignored; VSPW has 0..%d and %d (the first %d '
            'masks like this are named)',
            NAMED,
            path,
            unknown.size,
            np.unique(unknown)[:LISTED].tolist(),
            NUM_CLASSES,
            VOID,
            NAMED,
        )
    return np.where(known, values - 1, FIRST_IGNORED + np.minimum(values, VOID)).astype(np.uint16)


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
