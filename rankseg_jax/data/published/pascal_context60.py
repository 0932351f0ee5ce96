"""PASCAL-Context with 60 classes: 59 and background (Mottaghi et al., CVPR 2014).

The images are PASCAL VOC 2010's:

    VOCdevkit/VOC2010/
      JPEGImages/2008_000002.jpg
      ImageSets/SegmentationContext/{train,val}.txt, or else VOC's ImageSets/Main/{train,val}.txt
    and the labels, the first of these that exists:
      SegmentationClassContext/2008_000002.png      converted for mmsegmentation: v is class v
      trainval/2008_000002.mat                      original: 459 classes, of which 59 are used
      trainval_merged.json                          the Detail API's (PASCAL in Detail): masks, and
                                                    its own splits

Everything else is background, class 0. The classes are in alphabetical order; mmsegmentation's
first versions named them in another order for the same PNGs. The original has 4,998 and 5,105
images. The Detail API, from which these PNGs are made, has 4,996 and 5,104, and labels that differ
in places.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io

from rankseg_jax.data import CorruptExample, images, rle
from rankseg_jax.data.published import IGNORED, codecs, files
from rankseg_jax.data.published.builder import Builder
from rankseg_jax.data.published.label_maps import read_classes, to_labels

PHASES = {'train': 'train', 'validation': 'val'}


class PascalContext60(Builder):
    """PASCAL-Context, semantic, with background as a class."""

    CLASSES = 'pascal_context'
    FOLDER = 'VOCdevkit/VOC2010'
    MARKERS = ('JPEGImages',)
    LAYOUT = (
        '  VOCdevkit/VOC2010/JPEGImages/*.jpg\n'
        '  VOCdevkit/VOC2010/ImageSets/SegmentationContext/{train,val}.txt or '
        'ImageSets/Main/{train,val}.txt\n'
        '  VOCdevkit/VOC2010/SegmentationClassContext/*.png or trainval/*.mat or '
        'trainval_merged.json'
    )
    PUBLISHED = {'train': 4_998, 'validation': 5_105}
    HOMEPAGE = 'https://cs.stanford.edu/~roozbeh/pascal-context/'
    LICENSE = "Images: Flickr's terms of use, as in PASCAL VOC"
    LABEL_VALUES = range(60)

    @classmethod
    def find(cls, root: Path, split: str) -> list[tuple]:
        image_dir = root / 'JPEGImages'
        lists = [
            root / f'ImageSets/{kind}/{PHASES[split]}.txt'
            for kind in ('SegmentationContext', 'Main')
        ]
        pngs, mats, detail = (
            root / name for name in ('SegmentationClassContext', 'trainval', 'trainval_merged.json')
        )
        if detail.is_file() and not pngs.is_dir() and not mats.is_dir():
            return cls._find_in_detail(detail, image_dir, split)
        names = next((path.read_text().split() for path in lists if path.is_file()), None)
        if names is None:
            raise cls.missing(split, [' or '.join(map(str, lists))], 1)
        if mats.is_dir() and not pngs.is_dir():
            return cls.pairs(split, image_dir, mats, suffix='.mat', names=names)
        return cls.pairs(split, image_dir, pngs, names=names)

    @classmethod
    def _find_in_detail(cls, path, image_dir, split):
        """As `find`: (file_name, image, JSON file, (rows, columns), [(class, RLE mask), …])."""
        with files.parsing(path, 'JSON file of the Detail API'):
            content = json.loads(path.read_text(encoding='utf-8'))
            found = {
                image['image_id']: image
                for image in content['images']
                if image['phase'] == PHASES[split]
            }
            masks = {image_id: [] for image_id in found}
            for annotation in content['annos_segmentation']:
                if annotation['image_id'] in found:
                    masks[annotation['image_id']].append(
                        (annotation['category_id'], annotation['segmentation'])
                    )
        names = files.listing(image_dir)
        missing = sorted(
            image_dir / image['file_name']
            for image in found.values()
            if image['file_name'] not in names
        )
        if missing or not found:
            raise cls.missing(split, missing or [f'the images of {path}'], max(len(found), 1))
        entries = [
            (
                Path(image['file_name']).stem,
                image_dir / image['file_name'],
                path,
                (image['height'], image['width']),
                masks[image_id],
            )
            for image_id, image in found.items()
        ]
        return sorted(entries, key=lambda entry: entry[0])

    @classmethod
    def read(cls, entry: tuple) -> dict[str, Any]:
        name, image, path, *detail = entry
        ids = read_classes(cls.CLASSES)['ids']
        if detail:
            place = f'{path}, {name}'
            labels = to_labels(paint(*detail, place), ids, ignored=(), path=place)
        elif path.suffix == '.mat':
            labels = to_labels(read_mat(path), ids, ignored=None, path=path)
            labels[labels == IGNORED] = 0
        else:
            labels = to_labels(images.read_values(path), range(len(ids)), ignored=(), path=path)
        return {'image': codecs.read_bytes(image), 'labels': labels, 'original_size': labels.shape}


def paint(size: tuple[int, int], masks: list[tuple[int, dict]], path: str | Path) -> np.ndarray:
    """Paints values where their masks are, later ones over earlier ones: int32 [H, W], else 0.

    Args:
      size: (H, W).
      masks: pairs of a value and a mask in COCO's run-length encoding.
      path: named in errors.

    Raises:
      CorruptExample: a mask cannot be read, or has another size.
    """
    values = np.zeros(size, np.int32)
    for value, encoded in masks:
        try:
            values[rle.decode(rle.compress(encoded))] = value
        except Exception as error:  # ValueError, TypeError, KeyError, IndexError, …
            raise CorruptExample(f'{path}: {type(error).__name__}: {error}') from error
    return values


def read_mat(path: str | Path) -> np.ndarray:
    """Reads LabelMap of a MATLAB file as int32 [H, W]; CorruptExample if it cannot be read."""
    try:
        return scipy.io.loadmat(path)['LabelMap'].astype(np.int32)
    # SciPy raises OSError, ValueError, KeyError, TypeError, zlib.error, …
    except Exception as error:
        raise CorruptExample(f'{path}: {type(error).__name__}: {error}') from error
