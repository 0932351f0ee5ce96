"""Finds image files by their suffixes; decodes images and label files with Pillow."""

import contextlib
import functools
import io
import math
import os
import re
import threading
from collections.abc import Generator, Sequence
from pathlib import Path

import numpy as np
from absl import logging
from PIL import ExifTags, Image, ImageOps

from rankseg_jax import storage
from rankseg_jax.data import CorruptExample

IMAGE_SUFFIXES = (
    *('.jpg', '.jpeg', '.jpe', '.jfif', '.jp2', '.png', '.apng', '.gif', '.webp', '.avif'),
    *('.bmp', '.dib', '.tif', '.tiff', '.tga', '.ppm', '.pgm', '.pbm', '.pnm'),
)
MAX_PIXELS = 250_000_000  # of an image, where no config says otherwise
_lifting = threading.Lock()


def find(folder: str | Path, suffixes: tuple[str, ...] = IMAGE_SUFFIXES) -> list[Path]:
    """Files of these suffixes in a folder and its subfolders, sorted.

    Links are followed, but for those to a folder that they lie in. Hidden files and folders are
    left out, such as those that macOS adds as `._<name>`. Folders that cannot be read are named in
    the log.
    """

    def note(error):
        logging.error('Left out: %s', error)

    if storage.is_remote(folder):
        place = storage.path(folder)
        names = [name for name in storage.sizes(place) if name.lower().endswith(suffixes)]
        return sorted(place / name for name in names if '/.' not in f'/{name}')
    found, real = [], functools.cache(lambda path: Path(os.path.realpath(path)))
    for path, folders, files in os.walk(folder, onerror=note, followlinks=True):
        here = Path(path)
        above = {real(here), *real(here).parents, *map(real, here.parents)}
        folders[:] = [
            name for name in folders if not name.startswith('.') and real(here / name) not in above
        ]
        found += [
            here / name
            for name in files
            if name.lower().endswith(suffixes) and not name.startswith('.')
        ]
    return sorted(found)


def find_frames(folder: str | Path) -> list[Path]:
    """The images directly in a folder, in natural order of their names; none if it is missing.

    Hidden files are left out.
    """
    folder = Path(folder) if isinstance(folder, str) else folder  # or in a bucket
    found = [
        path
        for path in folder.glob('*')
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith('.')
    ]
    return sorted(found, key=lambda path: natural_order(path.name))


def natural_order(name: str) -> tuple[list[str | int], str]:
    """A key for sorting, by which frame2 comes before frame10."""
    parts = re.split(r'(\d+)', name)  # text and numbers in turn
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], name


def read_image(image: str | Path | Image.Image, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Reads an image of any kind, from a path or opened, as uint8 RGB [H, W, 3]; see `to_rgb`.

    The EXIF orientation is applied, to images and label maps alike, as viewers and labeling tools
    do. Of animations and files with several pages, the first one is read. The first 16-bit image
    whose values fill few of its bits is named in the log.

    Raises:
      CorruptExample: the file cannot be read, has more pixels than `max_pixels`, or values whose
        range nothing tells.
    """
    with opened(image, max_pixels) as file:
        # What the pixels are in memory and in the file, such as RGB and RGB;16B.
        modes = [file.mode, *(str(tile[3]) for tile in getattr(file, 'tile', ()))]
        load(file)
        rgb = to_rgb(file)
    deep = modes[0] == 'I' or any(';16' in mode for mode in modes)
    if deep and (brightest := int(rgb.max(initial=0))) < 64:
        logging.log_first_n(
            logging.ERROR,
            '%s: a 16-bit image whose values need only %d bits, so that %d of 256 gray levels are '
            'left; scale its values to 0..65535 (further images like it are not named)',
            1,
            _name(image),
            8 + brightest.bit_length(),
            brightest + 1,
        )
    return rgb


def to_rgb(image: Image.Image, upright: bool = True) -> np.ndarray:
    """Converts an image of any kind to uint8 [H, W, 3]; --mode=export copies this source.

    Transparency is dropped; gray of more than 8 bits keeps its upper 8, of 16 unless the file says
    that it has fewer.

    Args:
      upright: apply the EXIF orientation.

    Raises:
      ValueError: the pixels are floats or 32-bit integers, whose range nothing tells.
    """
    bits = min(getattr(image, 'tag_v2', {}).get(258, (16,))[0], 16)  # of a TIFF file
    if upright and image.getexif().get(274, 1) != 1:  # otherwise the image would be copied
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith('I'):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError('integers beyond 0..65535 are not supported: save 8 or 16 bits')
        return np.stack([(values >> bits - 8).astype(np.uint8)] * 3, -1)
    if image.mode == 'F':
        raise ValueError('images with floating-point pixels are not supported: save 8 or 16 bits')
    if image.mode == 'P':  # directly to RGB, Pillow warns of transparent colors
        image = image.convert('RGBA')
    return np.array(image if image.mode == 'RGB' else image.convert('RGB'))


def read_values(path: str | Path, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Reads the values of a label file, palette indices included, as int32 [H, W].

    Raises:
      CorruptExample: the file cannot be read, or has more pixels than `max_pixels`.
      ValueError: its pixels are colors, not values.
    """
    with opened(path, max_pixels) as image:
        stored = [str(tile[3]) for tile in getattr(image, 'tile', ())]
        load(image)
        mode, values = image.mode, np.asarray(ImageOps.exif_transpose(image))
    for bits in (2, 4):  # Pillow spreads them over 0..255, as gray
        if any(f'L;{bits}' in form for form in stored):
            values = values // (255 // (2**bits - 1))
    if values.ndim != 2 or values.dtype.kind not in 'bui':
        raise ValueError(
            f'{path}: a label file needs one value per pixel (8- or 16-bit gray, or palette), but '
            f'its mode is {mode}; convert its colors to class indices'
        )
    return values.astype(np.int32)


def read_size(path: str | Path, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Reads the (rows, columns) of an image from its header alone, its EXIF orientation applied.

    Raises:
      CorruptExample: the header cannot be read, or names more pixels than `max_pixels`.
    """
    with opened(path, max_pixels) as image:
        width, height = image.size
        # Pillow applies the orientation of TIFF files to the size, and to the pixels, by itself.
        orientation = image.getexif().get(ExifTags.Base.Orientation)
        turned = image.format != 'TIFF' and orientation in range(5, 9)
    return (width, height) if turned else (height, width)


def size_mismatch(
    image_path: str | Path, image_size: Sequence[int], label_size: Sequence[int]
) -> str:
    """The message for an image and a label map of different (rows, columns)."""
    return (
        f'{image_path}: the image has {image_size[0]} x {image_size[1]} pixels (rows x columns, '
        f'with its EXIF orientation applied), its label map {label_size[0]} x {label_size[1]}'
    )


@contextlib.contextmanager
def opened(image: str | Path | Image.Image, max_pixels: int) -> Generator[Image.Image]:
    """An image as Pillow opens it; whatever goes wrong in the block becomes CorruptExample."""
    try:
        if isinstance(image, Image.Image):
            yield image
            return
        # By its path, Pillow would map an uncompressed file into memory, and turn it wrongly.
        content = (
            io.BytesIO(storage.path(image).read_bytes())
            if storage.is_remote(image)
            else open(image, 'rb')
        )
        with content:
            with _lifted_limit():
                file = Image.open(content)
            check_pixels(file.width, file.height, max_pixels)
            yield file
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error, …
        kind = '' if type(error) is ValueError else f'{type(error).__name__}: '
        message = str(error).partition(' <_io.')[0]  # cannot identify image file <…>
        raise CorruptExample(f'{_name(image)}: {kind}{message}') from error


def load(image: Image.Image) -> None:
    """Decodes the pixels; Pillow checks its limit here again for some formats."""
    within = image.width * image.height <= (Image.MAX_IMAGE_PIXELS or math.inf)
    with contextlib.nullcontext() if within else _lifted_limit():
        image.load()


def check_pixels(width: int, height: int, max_pixels: int) -> None:
    """Raises a ValueError that names config.data.max_pixels if there are more than it allows."""
    if width * height > max_pixels:
        raise ValueError(
            f'{width} x {height} pixels are more than config.data.max_pixels = {max_pixels}; set '
            'it higher if there is memory for them'
        )


@contextlib.contextmanager
def _lifted_limit() -> Generator[None]:
    """Lifts Pillow's limit, one for the whole process, so that `max_pixels` is the only one."""
    with _lifting:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _name(image: str | Path | Image.Image) -> str:
    if isinstance(image, Image.Image):
        return getattr(image, 'filename', '') or 'image'
    return str(image)
