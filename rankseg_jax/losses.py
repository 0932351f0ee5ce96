"""Losses. Every one takes logits in float32 and returns a scalar."""

import jax
import jax.numpy as jnp
import optax

from rankseg_jax.layers import resize


def asymmetric_loss(class_logits, presence, *, gamma_neg=2.0, gamma_pos=0.0, clip=0.05, mask=None):
    """Asymmetric multi-label loss (Ridnik et al., ICCV 2021), the mean over images and categories.

    Args:
      class_logits: [B, K].
      presence: [B, K] bool or 0/1, the categories that the image holds.
      gamma_neg, gamma_pos: focusing exponents of absent and present categories.
      clip: probability margin that lets easy absent categories go; 0: none.
      mask: [B] bool, images that count; None: all.
    """
    present = presence.astype(bool)
    eps = 1e-5  # the released code's clamp
    positive = jax.nn.sigmoid(class_logits.astype(jnp.float32))  # [B, K]
    negative = jnp.minimum(1 - positive + clip, 1.0)
    probability = jnp.where(present, positive, negative)  # of the truth
    # For gamma = 0 the weight is 1, but the derivative of 0 ** 0 is not a number: guard the base.
    gamma = jnp.where(present, gamma_pos, gamma_neg)
    base = jnp.where((gamma > 0) & (probability < 1), 1 - probability, 1.0)
    weight = jnp.where((gamma > 0) & (probability >= 1), 0.0, base ** gamma)
    return image_mean(-weight * jnp.log(jnp.maximum(probability, eps)), mask)


def binary_cross_entropy(class_logits, presence, *, mask=None):
    """The mean over images and categories; arguments as for `asymmetric_loss`."""
    return image_mean(optax.sigmoid_binary_cross_entropy(class_logits.astype(jnp.float32), presence), mask)


def image_mean(values, mask):
    """[B, K] -> the mean over the images that count and all categories; 0 if none counts."""
    if mask is None:
        return values.mean()
    return (values.mean(-1) * mask).sum() / jnp.maximum(mask.sum(), 1)


def pixel_cross_entropy(logits, labels, *, upsample: bool = True, average_all: bool = False):
    """Cross entropy of pixels in rank space (or over all K, for the baseline).

    Args:
      logits: [B, h, w, κ].
      labels: [B, H, W] int32 ranks; negative values do not count.
      upsample: compare at the labels' size, logits resized bilinearly; otherwise at the logits' size, labels subsampled.
      average_all: divide by the number of all pixels, as the released code does, not of those that count.
    """
    logits = logits.astype(jnp.float32)
    if upsample:
        logits = resize(logits, labels.shape[1:3])  # [B, H, W, κ]
    else:
        labels = subsample(labels, logits.shape[1:3])  # [B, h, w]
    counts = labels >= 0
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(counts, labels, 0))  # [B, H, W]
    total = jnp.where(counts, loss, 0.0).sum()
    return total / (labels.size if average_all else jnp.maximum(counts.sum(), 1))


def subsample(labels, shape):
    """Nearest labels at the centres of a coarser grid, [B, H, W] -> [B, *shape]."""
    rows, columns = (((jnp.arange(n) + 0.5) * size / n).astype(jnp.int32)
                     for n, size in zip(shape, labels.shape[1:3], strict=True))
    return labels[:, rows[:, None], columns[None]]
