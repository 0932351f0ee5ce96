"""Image semantic and panoptic segmentation from per-query outputs: targets, into rank space, and the loss."""

import flax
import jax
import jax.numpy as jnp

from rankseg_jax import losses
from rankseg_jax.data import IGNORE_LABEL
from rankseg_jax.multilabel import pixel_counts
from rankseg_jax.ranking import select, to_ranks


@flax.struct.dataclass
class Targets:
    """At most T masks of each image, which do not overlap, so that one map holds them all.

    Attributes:
      labels: [B, T] int32 class ids; IGNORE_LABEL: no target.
      segments: [B, H, W] int32, the place of each pixel's target in `labels`; negative: none.
      left_out: [B] int32, how many found no place.
    """

    labels: jax.Array
    segments: jax.Array
    left_out: jax.Array


def from_labels(labels, num_classes: int, max_targets: int) -> Targets:
    """One target for each category of a label map [B, H, W], the `max_targets` largest (semantic segmentation)."""
    counts = pixel_counts(labels, num_classes)  # [B, K]
    held = select(counts, min(max_targets, num_classes))
    segments = to_ranks(labels, held, num_classes=num_classes, ignore_label=IGNORE_LABEL)
    left_out = (counts > 0).sum(-1) - (held.scores > 0).sum(-1)
    return Targets(jnp.where(held.scores > 0, held.labels, IGNORE_LABEL), segments, left_out)


def from_segments(labels, segments, left_out) -> Targets:
    """The targets of panoptic maps as `data.coco.targets` gives them, without those of which a crop has left nothing."""
    counts = pixel_counts(segments, labels.shape[1])  # [B, T]
    return Targets(jnp.where(counts > 0, labels, IGNORE_LABEL), segments, left_out)


def loss(key, output, batch, config, num_classes: int) -> tuple[dict, dict]:
    """What queries add to the training loss in rank space, by name, and further figures for the log.

    All predictions of the decoder count. Targets of categories that were not selected do not.

    Args:
      key: for the points where masks are compared.
      output: decoders.query_decoder.QueryOutput.
      batch: 'mask' [B] bool and 'label' [B, H, W] int32 class ids or IGNORE_LABEL; of panoptic data also 'segments' [B, H, W],
        'segment_labels' [B, T] and 'left_out' [B], as of `data.coco.targets`.
    """
    if 'segments' in batch:
        targets = from_segments(batch['segment_labels'], batch['segments'], batch['left_out'])
    else:
        targets = from_labels(batch['label'], num_classes, config.data.max_targets)
    labels = targets.labels  # [B, T]
    if output.selection is not None:
        labels = to_ranks(
            labels, output.selection, num_classes=num_classes, ignore_label=IGNORE_LABEL
        )
    options = config.loss
    predictions = [*output.auxiliary, (output.class_logits, output.mask_logits)]
    parts = losses.query_losses(
        key,
        predictions,
        labels,
        targets.segments,
        weights=(options.class_weight, options.mask_weight, options.dice_weight),
        num_points=options.num_points,
        no_object_weight=options.no_object,
        mask=batch['mask'],
    )
    return parts, {'targets_left_out': targets.left_out.mean()}
