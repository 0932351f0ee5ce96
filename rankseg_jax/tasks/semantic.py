"""Semantic segmentation: one label map an image, from per-pixel or per-query outputs."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rankseg_jax import losses
from rankseg_jax.data import IGNORE_LABEL, label_files
from rankseg_jax.metrics.multilabel import MultilabelMetric
from rankseg_jax.metrics.semantic import SemanticMetric
from rankseg_jax.outputs import PixelOutput
from rankseg_jax.postprocessing import label_maps
from rankseg_jax.ranking import to_ranks
from rankseg_jax.tasks import Task, queries
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
        """The label map over the image, with a legend of names."""
        return overlays.overlay(self.image, self.labels, self.class_names)

    def frame_overlay(self) -> Image.Image:
        """The label map over the image, with names in it: of one size for all frames of a video."""
        return overlays.frame_overlay(self.image, self.labels, self.class_names)

    def panel(self, label: np.ndarray | None = None) -> Image.Image:
        """Image · ground truth, if `label` [H, W] is given · prediction · ranked categories."""
        ranked = self.categories[:RANKED]
        return panels.panel(self.image, self.labels, ranked, self.class_names, label=label)

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


class Semantic(Task):
    """Classifies pixels; scores mIoU and, with RankSeg, how well categories are found."""

    columns = ('IoU', 'Acc')
    best_by = 'mIoU'

    def loss(self, key, output, batch):
        if isinstance(output, PixelOutput):
            return pixel_loss(output, batch['label'], self.config, self.num_classes), {}
        max_targets = self.config.data.max_targets
        targets = queries.category_targets(batch['label'], self.num_classes, max_targets)
        return queries.loss(key, output, targets, batch['mask'], self.config, self.num_classes)

    def postprocess(self, views, selection, size, canvas):
        return {'labels': label_maps(views, selection, size, canvas)}

    def result(self, image, found, categories):
        return Result(image, found['labels'], categories, self.class_names)

    def label_map(self, found):
        return found['labels']

    def empty_statistics(self):
        empty = {'pixels': SemanticMetric.empty(self.num_classes)}
        if self.config.rankseg:
            empty['categories'] = MultilabelMetric.empty(self.recall_at())
        return empty

    def statistics(self, batch, prediction):
        labels, predicted = batch['label'], prediction.maps['labels']  # [B, H, W] each
        pixels = SemanticMetric.from_batch(labels, predicted, self.num_classes)
        return {'pixels': pixels} | self.category_statistics(batch, prediction)

    def category_statistics(self, batch, prediction) -> dict[str, Any]:
        """With RankSeg, how well the categories of images or clips are found."""
        if not self.config.rankseg:
            return {}
        metric = MultilabelMetric.from_batch(
            prediction.presence_logits,
            batch['pixels'],
            self.recall_at(),
            batch.get('last', batch['mask']),  # a clip counts once
        )
        return {'categories': metric}

    def recall_at(self) -> tuple[int, ...]:
        """Values of κ to report recall and precision at: the selection's own, `eval.recall_at`."""
        values = (self.config.rankseg.num_selected, *self.config.eval.recall_at)
        return tuple(sorted({min(k, self.num_classes) for k in values}))

    def scores(self, statistics):
        scores = statistics['pixels'].compute(self.class_names)
        if 'categories' in statistics:
            scores |= statistics['categories'].compute()
        return scores

    def writer(self, output, source):
        return label_files.LabelWriter(output, source)

    def write(self, writer, source, index, found):
        writer.write(source.ids[index], found['labels'])


def pixel_loss(output: PixelOutput, labels, config, num_classes: int) -> dict[str, losses.Mean]:
    """The parts of the loss of per-pixel output in rank space.

    Args:
      labels: [B, *space] int32 class ids or IGNORE_LABEL.
    """
    targets = labels
    if output.selection is not None:
        targets = to_ranks(
            labels, output.selection, num_classes=num_classes, ignore_label=IGNORE_LABEL
        )

    def cross_entropy(logits, targets):
        return losses.pixel_cross_entropy(
            logits, targets, upsample=config.loss.upsample, average_all=config.loss.average_all
        )

    parts = {'loss_pixel': cross_entropy(output.logits, targets)}
    if output.auxiliary_logits is not None:
        selects = config.rankseg and config.rankseg.select_auxiliary
        auxiliary = cross_entropy(output.auxiliary_logits, targets if selects else labels)
        parts['loss_auxiliary'] = config.model.auxiliary_weight * auxiliary
    return parts
