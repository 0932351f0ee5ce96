"""Image semantic segmentation from per-pixel outputs: losses in rank space, statistics of label maps."""

from rankseg_jax import losses
from rankseg_jax.data import IGNORE_LABEL
from rankseg_jax.metrics.multilabel import MultilabelMetric
from rankseg_jax.metrics.semantic import SemanticMetric
from rankseg_jax.multilabel import pixel_counts
from rankseg_jax.ranking import to_ranks


def loss(output, batch, presence, config, num_classes: int):
    """The training loss of a batch: (scalar, its parts by name).

    Args:
      output: decoders.pixel_classifier.PixelOutput.
      batch: 'label' [B, H, W] int32 class ids or IGNORE_LABEL, 'mask' [B] bool.
      presence: [B, K] bool, the categories in the labels.

    Raises:
      ValueError: unknown multi-label loss.
    """
    targets = batch['label']  # [B, H, W]
    if output.selection is not None:
        targets = to_ranks(targets, output.selection, num_classes=num_classes, ignore_label=IGNORE_LABEL)
    options = config.loss

    def pixel_loss(logits):
        return losses.pixel_cross_entropy(logits, targets, upsample=options.upsample, average_all=options.average_all)

    parts = {'loss_pixel': pixel_loss(output.logits)}
    if output.auxiliary_logits is not None:
        parts['loss_auxiliary'] = config.model.auxiliary_weight * pixel_loss(output.auxiliary_logits)
    if output.class_logits is not None:
        if options.multilabel == 'bce':
            value = losses.binary_cross_entropy(output.class_logits, presence, mask=batch['mask'])
        elif options.multilabel != 'asymmetric':
            raise ValueError(f"config.loss.multilabel = {options.multilabel!r} is unknown; use 'asymmetric' or 'bce'")
        else:
            value = losses.asymmetric_loss(
                output.class_logits, presence, gamma_neg=options.gamma_neg, gamma_pos=options.gamma_pos,
                clip=options.clip, mask=batch['mask'])
        parts['loss_multilabel'] = options.multilabel_weight * value
    return sum(parts.values()), parts


def statistics(labels, predictions, class_logits, mask, *, num_classes: int, recall_at: tuple[int, ...]):
    """The sums that the metrics of an evaluation batch need: (SemanticMetric, MultilabelMetric or None).

    Args:
      labels: [B, H, W] int32 class ids or IGNORE_LABEL; `predictions` likewise.
      class_logits: [B, K] of the multi-label head; None for the baseline.
      mask: [B] bool, False: the image counts nowhere.
    """
    semantic = SemanticMetric.from_batch(labels, predictions, num_classes)
    if class_logits is None:
        return semantic, None
    counts = pixel_counts(labels, num_classes)  # [B, K]
    return semantic, MultilabelMetric.from_batch(class_logits, counts, recall_at, mask)
