"""Image semantic segmentation from per-pixel outputs: losses in rank space, statistics of label maps."""

from rankseg_jax import losses
from rankseg_jax.data import IGNORE_LABEL
from rankseg_jax.metrics.multilabel import MultilabelMetric
from rankseg_jax.metrics.semantic import SemanticMetric
from rankseg_jax.multilabel import pixel_counts
from rankseg_jax.ranking import to_ranks


def loss(output, batch, config, num_classes: int) -> dict:
    """What pixels add to the training loss, by name.

    Args:
      output: decoders.pixel_classifier.PixelOutput.
      batch: 'label' [B, H, W] int32 class ids or IGNORE_LABEL.
    """
    targets = batch['label']  # [B, H, W]
    if output.selection is not None:
        targets = to_ranks(
            targets, output.selection, num_classes=num_classes, ignore_label=IGNORE_LABEL
        )

    def pixel_loss(logits):
        return losses.pixel_cross_entropy(
            logits, targets, upsample=config.loss.upsample, average_all=config.loss.average_all
        )

    parts = {'loss_pixel': pixel_loss(output.logits)}
    if output.auxiliary_logits is not None:
        parts['loss_auxiliary'] = config.model.auxiliary_weight * pixel_loss(
            output.auxiliary_logits
        )
    return parts


def statistics(
    labels, predictions, presence_logits, mask, *, num_classes: int, recall_at: tuple[int, ...]
):
    """The sums that the metrics of an evaluation batch need: (SemanticMetric, MultilabelMetric or None).

    Args:
      labels: [B, H, W] int32 class ids or IGNORE_LABEL; `predictions` likewise.
      presence_logits: [B, K] of the multi-label head; None for the baseline.
      mask: [B] bool, False: the image counts nowhere.
    """
    semantic = SemanticMetric.from_batch(labels, predictions, num_classes)
    if presence_logits is None:
        return semantic, None
    counts = pixel_counts(labels, num_classes)  # [B, K]
    return semantic, MultilabelMetric.from_batch(presence_logits, counts, recall_at, mask)
