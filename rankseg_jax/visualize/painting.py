"""Pixels: the regions of a label map, or a mask, blended with an image band by band."""

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image

from rankseg_jax.visualize.colors import colorize, palette, shades

CELL = 384  # pixels, longer side of a picture in a panel, and the least of an overlay
BAND = 2**20  # pixels that are worked on at once, so that memory does not grow with the image


def checked_image(image: np.ndarray) -> np.ndarray:
    """The image as an array."""
    image = np.asarray(image)
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f'image is {image.dtype} {image.shape}, not uint8 [H, W, 3]')
    return image


def checked_regions(
    image: np.ndarray, labels: np.ndarray, segments: np.ndarray | None
) -> tuple[np.ndarray, 'Regions']:
    """The image as an array, and its regions."""
    image, labels = checked_image(image), np.asarray(labels)
    segments = None if segments is None else np.asarray(segments)
    for name, array in (('label map', labels), ('map of segments', segments)):
        if array is not None and array.shape != image.shape[:2]:
            raise ValueError(
                f'{name} is {array.shape}, but its image is {image.shape[:2]}; '
                'resize it (nearest) to the size of the image'
            )
    return image, Regions(labels, segments)


class Regions:
    """The regions of a label map: the pixels of one class and segment, and all ignored pixels.

    Attributes:
      shape: (H, W).
      classes: [n], sorted; -1 for the ignored pixels.
      places: [n], each region's number among those of its class.
      areas: [n], in pixels.
    """

    def __init__(self, labels: np.ndarray, segments: np.ndarray | None):
        self.labels, self.segments, self.shape = labels, segments, labels.shape
        areas = Counter()
        for top, bottom in _bands(*self.shape):
            codes, lengths = self._runs(slice(top, bottom), slice(None))
            found, index = np.unique(codes, return_inverse=True)
            counts = np.bincount(index, lengths).astype(int)
            areas.update(dict(zip(found.tolist(), counts.tolist(), strict=True)))
        self.codes = np.array(sorted(areas), np.int64)
        self.areas = np.array([areas[code] for code in self.codes.tolist()])
        self.classes = self.codes >> 32
        self.places = np.arange(len(self.codes)) - np.searchsorted(self.classes, self.classes)

    def numbers(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """The number of the region, 0..n-1, where rows and columns meet: [len(rows), columns]."""
        codes, lengths = self._runs(rows, columns)
        return np.repeat(np.searchsorted(self.codes, codes), lengths).reshape(len(rows), -1)

    def _runs(self, rows, columns):
        """Runs of pixels of one region, row after row: their codes, and their lengths."""
        labels = self.labels[rows][:, columns].astype(np.int64)
        segments = 1
        if self.segments is not None:
            segments = self.segments[rows][:, columns]
            labels[segments <= 0] = -1
        codes = (labels << 32 | np.where(labels < 0, 0, segments)).ravel()
        ends = np.flatnonzero(codes[1:] != codes[:-1])
        edges = np.concatenate([[-1], ends, [codes.size - 1]])
        return codes[edges[1:]], np.diff(edges)


def picture_size(image: np.ndarray) -> tuple[int, int]:
    """(width, height) of an overlay: a whole multiple of the image's, at least CELL or the same."""
    factor = -(-CELL // max(image.shape[:2]))
    return image.shape[1] * factor, image.shape[0] * factor


def resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if size == image.shape[1::-1]:
        return image
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))


def paint_regions(
    board: Image.Image,
    image: np.ndarray,
    regions: Regions,
    class_names: Sequence[str],
    *,
    alpha: float,
    size: tuple[int, int],
    bold: bool,
) -> None:
    """Blends image and colors at `size` (width, height) and outlines regions, visibly if `bold`.

    The picture goes to the top left of `board`.
    """
    width, height = size
    image = resized(image, size)
    rows = np.arange(height) * regions.shape[0] // height
    columns = np.arange(width) * regions.shape[1] // width
    known = (regions.classes >= 0) & (regions.classes < len(class_names))
    weight = (alpha * known)[:, None, None]  # [n, 1, 1]
    colors = shades(colorize(regions.classes, palette(len(class_names))), regions.places)  # [n, 3]
    values = np.arange(256.0)
    blended = values * (1 - weight) + weight * colors[..., None]  # [n, 3, 256]
    blended = blended.round().astype(np.uint8).transpose(1, 0, 2).reshape(3, -1)  # [3, n * 256]
    dark, light = (x.round().astype(np.uint8) for x in (0.35 * values, 0.3 * values + 0.7 * 255))
    for top, bottom in _bands(height, width):
        above, below = max(top - 2, 0), min(bottom + 1, height)  # outlines reach as far
        numbers = regions.numbers(rows[above:below], columns)  # [rows, width]
        edge = np.zeros(numbers.shape, bool)
        edge[:, 1:] |= numbers[:, 1:] != numbers[:, :-1]
        edge[1:] |= numbers[1:] != numbers[:-1]
        inside = slice(top - above, bottom - above)
        places = numbers[inside] << 8
        picture = np.empty((bottom - top, width, 3), np.uint8)
        for channel, table in enumerate(blended):
            picture[..., channel] = table[places + image[top:bottom, :, channel]]
        if bold:
            grown = _grown(edge)[inside]
            picture[grown] = dark[picture[grown]]
        edge = edge[inside]
        picture[edge] = light[picture[edge]]
        board.paste(Image.fromarray(picture), (0, top))


def paint_mask(
    board: Image.Image, mask: np.ndarray, color: tuple[int, ...], alpha: float, factor: int
) -> list[tuple[int, int]]:
    """Blends a color with the pixels of a mask, enlarged by a factor, and outlines it.

    Returns:
      (x, y) of the middle of the mask's first row and of its last one, on the board.
    """
    line = max(1, max(board.size) // 640)  # pixels
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    first, last, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    for top, bottom in _bands(last - first, (right - left) * factor**2):
        top, bottom = first + top, first + bottom
        above, below = max(top - line, 0), min(bottom + line, len(mask))  # outlines reach as far
        padding = ((line - top + above, line + bottom - below), (line, line))
        part = np.pad(mask[above:below, left:right], padding)
        part = part.repeat(factor, 0).repeat(factor, 1)
        outside = ~part
        for _ in range(line):
            outside = _grown(outside)
        weights = np.where(outside, np.uint8(255), np.uint8(round(255 * alpha))) * part
        weights = weights[line * factor : -line * factor, line * factor : -line * factor]
        board.paste(color, (int(left * factor), int(top * factor)), Image.fromarray(weights))
    ends = [
        (np.flatnonzero(mask[row]).mean() + 0.5, y) for row, y in ((first, first), (last - 1, last))
    ]
    return [(int(x * factor), int(y * factor)) for x, y in ends]


def _bands(height: int, width: int) -> Iterator[tuple[int, int]]:
    """The first row of each band of rows, and the one after its last."""
    rows = max(1, BAND // width)
    return ((top, min(top + rows, height)) for top in range(0, height, rows))


def _grown(mask):
    """A mask [H, W] and the pixels that touch it."""
    padded = np.pad(mask, 1)
    wide = padded[:, :-2] | padded[:, 1:-1] | padded[:, 2:]
    return wide[:-2] | wide[1:-1] | wide[2:]
