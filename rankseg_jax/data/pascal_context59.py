"""PASCAL-Context with 59 classes: as `pascal_context60`, but background doesn't count, and its class v is class v - 1."""

import numpy as np

from rankseg_jax.data import official, pascal_context60


class PascalContext59(pascal_context60.PascalContext60):
    """PASCAL-Context, semantic, without background."""

    CLASSES = 'pascal_context59'
    LABEL_VALUES = range(1, 60)

    @classmethod
    def read(cls, entry):
        example = pascal_context60.PascalContext60.read(entry)
        labels = example['labels']
        return example | {'labels': np.where(labels == 0, official.IGNORED, labels - 1)}


get_source = PascalContext59.get_source
