"""MaskFormer's pixel decoder: a feature pyramid (Lin et al., 2017) with group norms.

Its panoptic models have a transformer encoder before it.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from rankseg_jax.decoders.pixel_decoder import group_norm_conv
from rankseg_jax.layers import PostNormLayer, linear_init, sine_positions
from rankseg_jax.multilabel import as_tokens


class TransformerEncoder(nn.Module):
    """DETR's encoder (Carion et al., 2020): cells of a map look at each other.

    With a `FeaturePyramid` on its output, it is `TransformerEncoderPixelDecoder` of MaskFormer's
    released code.

    Attributes:
      channels: D, a multiple of 4.
      num_layers: post-norm layers.
      num_heads: attention heads of each layer.
      mlp_dim: width inside the layers' MLPs.
      dropout: as `PostNormLayer`'s.
      dtype: of the computation; parameters are float32.
    """

    channels: int = 256
    num_layers: int = 6
    num_heads: int = 8
    mlp_dim: int = 2048
    dropout: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features: jax.Array, *, train: bool) -> jax.Array:
        """[B, h, w, C] → [B, h, w, D]."""
        shape = (*features.shape[:3], self.channels)
        position = sine_positions(*shape[1:]).reshape(-1, self.channels)
        position = position.astype(self.dtype)  # [L, D]
        project = nn.Dense(self.channels, kernel_init=linear_init, dtype=self.dtype, name='project')
        x = project(as_tokens(features))  # [B, L, D]
        for i in range(self.num_layers):
            layer = PostNormLayer(
                num_heads=self.num_heads,
                mlp_dim=self.mlp_dim,
                dropout=self.dropout,
                dtype=self.dtype,
                name=f'layer{i}',
            )
            # [B, L, D]
            x = layer(x, x, query_position=position, memory_position=position, train=train)
        return x.reshape(shape)


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
