"""Bipartite matching of queries to targets, of least total cost, on the device (DETR)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax

try:
    from rankseg_jax import matching_gpu
except ImportError:  # a JAX without Pallas' Triton backend, which is deprecated as of 0.11
    matching_gpu = None

# The cost of what is not finite, and the bound of all others: float32 potentials keep their digits,
# and no row is infeasible.
WORST = 1e4


def costs(
    class_logits: jax.Array,
    mask_logits: jax.Array,
    labels: jax.Array,
    masks: jax.Array,
    weights: Sequence[float],
) -> jax.Array:
    """The cost of each pair of query and target (Cheng et al., CVPR 2022): [B, Q, N] float32.

    Finite whatever the predictions are.

    Args:
      class_logits: [B, Q, κ + 1], no-object last.
      mask_logits: [B, Q, P] at P points of the image.
      labels: [B, N] int32 in 0..κ-1; the costs of other labels are meaningless.
      masks: [B, N, P] in 0..1, the targets at the same points.
      weights: of the class probability, the binary cross entropy of the masks, their dice loss.
    """
    mask_logits, masks = mask_logits.astype(jnp.float32), masks.astype(jnp.float32)
    probabilities = jax.nn.softmax(class_logits.astype(jnp.float32))  # [B, Q, κ + 1]
    class_cost = jax.vmap(lambda p, label: -jnp.take(p, label, axis=-1, mode='clip'))(
        probabilities, labels
    )  # [B, Q, N]
    # -log σ(x) inside the mask and -log(1 - σ(x)) outside differ by x. The latter is softplus, for
    # which jax.nn takes eight times as long on a CPU.
    softplus = jnp.maximum(mask_logits, 0) + jnp.log1p(jnp.exp(-jnp.abs(mask_logits)))
    outside = softplus.mean(-1)[..., None]  # [B, Q, 1]
    mask_cost = outside - jnp.einsum('bqp,bnp->bqn', mask_logits, masks) / masks.shape[-1]
    inside = jax.nn.sigmoid(mask_logits)  # [B, Q, P]
    areas = inside.sum(-1)[..., None] + masks.sum(-1)[:, None]  # [B, Q, N]
    dice_cost = 1 - (2 * jnp.einsum('bqp,bnp->bqn', inside, masks) + 1) / (areas + 1)
    parts = (class_cost, mask_cost, dice_cost)  # [B, Q, N] each
    total = sum(weight * part for weight, part in zip(weights, parts, strict=True))
    return jnp.where(jnp.isfinite(total), jnp.clip(total, -WORST, WORST), WORST)


def assign(costs: jax.Array, valid: jax.Array) -> jax.Array:
    """The query of each target, such that the sum of the valid targets' costs is least.

    On CUDA one kernel solves each problem: optax's loops launch kernels of their own each time.

    Args:
      costs: [..., Q, N], finite.
      valid: [..., N] bool, False: padding.

    Returns:
      [..., N] int32; -1 for targets that are not valid, and for those left over where there are
      more targets than queries.
    """
    kernels = {} if matching_gpu is None else {'cuda': matching_gpu.assign}
    return jax.lax.platform_dependent(costs, valid, **kernels, default=assign_anywhere)


def assign_anywhere(costs: jax.Array, valid: jax.Array) -> jax.Array:
    """As `assign`, on any device."""
    num_queries, num_targets = costs.shape[-2:]
    # Padding costs every query the same and more than any target: it takes what targets leave.
    padding = costs.max((-2, -1), keepdims=True) + 1
    valid = jnp.broadcast_to(valid, (*costs.shape[:-2], num_targets))
    costs = jnp.where(valid[..., None, :], costs, padding)

    def assign_image(costs):
        queries, targets = optax.assignment.hungarian_algorithm(costs)
        return jnp.full(num_targets, -1, jnp.int32).at[targets].set(queries.astype(jnp.int32))

    queries = jax.vmap(assign_image)(costs.reshape(-1, num_queries, num_targets))
    return jnp.where(valid, queries.reshape(valid.shape), -1)
