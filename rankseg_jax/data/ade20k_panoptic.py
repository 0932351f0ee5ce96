"""ADE20K panoptic: the 150 classes of ADE20K-150, 100 of them things, 50 stuff (ADE20K's and Places Challenge 2017's annotations).

    ADEChallengeData2016/
      images/training/ADE_train_00000001.jpg                  annotations/training/ADE_train_00000001.png
      annotations_instance/training/ADE_train_00000001.png    and the same in validation/

In `annotations` the value v is class v - 1, 0 is void. In `annotations_instance` red is the category of an instance, 1..100, the
things in the order of the classes, and green its number in the image, 0 is none. Segments are stuff, and over it instances, so
pixels of a thing without an instance are void; none is a crowd. `labels` follow from them.

That is the rule of Cheng et al. (CVPR 2022), but for one thing. Theirs leaves a stuff's area and box as they were before instances
covered it, and a stuff of which nothing is left in the JSON file. The first lowers the IoU of every such stuff, the second counts
as missed what nobody can find, so that even the truth has a PQ below 1. Here areas and boxes are those of the map, and segments
without a pixel are left out: PQ is a little above what the same predictions have by the published files, and never below it.
"""

import numpy as np

from rankseg_jax.data import CorruptExample, coco, folder, official
from rankseg_jax.data.ade20k import FOLDERS


class Ade20kPanoptic(official.PanopticBuilder):
    """ADE20K panoptic."""

    CLASSES = 'ade20k_panoptic'
    FOLDER = 'ADEChallengeData2016'
    MARKERS = ('images/training', 'images/validation')
    LAYOUT = (
        '  ADEChallengeData2016/images/{training,validation}/*.jpg\n'
        '  ADEChallengeData2016/annotations/{training,validation}/*.png\n'
        '  ADEChallengeData2016/annotations_instance/{training,validation}/*.png'
    )
    PUBLISHED = {'train': 20_210, 'validation': 2_000}
    HOMEPAGE = 'http://sceneparsing.csail.mit.edu'
    LICENSE = 'Images: for non-commercial research and education; annotations: BSD 3-Clause'
    LABEL_VALUES = range(1, 151)

    @classmethod
    def find(cls, root, split):
        images, labels, instances = (
            root / kind / FOLDERS[split]
            for kind in ('images', 'annotations', 'annotations_instance')
        )
        both = zip(
            cls.pairs(split, images, labels), cls.pairs(split, images, instances), strict=True
        )
        return [(*pair, instance) for pair, (_, _, instance) in both]

    @classmethod
    def read(cls, entry):
        _, image, label, instance = entry
        things = np.flatnonzero(
            official.read_classes(cls.CLASSES)['isthing']
        )  # [100] class of each category of instances
        labels = official.to_labels(
            folder.read_values(label), cls.LABEL_VALUES, (0,), label
        )  # [H, W]
        colours = official.read_colours(instance)  # [H, W, 3]
        if colours.shape[:2] != labels.shape:
            raise CorruptExample(
                f'{instance}: {colours.shape[0]} x {colours.shape[1]} pixels (rows x columns), but {label} has '
                f'{labels.shape[0]} x {labels.shape[1]}'
            )
        stuff = ~np.isin(labels, [*things, official.IGNORED])
        category, number = colours[..., 0].astype(int), colours[..., 1].astype(int)
        keys = np.where(
            number > 0, 256 * number + category, np.where(stuff, labels.astype(int) + 1, 0)
        )  # [H, W], 0: void
        found = np.flatnonzero(np.bincount(keys.ravel())[1:]) + 1  # [N], stuff before instances
        numbers, categories = np.divmod(found[found >= 256], 256)
        if wrong := set(categories.tolist()) - set(range(1, len(things) + 1)):
            raise ValueError(
                f'{instance}: instances of the categories {sorted(wrong)[: official.LISTED]}, but red must be in '
                f'1..{len(things)} where green is not 0'
            )
        if len(twice := numbers[1:][np.diff(numbers) == 0]):
            raise ValueError(
                f'{instance}: the instance {twice[0]} (green) has more than one category (red): '
                f'{categories[numbers == twice[0]].tolist()}'
            )
        places = np.zeros(keys.max() + 1, np.int32)
        places[found] = np.arange(1, len(found) + 1)
        ids = places[keys]  # [H, W]
        segments = coco.segments_info(
            ids, [*found[found < 256] - 1, *things[categories - 1]], range(150)
        )
        return {
            'image': official.read_bytes(image),
            'labels': official.segment_labels(ids, segments, instance),
            'original_size': labels.shape,
            'panoptic_ids': coco.ids_to_rgb(ids),
            'segments': segments,
        }


get_source = Ade20kPanoptic.get_source
