"""How well the multi-label head finds the categories of an image: recall@κ, precision@κ, AP."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from rankseg_jax import ranking


@struct.dataclass
class MultilabelMetric:
    """Sums of per-image scores, and the numbers of images to divide them by.

    A batch's sums are on the device; `merge` adds them on the host in float64 and int64. The
    state is additive: over several hosts, the sum of each field is that of the whole data set.

    Attributes:
      category_recall: [len(ks)] share of an image's categories that are among the best κ.
      pixel_recall: [len(ks)] share of its labeled pixels whose class is among the best κ.
      precision: [len(ks)] share of the best κ that are in the image.
      ranking_ap: [] mean over an image's categories of (its categories ranked so far) / rank.
      images: [] number of images.
      labeled: [] number of images with at least one category.
      ks: the values of κ.
    """

    category_recall: jax.Array | np.ndarray
    pixel_recall: jax.Array | np.ndarray
    precision: jax.Array | np.ndarray
    ranking_ap: jax.Array | np.ndarray
    images: jax.Array | np.ndarray
    labeled: jax.Array | np.ndarray
    ks: tuple[int, ...] = struct.field(pytree_node=False)

    @classmethod
    def empty(cls, ks: tuple[int, ...]) -> 'MultilabelMetric':
        sums = [np.zeros(len(ks)) for _ in range(3)]
        return cls(
            *sums,
            ranking_ap=np.zeros(()),
            images=np.zeros((), np.int64),
            labeled=np.zeros((), np.int64),
            ks=tuple(ks),
        )

    @classmethod
    def from_batch(
        cls,
        presence_logits: jax.Array,
        pixel_counts: jax.Array,
        ks: tuple[int, ...],
        mask: jax.Array,
    ) -> 'MultilabelMetric':
        """Scores one batch; made for `jit`.

        Args:
          presence_logits: [B, K] scores; ties rank the lower class id first, as the selection does.
          pixel_counts: [B, K] int32, labeled pixels of each class in each image.
          ks: values of κ, static, each in 1..K.
          mask: bool [B]; False excludes an image from all scores.

        Raises:
          ValueError: a κ outside 1..K, or shapes that differ.
        """
        num_classes = presence_logits.shape[-1]
        if not all(1 <= k <= num_classes for k in ks):
            raise ValueError(f'recall@κ for κ = {ks} needs every κ in 1..K = {num_classes}')
        if pixel_counts.shape != presence_logits.shape:
            raise ValueError(
                f'pixel_counts are {pixel_counts.shape}, but presence_logits are '
                f'{presence_logits.shape}; both are [B, K]'
            )
        counts = jnp.where(mask[:, None], pixel_counts, 0)  # [B, K]
        # All K in rank order, so that every κ is a prefix.
        counts = ranking.gather(counts, ranking.select(presence_logits, num_classes))  # [B, K]
        hits = counts > 0  # [B, K]
        found = jnp.cumsum(hits, -1)  # [B, K]
        found_pixels = jnp.cumsum(counts, -1)  # [B, K]
        total = jnp.maximum(found[:, -1:], 1)  # [B, 1]
        total_pixels = jnp.maximum(found_pixels[:, -1:], 1)  # [B, 1]
        last = jnp.array(ks, jnp.int32) - 1  # [len(ks)]
        precision = found / jnp.arange(1, num_classes + 1)  # [B, K]
        return cls(
            category_recall=(found[:, last] / total).sum(0),
            pixel_recall=(found_pixels[:, last] / total_pixels).sum(0),
            precision=precision[:, last].sum(0),
            ranking_ap=(jnp.where(hits, precision, 0) / total).sum(),
            images=mask.sum(dtype=jnp.int32),
            labeled=(hits.any(-1)).sum(dtype=jnp.int32),
            ks=tuple(ks),
        )

    def merge(self, other: 'MultilabelMetric') -> 'MultilabelMetric':
        """Adds up two states on the host, in float64 and int64.

        Raises:
          ValueError: they are for different κ.
        """
        if self.ks != other.ks:
            raise ValueError(f'cannot merge metrics at κ = {self.ks} and at κ = {other.ks}')

        def add(a, b):
            a, b = np.asarray(a), np.asarray(b)
            dtype = np.float64 if a.dtype.kind == 'f' else np.int64
            return a.astype(dtype) + b.astype(dtype)

        return jax.tree.map(add, self, other)

    def compute(self) -> dict[str, float]:
        """The means over the images, as fractions.

        Images without any labeled category count as 0 in precision@κ and are excluded from the
        other scores, as in the released code; a mean over no images is nan.

        Returns:
          category_recall@κ, pixel_recall@κ, precision@κ for each κ, and ranking_ap, the per-image
          label ranking average precision.
        """

        def mean(sums, number):
            return float(sums) / int(number) if number else float('nan')

        scores = {}
        for i, k in enumerate(self.ks):
            scores[f'category_recall@{k}'] = mean(self.category_recall[i], self.labeled)
            scores[f'pixel_recall@{k}'] = mean(self.pixel_recall[i], self.labeled)
            scores[f'precision@{k}'] = mean(self.precision[i], self.images)
        return scores | {'ranking_ap': mean(self.ranking_ap, self.labeled)}
