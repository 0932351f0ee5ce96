"""Rank space: choose κ of K categories per image or clip, best first, and work on those alone (arXiv 2203.04187, section 3).

The class axis of any tensor becomes a rank axis of static length κ, targets follow, and the winning rank leads back to a class id.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jax import lax


@struct.dataclass
class Selection:
    """The categories kept for each image, best first.

    Attributes:
      labels: [B, κ] int32, class ids, all different within an image.
      scores: [B, κ] float32, their class logits, descending.
    """

    labels: jax.Array
    scores: jax.Array


def select(class_logits, num_selected: int, *, must_include=None) -> Selection:
    """Keeps the `num_selected` best-scored categories of each image; ties go to the lower class id.

    Args:
      class_logits: [B, K] scores of all categories. No gradient flows through the selection.
      num_selected: κ, static.
      must_include: [B, K] bool, optional, for training: these categories replace the lowest-scored others that would have been
        kept; if there are more than κ of them, the best-scored stay. The order is by score all the same, so that a rank means
        the same thing in training and in prediction.

    Raises:
      ValueError: κ outside 1..K, or a mask of another shape.
    """
    num_classes = class_logits.shape[-1]
    if not 1 <= num_selected <= num_classes:
        raise ValueError(
            f'num_selected (κ) = {num_selected} must be at least 1 and at most the number of categories, K = {num_classes}'
        )
    logits = lax.stop_gradient(jnp.asarray(class_logits, jnp.float32))  # [B, K]
    logits = jnp.where(logits == 0, 0.0, logits)  # top_k orders -0.0 below 0.0, which are a tie
    if must_include is None:
        scores, labels = lax.top_k(logits, num_selected)
        return Selection(labels, scores)

    if must_include.shape != logits.shape:
        raise ValueError(
            f'must_include has shape {must_include.shape}, but class_logits has shape {logits.shape}'
        )
    must_include = must_include.astype(bool)
    finite = jnp.maximum(
        logits, jnp.finfo(jnp.float32).min
    )  # so that a score of -inf still comes before the masked
    _, wanted = lax.top_k(
        jnp.where(must_include, finite, -jnp.inf), num_selected
    )  # [B, κ], those asked for first
    _, others = lax.top_k(jnp.where(must_include, -jnp.inf, finite), num_selected)  # [B, κ]
    num_wanted = must_include.sum(-1, keepdims=True)  # [B, 1]
    place = jnp.arange(num_selected)
    others = jnp.take_along_axis(others, jnp.maximum(place - num_wanted, 0), -1)
    labels = jnp.where(place < num_wanted, wanted, others)  # [B, κ]
    negated, labels = lax.sort((-jnp.take_along_axis(logits, labels, -1), labels), num_keys=2)
    return Selection(labels, -negated)


def gather(values, selection: Selection, axis: int = -1, *, keep_last: bool = False):
    """Turns the class axis of `values` into a rank axis.

    Args:
      values: [B, …, K, …], one row of classes per image, or [K, …] with `axis` its first one, shared by all images.
      axis: the class axis.
      keep_last: the class axis has a last entry that is no category (no-object); it stays, after the κ ranks.

    Returns:
      [B, …, κ, …] (or κ + 1), differentiable with respect to `values`.
    """
    axis = axis % values.ndim
    labels = selection.labels  # [B, κ]
    if keep_last:
        labels = jnp.pad(
            labels, ((0, 0), (0, 1)), constant_values=values.shape[axis] - 1
        )  # [B, κ + 1]
    if axis == 0:
        return jnp.take(values, labels, axis=0, mode='clip')  # [B, κ, …]
    return jax.vmap(lambda v, label: jnp.take(v, label, axis=axis - 1, mode='clip'))(values, labels)


def to_ranks(labels, selection: Selection, *, num_classes: int, ignore_label: int):
    """Maps class ids to their ranks: [B, …] integers -> [B, …] int32 in 0..κ-1.

    What was not selected, `ignore_label` and anything outside 0..K-1 become `ignore_label`. Costs one table of K + 1 entries per
    image and one lookup per element.

    Raises:
      ValueError: `ignore_label` is itself a rank, so that the result would be ambiguous.
    """
    num_selected = selection.labels.shape[-1]
    if 0 <= ignore_label < num_selected:
        raise ValueError(
            f'ignore_label = {ignore_label} is also one of the κ = {num_selected} ranks; map it to -1 first'
        )
    labels = labels.astype(jnp.int32)
    counts = (labels >= 0) & (labels < num_classes) & (labels != ignore_label)
    slots = jnp.where(counts, labels, num_classes)  # [B, …], K: does not count

    def lookup(chosen, slots):
        table = jnp.full(num_classes + 1, ignore_label, jnp.int32)  # [K + 1]
        return table.at[chosen].set(jnp.arange(num_selected, dtype=jnp.int32))[slots]

    return jax.vmap(lookup)(selection.labels, slots)


def from_ranks(ranks, selection: Selection):
    """Maps ranks back to class ids, the inverse of `to_ranks`: [B, …] integers -> [B, …] int32.

    What is no rank (an ignore label) stays as it is.
    """
    ranks = ranks.astype(jnp.int32)
    labels = jax.vmap(lambda chosen, rank: jnp.take(chosen, rank, mode='clip'))(
        selection.labels, ranks
    )
    return jnp.where((ranks >= 0) & (ranks < selection.labels.shape[-1]), labels, ranks)


class RankTemperature(nn.Module):
    """Rank-adaptive scale of the logits, [..., ranks] -> [..., ranks].

    Attributes:
      num_ranks: length of the last axis; with 1 and kind 'temperature', one τ shared by all ranks.
      kind: 'temperature' divides by exp(log_tau), a learned positive τ per rank (as in the paper), initially `tau`;
        'layer_norm' normalises over the ranks, then scales and shifts each (the released code); 'none' does nothing.

    Raises:
      ValueError: unknown kind.
    """

    num_ranks: int
    kind: str = 'temperature'
    tau: float = 1.0

    @nn.compact
    def __call__(self, logits):
        if self.kind == 'temperature':
            log_tau = self.param(
                'log_tau', nn.initializers.constant(jnp.log(self.tau)), (self.num_ranks,)
            )
            return logits * jnp.exp(-log_tau).astype(logits.dtype)  # [..., κ]
        if self.kind == 'layer_norm':
            # Cosines differ by little, so that E[x²] - E[x]² would lose digits.
            return nn.LayerNorm(1e-5, logits.dtype, use_fast_variance=False, name='norm')(
                logits
            )  # [..., κ]
        if self.kind == 'none':
            return logits
        raise ValueError(
            f"kind of rank temperature {self.kind!r} is unknown; use 'temperature', 'layer_norm' or 'none'"
        )
