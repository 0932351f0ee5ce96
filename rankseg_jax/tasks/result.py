"""The result of a task on an image: arrays, drawings and files."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rankseg_jax.visualize import overlays, panels

RANKED = 12  # categories that a panel shows


@dataclasses.dataclass
class Result:
    """The label map of an image.

    Attributes:
      image: uint8 [H, W, 3].
      labels: int32 [H, W], class ids.
      categories: (name, confidence) of the κ selected categories, best first; empty for the
        baseline.
      class_names: K names.
      segment_ids, segments: of tasks with segments; here None and empty.
    """

    image: np.ndarray
    labels: np.ndarray
    categories: list[tuple[str, float]]
    class_names: tuple[str, ...]

    segment_ids = None
    segments = ()

    def segment_labels(self) -> np.ndarray:
        """[H, W] int32, the class of each pixel as it is drawn."""
        return self.labels

    def overlay(self) -> Image.Image:
        """The label map or the segments over the image, with a legend of names."""
        return overlays.overlay(
            self.image, self.segment_labels(), self.class_names, segments=self.segment_ids
        )

    def frame_overlay(self) -> Image.Image:
        """As `overlay`, with names in the regions: of one size for all frames of a video."""
        return overlays.frame_overlay(self.image, self.segment_labels(), self.class_names)

    def panel(
        self, label: np.ndarray | None = None, segment_ids: np.ndarray | None = None
    ) -> Image.Image:
        """Image · ground truth, if given · prediction · ranked categories.

        Args:
          label: [H, W], the ground truth.
          segment_ids: [H, W], the segments of the ground truth.
        """
        return panels.panel(
            self.image,
            self.segment_labels(),
            self.categories[:RANKED],
            class_names=self.class_names,
            label=label,
            segments=self.segment_ids,
            label_segments=segment_ids,
        )

    def summary(self) -> str:
        """The result in a few words."""
        return ', '.join(f'{name} {confidence:.2f}' for name, confidence in self.categories[:5])

    def save(self, path: str | Path, source: str | Path = '') -> None:
        """Writes <path>.png (the label map, 16-bit if K > 256), <path>_overlay.png, <path>.json.

        Args:
          path: without a suffix; its folder is made if need be.
          source: the name of the image, which the JSON file repeats.
        """
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        self.map_image().save(f'{path}.png')
        # Compressing a photo well takes ten times as long as drawing on it.
        self.overlay().save(f'{path}_overlay.png', compress_level=1)
        content = {'image': str(source)} | self.content()
        Path(f'{path}.json').write_text(json.dumps(content, indent=1))

    def map_image(self) -> Image.Image:
        """The image that holds the result, pixel by pixel."""
        dtype = np.uint8 if len(self.class_names) <= 256 else np.uint16
        return Image.fromarray(self.labels.astype(dtype))

    def content(self) -> dict[str, Any]:
        """What the JSON file holds besides the name of the image."""
        return {
            'categories': [
                {'category': name, 'confidence': round(confidence, 6)}
                for name, confidence in self.categories
            ]
        }
