"""Decodes image and label files of any kind that Pillow reads."""

from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

from rankseg_jax.data import CorruptExample

IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.webp', '.tif', '.tiff', '.ppm', '.gif')


def read_image(path: str | Path) -> np.ndarray:
    """Reads an image of any kind as uint8 RGB [H, W, 3].

    The EXIF orientation is applied, to images and label maps alike, as viewers and labeling tools
    do; transparency is dropped; 16-bit gray keeps its upper 8 bits.

    Raises:
      CorruptExample: the file cannot be read.
    """
    image = _decode(path)
    if image.mode == 'F':
        raise CorruptExample(f'{path}: images with floating-point pixels are not supported')
    return to_rgb(image)


def to_rgb(image: Image.Image) -> np.ndarray:
    """Converts a PIL image of any kind to uint8 [H, W, 3]; see `read_image`."""
    if image.mode.startswith('I'):
        upper = np.clip(np.asarray(image, np.int32) >> 8, 0, 255)
        image = Image.fromarray(upper.astype(np.uint8))
    return np.array(image.convert('RGB'))


def read_values(path: str | Path) -> np.ndarray:
    """Reads the values of a label file, palette indices included, as int32 [H, W].

    Raises:
      CorruptExample: the file cannot be read.
      ValueError: its pixels are colors, not values.
    """
    image = _decode(path)
    values = np.asarray(image)
    if values.ndim != 2 or values.dtype.kind not in 'bui':
        raise ValueError(
            f'{path}: a label file needs one value per pixel (8- or 16-bit gray, or palette), but '
            f'its mode is {image.mode}; convert its colors to class indices'
        )
    return values.astype(np.int32)


def read_size(path: str | Path) -> tuple[int, int]:
    """Reads the (rows, columns) of an image from its header alone, its EXIF orientation applied.

    Raises:
      CorruptExample: the header cannot be read.
    """
    try:
        with Image.open(path) as image:
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
            width, height = image.size
    except Exception as error:  # as in _decode
        raise CorruptExample(f'{path}: {type(error).__name__}: {error}') from error
    return (width, height) if turned else (height, width)


def size_mismatch(image_path, image_size, label_size) -> str:
    """The message for an image and a label map of different (rows, columns)."""
    return (
        f'{image_path}: the image has {image_size[0]} x {image_size[1]} pixels (rows x columns, '
        f'with its EXIF orientation applied), its label map {label_size[0]} x {label_size[1]}'
    )


def _decode(path):
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image)
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error, …
        raise CorruptExample(f'{path}: {type(error).__name__}: {error}') from error
