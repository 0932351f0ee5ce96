"""PASCAL-Context with 60 classes: 59 and background (Mottaghi et al., CVPR 2014), on images of PASCAL VOC 2010.

    VOCdevkit/VOC2010/
      JPEGImages/2008_000002.jpg
      ImageSets/SegmentationContext/{train,val}.txt, or else VOC's own ImageSets/Main/{train,val}.txt
    and the labels, the first of these that is there:
      SegmentationClassContext/2008_000002.png      as converted for mmsegmentation: the value v is class v
      trainval/2008_000002.mat                      the original: numbers of 459 classes, 59 of which are classes here
      trainval_merged.json                          the Detail API's (PASCAL in Detail): masks, and its own splits

All else is background, class 0. The classes are in alphabetical order; mmsegmentation's first versions named them in another one,
for the same PNGs. The original has 4,998 and 5,105 images, the Detail API, of which these PNGs are made, 4,996 and 5,104, and not
everywhere the same labels.
"""

import json
from pathlib import Path

import numpy as np
import scipy.io

from rankseg_jax.data import CorruptExample, folder, official, rle

PHASES = {'train': 'train', 'validation': 'val'}


class PascalContext60(official.Builder):
    """PASCAL-Context, semantic, with background as a class."""

    CLASSES = 'pascal_context'
    FOLDER = 'VOCdevkit/VOC2010'
    MARKERS = ('JPEGImages',)
    LAYOUT = (
        '  VOCdevkit/VOC2010/JPEGImages/*.jpg\n'
        '  VOCdevkit/VOC2010/ImageSets/SegmentationContext/{train,val}.txt or ImageSets/Main/{train,val}.txt\n'
        '  VOCdevkit/VOC2010/SegmentationClassContext/*.png or trainval/*.mat or trainval_merged.json'
    )
    PUBLISHED = {'train': 4_998, 'validation': 5_105}
    HOMEPAGE = 'https://cs.stanford.edu/~roozbeh/pascal-context/'
    LICENSE = "Images: Flickr's terms of use, as of PASCAL VOC"
    LABEL_VALUES = range(60)

    @classmethod
    def find(cls, root, split):
        images = root / 'JPEGImages'
        lists = [
            root / f'ImageSets/{kind}/{PHASES[split]}.txt'
            for kind in ('SegmentationContext', 'Main')
        ]
        pngs, mats, detail = (
            root / name for name in ('SegmentationClassContext', 'trainval', 'trainval_merged.json')
        )
        if detail.is_file() and not pngs.is_dir() and not mats.is_dir():
            return cls._find_in_detail(detail, images, split)
        names = next((path.read_text().split() for path in lists if path.is_file()), None)
        if names is None:
            raise cls.missing(split, [' or '.join(map(str, lists))], 1)
        labels = (mats, '.mat') if mats.is_dir() and not pngs.is_dir() else (pngs, '.png')
        return cls.pairs(split, images, *labels, names)

    @classmethod
    def _find_in_detail(cls, path, image_dir, split):
        """As `find`: (file_name, image, JSON file, (rows, columns), [(class in the JSON file, run-length mask), …])."""
        with official.parsing(path, 'JSON file of the Detail API'):
            content = json.loads(path.read_text(encoding='utf-8'))
            images = {
                image['image_id']: image
                for image in content['images']
                if image['phase'] == PHASES[split]
            }
            masks = {image_id: [] for image_id in images}
            for annotation in content['annos_segmentation']:
                if annotation['image_id'] in images:
                    masks[annotation['image_id']].append(
                        (annotation['category_id'], annotation['segmentation'])
                    )
        files = official.listing(image_dir)
        missing = sorted(
            image_dir / image['file_name']
            for image in images.values()
            if image['file_name'] not in files
        )
        if missing or not images:
            raise cls.missing(split, missing or [f'the images of {path}'], max(len(images), 1))
        entries = [
            (
                Path(image['file_name']).stem,
                image_dir / image['file_name'],
                path,
                (image['height'], image['width']),
                masks[image_id],
            )
            for image_id, image in images.items()
        ]
        return sorted(entries, key=lambda entry: entry[0])

    @classmethod
    def read(cls, entry):
        name, image, path, *detail = entry
        ids = official.read_classes(cls.CLASSES)['ids']
        if detail:
            labels = official.to_labels(
                paint(*detail, f'{path}, {name}'), ids, (), f'{path}, {name}'
            )
        elif path.suffix == '.mat':
            labels = official.to_labels(read_mat(path), ids, None, path)
            labels[labels == official.IGNORED] = 0
        else:
            labels = official.to_labels(folder.read_values(path), range(len(ids)), (), path)
        return {
            'image': official.read_bytes(image),
            'labels': labels,
            'original_size': labels.shape,
        }


def paint(size: tuple[int, int], masks, path) -> np.ndarray:
    """Pairs of a value and a mask in COCO's run-length encoding -> int32 [H, W], later masks over earlier ones, 0 elsewhere.

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


def read_mat(path) -> np.ndarray:
    """The matrix LabelMap of a MATLAB file as int32 [H, W]; CorruptExample if it cannot be read."""
    try:
        return scipy.io.loadmat(path)['LabelMap'].astype(np.int32)
    except (
        Exception
    ) as error:  # SciPy raises OSError, ValueError, KeyError, TypeError, zlib.error, …
        raise CorruptExample(f'{path}: {type(error).__name__}: {error}') from error


get_source = PascalContext60.get_source
