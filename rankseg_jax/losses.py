"""Losses. Every one computes in float32 and returns a scalar or a `Mean`, or these by name."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import lax
from ml_collections import ConfigDict

from rankseg_jax import matching
from rankseg_jax.layers import resize

# Points where masks are compared (PointRend): candidates per point, and the share of the points
# that are the least certain candidates.
OVERSAMPLE, IMPORTANCE = 3, 0.75
BITS = 31  # targets that an int32 holds, its sign left out


@struct.dataclass
class Mean:
    """A loss that is a mean over part of a batch, such as its labeled pixels.

    `weight * mean` weights the loss. The loss of a batch is the sum over its micro-batches of their
    values, each times its share of their counts.

    Attributes:
      value: [] float32.
      count: [] float32, the number of pixels, targets or images that it is the mean over.
    """

    value: jax.Array
    count: jax.Array

    @classmethod
    def of(cls, total: jax.Array, count: jax.Array | int) -> 'Mean':
        """The mean of values that add up to `total`; 0 if there are none."""
        return cls(total / jnp.where(count > 0, count, 1), jnp.float32(count))

    def __rmul__(self, weight: float) -> 'Mean':
        return Mean(weight * self.value, self.count)


def asymmetric_loss(
    presence_logits: jax.Array,
    presence: jax.Array,
    *,
    gamma_neg: float = 2.0,
    gamma_pos: float = 0.0,
    clip: float = 0.05,
    mask: jax.Array | None = None,
) -> jax.Array:
    """Asymmetric multi-label loss (Ridnik et al., ICCV 2021), the mean over images and categories.

    Args:
      presence_logits: [B, K].
      presence: [B, K] bool or 0/1, the categories in the image.
      gamma_neg: focusing exponent of absent categories.
      gamma_pos: of present ones.
      clip: probability margin within which absent categories cost nothing; 0: none.
      mask: [B] bool, images that take part; None: all.
    """
    present = presence.astype(bool)
    eps = 1e-5  # the released code's clamp
    positive = jax.nn.sigmoid(presence_logits.astype(jnp.float32))  # [B, K]
    negative = jnp.minimum(1 - positive + clip, 1.0)
    probability = jnp.where(present, positive, negative)  # [B, K] that the truth gets
    # For gamma = 0 the weight is 1, but the derivative of 0 ** 0 is not a number: guard the base.
    gamma = jnp.where(present, gamma_pos, gamma_neg)
    base = jnp.where((gamma > 0) & (probability < 1), 1 - probability, 1.0)
    weight = jnp.where((gamma > 0) & (probability >= 1), 0.0, base**gamma)
    return image_mean(-weight * jnp.log(jnp.maximum(probability, eps)), mask)


def binary_cross_entropy(
    presence_logits: jax.Array, presence: jax.Array, *, mask: jax.Array | None = None
) -> jax.Array:
    """The mean over images and categories; arguments as for `asymmetric_loss`."""
    logits = presence_logits.astype(jnp.float32)
    return image_mean(optax.sigmoid_binary_cross_entropy(logits, presence), mask)


def multilabel_loss(
    presence_logits: jax.Array, presence: jax.Array, mask: jax.Array, options: ConfigDict
) -> Mean:
    """The weighted loss of the multi-label head that `config.loss` describes.

    Args: as `asymmetric_loss`; `options` are the keys of `config.loss`.

    Raises:
      ValueError: `options.multilabel` is unknown.
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
    return Mean(options.multilabel_weight * value, jnp.float32(mask.sum()))


def image_mean(values: jax.Array, mask: jax.Array | None) -> jax.Array:
    """The mean of [B, K] over the images in `mask` [B] and all categories; 0 without an image."""
    if mask is None:
        return values.mean()
    return (values.mean(-1) * mask).sum() / jnp.maximum(mask.sum(), 1)


def pixel_cross_entropy(
    logits: jax.Array, labels: jax.Array, *, upsample: bool = True, average_all: bool = False
) -> Mean:
    """Cross entropy of pixels in rank space (or over all K, for the baseline).

    Args:
      logits: [B, *t, h, w, κ].
      labels: [B, *t, H, W] int32 ranks; negative values are ignored.
      upsample: compare at the labels' size, with logits resized bilinearly; otherwise at the
        logits' size, with labels subsampled.
      average_all: divide by the number of all pixels, as the released code does, not by that of the
        pixels that are not ignored.
    """
    logits = logits.astype(jnp.float32)
    if upsample:
        logits = resize(logits, labels.shape[-2:])  # [B, *t, H, W, κ]
    else:
        labels = subsample(labels, logits.shape[-3:-1])  # [B, *t, h, w]
    valid = labels >= 0
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(valid, labels, 0))
    total = jnp.where(valid, loss, 0.0).sum()
    return Mean.of(total, labels.size if average_all else valid.sum())


def subsample(labels: jax.Array, shape: Sequence[int]) -> jax.Array:
    """Nearest labels at the centers of a coarser grid, [..., H, W] → [..., *shape]."""
    rows, columns = (
        ((jnp.arange(n) + 0.5) * size / n).astype(jnp.int32)
        for n, size in zip(shape, labels.shape[-2:], strict=True)
    )
    return labels[..., rows[:, None], columns]


def query_losses(
    key: jax.Array,
    outputs: Sequence[tuple[jax.Array, jax.Array]],
    labels: jax.Array,
    sample_masks: Callable,
    *,
    weights: Sequence[float] = (2.0, 5.0, 5.0),
    num_points: int = 12_544,
    no_object_weight: float = 0.1,
    average_frames: bool = False,
    mask: jax.Array | None = None,
) -> dict[str, Mean]:
    """Losses of a per-query output, each summed over its layers (Cheng et al., CVPR 2022).

    Each layer's queries are matched to the targets of their image or clip. Masks are compared at
    `num_points` points of each frame: three quarters are those of three times as many uniform
    candidates whose logit is nearest to 0, the rest are uniform. All masks and layers of a step
    share the candidates, so that one gather of rows reads them.

    The frames of a clip are one mask in the matching. In the losses they are masks of their own,
    which add up, as in Mask2Former for videos (Cheng et al., arXiv 2112.10764): a clip weighs as
    much as its frames, unless they are averaged.

    Args:
      key: random key for the points.
      outputs: for each layer (class_logits [B, Q, κ + 1] with no-object last, mask_logits
        [B, Q, *space]).
      labels: [B, N] int32 ranks (classes for the baseline) of the targets; negative: padding, or a
        category that was not selected.
      sample_masks: points [P, 2], (x, y) in 0..1 → bilinear samples of the targets' masks there,
        [B, N, *t, P], such as `sample_segments`.
      weights: of the class, mask and dice parts, in the matching and in the result.
      num_points: P, static.
      no_object_weight: weight of queries without a target in the class part.
      average_frames: a clip weighs as much as an image.
      mask: [B] bool, images that take part; None: all.

    Returns:
      'loss_class', 'loss_mask' and 'loss_dice', weighted. The last two are means over the targets
      in the batch, the first over its queries, see `query_cross_entropy`.
    """
    num_certain = int(IMPORTANCE * num_points)
    num_candidates = OVERSAMPLE * num_points
    # [3 P + P / 4, 2], candidates first
    points = jax.random.uniform(key, (num_candidates + num_points - num_certain, 2))
    valid = labels >= 0 if mask is None else (labels >= 0) & mask[:, None]  # [B, N]
    layers = jax.tree.map(lambda *x: jnp.stack(x), *outputs)  # [layers, B, Q, …] each

    def flat(x):  # [B, …, *t, points] → [B, …, *t · points]: a clip's frames are one mask
        return x.reshape(*x.shape[:2], -1)

    truth = sample_masks(points)  # [B, N, *t, points]
    costs = lax.map(
        lambda layer: matching.costs(
            class_logits=layer[0],
            mask_logits=flat(sample(layer[1], points[:num_points])),
            labels=labels,
            masks=flat(truth[..., :num_points]),
            weights=weights,
        ),
        lax.stop_gradient(layers),
    )  # [layers, B, Q, N]
    queries = matching.assign(costs, valid)  # [layers, B, N]
    num_targets = jnp.maximum(valid.sum(), 1)

    @jax.checkpoint  # [B, N, points] is cheap to recompute, expensive to store for every layer
    def layer_losses(layer):
        (class_logits, mask_logits), chosen = layer
        index = jnp.expand_dims(jnp.maximum(chosen, 0), range(2, mask_logits.ndim))
        logits = sample(jnp.take_along_axis(mask_logits, index, axis=1), points)
        certain = least_certain(logits[..., :num_candidates], num_certain)
        compared = jnp.concatenate([certain, jnp.ones_like(logits[..., num_candidates:])], -1)
        parts = mask_losses(logits, truth, compared)  # [B, N, *t] twice
        parts = [flat(part[..., None]) for part in parts]  # [B, N, t or 1] each
        parts = [part.mean(-1) if average_frames else part.sum(-1) for part in parts]
        pixels, dice = (jnp.where(chosen >= 0, part, 0).sum() / num_targets for part in parts)
        classes = query_cross_entropy(
            class_logits, labels, chosen, no_object_weight=no_object_weight, mask=mask
        )
        return classes, pixels, dice

    parts = lax.map(layer_losses, (layers, queries))  # [layers] three times
    # The sum of the queries' weights, known before matching: each valid target gets a query while
    # there are queries left.
    num_queries, num_images = costs.shape[2], len(labels) if mask is None else mask.sum()
    matched = jnp.minimum(valid.sum(-1), num_queries).sum()
    query_weight = matched + no_object_weight * (num_queries * num_images - matched)
    names = ('loss_class', 'loss_mask', 'loss_dice')
    counts = (query_weight, valid.sum(), valid.sum())
    return {
        name: Mean(weight * part.sum(), jnp.float32(count))
        for name, weight, part, count in zip(names, weights, parts, counts, strict=True)
    }


def query_cross_entropy(
    class_logits: jax.Array,
    labels: jax.Array,
    queries: jax.Array,
    *,
    no_object_weight: float = 0.1,
    mask: jax.Array | None = None,
) -> jax.Array:
    """Cross entropy of the queries' classes, the weighted mean over the queries of all images.

    Args:
      class_logits: [B, Q, κ + 1]; the last class, no-object, is the target of unmatched queries.
      labels: [B, N] int32 ranks.
      queries: [B, N] int32, the query of each target; -1: none.
      mask: [B] bool, images that take part; None: all.
    """
    num_queries, no_object = class_logits.shape[1], class_logits.shape[-1] - 1
    slots = jnp.where(queries < 0, num_queries, queries)  # [B, N]
    targets = jax.vmap(
        lambda slot, label: jnp.full(num_queries, no_object).at[slot].set(label, mode='drop')
    )(slots, labels)  # [B, Q]
    weights = jnp.where(targets == no_object, no_object_weight, 1.0)  # [B, Q]
    if mask is not None:
        weights = weights * mask[:, None]
    logits = class_logits.astype(jnp.float32)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, targets)  # [B, Q]
    total = weights.sum()  # 0 without images, and without targets where no-object weighs nothing
    return (weights * loss).sum() / jnp.where(total > 0, total, 1)


def mask_losses(
    logits: jax.Array, masks: jax.Array, weights: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Binary cross entropy and dice loss of masks at weighted points, [..., P] → [...] each."""
    pixels = optax.sigmoid_binary_cross_entropy(logits, masks)  # [..., P]
    pixels = (weights * pixels).sum(-1) / weights.sum(-1)  # [...]
    inside = jax.nn.sigmoid(logits)  # [..., P]
    overlap, areas = ((weights * x).sum(-1) for x in (inside * masks, inside + masks))  # [...]
    return pixels, 1 - (2 * overlap + 1) / (areas + 1)


def least_certain(logits: jax.Array, count: int) -> jax.Array:
    """Weights that pick the `count` logits nearest to 0: [..., P] → [..., P], `count` in all.

    A weight is 1 for a logit that is picked, 0 for one that is not; logits level at the threshold
    share the rest. The threshold is found bit by bit, since floats are ordered like their bits:
    much faster than sorting.
    """
    magnitude = jnp.abs(lax.stop_gradient(logits)).astype(jnp.float32)
    bits = lax.bitcast_convert_type(magnitude, jnp.int32)

    def set_bit(i, limit):
        higher = limit | (1 << (30 - i))
        return jnp.where((bits < higher[..., None]).sum(-1) < count, higher, limit)

    limit = lax.fori_loop(0, 31, set_bit, jnp.zeros(bits.shape[:-1], jnp.int32))[..., None]
    # A margin, since compilers may recompute the logits for this and round differently.
    below, level = bits < limit - 64, jnp.abs(bits - limit) <= 64
    share = (count - below.sum(-1, keepdims=True)) / level.sum(-1, keepdims=True)
    return jnp.where(level, share, below.astype(jnp.float32))


def sample(maps: jax.Array, points: jax.Array) -> jax.Array:
    """Bilinear samples of maps, all at the same points: [..., h, w] and [P, 2] → [..., P] float32.

    Equals `torch.nn.functional.grid_sample(align_corners=False)`: points are (x, y) in 0..1, and
    maps fade to 0 beyond their edge.
    """
    height, width = maps.shape[-2:]
    rows = maps.reshape(*maps.shape[:-2], height * width)
    rows = jnp.moveaxis(rows, -1, 0)  # [h · w, ...]: a row holds one cell of all maps

    # A loop keeps the rows in memory. Otherwise XLA gathers from the maps, four times slower on a
    # CPU.
    def add(total, corner):
        index, weight = corner  # [P] each
        values = jnp.take(rows, index, axis=0, mode='clip').astype(jnp.float32)  # [P, ...]
        return total + values * weight.reshape(-1, *(1,) * (maps.ndim - 2)), None

    zeros = jnp.zeros((len(points), *rows.shape[1:]))
    total, _ = lax.scan(add, zeros, corners(points, height, width))
    return jnp.moveaxis(total, 0, -1)


def sample_segments(segments: jax.Array, num_targets: int, points: jax.Array) -> jax.Array:
    """`sample` of each target's mask, without making the masks: [B, *t, H, W] → [B, N, *t, P].

    Args:
      segments: integers, the place 0..N-1 of each pixel's target.
      num_targets: N.
      points: [P, 2].
    """
    index, weight = corners(points, *segments.shape[-2:])  # [4, P] each
    places = segments.reshape(*segments.shape[:-2], -1)[..., index]  # [B, *t, 4, P]
    targets = jnp.expand_dims(jnp.arange(num_targets), range(1, places.ndim))  # [N, 1, …]
    return jnp.where(places[:, None] == targets, weight, 0).sum(-2)


def sample_bits(bits: jax.Array, num_targets: int, points: jax.Array) -> jax.Array:
    """As `sample_segments`, of masks that may overlap: [B, words, *t, H, W] → [B, N, *t, P].

    Args:
      bits: int32, bit n of word w is 1 in the pixels of target BITS · w + n; see `unpack`.
      num_targets: N.
      points: [P, 2].
    """
    index, weight = corners(points, *bits.shape[-2:])  # [4, P] each
    words = bits.reshape(*bits.shape[:-2], -1)[..., index]  # [B, words, *t, 4, P]
    return (unpack(words, num_targets) * weight).sum(-2)


def unpack(words: jax.Array, num_targets: int) -> jax.Array:
    """The bits of words [B, words, …] of BITS each: [B, N, …] int32."""
    shifts = jnp.expand_dims(jnp.arange(BITS), range(1, words.ndim - 1))  # [BITS, 1, …]
    bits = (words[:, :, None] >> shifts) & 1  # [B, words, BITS, …]
    return bits.reshape(len(words), -1, *words.shape[2:])[:, :num_targets]


def corners(points: jax.Array, height: int, width: int) -> tuple[jax.Array, jax.Array]:
    """The four pixels around each of [P, 2] points.

    Returns:
      Their numbers, row by row, int32 [4, P], and their weights, 0 beyond the edge, [4, P].
    """
    x, y = points[:, 0] * width - 0.5, points[:, 1] * height - 0.5  # [P]
    rows = jnp.floor(y) + jnp.array([0, 0, 1, 1])[:, None]  # [4, P]
    columns = jnp.floor(x) + jnp.array([0, 1, 0, 1])[:, None]
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    weights = jnp.where(inside, (1 - jnp.abs(y - rows)) * (1 - jnp.abs(x - columns)), 0)
    return jnp.clip(rows * width + columns, 0, height * width - 1).astype(jnp.int32), weights
