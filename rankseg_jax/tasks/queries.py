"""What tasks share on per-query outputs: targets, and their loss in rank space."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax
from ml_collections import ConfigDict

from rankseg_jax import losses
from rankseg_jax.data import IGNORE_LABEL
from rankseg_jax.multilabel import pixel_counts
from rankseg_jax.outputs import QueryOutput
from rankseg_jax.ranking import select, to_ranks


@struct.dataclass
class Targets:
    """At most N masks in each image that do not overlap, so that one map holds them all.

    Attributes:
      labels: [B, N] int32 class ids; IGNORE_LABEL: no target.
      segments: [B, *space] int32, the place of each pixel's target in `labels`; negative: none.
      left_out: [B] int32, number of targets without a place.
    """

    labels: jax.Array
    segments: jax.Array
    left_out: jax.Array

    def sample(self, points: jax.Array) -> jax.Array:
        """The masks at points [P, 2], see `losses.query_losses`: [B, N, *t, P]."""
        return losses.sample_segments(self.segments, self.labels.shape[1], points)

    def category_map(self) -> jax.Array:
        """The category of each pixel, [B, *space] int32 or IGNORE_LABEL."""
        # No target, -1, is the last entry.
        labels = jnp.pad(self.labels, ((0, 0), (0, 1)), constant_values=IGNORE_LABEL)  # [B, N + 1]
        return jax.vmap(lambda labels, segments: labels[segments])(labels, self.segments)


@struct.dataclass
class OverlappingTargets:
    """At most N masks in each image or clip, which may overlap.

    Attributes:
      labels: [B, N] int32 class ids; IGNORE_LABEL: no target.
      bits: [B, words, *space] int32, see `pack`.
      left_out: [B] int32, number of targets without a place.
    """

    labels: jax.Array
    bits: jax.Array
    left_out: jax.Array

    def sample(self, points: jax.Array) -> jax.Array:
        """As `Targets.sample`."""
        return losses.sample_bits(self.bits, self.labels.shape[1], points)

    def category_map(self) -> jax.Array:
        """As `Targets.category_map`; of masks that overlap, the first one's."""
        found = jnp.full(self.bits[:, 0].shape, IGNORE_LABEL, jnp.int32)  # [B, *space]
        for n in reversed(range(self.labels.shape[1])):
            held = self.bits[:, n // losses.BITS] >> n % losses.BITS & 1  # [B, *space]
            label = jnp.expand_dims(self.labels[:, n], range(1, found.ndim))
            found = jnp.where(held > 0, label, found)
        return found


def pack(masks: np.ndarray, max_targets: int) -> np.ndarray:
    """Masks bool [N, *space] that may overlap, as bits of int32 [words, *space].

    Args:
      masks: at most `max_targets` of them.
      max_targets: a bit for each of them, so the number of words is ⌈max_targets / BITS⌉.
    """
    words = np.zeros((-(-max_targets // losses.BITS), *masks.shape[1:]), np.int32)
    for n, mask in enumerate(masks):
        words[n // losses.BITS] |= np.int32(1 << n % losses.BITS) * mask
    return words


def overlapping_targets(
    labels: jax.Array, bits: jax.Array, left_out: jax.Array
) -> OverlappingTargets:
    """The targets that a crop has left at least one pixel of; negative words hold none."""
    bits = jnp.maximum(bits, 0)  # [B, words, *space]
    held = lax.reduce(bits, np.int32(0), lax.bitwise_or, range(2, bits.ndim))  # [B, words]
    visible = losses.unpack(held, labels.shape[1]) > 0  # [B, N]
    return OverlappingTargets(jnp.where(visible, labels, IGNORE_LABEL), bits, left_out)


def category_targets(labels: jax.Array, num_classes: int, max_targets: int) -> Targets:
    """One target for each category of a label map [B, *space], the `max_targets` largest."""
    counts = pixel_counts(labels, num_classes)  # [B, K]
    held = select(counts, min(max_targets, num_classes))
    segments = to_ranks(labels, held, num_classes=num_classes, ignore_label=IGNORE_LABEL)
    left_out = (counts > 0).sum(-1) - (held.scores > 0).sum(-1)  # [B]
    return Targets(jnp.where(held.scores > 0, held.labels, IGNORE_LABEL), segments, left_out)


def visible_targets(labels: jax.Array, segments: jax.Array, left_out: jax.Array) -> Targets:
    """The targets that a crop has left at least one pixel of; arguments as in `Targets`."""
    counts = pixel_counts(segments, labels.shape[1])  # [B, N]
    return Targets(jnp.where(counts > 0, labels, IGNORE_LABEL), segments, left_out)


def presence(labels: jax.Array, num_classes: int) -> jax.Array:
    """The categories among targets: [B, N] class ids or IGNORE_LABEL → [B, K] bool."""
    rows = jnp.arange(len(labels))[:, None]
    slots = jnp.where(labels < 0, num_classes, labels)
    return jnp.zeros((len(labels), num_classes), bool).at[rows, slots].set(True, mode='drop')


def loss(
    key: jax.Array,
    output: QueryOutput,
    targets: Targets | OverlappingTargets,
    *,
    mask: jax.Array,
    config: ConfigDict,
    num_classes: int,
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
        sample_masks=targets.sample,
        weights=(options.class_weight, options.mask_weight, options.dice_weight),
        num_points=options.num_points,
        no_object_weight=options.no_object,
        average_frames=options.average_frames,
        mask=mask,
    )
    return parts, {'targets_left_out': targets.left_out.mean()}
