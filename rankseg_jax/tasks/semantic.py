"""Semantic segmentation: one label map an image, from per-pixel or per-query outputs."""

from typing import Any

import jax
from ml_collections import ConfigDict

from rankseg_jax import losses
from rankseg_jax.data import IGNORE_LABEL, label_files
from rankseg_jax.metrics.multilabel import MultilabelMetric
from rankseg_jax.metrics.semantic import SemanticMetric
from rankseg_jax.outputs import PixelOutput
from rankseg_jax.postprocessing import label_maps
from rankseg_jax.ranking import to_ranks
from rankseg_jax.tasks import Task, queries
from rankseg_jax.tasks.result import Result


class Semantic(Task):
    """Classifies pixels; scores mIoU and, with RankSeg, how well categories are found."""

    columns = ('IoU', 'Acc')
    best_by = 'mIoU'

    def loss(self, key, output, batch):
        if isinstance(output, PixelOutput):
            parts = pixel_loss(
                output, batch['label'], config=self.config, num_classes=self.num_classes
            )
            return parts, {}
        max_targets = self.config.data.max_targets
        return queries.loss(
            key,
            output,
            targets=queries.category_targets(batch['label'], self.num_classes, max_targets),
            mask=batch['mask'],
            config=self.config,
            num_classes=self.num_classes,
        )

    def postprocess(self, views, selection, size, canvas):
        return {'labels': label_maps(views, selection, size, canvas)}

    def result(self, image, found, categories):
        return Result(image, found['labels'], categories, class_names=self.class_names)

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
            ks=self.recall_at(),
            mask=batch.get('last', batch['mask']),  # a clip counts once
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


def pixel_loss(
    output: PixelOutput, labels: jax.Array, *, config: ConfigDict, num_classes: int
) -> dict[str, losses.Mean]:
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
