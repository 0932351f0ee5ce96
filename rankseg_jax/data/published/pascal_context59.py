"""PASCAL-Context with 59 classes: `pascal_context60` without background.

Background is ignored, and class v there is class v - 1 here.
"""

from typing import Any

import numpy as np

from rankseg_jax.data.published import IGNORED
from rankseg_jax.data.published.pascal_context60 import PascalContext60


class PascalContext59(PascalContext60):
    """PASCAL-Context, semantic, without background."""

    CLASSES = 'pascal_context59'
    LABEL_VALUES = range(1, 60)

    @classmethod
    def read(cls, entry: tuple) -> dict[str, Any]:
        example = PascalContext60.read(entry)
        labels = example['labels']  # [H, W]
        return example | {'labels': np.where(labels == 0, IGNORED, labels - 1)}
