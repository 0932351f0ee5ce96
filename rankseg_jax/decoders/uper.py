"""UPerNet's decoder (Xiao et al., 2018): pyramid pooling, a feature pyramid, one fused map."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from rankseg_jax.layers import ConvNorm, adaptive_average_pool, resize


class UPerHead(nn.Module):
    """Features of several strides → pixel embeddings at the finest, and a feature pyramid.

    Equals mmseg's UPerHead without its dropout and classifier.

    Attributes:
      channels: D.
      pool_sizes: sides of the grids that the coarsest map is pooled to.
    """

    channels: int = 512
    pool_sizes: Sequence[int] = (1, 2, 3, 6)
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, features: Mapping[int, jax.Array], *, train: bool
    ) -> tuple[jax.Array, dict[int, jax.Array]]:
        """Fuses {stride s: [B, h_s, w_s, C_s]}, any channels and sizes.

        Returns:
          Pixel embeddings [B, h, w, D] of the finest map's size, and the pyramid
          {s: [B, h_s, w_s, D]} that they were fused from, all of `dtype`.
        """

        def conv(name, x, kernel=3):
            return ConvNorm(self.channels, kernel, dtype=self.dtype, name=name)(x, train=train)

        *finer, coarsest = sorted(features)
        x = features[coarsest]  # [B, h32, w32, C]
        pooled = [
            resize(conv(f'pool{n}', adaptive_average_pool(x, (n, n)), 1), x.shape[1:3])
            for n in self.pool_sizes
        ]
        coarse = conv('pool_fuse', jnp.concatenate([x, *pooled], axis=-1))  # [B, h32, w32, D]

        top, pyramid = coarse, {coarsest: coarse}
        for stride in reversed(finer):
            lateral = conv(f'lateral{stride}', features[stride], 1)
            top = lateral + resize(top, lateral.shape[1:3])  # [B, h_stride, w_stride, D]
            pyramid[stride] = conv(f'pyramid{stride}', top)
        levels = [resize(pyramid[stride], top.shape[1:3]) for stride in sorted(pyramid)]
        return conv('fuse', jnp.concatenate(levels, axis=-1)), pyramid  # [B, h4, w4, D]
