"""Bytes to arrays and back: images and maps, from official files and from records."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from rankseg_jax.data import CorruptExample
from rankseg_jax.data.images import to_rgb


def read_bytes(path: str | Path) -> bytes:
    """The content of a file; CorruptExample if it cannot be read or is empty."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise CorruptExample(f'{path}: {error}') from error
    if not content:
        raise CorruptExample(f'{path}: the file has 0 bytes; download it again')
    return content


def decode_image(content: bytes, path: str | Path) -> np.ndarray:
    """Decodes uint8 [H, W, 3] as stored: label maps of these data sets ignore EXIF orientations.

    Raises:
      CorruptExample: `content` cannot be decoded; `path` is named.
    """
    try:
        return to_rgb(Image.open(io.BytesIO(content)), upright=False)
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error, …
        message = str(error).partition(' <_io.BytesIO')[0]  # cannot identify image file <…>
        raise CorruptExample(f'{path}: {type(error).__name__}: {message}') from error


def read_colors(path: str | Path) -> np.ndarray:
    """Reads uint8 [H, W, 3] of a PNG whose colors are numbers.

    Raises:
      CorruptExample: the file cannot be read.
      ValueError: it has no colors.
    """
    content = read_bytes(path)
    colors = decode_image(content, path)
    if (mode := Image.open(io.BytesIO(content)).mode) != 'RGB':
        raise ValueError(f'{path}: its colors should be numbers, but it has none (mode {mode})')
    return colors


def decode_map(values: bytes | np.ndarray) -> np.ndarray:
    """Decodes uint16 [H, W] or uint8 [H, W, 3] from the PNG of a record; returns arrays as is."""
    return np.array(Image.open(io.BytesIO(values))) if isinstance(values, bytes) else values


def encode_png(values: np.ndarray) -> bytes:
    """Encodes uint8 [H, W, 3] or uint16 [H, W] as PNG."""
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, 'png', compress_level=3)
    return stream.getvalue()


def decode_rows(values: list[dict] | dict) -> list[dict]:
    """A sequence of dicts; a record holds it as one dict with a column of values for each key."""
    if not isinstance(values, dict):
        return values
    # As lists: some columns hold text, others are empty.
    columns = [np.asarray(column).tolist() for column in values.values()]
    return [dict(zip(values, row, strict=True)) for row in zip(*columns, strict=True)]
