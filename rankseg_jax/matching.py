"""Which query answers for which target: a one-to-one matching of least total cost, on the device (Carion et al., 2020)."""

import jax
import jax.numpy as jnp
import optax

WORST = 1e4  # cost of what is not finite, and bound of all others: float32 potentials keep their digits, no row is infeasible


def costs(class_logits, mask_logits, labels, masks, weights):
    """What each target would cost each query (Cheng et al., CVPR 2022), finite whatever the predictions: [B, Q, T] float32.

    Args:
      class_logits: [B, Q, C + 1], no-object last.
      mask_logits: [B, Q, P] at P points of the image.
      labels: [B, T] int32 in 0..C-1; what costs the others have means nothing.
      masks: [B, T, P] in 0..1, the targets at the same points.
      weights: of the class probability, the binary cross entropy of the masks and their dice loss.
    """
    mask_logits, masks = mask_logits.astype(jnp.float32), masks.astype(jnp.float32)
    probabilities = jax.nn.softmax(class_logits.astype(jnp.float32))  # [B, Q, C + 1]
    of_class = jax.vmap(lambda p, label: -jnp.take(p, label, axis=-1, mode='clip'))(
        probabilities, labels
    )  # [B, Q, T]
    # -log σ(x) for the mask and -log(1 - σ(x)) outside differ by x.
    # softplus; jax.nn's takes eight times as long on a CPU.
    outside = (jnp.maximum(mask_logits, 0) + jnp.log1p(jnp.exp(-jnp.abs(mask_logits)))).mean(-1)[
        ..., None
    ]  # [B, Q, 1]
    of_pixels = (
        outside - jnp.einsum('bqp,btp->bqt', mask_logits, masks) / masks.shape[-1]
    )  # [B, Q, T]
    inside = jax.nn.sigmoid(mask_logits)  # [B, Q, P]
    areas = inside.sum(-1)[..., None] + masks.sum(-1)[:, None]  # [B, Q, T]
    of_overlap = 1 - (2 * jnp.einsum('bqp,btp->bqt', inside, masks) + 1) / (areas + 1)  # [B, Q, T]
    total = sum(
        weight * cost
        for weight, cost in zip(weights, (of_class, of_pixels, of_overlap), strict=True)
    )
    return jnp.where(jnp.isfinite(total), jnp.clip(total, -WORST, WORST), WORST)


def assign(costs, valid):
    """The query of each target, so that the sum of the valid targets' costs is least: [..., T] int32.

    -1 where there is none: for targets that are not valid, and for those left over where there are more of them than queries.

    Args:
      costs: [..., Q, T], finite.
      valid: [..., T] bool, False: padding.
    """
    num_queries, num_targets = costs.shape[-2:]
    # Padding costs every query the same and more than any target, so that it takes only what the targets leave.
    padding = costs.max((-2, -1), keepdims=True) + 1
    valid = jnp.broadcast_to(valid, (*costs.shape[:-2], num_targets))
    costs = jnp.where(valid[..., None, :], costs, padding)

    def of_image(costs):
        queries, targets = optax.assignment.hungarian_algorithm(costs)
        return jnp.full(num_targets, -1, jnp.int32).at[targets].set(queries.astype(jnp.int32))

    queries = jax.vmap(of_image)(costs.reshape(-1, num_queries, num_targets)).reshape(valid.shape)
    return jnp.where(valid, queries, -1)
