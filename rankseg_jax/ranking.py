"""Rank space: keep κ of K categories per image or clip, and classify over those alone.

The class axis of a tensor becomes a rank axis of static length κ, best category first. Targets are
mapped to ranks, and predicted ranks back to class ids (arXiv 2203.04187, section 3).
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
      labels: [B, κ] int32, class ids, distinct within an image.
      scores: [B, κ] float32, the scores they were selected by, descending.
    """

    labels: jax.Array
    scores: jax.Array


def select(
    class_scores: jax.Array, num_selected: int, *, must_include: jax.Array | None = None
) -> Selection:
    """Selects the `num_selected` best-scored categories of each image.

    Ties go to the lower class id. No gradient flows through the selection.

    Args:
      class_scores: [B, K], one score per category.
      num_selected: κ, static.
      must_include: [B, K] bool, optional, for training. These categories replace the lowest-scored
        others in the selection; if there are more than κ, the best-scored of them are kept. The
        result is sorted by score in either case, so that a rank means the same thing in training
        and in prediction.

    Raises:
      ValueError: κ is outside 1..K, or `must_include` has another shape than `class_scores`.
    """
    num_classes = class_scores.shape[-1]
    if not 1 <= num_selected <= num_classes:
        raise ValueError(
            f'num_selected (κ) = {num_selected} must be at least 1 and at most the number of '
            f'categories, K = {num_classes}'
        )
    scores = lax.stop_gradient(jnp.asarray(class_scores, jnp.float32))  # [B, K]
    scores = jnp.where(scores == 0, 0.0, scores)  # -0.0 ties with 0.0, but top_k puts it below
    if must_include is None:
        scores, labels = lax.top_k(scores, num_selected)  # [B, κ] each
        return Selection(labels, scores)

    if must_include.shape != scores.shape:
        raise ValueError(
            f'must_include has shape {must_include.shape}, but class_scores has shape '
            f'{scores.shape}'
        )
    must_include = must_include.astype(bool)
    # A category that scores -inf must still come before those that are masked out.
    finite = jnp.maximum(scores, jnp.finfo(jnp.float32).min)  # [B, K]
    _, required = lax.top_k(jnp.where(must_include, finite, -jnp.inf), num_selected)  # [B, κ]
    _, others = lax.top_k(jnp.where(must_include, -jnp.inf, finite), num_selected)  # [B, κ]
    num_required = must_include.sum(-1, keepdims=True)  # [B, 1]
    place = jnp.arange(num_selected)
    others = jnp.take_along_axis(others, jnp.maximum(place - num_required, 0), -1)  # [B, κ]
    labels = jnp.where(place < num_required, required, others)  # [B, κ]
    negated, labels = lax.sort((-jnp.take_along_axis(scores, labels, -1), labels), num_keys=2)
    return Selection(labels, -negated)


def gather(
    values: jax.Array, selection: Selection, axis: int = -1, *, keep_last: bool = False
) -> jax.Array:
    """Turns the class axis of `values` into a rank axis.

    Args:
      values: [B, …, K, …], different for each image, or [K, …], shared by all images.
      axis: the class axis; if it is the first axis, `values` are shared.
      keep_last: whether the class axis ends with a no-object entry, kept after the κ ranks.

    Returns:
      [B, …, κ, …], or κ + 1 with `keep_last`; differentiable with respect to `values`.
    """
    axis = axis % values.ndim
    labels = selection.labels  # [B, κ]
    if keep_last:
        last = values.shape[axis] - 1
        labels = jnp.pad(labels, ((0, 0), (0, 1)), constant_values=last)  # [B, κ + 1]
    if axis == 0:
        return jnp.take(values, labels, axis=0, mode='clip')  # [B, κ, …]
    return jax.vmap(lambda v, label: jnp.take(v, label, axis=axis - 1, mode='clip'))(values, labels)


def to_ranks(
    labels: jax.Array, selection: Selection, *, num_classes: int, ignore_label: int
) -> jax.Array:
    """Maps class ids to their ranks: [B, …] integers → [B, …] int32 in 0..κ-1.

    Categories that are not selected, `ignore_label` and ids outside 0..K-1 become `ignore_label`.
    The cost is one table of K + 1 entries per image and one lookup per element.

    Raises:
      ValueError: `ignore_label` is in 0..κ-1, so that the result would be ambiguous.
    """
    num_selected = selection.labels.shape[-1]
    if 0 <= ignore_label < num_selected:
        raise ValueError(
            f'ignore_label = {ignore_label} is also one of the κ = {num_selected} ranks; '
            'map it to -1 first'
        )
    labels = labels.astype(jnp.int32)
    valid = (labels >= 0) & (labels < num_classes) & (labels != ignore_label)
    slots = jnp.where(valid, labels, num_classes)  # [B, …], slot K maps to `ignore_label`

    def lookup(selected, slots):
        table = jnp.full(num_classes + 1, ignore_label, jnp.int32)  # [K + 1]
        return table.at[selected].set(jnp.arange(num_selected, dtype=jnp.int32))[slots]

    return jax.vmap(lookup)(selection.labels, slots)


def from_ranks(ranks: jax.Array, selection: Selection) -> jax.Array:
    """Maps ranks back to class ids, the inverse of `to_ranks`: [B, …] integers → [B, …] int32.

    Values outside 0..κ-1, such as an ignore label, stay unchanged.
    """
    ranks = ranks.astype(jnp.int32)
    labels = jax.vmap(lambda selected, rank: jnp.take(selected, rank, mode='clip'))(
        selection.labels, ranks
    )
    return jnp.where((ranks >= 0) & (ranks < selection.labels.shape[-1]), labels, ranks)


class RankTemperature(nn.Module):
    """Rank-adaptive scale of logits, [..., ranks] → [..., ranks].

    Attributes:
      num_ranks: the most ranks that the last axis may hold; with 1 and kind 'temperature', all
        ranks share one τ.
      kind: 'temperature' divides by exp(log_tau), a learned positive τ per rank (the paper);
        'affine' also adds a learned bias per rank; 'layer_norm' normalizes over the ranks, always
        all of them, then scales and shifts each (the released code); 'none' returns the logits
        unchanged.
      tau: initial τ.
      no_object: whether the axis ends with a further logit, which is no rank.

    Raises:
      ValueError: `kind` is unknown.
    """

    num_ranks: int
    kind: str = 'temperature'
    tau: float = 1.0
    no_object: bool = False

    @nn.compact
    def __call__(self, logits: jax.Array) -> jax.Array:
        def rank_parameter(name, init):
            """A parameter by rank, as far as the logits have ranks."""
            values = self.param(name, init, (self.num_ranks + self.no_object,))
            ranks = logits.shape[-1] - self.no_object
            values = jnp.concatenate([values[:ranks], values[self.num_ranks :]])
            return values.astype(logits.dtype)

        if self.kind in ('temperature', 'affine'):
            log_tau = rank_parameter('log_tau', nn.initializers.constant(jnp.log(self.tau)))
            logits = logits * jnp.exp(-log_tau)  # [..., κ]
            if self.kind == 'affine':
                logits += rank_parameter('bias', nn.initializers.zeros)
            return logits
        if self.kind == 'layer_norm':
            # Cosines lie close together, so computing the variance as E[x²] - E[x]² loses digits.
            norm = nn.LayerNorm(
                epsilon=1e-5, dtype=logits.dtype, use_fast_variance=False, name='norm'
            )
            return norm(logits)  # [..., κ]
        if self.kind == 'none':
            return logits
        raise ValueError(
            f'kind of rank temperature {self.kind!r} is unknown; use '
            "'temperature', 'affine', 'layer_norm' or 'none'"
        )
