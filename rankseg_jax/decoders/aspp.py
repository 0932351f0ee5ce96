"""DeepLabV3's decoder (Chen et al., 2017): convolutions of several dilations and a global mean."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from rankseg_jax.layers import ConvNorm


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling, any [B, h, w, C] → [B, h, w, D].

    Attributes:
      channels: D.
      dilations: one branch each; a dilation of 1 means a 1 × 1 convolution.
      fuse_kernels: sizes of the convolutions over the concatenated branches, one after another:
        (3,) as in mmseg, (1, 3) as in torchvision.
    """

    channels: int = 512
    dilations: Sequence[int] = (1, 12, 24, 36)
    fuse_kernels: Sequence[int] = (3,)
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        def conv(name, x, kernel, dilation=1):
            return ConvNorm(self.channels, kernel, dilation=dilation, dtype=self.dtype, name=name)(
                x, train=train
            )

        pooled = conv('pool', x.mean((1, 2), keepdims=True), 1)  # [B, 1, 1, D]
        branches = [jnp.broadcast_to(pooled, (*x.shape[:3], self.channels))]
        branches += [
            conv(f'branch{i}', x, kernel=1 if dilation == 1 else 3, dilation=dilation)
            for i, dilation in enumerate(self.dilations)
        ]
        x = jnp.concatenate(branches, -1)  # [B, h, w, (1 + dilations) · D]
        for i, kernel in enumerate(self.fuse_kernels):
            x = conv(f'fuse{i}', x, kernel)
        return x  # [B, h, w, D]
