"""COCO+LVIS: the things of LVIS v1 (Gupta et al., CVPR 2019) over COCO-Stuff's stuff (CVPR 2018).

    coco/
      train2017/000000391895.jpg                    val2017/…
      stuffthingmaps/train2017/000000391895.png     stuffthingmaps/val2017/…
      lvis_v1_train.json  lvis_v1_val.json          here, in annotations/ or in lvis/

A pixel belongs to the first annotation of LVIS that covers it, in the order of the JSON file. Where
there is none, it belongs to the stuff that COCO-Stuff has there. COCO's things without a mask in
LVIS and unlabeled pixels are ignored. The 1,284 classes are the 1,203 of LVIS in the order of their
ids, then the 81 stuff classes that have no namesake among them; the other 10 share the class of
their namesake.

Also read are finished masks in the layout of the RankSeg paper; value v is class v - 1, and 0 is
ignored:

    lvis/images/{train2017,val2017}/*.jpg           lvis/lvis_mask/{train2017,val2017}/*.png
"""

import json
from array import array
from pathlib import Path
from typing import Any

import numpy as np

from rankseg_jax.data import coco, images, rle
from rankseg_jax.data.published import IGNORED, LISTED, codecs, files
from rankseg_jax.data.published.builder import Builder
from rankseg_jax.data.published.coco_stuff164k import FOLDERS
from rankseg_jax.data.published.label_maps import read_classes, to_labels

FILES = {'train': 'lvis_v1_train.json', 'validation': 'lvis_v1_val.json'}
PLACES = ('', 'annotations/', 'lvis/')  # of the JSON files
NUM_THINGS = 1203
FARTHEST = 100_000  # pycocotools walks along a polygon's edges, however far, and crashes
STUFF_IDS = range(92, 183)  # of COCO-Stuff


class CocoLvis(Builder):
    """COCO+LVIS, semantic."""

    CLASSES = 'coco_lvis'
    FOLDER = 'coco'
    MARKERS = (
        *(place + name for place in PLACES for name in FILES.values()),
        'lvis/lvis_mask',
        'lvis_mask',
    )
    LAYOUT = (
        '  coco/{train2017,val2017}/*.jpg\n'
        '  coco/{lvis_v1_train,lvis_v1_val}.json, or in coco/annotations/ or coco/lvis/\n'
        '  coco/stuffthingmaps/{train2017,val2017}/*.png\n'
        'or\n'
        '  lvis/images/{train2017,val2017}/*.jpg\n'
        '  lvis/lvis_mask/{train2017,val2017}/*.png'
    )
    PUBLISHED = {'train': 100_170, 'validation': 19_809}
    HOMEPAGE = 'https://www.lvisdataset.org'
    LICENSE = 'Images: terms of use of Flickr; annotations: CC BY 4.0'

    image_id = staticmethod(coco.image_number)

    @classmethod
    def find(cls, root: Path, split: str) -> list[tuple]:
        path = files.first_existing(*(root / (place + FILES[split]) for place in PLACES))
        masks = files.first_existing(root / 'lvis/lvis_mask', root / 'lvis_mask') / FOLDERS[split]
        if masks.exists() and not path.exists():
            return cls.pairs(split, masks.parents[1] / 'images' / FOLDERS[split], masks)
        if not path.is_file():
            raise cls.missing(split, [path], 1)
        annotations = read_json(path, read_classes(cls.CLASSES)['names'][:NUM_THINGS])
        if not annotations:
            raise ValueError(f'{path} lists no images')
        entries = []
        # LVIS's validation images are in both folders.
        for place in sorted({place for place, _ in annotations}):
            names = [name for other, name in annotations if other == place]
            pairs = cls.pairs(split, root / place, root / 'stuffthingmaps' / place, names=names)
            entries += [(*pair, annotations[place, pair[0]]) for pair in pairs]
        return sorted(entries, key=lambda entry: entry[0])

    @classmethod
    def read(cls, entry: tuple) -> dict[str, Any]:
        _, image, path, *annotations = entry
        values = images.read_values(path)  # [H, W]
        if annotations:
            labels = stuff_labels(values, path)  # [H, W]
            paint(labels, *annotations, image)
        else:
            labels = to_labels(values, read_classes(cls.CLASSES)['ids'], ignored=(0,), path=path)
        return {'image': codecs.read_bytes(image), 'labels': labels, 'original_size': labels.shape}


def read_json(path: Path, names: list[str]) -> dict[tuple[str, str], list]:
    """Reads the annotations of each image from a JSON file of LVIS.

    Args:
      names: of the categories 1, 2, ….

    Returns:
      (folder, name) → a list of (class, segmentation), as `paint` takes them.

    Raises:
      ValueError: the file is broken, or of another version or kind.
    """

    # Only the needed keys of an annotation, its numbers as arrays: 1.6 GB instead of 6 GB.
    def keep(value):
        if 'segmentation' in value:
            return value['image_id'], value['category_id'], compact(value['segmentation'])
        if 'coco_url' in value:
            return value['id'], *value['coco_url'].removesuffix('.jpg').split('/')[-2:]
        return value

    with files.parsing(path, 'JSON file of LVIS v1'):
        content = json.loads(path.read_text('utf-8'), object_hook=keep)
        found = {category['id']: category['name'] for category in content['categories']}
        if found != (wanted := dict(enumerate(names, 1))):
            differ = [
                f'{i} {found.get(i)}'
                for i in sorted(found.keys() | wanted.keys())
                if found.get(i) != wanted.get(i)
            ]
            raise ValueError(
                f'it lists {len(found)} categories, version 1 has {len(names)} (version 0.5: '
                f'1230); they differ in {", ".join(differ[:LISTED])}'
            )
        by_image = {image_id: [] for image_id, _, _ in content['images']}
        for image_id, category, segmentation in content['annotations']:
            if category not in wanted:
                raise ValueError(
                    f'an annotation of the image {image_id} has the category {category}'
                )
            by_image[image_id].append((category - 1, segmentation))
        return {(place, name): by_image[image_id] for image_id, place, name in content['images']}


def compact(segmentation: list | dict) -> list[array] | dict:
    """Polygons as arrays, run lengths compressed.

    Raises:
      ValueError: pycocotools would misread it.
    """
    if isinstance(segmentation, list):
        if not segmentation or any(
            len(polygon) < 6 or len(polygon) % 2 for polygon in segmentation
        ):
            raise ValueError(f'polygons need three points or more: {segmentation}')
        polygons = [array('d', polygon) for polygon in segmentation]
        if not all(np.abs(polygon).max() < FARTHEST for polygon in polygons):
            raise ValueError(f'polygons need points within {FARTHEST:,} pixels: {segmentation}')
        return polygons
    return rle.compress(segmentation)


def stuff_labels(values: np.ndarray, path: str | Path) -> np.ndarray:
    """Maps a label map of COCO-Stuff to classes, uint16 [H, W]; everything but stuff is IGNORED.

    Args:
      values: int [H, W] in 0..181 or 255.
      path: named in errors.

    Raises:
      ValueError: other values.
    """
    places = to_labels(values, range(STUFF_IDS.stop - 1), ignored=(255,), path=path)
    categories = places.astype(int)  # [H, W]; category - 1
    table = np.full(IGNORED + 1, IGNORED, np.uint16)
    table[STUFF_IDS.start - 1 : STUFF_IDS.stop - 1] = read_classes(CocoLvis.CLASSES)['stuff']
    return table[categories]


def paint(labels: np.ndarray, annotations: list, path: str | Path) -> None:
    """Puts things over labels [H, W], in place; where they overlap, the first counts.

    Args:
      annotations: (class, segmentation), the latter as `compact` returns it: arrays of x, y, x,
        y, …, or run lengths.
      path: named in errors.

    Raises:
      ValueError: run lengths of another size.
    """
    height, width = labels.shape
    for label, segmentation in reversed(annotations):
        if isinstance(segmentation, list):
            segmentation = rle.from_polygons(segmentation, labels.shape)
        if (size := tuple(segmentation['size'])) != labels.shape:
            raise ValueError(
                f'{path} has {height} x {width} pixels (rows x columns), a mask of LVIS for it '
                f'{size}'
            )
        labels[rle.decode(segmentation)] = label
