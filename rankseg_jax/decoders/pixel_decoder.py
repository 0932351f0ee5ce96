"""Mask2Former's pixel decoder: multi-scale deformable attention (Zhu et al., 2021).

The maps of strides 32, 16 and 8 attend to each other; a feature pyramid adds stride 4.

Letters, beside those used everywhere:
  S: levels (scales), one for each of STRIDES.
  L: tokens, the cells of all levels, one level after another.
  A: attention heads, of d = D / A channels each.
  P: points per head and level.
  M: queries, which sample at points; in the model, the L tokens.
  R: rows of values around the points of one query and head, 4 · S · P.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict

from rankseg_jax.layers import Mlp, linear_init, resize, sine_positions

STRIDES = (32, 16, 8)  # of the maps that attend to each other, in this order


class PixelDecoder(nn.Module):
    """Features of strides 4, 8, 16 and 32 → maps of one width, and pixel embeddings at stride 4.

    Attributes:
      channels: D, a multiple of 32.
      num_layers: deformable attention layers.
      num_heads: A, of each layer.
      mlp_dim: width inside the layers' MLPs.
      dtype: of the computation; parameters are float32.
    """

    channels: int = 256
    num_layers: int = 6
    num_heads: int = 8
    mlp_dim: int = 1024
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, features: Mapping[int, jax.Array], *, train: bool
    ) -> tuple[dict[int, jax.Array], jax.Array]:
        """Decodes {s: [B, h_s, w_s, C_s]}.

        Returns:
          Maps {s: [B, h_s, w_s, D]} for s in STRIDES, and pixel embeddings [B, h_4, w_4, D].
        """
        conv_norm = partial(group_norm_conv, channels=self.channels, dtype=self.dtype)
        shapes = tuple(features[stride].shape[1:3] for stride in STRIDES)
        level_embedding = self.param(
            'level_embedding', nn.initializers.normal(1.0), (len(STRIDES), self.channels)
        )
        positions = [
            sine_positions(*shape, self.channels).reshape(-1, self.channels) + embedding
            for shape, embedding in zip(shapes, level_embedding, strict=True)
        ]  # [h_s · w_s, D] each
        position = jnp.concatenate(positions).astype(self.dtype)  # [L, D]
        levels = [
            conv_norm(f'input{stride}', features[stride], use_bias=True) for stride in STRIDES
        ]  # [B, h_s, w_s, D] each
        tokens = [level.reshape(level.shape[0], -1, self.channels) for level in levels]
        x = jnp.concatenate(tokens, 1)  # [B, L, D]
        for i in range(self.num_layers):
            layer = DeformableLayer(
                num_heads=self.num_heads, mlp_dim=self.mlp_dim, dtype=self.dtype, name=f'layer{i}'
            )
            x = layer(x, position, shapes, train=train)  # [B, L, D]
        ends = np.cumsum([height * width for height, width in shapes])
        maps = {
            stride: level.reshape(level.shape[0], *shape, self.channels)
            for stride, shape, level in zip(
                STRIDES, shapes, jnp.split(x, ends[:-1], 1), strict=True
            )
        }
        lateral = conv_norm('lateral4', features[4])  # [B, h_4, w_4, D]
        x = lateral + resize(maps[8], lateral.shape[1:3])  # [B, h_4, w_4, D]
        x = nn.relu(conv_norm('fuse4', x, 3))  # [B, h_4, w_4, D]
        return maps, nn.Conv(self.channels, (1, 1), dtype=self.dtype, name='mask_features')(x)


def group_norm_conv(
    name: str, x: jax.Array, kernel: int = 1, *, channels: int, dtype: Any, use_bias: bool = False
) -> jax.Array:
    """Convolution and group norm, [B, h, w, C] → [B, h, w, channels].

    To be called inside a compact module, which gets the layers `<name>_conv` and `<name>_norm`.
    """
    pad = kernel // 2
    x = nn.Conv(
        channels,
        (kernel, kernel),
        padding=((pad, pad), (pad, pad)),
        use_bias=use_bias,
        kernel_init=linear_init,
        dtype=dtype,
        name=f'{name}_conv',
    )(x)
    return nn.GroupNorm(32, epsilon=1e-5, dtype=dtype, name=f'{name}_norm')(x)


def check_channels(options: ConfigDict) -> None:
    """Raises a ValueError if group norms or attention heads do not divide `model.channels`.

    Args:
      options: the keys of `config.model`.
    """
    if options.channels % 32 or options.channels % options.decoder_heads:
        raise ValueError(
            f'config.model.channels = {options.channels} must be a multiple of 32 and of '
            f'config.model.decoder_heads = {options.decoder_heads}'
        )


class DeformableLayer(nn.Module):
    """A post-norm transformer layer with deformable attention, [B, L, D] → [B, L, D]."""

    num_heads: int
    mlp_dim: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array, position: jax.Array, shapes: tuple[tuple[int, ...], ...], *, train: bool
    ) -> jax.Array:
        attention = DeformableAttention(self.num_heads, dtype=self.dtype, name='attention')
        y = attention(x, position, shapes)  # [B, L, D]
        x = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name='norm1')(x + y)
        y = Mlp(self.mlp_dim, activation=nn.relu, dtype=self.dtype, name='mlp')(x, train=train)
        return nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name='norm2')(x + y)


class DeformableAttention(nn.Module):
    """Each token attends to a few points on every level, at learned offsets from its own position.

    Attributes:
      num_heads: A.
      num_points: P. Initially, head i attends to points 1, 2, …, P cells away in direction
        2π · i / A.
      dtype: of the computation; parameters are float32.
    """

    num_heads: int
    num_points: int = 4
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array, position: jax.Array, shapes: tuple[tuple[int, ...], ...]
    ) -> jax.Array:
        """Attends from every token to all levels.

        Args:
          x: [B, L, D], tokens.
          position: [L, D], their position codes.
          shapes: (height, width) of each level, a tuple.

        Returns:
          [B, L, D].
        """
        layout = (self.num_heads, len(shapes), self.num_points)
        query = x + position  # [B, L, D]

        def initial_offsets(key, shape, dtype):
            angle = 2 * np.pi * np.arange(self.num_heads) / self.num_heads
            direction = np.stack([np.cos(angle), np.sin(angle)], -1)  # [A, 2]
            direction /= np.abs(direction).max(-1, keepdims=True)
            distance = np.arange(1, self.num_points + 1)[:, None]  # [P, 1]
            offsets = direction[:, None, None] * distance  # [A, 1, P, 2]
            return jnp.asarray(np.broadcast_to(offsets, (*layout, 2)).reshape(shape), dtype)

        zeros = nn.initializers.zeros
        offsets = nn.DenseGeneral(
            (*layout, 2),
            kernel_init=zeros,
            bias_init=initial_offsets,
            dtype=self.dtype,
            name='offsets',
        )(query)  # [B, L, A, S, P, 2]
        weights = nn.DenseGeneral(
            (self.num_heads, len(shapes) * self.num_points),
            kernel_init=zeros,
            dtype=self.dtype,
            name='weights',
        )(query)  # [B, L, A, S · P]
        weights = nn.softmax(weights.astype(jnp.float32))
        weights = weights.reshape(*x.shape[:2], *layout)  # [B, L, A, S, P]
        # [B, L, A, S, P, 2]
        points = centers(shapes)[:, None, :, None] + offsets.astype(jnp.float32)
        value = nn.DenseGeneral(
            (self.num_heads, x.shape[-1] // self.num_heads),
            kernel_init=linear_init,
            dtype=self.dtype,
            name='value',
        )(x)  # [B, L, A, d]
        output = nn.DenseGeneral(
            x.shape[-1], (-2, -1), kernel_init=linear_init, dtype=self.dtype, name='out'
        )
        return output(sample(value, points, weights=weights, shapes=shapes))  # [B, L, D]


def centers(shapes: tuple[tuple[int, ...], ...]) -> jax.Array:
    """Positions of all tokens on each level, in cells of that level: [L, S, 2], (column, row)."""
    relative = []  # [h_s · w_s, 1, 2] each, as fractions of the image
    for height, width in shapes:
        columns, rows = (np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height
        relative.append(np.stack(np.meshgrid(columns, rows), -1).reshape(-1, 1, 2))
    sizes = np.array(shapes)[:, ::-1]  # [S, 2], (width, height)
    return jnp.asarray(np.concatenate(relative) * sizes - 0.5, jnp.float32)


@partial(jax.jit, static_argnames='shapes')
def sample(
    value: jax.Array, points: jax.Array, weights: jax.Array, shapes: tuple[tuple[int, ...], ...]
) -> jax.Array:
    """Weighted sums of values at points between cells, bilinearly interpolated, zero outside.

    Args:
      value: [B, L, A, d], for the cells of all levels, one level after another.
      points: [B, M, A, S, P, 2], (column, row) in cells of level s; its first cell is centered at
        (0, 0).
      weights: [B, M, A, S, P].
      shapes: (height, width) of each level, a tuple.

    Returns:
      [B, M, A, d], of `value`'s dtype.
    """
    sizes = np.array(shapes)[:, None, ::-1]  # [S, 1, 2], (width, height)
    starts = np.cumsum([0] + [height * width for height, width in shapes[:-1]])[:, None]  # [S, 1]
    low = jnp.floor(points)
    fraction = points - low  # [B, M, A, S, P, 2]
    cells, shares = [], []  # for each of the four corners around a point
    for corner in np.array([(0, 0), (1, 0), (0, 1), (1, 1)]):
        place = low + corner
        near = jnp.where(corner, fraction, 1 - fraction).prod(-1)  # [B, M, A, S, P]
        inside = ((place >= 0) & (place < sizes)).all(-1)
        place = jnp.clip(place, 0, sizes - 1).astype(jnp.int32)
        cells.append(starts + place[..., 1] * sizes[..., 0] + place[..., 0])
        shares.append(jnp.where(inside, near * weights, 0))

    def rows(corners):  # four [B, M, A, S, P] → [B, A, R, M]
        x = jnp.stack(corners, 3)
        return x.reshape(*x.shape[:3], -1).transpose(0, 2, 3, 1)

    return weighted_sum(value.swapaxes(1, 2), rows(cells), rows(shares)).swapaxes(1, 2)


@jax.custom_vjp
def weighted_sum(value: jax.Array, cells: jax.Array, shares: jax.Array) -> jax.Array:
    """Sums rows of `value`, selected by `cells` and weighted by `shares`.

    It is a sum over R, so that a compiler can fuse the gathers into it and never stores R × M × d
    values. It is rounded once, at the end. JAX's derivative would be R scatters; ours handles one
    head at a time and scatters once.

    Args:
      value: [B, A, L, d].
      cells: [B, A, R, M] int32, in 0..L-1.
      shares: float32 [B, A, R, M].

    Returns:
      [B, A, M, d], of `value`'s dtype.
    """
    total = sum(
        take(value, cells[:, :, r]) * shares[:, :, r, :, None] for r in range(cells.shape[2])
    )
    return cast(jax.Array, total).astype(value.dtype)


@jax.vmap
@jax.vmap
def take(value: jax.Array, cells: jax.Array) -> jax.Array:
    """Rows of `value`: [B, A, L, d], [B, A, M] → [B, A, M, d]."""
    return value[cells]


def weighted_sum_forward(
    value: jax.Array, cells: jax.Array, shares: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array, jax.Array]]:
    return weighted_sum(value, cells, shares), (value, cells, shares)


def weighted_sum_backward(
    residuals: tuple[jax.Array, jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, None, jax.Array]:
    def head_gradients(inputs):
        value, cells, shares, gradient = inputs  # [L, d], [R, M], [R, M], [M, d]
        shares_gradient = jnp.einsum(
            'rmd,md->rm', value[cells], gradient, preferred_element_type=shares.dtype
        )
        value_gradient = jnp.zeros(value.shape, shares.dtype)
        value_gradient = value_gradient.at[cells].add(shares[..., None] * gradient)
        return value_gradient.astype(value.dtype), shares_gradient

    value, _, shares = residuals
    # [B · A, …] each
    heads = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), (*residuals, gradient))
    value_gradient, shares_gradient = jax.lax.map(head_gradients, heads)
    return value_gradient.reshape(value.shape), None, shares_gradient.reshape(shares.shape)


weighted_sum.defvjp(weighted_sum_forward, weighted_sum_backward)
