"""What tasks share on per-query outputs: targets, and their loss in rank space."""

import jax
import jax.numpy as jnp
from flax import struct

from rankseg_jax import losses
from rankseg_jax.data import IGNORE_LABEL
from rankseg_jax.multilabel import pixel_counts
from rankseg_jax.outputs import QueryOutput
from rankseg_jax.ranking import select, to_ranks


@struct.dataclass
class Targets:
    """At most N masks in each image; they do not overlap, so that one map holds them all.

    Attributes:
      labels: [B, N] int32 class ids; IGNORE_LABEL: no target.
      segments: [B, *space] int32, the place of each pixel's target in `labels`; negative: none.
      left_out: [B] int32, number of targets without a place.
    """

    labels: jax.Array
    segments: jax.Array
    left_out: jax.Array


def category_targets(labels, num_classes: int, max_targets: int) -> Targets:
    """One target for each category of a label map [B, *space], the `max_targets` largest."""
    counts = pixel_counts(labels, num_classes)  # [B, K]
    held = select(counts, min(max_targets, num_classes))
    segments = to_ranks(labels, held, num_classes=num_classes, ignore_label=IGNORE_LABEL)
    left_out = (counts > 0).sum(-1) - (held.scores > 0).sum(-1)  # [B]
    return Targets(jnp.where(held.scores > 0, held.labels, IGNORE_LABEL), segments, left_out)


def visible_targets(labels, segments, left_out) -> Targets:
    """The targets that a crop has left at least one pixel of; arguments as of `Targets`."""
    counts = pixel_counts(segments, labels.shape[1])  # [B, N]
    return Targets(jnp.where(counts > 0, labels, IGNORE_LABEL), segments, left_out)


def loss(
    key, output: QueryOutput, targets: Targets, mask, config, num_classes: int
) -> tuple[dict[str, losses.Mean], dict[str, jax.Array]]:
    """The parts of the loss of per-query output in rank space, and figures for the log.

    All predictions of the decoder take part. Targets whose category was not selected do not.

    Args:
      key: random key for the points where masks are compared.
      mask: [B] bool, images that take part.
    """
    labels = targets.labels  # [B, N]
    if output.selection is not None:
        labels = to_ranks(
            labels, output.selection, num_classes=num_classes, ignore_label=IGNORE_LABEL
        )
    options = config.loss
    parts = losses.query_losses(
        key,
        [*output.auxiliary, (output.class_logits, output.mask_logits)],
        labels,
        targets.segments,
        weights=(options.class_weight, options.mask_weight, options.dice_weight),
        num_points=options.num_points,
        no_object_weight=options.no_object,
        mask=mask,
    )
    return parts, {'targets_left_out': targets.left_out.mean()}
