"""COCO-Stuff: the images of COCO 2017, 80 things and 91 stuff classes (Caesar et al., CVPR 2018).

    coco/
      train2017/000000000009.jpg      stuffthingmaps/train2017/000000000009.png
      val2017/000000000139.jpg        stuffthingmaps/val2017/000000000139.png

or in images/ and annotations/, as in the authors' instructions and mmsegmentation. A label value v
is the category v + 1 of COCO-Stuff (11 of its 182 occur in no image); 255 is ignored. If the folder
also holds mmsegmentation's files *_labelTrainIds.png, in which v is class v, only these are read.
"""

from pathlib import Path
from typing import Any

from rankseg_jax.data import coco, images
from rankseg_jax.data.published import codecs, files
from rankseg_jax.data.published.builder import Builder
from rankseg_jax.data.published.label_maps import read_classes, to_labels

FOLDERS = {'train': 'train2017', 'validation': 'val2017'}
TRAIN_IDS = '_labelTrainIds.png'


class CocoStuff164k(Builder):
    """COCO-Stuff, semantic."""

    CLASSES = 'coco_stuff'
    FOLDER = 'coco'
    MARKERS = tuple(
        f'{kind}/{name}' for kind in ('stuffthingmaps', 'annotations') for name in FOLDERS.values()
    )
    LAYOUT = (
        '  coco/{train2017,val2017}/*.jpg\n'
        '  coco/stuffthingmaps/{train2017,val2017}/*.png\n'
        'or\n'
        '  coco/images/{train2017,val2017}/*.jpg\n'
        f'  coco/annotations/{{train2017,val2017}}/*.png or *{TRAIN_IDS}'
    )
    PUBLISHED = {'train': 118_287, 'validation': 5_000}
    HOMEPAGE = 'https://github.com/nightrome/cocostuff'
    LICENSE = 'Images: terms of use of Flickr; annotations: CC BY 4.0'
    LABEL_VALUES = tuple(i - 1 for i in read_classes(CLASSES)['ids'])

    image_id = staticmethod(coco.image_number)

    @classmethod
    def find(cls, root: Path, split: str) -> list[tuple]:
        name = FOLDERS[split]
        image_dir = files.first_existing(root / name, root / 'images' / name)
        label_dir = files.first_existing(
            root / 'stuffthingmaps' / name, root / 'annotations' / name
        )
        converted = any(file.endswith(TRAIN_IDS) for file in files.listing(label_dir))
        return cls.pairs(split, image_dir, label_dir, suffix=TRAIN_IDS if converted else '.png')

    @classmethod
    def read(cls, entry: tuple) -> dict[str, Any]:
        _, image, path = entry
        ids = range(len(cls.LABEL_VALUES)) if path.name.endswith(TRAIN_IDS) else cls.LABEL_VALUES
        labels = to_labels(images.read_values(path), ids, ignored=(255,), path=path)  # [H, W]
        return {'image': codecs.read_bytes(image), 'labels': labels, 'original_size': labels.shape}
