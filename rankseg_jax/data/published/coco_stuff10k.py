"""COCO-Stuff 10K, version 1.1: 10,000 images of COCO's training set (Caesar et al., 2016).

The 171 classes are 80 things and 91 stuff.

    coco_stuff10k/
      images/COCO_train2014_000000000077.jpg        annotations/COCO_train2014_000000000077.mat
      imageLists/train.txt  test.txt                names, one per line; test is 'validation'

A value in the array S of a .mat file is the category of COCO-Stuff (11 of its 182 occur in no
image); 0 is ignored. Also read are the files that mmsegmentation converts them to, in which v is
class v - 1 and 0 is ignored:

      images/{train2014,test2014}/X.jpg
      annotations/{train2014,test2014}/X_labelTrainIds.png
"""

from pathlib import Path
from typing import Any

import numpy as np
from scipy import io

from rankseg_jax.data import CorruptExample, coco, images
from rankseg_jax.data.published import codecs
from rankseg_jax.data.published.builder import Builder
from rankseg_jax.data.published.coco_stuff164k import TRAIN_IDS
from rankseg_jax.data.published.label_maps import read_classes, to_labels

LISTS = {'train': 'train', 'validation': 'test'}
NUM_NAMES = 182  # in a file of version 1.1


class CocoStuff10k(Builder):
    """COCO-Stuff 10K, semantic."""

    CLASSES = 'coco_stuff'
    FOLDER = 'coco_stuff10k'
    MARKERS = ('imageLists', 'annotations/train2014', 'annotations/test2014')
    LAYOUT = (
        '  coco_stuff10k/images/*.jpg\n'
        '  coco_stuff10k/annotations/*.mat\n'
        '  coco_stuff10k/imageLists/{train,test}.txt\n'
        'or\n'
        '  coco_stuff10k/images/{train2014,test2014}/*.jpg\n'
        f'  coco_stuff10k/annotations/{{train2014,test2014}}/*{TRAIN_IDS}'
    )
    PUBLISHED = {'train': 9_000, 'validation': 1_000}
    HOMEPAGE = 'https://github.com/nightrome/cocostuff10k'
    LICENSE = 'Images: terms of use of Flickr; annotations: CC BY 4.0'

    image_id = staticmethod(coco.image_number)

    @classmethod
    def find(cls, root: Path, split: str) -> list[tuple]:
        name = LISTS[split]
        image_dir, label_dir = root / 'images', root / 'annotations'
        converted = f'{name}2014'
        if (label_dir / converted).is_dir():
            return cls.pairs(split, image_dir / converted, label_dir / converted, suffix=TRAIN_IDS)
        names = root / f'imageLists/{name}.txt'
        if not names.is_file():
            raise cls.missing(split, [names], 1)
        return cls.pairs(
            split, image_dir, label_dir, suffix='.mat', names=names.read_text().split()
        )

    @classmethod
    def read(cls, entry: tuple) -> dict[str, Any]:
        _, image, path = entry
        ids = read_classes(cls.CLASSES)['ids']
        if path.suffix == '.mat':
            values = read_mat(path)  # [H, W]
        else:
            values, ids = images.read_values(path), range(1, len(ids) + 1)
        labels = to_labels(values, ids, ignored=(0,), path=path)  # [H, W]
        return {'image': codecs.read_bytes(image), 'labels': labels, 'original_size': labels.shape}


def read_mat(path: str | Path) -> np.ndarray:
    """Reads the category of each pixel, int32 [H, W].

    Raises:
      CorruptExample: the file cannot be read.
      ValueError: it is not from COCO-Stuff 10K, or from version 1.0, whose values mean other
        categories.
    """
    try:
        content = io.loadmat(path, variable_names=('S', 'names'))
    # SciPy raises OSError, ValueError, NotImplementedError, zlib.error, …
    except Exception as error:
        raise CorruptExample(f'{path}: {type(error).__name__}: {error}') from error
    if 'S' not in content:
        raise ValueError(f'{path} holds no map S: it is not a file of COCO-Stuff 10K')
    if 'names' in content and np.size(content['names']) != NUM_NAMES:
        raise ValueError(
            f'{path} names {np.size(content["names"])} categories, files of version 1.1 name '
            f'{NUM_NAMES}; those of version 1.0 name 172 with other numbers. Get '
            'cocostuff-10k-v1.1.zip'
        )
    return content['S'].astype(np.int32)
