"""ADE20K-Full: 847 classes of objects that ADE20K names (Zhou et al., IJCV 2019).

The files are those of its release of January 2021:

    ADE20K_2021_17_01/images/ADE/
      training/<group>/<scene>/ADE_train_00000001.jpg       ADE_train_00000001_seg.png
      validation/<group>/<scene>/ADE_val_00000001.jpg       ADE_val_00000001_seg.png

In a _seg.png, red // 10 · 256 + green is the number of an object's name in ADE20K's index; 0 is no
object. Numbers outside the 847 classes, which Cheng et al. (NeurIPS 2021) chose, are ignored.
Images with a short side over 512 are shrunk to 512, and label maps are sampled at the upper left
corners of the new pixels, as for the published scores. The JPEGs of that protocol have a quality of
75, these of 95. Also read are the folders that were converted for Mask2Former or mmsegmentation:

    images_detectron2/{training,validation}/*.jpg           annotations_detectron2/{…}/*.tif
    {train,val}/image/*.jpg                                 {train,val}/label/*.tif

Their uint16 values are the classes 0..846; 65535 is ignored. `original_size` is the size before
shrinking, except for these two, which do not record it.
"""

import io
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rankseg_jax.data import CorruptExample, fitting, images
from rankseg_jax.data.published import IGNORED, LISTED, codecs
from rankseg_jax.data.published.builder import Builder
from rankseg_jax.data.published.label_maps import read_classes, to_labels

FOLDERS = {'train': ('training', 'train'), 'validation': ('validation', 'val')}
SHORT_SIDE = 512  # of the published protocol
QUALITY = 95  # of the JPEGs of shrunk images


class Ade20kFull(Builder):
    """ADE20K-Full, semantic."""

    CLASSES = 'ade20k_full'
    FOLDER = 'ADE20K_2021_17_01'
    MARKERS = ('images/ADE', 'images_detectron2', 'train/image', 'val/image')
    LAYOUT = (
        '  ADE20K_2021_17_01/images/ADE/{training,validation}/<group>/<scene>/*.jpg and *_seg.png\n'
        'or, converted,\n'
        '  ADE20K_2021_17_01/images_detectron2/{training,validation}/*.jpg\n'
        '  ADE20K_2021_17_01/annotations_detectron2/{training,validation}/*.tif\n'
        'or\n'
        '  {train,val}/image/*.jpg\n'
        '  {train,val}/label/*.tif'
    )
    PUBLISHED = {'train': 25_574, 'validation': 2_000}
    HOMEPAGE = 'https://groups.csail.mit.edu/vision/datasets/ADE20K/'
    LICENSE = 'Images: for non-commercial research and education; annotations: BSD 3-Clause'

    @classmethod
    def find(cls, root: Path, split: str) -> list[tuple]:
        long, short = FOLDERS[split]
        released = root / 'images/ADE' / long
        for image_dir, label_dir in (
            (root / 'images_detectron2' / long, root / 'annotations_detectron2' / long),
            (root / short / 'image', root / short / 'label'),
        ):
            if not released.is_dir() and (image_dir.is_dir() or label_dir.is_dir()):
                return cls.pairs(split, image_dir, label_dir, suffix='.tif')
        return cls._find_released(released, split)

    @classmethod
    def _find_released(cls, root, split):
        """As `find`; ValueError if two scenes have an image of the same name."""
        photos, labels = set(), set()  # paths without suffix
        for scene, folders, names in os.walk(root, followlinks=True):
            # macOS adds ._a.jpg to a.jpg.
            names = [name for name in names if not name.startswith('.')]
            found = {name.removesuffix('.jpg') for name in names if name.endswith('.jpg')}
            # A folder with the name of an image holds masks of its objects.
            folders[:] = set(folders) - found
            photos |= {Path(scene, name) for name in found}
            labels |= {
                Path(scene, name.removesuffix('_seg.png'))
                for name in names
                if name.endswith('_seg.png')
            }
        missing = sorted(
            [f'{path}_seg.png' for path in photos - labels]
            + [f'{path}.jpg' for path in labels - photos]
        )
        if not photos and not missing:
            missing = [root / '*/*/*.jpg', root / '*/*/*_seg.png']
        if missing:
            raise cls.missing(split, missing, 2 * max(len(photos | labels), 1))
        counts = Counter(path.name for path in photos)
        repeated = [path for path in photos if counts[path.name] > 1]
        if repeated:
            repeated.sort(key=lambda path: (path.name, path))
            listed = ', '.join(f'{path}.jpg' for path in repeated[:LISTED])
            raise ValueError(
                f'{cls.name}, split {split!r}: {len(repeated)} images share their names with '
                f'others: {listed}. The release has each name once: remove what does not belong '
                'to it'
            )
        return sorted(
            (path.name, path.with_name(f'{path.name}.jpg'), path.with_name(f'{path.name}_seg.png'))
            for path in photos
        )

    @classmethod
    def read(cls, entry: tuple) -> dict[str, Any]:
        _, image, path = entry
        ids, content = read_classes(cls.CLASSES)['ids'], codecs.read_bytes(image)
        if path.suffix == '.tif':
            values = images.read_values(path)  # [H, W]
            labels = to_labels(values, range(len(ids)), ignored=(IGNORED,), path=path)
            return {'image': content, 'labels': labels, 'original_size': labels.shape}
        colors = codecs.read_colors(path)  # [H, W, 3]
        objects = colors[..., 0].astype(np.int32) // 10 * 256 + colors[..., 1]  # [H, W]
        original = objects.shape
        size = shrunk_size(original)
        if size != original:
            photo = codecs.decode_image(content, image)  # [H, W, 3]
            if photo.shape[:2] != original:
                raise CorruptExample(images.size_mismatch(image, photo.shape[:2], original))
            content = encode_jpeg(fitting.resize(photo, size))
            rows, columns = (
                (np.arange(new) * (1 / (new / old))).astype(int)
                for new, old in zip(size, original, strict=True)
            )
            objects = objects[np.ix_(rows, columns)]  # [h, w]
        labels = to_labels(objects, ids, ignored=None, path=path)
        return {'image': content, 'labels': labels, 'original_size': original}


def shrunk_size(size: tuple[int, int]) -> tuple[int, int]:
    """(rows, columns) with the short side cut to SHORT_SIDE, rounded as Python rounds."""
    rows, columns = size
    if (short := min(size)) <= SHORT_SIDE:
        return size
    return round(rows / short * SHORT_SIDE), round(columns / short * SHORT_SIDE)


def encode_jpeg(image: np.ndarray) -> bytes:
    """Rounds floats [H, W, 3] in 0..255 and encodes them as JPEG."""
    stream = io.BytesIO()
    Image.fromarray((image + 0.5).astype(np.uint8)).save(stream, 'jpeg', quality=QUALITY)
    return stream.getvalue()
