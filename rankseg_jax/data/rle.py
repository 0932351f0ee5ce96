"""Masks as COCO's run lengths: {'size': [H, W], 'counts': …}.

The counts are the lengths of runs of 0, 1, 0, … down the columns, as a list or compressed to a
string.
"""

from collections.abc import Sequence

import numpy as np
from pycocotools import mask as coco_mask


def encode(mask: np.ndarray) -> dict | None:
    """bool [H, W] → its compressed run lengths; None if it is empty."""
    if not mask.any():
        return None
    encoded = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {'size': list(mask.shape), 'counts': encoded['counts'].decode()}


def empty(size: Sequence[int]) -> dict:
    """The compressed run lengths of a mask without pixels, of (rows, columns)."""
    return compress({'size': list(size), 'counts': [size[0] * size[1]]})


def from_polygons(polygons: Sequence[Sequence[float]], size: Sequence[int]) -> dict:
    """Polygons, each x, y, x, y, … → the compressed run lengths of all of them together.

    Args:
      size: (rows, columns) of the mask.
    """
    if not polygons:
        return empty(size)
    merged = coco_mask.merge(coco_mask.frPyObjects([list(polygon) for polygon in polygons], *size))
    return {'size': list(size), 'counts': merged['counts'].decode()}


def decode(rle: dict) -> np.ndarray:
    """Compressed run lengths, from `encode` or `compress` → bool [H, W]."""
    return coco_mask.decode(rle).astype(bool)


def decode_tracks(tracks: list[dict], shape: tuple[int, int, int]) -> np.ndarray:
    """The masks of `TrackSource.tracks` → bool [N, *shape], where shape is (t, H, W)."""
    decoded = np.zeros((len(tracks), *shape), bool)
    for n, track in enumerate(tracks):
        for t, mask in enumerate(track['segmentations']):
            if mask:
                decoded[n, t] = decode(mask)
    return decoded


def compress(rle: dict) -> dict:
    """Run lengths of either kind, from a file → compressed ones that are known to be valid.

    Raises:
      ValueError: they do not describe a mask; pycocotools would read beyond its memory.
    """
    counts, size = rle['counts'], rle['size']
    runs = np.asarray(_runs(counts) if isinstance(counts, str) else counts)
    if (
        runs.dtype.kind not in 'iu'
        or runs.ndim != 1
        or runs.min(initial=0) < 0
        or runs.sum() != size[0] * size[1]
    ):
        raise ValueError(
            f'run lengths of a mask of {size[0]} x {size[1]} must be whole numbers, at least 0, '
            'with this sum'
        )
    return {
        'size': list(size),
        'counts': coco_mask.frPyObjects({'size': size, 'counts': runs}, *size)['counts'].decode(),
    }


def _runs(counts: str) -> list[int]:
    """Decodes a string: numbers in digits of 5 bits, lowest first.

    From the fourth on, each number is the difference to the last but one.
    """
    runs, value, shift = [], 0, 0
    for digit in counts.encode():
        digit -= 48
        value |= (digit & 31) << shift
        shift += 5
        if not digit & 32:
            value -= (digit & 16) << shift - 4  # the sign
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value, shift = 0, 0
    if shift:
        raise ValueError('the run lengths of a mask end within a number')
    return runs
