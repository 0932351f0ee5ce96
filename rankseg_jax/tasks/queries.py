"""What queries are trained on: targets from label maps or panoptic segments, into rank space, and the loss."""

import flax
import jax
import jax.numpy as jnp

from rankseg_jax import losses
from rankseg_jax.data import IGNORE_LABEL
from rankseg_jax.multilabel import pixel_counts
from rankseg_jax.ranking import Selection, select, to_ranks


@flax.struct.dataclass
class Targets:
    """At most T masks of each image, which do not overlap, so that one map holds them all.

    Attributes:
      labels: [B, T] int32 class ids; IGNORE_LABEL: no target.
      segments: [B, H, W] int32, the place of each pixel's target in `labels`; negative: none.
    """

    labels: jax.Array
    segments: jax.Array


def from_labels(labels, num_classes: int, max_targets: int) -> Targets:
    """One target for each category of a label map [B, H, W], the `max_targets` largest (semantic segmentation)."""
    counts = pixel_counts(labels, num_classes)  # [B, K]
    held = select(counts, min(max_targets, num_classes))
    segments = to_ranks(labels, held, num_classes=num_classes, ignore_label=IGNORE_LABEL)
    return Targets(jnp.where(held.scores > 0, held.labels, IGNORE_LABEL), segments)


def from_segments(labels, segments) -> Targets:
    """The targets of panoptic maps as `data.coco.targets` gives them, without those of which a crop has left nothing."""
    counts = pixel_counts(segments, labels.shape[1])  # [B, T]
    return Targets(jnp.where(counts > 0, labels, IGNORE_LABEL), segments)


def presence(targets: Targets, num_classes: int):
    """The categories of the targets, [B, K] bool."""
    return pixel_counts(targets.labels, num_classes) > 0


def loss(key, outputs, targets: Targets, selection: Selection | None, num_classes: int, **options):
    """The losses of `losses.query_losses` in rank space; targets of categories that were not selected do not count.

    Args:
      key: for the points.
      outputs: for each layer (class_logits [B, Q, κ + 1], mask_logits [B, Q, h, w]).
      selection: the categories that the ranks stand for; None for the baseline.
      options: of `losses.query_losses`.
    """
    labels = targets.labels
    if selection is not None:
        labels = to_ranks(labels, selection, num_classes=num_classes, ignore_label=IGNORE_LABEL)
    return losses.query_losses(key, outputs, labels, targets.segments, **options)
