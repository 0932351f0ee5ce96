"""Writes label maps as label files of a data set."""

from pathlib import Path

import numpy as np
from PIL import Image

from rankseg_jax.data import Source
from rankseg_jax.data.images import IMAGE_SUFFIXES


class LabelWriter:
    """Writes <folder>/<name of the image>.png with the source's `prediction_values`, 8 or 16 bit.

    IGNORE_LABEL becomes 0 if no class has that value, otherwise 255 or 65535.
    """

    def __init__(self, folder: str | Path, source: Source):
        self.folder = Path(folder)
        values = list(source.prediction_values)
        dtype = np.uint8 if max(values) < 255 else np.uint16
        ignored = np.iinfo(dtype).max if 0 in values else 0
        self.values = np.array([*values, ignored], dtype)  # [K + 1]; index -1 is IGNORE_LABEL

    def __enter__(self) -> 'LabelWriter':
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def write(self, name: str, labels: np.ndarray) -> None:
        """Writes one image.

        Args:
          name: of the image, one of `source.ids`.
          labels: int [H, W] in 0..K-1 or IGNORE_LABEL.
        """
        stem, _, suffix = name.rpartition('.')
        path = self.folder / f'{stem if f".{suffix}".lower() in IMAGE_SUFFIXES else name}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(self.values[labels]).save(path)
