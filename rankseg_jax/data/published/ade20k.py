"""ADE20K-150 (SceneParse150): 150 classes of indoor and outdoor scenes (Zhou et al., CVPR 2017).

    ADEChallengeData2016/
      images/training/ADE_train_00000001.jpg        annotations/training/ADE_train_00000001.png
      images/validation/ADE_val_00000001.jpg        annotations/validation/ADE_val_00000001.png

A label value v is class v - 1; 0 is ignored. (TFDS's own `scene_parse150` holds the instance maps
instead.)
"""

from pathlib import Path
from typing import Any

from rankseg_jax.data import images
from rankseg_jax.data.published import codecs
from rankseg_jax.data.published.builder import Builder
from rankseg_jax.data.published.label_maps import read_classes, to_labels

FOLDERS = {'train': 'training', 'validation': 'validation'}


class Ade20k(Builder):
    """ADE20K-150, semantic."""

    CLASSES = 'ade20k'
    FOLDER = 'ADEChallengeData2016'
    MARKERS = ('images/training', 'images/validation')
    LAYOUT = (
        '  ADEChallengeData2016/images/{training,validation}/*.jpg\n'
        '  ADEChallengeData2016/annotations/{training,validation}/*.png'
    )
    PUBLISHED = {'train': 20_210, 'validation': 2_000}
    HOMEPAGE = 'http://sceneparsing.csail.mit.edu'
    LICENSE = 'Images: for non-commercial research and education; annotations: BSD 3-Clause'

    @classmethod
    def find(cls, root: Path, split: str) -> list[tuple]:
        name = FOLDERS[split]
        return cls.pairs(split, root / 'images' / name, root / 'annotations' / name)

    @classmethod
    def read(cls, entry: tuple) -> dict[str, Any]:
        _, image, path = entry
        ids = read_classes(cls.CLASSES)['ids']
        labels = to_labels(images.read_values(path), ids, ignored=(0,), path=path)  # [H, W]
        return {'image': codecs.read_bytes(image), 'labels': labels, 'original_size': labels.shape}
