"""COCO-Stuff: the images of COCO 2017 with 171 classes, 80 things and 91 stuff (Caesar et al., CVPR 2018).

    coco/
      train2017/000000000009.jpg      stuffthingmaps/train2017/000000000009.png
      val2017/000000000139.jpg        stuffthingmaps/val2017/000000000139.png

or, as the authors' own instructions and mmsegmentation have it, in images/ and annotations/. A label value v is the category v + 1
of COCO-Stuff (11 of its 182 are in no image), and 255 doesn't count. A folder may have files *_labelTrainIds.png beside them, of
mmsegmentation: in these, v is class v. Where there are any, only they are read.
"""

from rankseg_jax.data import coco, folder, official

FOLDERS = {'train': 'train2017', 'validation': 'val2017'}
TRAIN_IDS = '_labelTrainIds.png'


class CocoStuff164k(official.Builder):
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
    LABEL_VALUES = tuple(i - 1 for i in official.read_classes(CLASSES)['ids'])

    image_id = staticmethod(coco.image_number)

    @classmethod
    def find(cls, root, split):
        name = FOLDERS[split]
        images = official.first_of(root / name, root / 'images' / name)
        labels = official.first_of(root / 'stuffthingmaps' / name, root / 'annotations' / name)
        converted = any(file.endswith(TRAIN_IDS) for file in official.listing(labels))
        return cls.pairs(split, images, labels, TRAIN_IDS if converted else '.png')

    @classmethod
    def read(cls, entry):
        _, image, label = entry
        values = (
            range(len(cls.LABEL_VALUES)) if label.name.endswith(TRAIN_IDS) else cls.LABEL_VALUES
        )
        labels = official.to_labels(folder.read_values(label), values, (255,), label)
        return {
            'image': official.read_bytes(image),
            'labels': labels,
            'original_size': labels.shape,
        }


get_source = CocoStuff164k.get_source
