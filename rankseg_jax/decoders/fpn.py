"""MaskFormer's pixel decoder: a feature pyramid (Lin et al., 2017) with group norms."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from rankseg_jax.decoders.pixel_decoder import group_norm_conv
from rankseg_jax.layers import linear_init


class FeaturePyramid(nn.Module):
    """Features of strides 4, 8, 16 and 32 → maps of one width, and pixel embeddings at stride 4.

    Attributes:
      channels: D, a multiple of 32.
    """

    channels: int = 256
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, features: Mapping[int, jax.Array], *, train: bool
    ) -> tuple[dict[int, jax.Array], jax.Array]:
        """{s: [B, h_s, w_s, C_s]} → ({s: [B, h_s, w_s, D]}, pixel embeddings [B, h_4, w_4, D])."""
        conv_norm = partial(group_norm_conv, channels=self.channels, dtype=self.dtype)
        maps = {32: nn.relu(conv_norm('fuse32', features[32], 3))}
        for stride in (16, 8, 4):
            lateral = conv_norm(f'lateral{stride}', features[stride])  # [B, h_s, w_s, D]
            total = lateral + double(maps[2 * stride], lateral.shape[1:3])
            maps[stride] = nn.relu(conv_norm(f'fuse{stride}', total, 3))  # [B, h_s, w_s, D]
        pixels = nn.Conv(
            self.channels,
            kernel_size=(3, 3),
            padding=1,
            kernel_init=linear_init,
            dtype=self.dtype,
            name='mask_features',
        )(maps[4])  # [B, h_4, w_4, D]
        return maps, pixels


def double(x: jax.Array, shape: Sequence[int]) -> jax.Array:
    """[B, h, w, D] → [B, *shape, D], of twice the size or one cell less.

    Each cell becomes four, as PyTorch's 'nearest' interpolation makes it.
    """
    return x.repeat(2, 1).repeat(2, 2)[:, : shape[0], : shape[1]]
