"""ADE20K panoptic: the classes of ADE20K-150, 100 things and 50 stuff.

The annotations are those of ADE20K and of the Places Challenge 2017:

    ADEChallengeData2016/
      images/training/ADE_train_00000001.jpg                  and the same in validation/
      annotations/training/ADE_train_00000001.png
      annotations_instance/training/ADE_train_00000001.png

In `annotations` the value v is class v - 1, and 0 is void. In `annotations_instance` red is the
category of an instance, 1..100, the things in the order of the classes; green is its number in the
image, and 0 is none. Segments are the stuff with the instances over it, so pixels of a thing
without an instance are void; none is a crowd. `labels` follow from the segments.

This is the rule of Cheng et al. (CVPR 2022) with one difference. Theirs leaves the area and box of
a stuff segment as they were before instances covered it, and keeps in the JSON file a stuff segment
of which nothing is left. The first lowers the IoU of every such segment, the second counts as
missed what nobody can find, so that even the ground truth has a PQ below 1. Here areas and boxes
are those of the map, and segments without pixels are left out: PQ is slightly above the PQ that the
same predictions reach with the published files, and never below it.
"""

from pathlib import Path
from typing import Any

import numpy as np

from rankseg_jax.data import CorruptExample, coco, images
from rankseg_jax.data.published import IGNORED, LISTED, codecs
from rankseg_jax.data.published.ade20k import FOLDERS
from rankseg_jax.data.published.builder import PanopticBuilder
from rankseg_jax.data.published.label_maps import read_classes, segment_labels, to_labels


class Ade20kPanoptic(PanopticBuilder):
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
    def find(cls, root: Path, split: str) -> list[tuple]:
        image_dir, label_dir, instance_dir = (
            root / kind / FOLDERS[split]
            for kind in ('images', 'annotations', 'annotations_instance')
        )
        labels = cls.pairs(split, image_dir, label_dir)
        instances = cls.pairs(split, image_dir, instance_dir)
        return [(*pair, path) for pair, (_, _, path) in zip(labels, instances, strict=True)]

    @classmethod
    def read(cls, entry: tuple) -> dict[str, Any]:
        _, image, label_path, instance_path = entry
        labels = to_labels(
            images.read_values(label_path), cls.LABEL_VALUES, ignored=(0,), path=label_path
        )  # [H, W]
        colors = codecs.read_colors(instance_path)  # [H, W, 3]
        if colors.shape[:2] != labels.shape:
            raise CorruptExample(
                f'{instance_path}: {colors.shape[0]} x {colors.shape[1]} pixels (rows x columns), '
                f'but {label_path} has {labels.shape[0]} x {labels.shape[1]}'
            )
        things = np.flatnonzero(read_classes(cls.CLASSES)['isthing'])  # [100]
        ids, classes = merge(labels, colors, things, path=instance_path)  # [H, W], [N]
        segments = coco.segments_info(ids, classes, range(150))
        return {
            'image': codecs.read_bytes(image),
            'labels': segment_labels(ids, segments, instance_path),
            'original_size': labels.shape,
            'panoptic_ids': coco.ids_to_rgb(ids),
            'segments': segments,
        }


def merge(
    labels: np.ndarray, colors: np.ndarray, things: np.ndarray, path: str | Path
) -> tuple[np.ndarray, list[int]]:
    """Puts instances over stuff.

    Args:
      labels: [H, W], classes or IGNORED.
      colors: uint8 [H, W, 3], instances; see above.
      things: [100], class of each category of instances.
      path: named in errors.

    Returns:
      Ids int32 [H, W], 1 + place in the list of the segments' classes, stuff first; 0: void.

    Raises:
      ValueError: an instance has an unknown category, or more than one.
    """
    stuff = ~np.isin(labels, [*things, IGNORED])  # [H, W]
    category, number = colors[..., 0].astype(int), colors[..., 1].astype(int)  # [H, W] each
    keys = np.where(stuff, labels.astype(int) + 1, 0)  # [H, W]; stuff < 256, 0: void
    keys = np.where(number > 0, 256 * number + category, keys)  # [H, W]; instances >= 256
    found = np.flatnonzero(np.bincount(keys.ravel())[1:]) + 1  # [N], stuff before instances
    numbers, categories = np.divmod(found[found >= 256], 256)
    if wrong := set(categories.tolist()) - set(range(1, len(things) + 1)):
        raise ValueError(
            f'{path}: instances of the categories {sorted(wrong)[:LISTED]}, but red must be in '
            f'1..{len(things)} where green is not 0'
        )
    if len(repeated := numbers[1:][np.diff(numbers) == 0]):
        raise ValueError(
            f'{path}: the instance {repeated[0]} (green) has more than one category (red): '
            f'{categories[numbers == repeated[0]].tolist()}'
        )
    places = np.zeros(keys.max() + 1, np.int32)
    places[found] = np.arange(1, len(found) + 1)
    return places[keys], [*found[found < 256] - 1, *things[categories - 1]]
