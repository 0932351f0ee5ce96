"""COCO-Stuff 10K, version 1.1: 10,000 images of COCO's training set with 171 classes, 80 things and 91 stuff (Caesar et al., 2016).

    coco_stuff10k/
      images/COCO_train2014_000000000077.jpg        annotations/COCO_train2014_000000000077.mat
      imageLists/train.txt  test.txt                names, one a line; the test images are the split 'validation'

In a .mat file's S a value is the category of COCO-Stuff (11 of its 182 are in no image), and 0 doesn't count. Or the files that
mmsegmentation makes of them, where v is class v - 1 and 0 doesn't count:

      images/{train2014,test2014}/X.jpg             annotations/{train2014,test2014}/X_labelTrainIds.png
"""

import numpy as np
from scipy import io

from rankseg_jax.data import CorruptExample, coco, folder, official
from rankseg_jax.data.coco_stuff164k import TRAIN_IDS

LISTS = {'train': 'train', 'validation': 'test'}
NUM_NAMES = 182  # in a file of version 1.1


class CocoStuff10k(official.Builder):
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
    def find(cls, root, split):
        name = LISTS[split]
        images, labels = root / 'images', root / 'annotations'
        if (labels / f'{name}2014').is_dir():
            return cls.pairs(split, images / f'{name}2014', labels / f'{name}2014', TRAIN_IDS)
        names = root / f'imageLists/{name}.txt'
        if not names.is_file():
            raise cls.missing(split, [names], 1)
        return cls.pairs(split, images, labels, '.mat', names.read_text().split())

    @classmethod
    def read(cls, entry):
        _, image, label = entry
        ids = official.read_classes(cls.CLASSES)['ids']
        if label.suffix == '.mat':
            labels = official.to_labels(read_mat(label), ids, (0,), label)
        else:
            labels = official.to_labels(
                folder.read_values(label), range(1, len(ids) + 1), (0,), label
            )
        return {
            'image': official.read_bytes(image),
            'labels': labels,
            'original_size': labels.shape,
        }


def read_mat(path) -> np.ndarray:
    """The category of each pixel, int32 [H, W].

    Raises:
      CorruptExample: the file cannot be read.
      ValueError: it is none of COCO-Stuff 10K, or of its version 1.0, whose values mean other categories.
    """
    try:
        content = io.loadmat(path, variable_names=('S', 'names'))
    except (
        Exception
    ) as error:  # SciPy raises OSError, ValueError, NotImplementedError, zlib.error, …
        raise CorruptExample(f'{path}: {type(error).__name__}: {error}') from error
    if 'S' not in content:
        raise ValueError(f'{path} holds no map S: it is no file of COCO-Stuff 10K')
    if 'names' in content and np.size(content['names']) != NUM_NAMES:
        raise ValueError(
            f'{path} names {np.size(content["names"])} categories, files of version 1.1 name {NUM_NAMES}; those of '
            'version 1.0 have 172, of other numbers. Get cocostuff-10k-v1.1.zip'
        )
    return content['S'].astype(np.int32)


get_source = CocoStuff10k.get_source
