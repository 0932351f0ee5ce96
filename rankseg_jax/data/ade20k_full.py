"""ADE20K-Full: 847 classes of all objects that ADE20K names (Zhou et al., IJCV 2019), of its release of January 2021.

    ADE20K_2021_17_01/images/ADE/
      training/<group>/<scene>/ADE_train_00000001.jpg       ADE_train_00000001_seg.png
      validation/<group>/<scene>/ADE_val_00000001.jpg       ADE_val_00000001_seg.png

In a _seg.png, red // 10 · 256 + green is the number of an object's name in ADE20K's index, 0 is no object; numbers that are none
of the 847 classes (Cheng et al., NeurIPS 2021, who chose them) don't count. Images whose short side is over 512 are shrunk to
512 and labels sampled at the upper left corners of the new pixels, as for the published scores; their JPEGs have a quality of 75,
these of 95. Also read are the folders that were converted for Mask2Former or for mmsegmentation:

    images_detectron2/{training,validation}/*.jpg           annotations_detectron2/{training,validation}/*.tif
    {train,val}/image/*.jpg                                 {train,val}/label/*.tif

Their uint16 values are the classes 0..846, and 65535 doesn't count. `original_size` is the size before the shrinking, but for
these two, which don't tell it.
"""

import io
import os
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from rankseg_jax.data import CorruptExample, folder, official, transforms

FOLDERS = {'train': ('training', 'train'), 'validation': ('validation', 'val')}
SHORT_SIDE = 512  # of the published protocol
QUALITY = 95  # of the JPEGs of shrunk images


class Ade20kFull(official.Builder):
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
    def find(cls, root, split):
        long, short = FOLDERS[split]
        released = root / 'images/ADE' / long
        for images, labels in (
            (root / 'images_detectron2' / long, root / 'annotations_detectron2' / long),
            (root / short / 'image', root / short / 'label'),
        ):
            if not released.is_dir() and (images.is_dir() or labels.is_dir()):
                return cls.pairs(split, images, labels, '.tif')
        return cls._find_released(released, split)

    @classmethod
    def _find_released(cls, root, split):
        """As `find`; ValueError if two scenes have an image of the same name."""
        images, labels = set(), set()  # paths without suffix
        for scene, folders, files in os.walk(root, followlinks=True):
            files = [
                file for file in files if not file.startswith('.')
            ]  # a Mac adds ._a.jpg to a.jpg
            found = {file.removesuffix('.jpg') for file in files if file.endswith('.jpg')}
            folders[:] = set(folders) - found  # those hold masks of the objects of an image
            images |= {Path(scene, name) for name in found}
            labels |= {
                Path(scene, file.removesuffix('_seg.png'))
                for file in files
                if file.endswith('_seg.png')
            }
        missing = sorted(
            [f'{path}_seg.png' for path in images - labels]
            + [f'{path}.jpg' for path in labels - images]
        )
        if missing or not images:
            files = missing or [root / '*/*/*.jpg', root / '*/*/*_seg.png']
            raise cls.missing(split, files, 2 * max(len(images | labels), 1))
        counts = Counter(path.name for path in images)
        if twice := sorted(
            (path for path in images if counts[path.name] > 1), key=lambda path: (path.name, path)
        ):
            files = ', '.join(f'{path}.jpg' for path in twice[: official.LISTED])
            raise ValueError(
                f'{cls.name}, split {split!r}: {len(twice)} images share their names with others: {files}. '
                'The release has each name once: remove what does not belong to it'
            )
        return sorted(
            (path.name, path.with_name(f'{path.name}.jpg'), path.with_name(f'{path.name}_seg.png'))
            for path in images
        )

    @classmethod
    def read(cls, entry):
        _, image, label = entry
        classes, content = official.read_classes(cls.CLASSES)['ids'], official.read_bytes(image)
        if label.suffix == '.tif':
            labels = official.to_labels(
                folder.read_values(label), range(len(classes)), (official.IGNORED,), label
            )
            return {'image': content, 'labels': labels, 'original_size': labels.shape}
        colours = official.read_colours(label)  # [H, W, 3]
        objects = colours[..., 0].astype(np.int32) // 10 * 256 + colours[..., 1]  # [H, W]
        size = shrunk_size(objects.shape)
        if size != objects.shape:
            picture = official.decode_image(content, image)  # [H, W, 3]
            if picture.shape[:2] != objects.shape:
                raise CorruptExample(folder.size_mismatch(image, picture.shape[:2], objects.shape))
            content = encode_jpeg(transforms.resize_image(picture, size).numpy())
        rows, columns = (
            np.arange(new) * (1 / (new / old)) for new, old in zip(size, objects.shape, strict=True)
        )
        objects_there = objects[np.ix_(rows.astype(int), columns.astype(int))]  # [h, w]
        labels = official.to_labels(objects_there, classes, None, label)
        return {'image': content, 'labels': labels, 'original_size': objects.shape}


def shrunk_size(size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns after the short side was cut to SHORT_SIDE, rounded as Python rounds."""
    short = min(size)
    return size if short <= SHORT_SIDE else tuple(round(side / short * SHORT_SIDE) for side in size)


def encode_jpeg(picture) -> bytes:
    """Floats in 0..255, [H, W, 3], rounded, as JPEG."""
    stream = io.BytesIO()
    Image.fromarray((picture + 0.5).astype(np.uint8)).save(stream, 'jpeg', quality=QUALITY)
    return stream.getvalue()


get_source = Ade20kFull.get_source
