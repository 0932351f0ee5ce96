"""Losses. Every one computes in float32 and returns a scalar, or scalars by name."""

import jax
import jax.numpy as jnp
import optax
from jax import lax

from rankseg_jax import matching
from rankseg_jax.layers import resize

OVERSAMPLE, IMPORTANCE = (
    3,
    0.75,
)  # of the points where masks are compared: candidates, and share of the least certain (PointRend)


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
    weight = jnp.where((gamma > 0) & (probability >= 1), 0.0, base**gamma)
    return image_mean(-weight * jnp.log(jnp.maximum(probability, eps)), mask)


def binary_cross_entropy(class_logits, presence, *, mask=None):
    """The mean over images and categories; arguments as for `asymmetric_loss`."""
    return image_mean(
        optax.sigmoid_binary_cross_entropy(class_logits.astype(jnp.float32), presence), mask
    )


def multilabel_loss(presence_logits, presence, mask, options):
    """The loss of the multi-label head that `config.loss` describes, weighted; arguments as for `asymmetric_loss`.

    Raises:
      ValueError: there is no such loss.
    """
    if options.multilabel == 'bce':
        value = binary_cross_entropy(presence_logits, presence, mask=mask)
    elif options.multilabel == 'asymmetric':
        value = asymmetric_loss(
            presence_logits,
            presence,
            gamma_neg=options.gamma_neg,
            gamma_pos=options.gamma_pos,
            clip=options.clip,
            mask=mask,
        )
    else:
        raise ValueError(
            f"config.loss.multilabel = {options.multilabel!r} is unknown; use 'asymmetric' or 'bce'"
        )
    return options.multilabel_weight * value


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
    loss = optax.softmax_cross_entropy_with_integer_labels(
        logits, jnp.where(counts, labels, 0)
    )  # [B, H, W]
    total = jnp.where(counts, loss, 0.0).sum()
    return total / (labels.size if average_all else jnp.maximum(counts.sum(), 1))


def subsample(labels, shape):
    """Nearest labels at the centres of a coarser grid, [B, H, W] -> [B, *shape]."""
    rows, columns = (
        ((jnp.arange(n) + 0.5) * size / n).astype(jnp.int32)
        for n, size in zip(shape, labels.shape[1:3], strict=True)
    )
    return labels[:, rows[:, None], columns[None]]


def query_losses(
    key,
    outputs,
    labels,
    segments,
    *,
    weights=(2.0, 5.0, 5.0),
    num_points=12_544,
    no_object_weight=0.1,
    mask=None,
):
    """Losses of a per-query output, each the sum over its layers (Cheng et al., CVPR 2022).

    Each layer's queries are matched to the targets of its image. Masks are compared at `num_points` points: mostly those, out of
    three times as many uniform ones, where the logit is nearest to 0; a quarter is uniform. All masks and layers of a step share
    the candidates, so that one gather of rows reads them.

    Args:
      key: for the points.
      outputs: for each layer (class_logits [B, Q, κ + 1] with no-object last, mask_logits [B, Q, h, w]).
      labels: [B, T] int32 ranks (classes for the baseline) of the targets; negative: padding, or a category not selected.
      segments: [B, H, W] int32, the place of each pixel's target in `labels`; negative: none.
      weights: of the class, pixel and dice parts, in the matching and in the result.
      num_points: static.
      no_object_weight: of the queries without a target in the class part.
      mask: [B] bool, images that count; None: all.

    Returns:
      'loss_class', 'loss_mask' and 'loss_dice', weighted. The last two are divided by the number of targets in the batch.
    """
    num_certain = int(IMPORTANCE * num_points)
    num_candidates = OVERSAMPLE * num_points
    points = jax.random.uniform(key, (num_candidates + num_points - num_certain, 2))  # [P, 2]
    truth = sample_segments(segments, labels.shape[1], points)  # [B, T, P]
    valid = labels >= 0 if mask is None else (labels >= 0) & mask[:, None]  # [B, T]
    layers = jax.tree.map(
        lambda *x: jnp.stack(x), *outputs
    )  # [layers, B, Q, κ + 1], [layers, B, Q, h, w]
    costs = lax.map(
        lambda layer: matching.costs(
            layer[0],
            sample(layer[1], points[:num_points]),
            labels,
            truth[..., :num_points],
            weights,
        ),
        lax.stop_gradient(layers),
    )
    queries = matching.assign(costs, valid)  # [layers, B, T]
    total = jnp.maximum(valid.sum(), 1)

    @jax.checkpoint  # what [B, T, P] holds is cheap to compute and much to keep for every layer
    def of_layer(layer):
        (class_logits, mask_logits), chosen = layer
        logits = jnp.take_along_axis(
            mask_logits, jnp.maximum(chosen, 0)[..., None, None], axis=1
        )  # [B, T, h, w]
        logits = sample(logits, points)  # [B, T, P]
        uncertain = least_certain(logits[..., :num_candidates], num_certain)
        compared = jnp.concatenate(
            [uncertain, jnp.ones_like(logits[..., num_candidates:])], -1
        )  # [B, T, P]
        pixels, dice = (
            jnp.where(chosen >= 0, part, 0).sum() / total
            for part in mask_losses(logits, truth, compared)
        )
        return (
            query_cross_entropy(class_logits, labels, chosen, no_object_weight, mask),
            pixels,
            dice,
        )

    parts = lax.map(of_layer, (layers, queries))  # [layers] thrice
    names = ('loss_class', 'loss_mask', 'loss_dice')
    return {
        name: weight * part.sum() for name, weight, part in zip(names, weights, parts, strict=True)
    }


def query_cross_entropy(class_logits, labels, queries, no_object_weight=0.1, mask=None):
    """Cross entropy of the queries' classes, the weighted mean over the queries of all images.

    Args:
      class_logits: [B, Q, κ + 1]; the last class, no-object, is the target of queries without one.
      labels: [B, T] int32 ranks.
      queries: [B, T] int32, the query of each target; -1: none.
      mask: [B] bool, images that count; None: all.
    """
    num_queries, no_object = class_logits.shape[1], class_logits.shape[-1] - 1
    slots = jnp.where(queries < 0, num_queries, queries)
    targets = jax.vmap(
        lambda slot, label: jnp.full(num_queries, no_object).at[slot].set(label, mode='drop')
    )(slots, labels)
    weights = jnp.where(targets == no_object, no_object_weight, 1.0)  # [B, Q]
    if mask is not None:
        weights = weights * mask[:, None]
    loss = optax.softmax_cross_entropy_with_integer_labels(
        class_logits.astype(jnp.float32), targets
    )  # [B, Q]
    return (weights * loss).sum() / jnp.maximum(weights.sum(), no_object_weight)


def mask_losses(logits, masks, weights):
    """Binary cross entropy and dice loss of masks at points that count as `weights` says: [..., P] thrice -> [...] twice."""
    pixels = optax.sigmoid_binary_cross_entropy(logits, masks)  # [..., P]
    pixels = (weights * pixels).sum(-1) / weights.sum(-1)
    inside = jax.nn.sigmoid(logits)
    overlap, areas = ((weights * x).sum(-1) for x in (inside * masks, inside + masks))  # [...]
    return pixels, 1 - (2 * overlap + 1) / (areas + 1)


def least_certain(logits, count: int):
    """Weights, `count` in all, that are 1 for the logits nearest to 0: [..., P] -> [..., P]. Those level at the end share the rest.

    The `count`-th smallest magnitude is found bit by bit, as floats are ordered like their bits: much faster than sorting.
    """
    magnitude = jnp.abs(lax.stop_gradient(logits)).astype(jnp.float32)
    bits = lax.bitcast_convert_type(magnitude, jnp.int32)

    def set_bit(i, limit):
        higher = limit | (1 << (30 - i))
        return jnp.where((bits < higher[..., None]).sum(-1) < count, higher, limit)

    limit = lax.fori_loop(0, 31, set_bit, jnp.zeros(bits.shape[:-1], jnp.int32))[
        ..., None
    ]  # [..., 1]
    # Compilers may compute the logits anew for this, and round otherwise.
    below, level = bits < limit - 64, jnp.abs(bits - limit) <= 64
    share = (count - below.sum(-1, keepdims=True)) / level.sum(-1, keepdims=True)
    return jnp.where(level, share, below.astype(jnp.float32))


def sample(maps, points):
    """Bilinear samples of maps, all at the same points: [..., h, w] and [P, 2] -> [..., P] float32.

    Equals `torch.nn.functional.grid_sample(align_corners=False)`: points are (x, y) in 0..1, maps fade to 0 beyond their edge.
    """
    height, width = maps.shape[-2:]
    rows = jnp.moveaxis(
        maps.reshape(*maps.shape[:-2], height * width), -1, 0
    )  # [h w, ...]: a row holds all maps at a pixel

    # A loop, so that the rows are in memory: XLA would gather out of the maps instead, which takes four times as long on a CPU.
    def add(total, corner):
        index, weight = corner  # [P] each
        values = jnp.take(rows, index, axis=0, mode='clip').astype(jnp.float32)  # [P, ...]
        return total + values * weight.reshape(-1, *(1,) * (maps.ndim - 2)), None

    total, _ = lax.scan(
        add, jnp.zeros((len(points), *rows.shape[1:])), corners(points, height, width)
    )
    return jnp.moveaxis(total, 0, -1)


def sample_segments(segments, num_targets: int, points):
    """`sample` of the mask of each place 0..T-1 in a map, without these masks: [B, H, W] and [P, 2] -> [B, T, P] float32."""
    index, weight = corners(points, *segments.shape[1:])  # [4, P] each
    places = segments.reshape(len(segments), -1)[:, index]  # [B, 4, P]
    return jnp.where(places[:, None] == jnp.arange(num_targets)[:, None, None], weight, 0).sum(2)


def corners(points, height: int, width: int):
    """The four pixels around each of [P, 2] points: their numbers, row by row, and weights, 0 beyond the edge: [4, P] each."""
    x, y = points[:, 0] * width - 0.5, points[:, 1] * height - 0.5  # [P]
    rows = jnp.floor(y) + jnp.array([0, 0, 1, 1])[:, None]  # [4, P]
    columns = jnp.floor(x) + jnp.array([0, 1, 0, 1])[:, None]
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    weights = jnp.where(inside, (1 - jnp.abs(y - rows)) * (1 - jnp.abs(x - columns)), 0)
    return jnp.clip(rows * width + columns, 0, height * width - 1).astype(jnp.int32), weights
