"""Colors of classes and of what is drawn around them."""

from collections.abc import Sequence

import numpy as np

IGNORED = (128, 128, 128)
PAPER, INK, FAINT = (255, 255, 255), (32, 33, 36), (125, 129, 135)


def palette(num_classes: int) -> np.ndarray:
    """Colors of K classes, uint8 [K, 3]: all different, none gray or black.

    A class has the same color whatever K is. The colors follow an additive sequence in
    hue, saturation and value, whose steps were searched for far-apart colors at 12 to 847 classes.
    """
    return numbered(np.arange(num_classes))


def numbered(numbers: Sequence[int] | np.ndarray) -> np.ndarray:
    """The colors of the palette with these numbers [n], uint8 [n, 3]."""
    steps = np.asarray(numbers)[:, None] * [0.61803399, 0.4846, 0.4455]  # [n, 3]
    hue, saturation, value = ((steps + [0.58, 0.4, 0.8]) % 1).T  # [n] each
    saturation, value = 0.35 + 0.45 * saturation, 0.5 + 0.45 * value
    sector = (hue[:, None] * 6 + [5, 3, 1]) % 6  # [n, 3]
    dip = np.clip(np.minimum(sector, 4 - sector), 0, 1)
    return np.round(255 * value[:, None] * (1 - saturation[:, None] * dip)).astype(np.uint8)


def colorize(labels: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Label map [H, W] → colors uint8 [H, W, 3]; labels outside 0..K-1 are gray."""
    labels = np.asarray(labels)
    colors = np.concatenate([palette, [IGNORED]]).astype(np.uint8)  # [K + 1, 3]
    known = (labels >= 0) & (labels < len(palette))
    return colors[np.where(known, labels, len(palette))]


def shades(colors: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Colors [regions, 3], lighter or darker by place.

    The first of a class keeps its color; successive ones differ most.
    """
    shift = 0.9 * ((0.61803399 * places[:, None] + 0.5) % 1 - 0.5)  # [regions, 1]
    return colors + np.abs(shift) * (np.where(shift > 0, 255.0, 0.0) - colors)
