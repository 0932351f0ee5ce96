"""Mask2Former's pixel decoder: multi-scale deformable attention (Zhu et al., 2021) over strides 32, 16 and 8, fused up to 4."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from rankseg_jax.layers import Mlp, resize, sine_positions

STRIDES = (32, 16, 8)  # of the maps that attend to each other, in this order
linear_init = nn.initializers.xavier_uniform()


class PixelDecoder(nn.Module):
    """Features of strides 4, 8, 16 and 32 -> maps of the same width at strides 32, 16 and 8, and pixel embeddings at stride 4.

    Attributes:
      channels: D, a multiple of 32.
      num_layers: of deformable attention.
      mlp_dim: width inside their MLPs.
    """

    channels: int = 256
    num_layers: int = 6
    num_heads: int = 8
    mlp_dim: int = 1024
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features, *, train: bool):
        """{s: [B, h_s, w_s, C_s]} -> ({s: [B, h_s, w_s, D]} for s = 32, 16 and 8, pixel embeddings [B, h_4, w_4, D])."""
        conv_norm = partial(group_norm_conv, channels=self.channels, dtype=self.dtype)
        shapes = tuple(features[stride].shape[1:3] for stride in STRIDES)
        levels = self.param(
            'level_embedding', nn.initializers.normal(1.0), (len(STRIDES), self.channels)
        )
        position = jnp.concatenate(
            [
                sine_positions(*shape, self.channels).reshape(-1, self.channels) + level
                for shape, level in zip(shapes, levels, strict=True)
            ]
        ).astype(self.dtype)  # [N, D], N cells of all levels
        x = [conv_norm(f'input{stride}', features[stride], use_bias=True) for stride in STRIDES]
        x = jnp.concatenate(
            [level.reshape(level.shape[0], -1, self.channels) for level in x], 1
        )  # [B, N, D]
        for i in range(self.num_layers):
            x = DeformableLayer(self.num_heads, self.mlp_dim, self.dtype, name=f'layer{i}')(
                x, position, shapes, train=train
            )
        ends = np.cumsum([height * width for height, width in shapes])
        maps = {
            stride: level.reshape(level.shape[0], *shape, self.channels)
            for stride, shape, level in zip(
                STRIDES, shapes, jnp.split(x, ends[:-1], 1), strict=True
            )
        }
        lateral = conv_norm('lateral4', features[4])  # [B, h4, w4, D]
        x = nn.relu(conv_norm('fuse4', lateral + resize(maps[8], lateral.shape[1:3]), 3))
        return maps, nn.Conv(self.channels, (1, 1), dtype=self.dtype, name='mask_features')(x)


def group_norm_conv(name, x, kernel=1, *, channels, dtype, use_bias=False):
    """Convolution and group norm, called `<name>_conv` and `<name>_norm` in the module that calls: -> [B, h, w, channels]."""
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


class DeformableLayer(nn.Module):
    """A post-norm transformer layer with deformable attention, [B, N, D] -> [B, N, D]."""

    num_heads: int
    mlp_dim: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, position, shapes, *, train: bool):
        y = DeformableAttention(self.num_heads, dtype=self.dtype, name='attention')(
            x, position, shapes
        )
        x = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name='norm1')(x + y)
        y = Mlp(self.mlp_dim, activation=nn.relu, dtype=self.dtype, name='mlp')(x, train=train)
        return nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name='norm2')(x + y)


class DeformableAttention(nn.Module):
    """Every cell looks at a few points of every level, at learned offsets from its own place.

    Attributes:
      num_points: of each head on each level. At the start head i looks into direction 2π · i / heads, 1, 2, … cells away.
    """

    num_heads: int
    num_points: int = 4
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, position, shapes):
        """Cells [B, N, D] of all levels, their position codes [N, D], (height, width) of the levels -> [B, N, D]."""
        places = (self.num_heads, len(shapes), self.num_points)
        query = x + position  # [B, N, D]

        def directions(key, shape, dtype):
            angle = 2 * np.pi * np.arange(self.num_heads) / self.num_heads
            towards = np.stack([np.cos(angle), np.sin(angle)], -1)
            towards /= np.abs(towards).max(-1, keepdims=True)
            steps = (
                towards[:, None, None] * np.arange(1, self.num_points + 1)[:, None]
            )  # [H, 1, P, 2]
            return jnp.asarray(np.broadcast_to(steps, (*places, 2)).reshape(shape), dtype)

        zeros = nn.initializers.zeros
        offsets = nn.DenseGeneral(
            (*places, 2), kernel_init=zeros, bias_init=directions, dtype=self.dtype, name='offsets'
        )(query)
        weights = nn.DenseGeneral(
            (self.num_heads, len(shapes) * self.num_points),
            kernel_init=zeros,
            dtype=self.dtype,
            name='weights',
        )(query)
        weights = nn.softmax(weights.astype(jnp.float32)).reshape(
            *x.shape[:2], *places
        )  # [B, N, H, L, P]
        points = centres(shapes)[:, None, :, None] + offsets.astype(
            jnp.float32
        )  # [B, N, H, L, P, 2]
        value = nn.DenseGeneral(
            (self.num_heads, x.shape[-1] // self.num_heads),
            kernel_init=linear_init,
            dtype=self.dtype,
            name='value',
        )(x)  # [B, N, H, d]
        return nn.DenseGeneral(
            x.shape[-1], (-2, -1), kernel_init=linear_init, dtype=self.dtype, name='out'
        )(sample(value, points, weights, shapes))


def centres(shapes):
    """Where every cell of every level lies on each level, in its cells: [N, L, 2], (column, row)."""
    share = np.concatenate(
        [
            np.stack(
                np.meshgrid((np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height),
                -1,
            ).reshape(-1, 1, 2)
            for height, width in shapes
        ]
    )  # [N, 1, 2] of the image
    return jnp.asarray(share * np.array(shapes)[:, ::-1] - 0.5, jnp.float32)


@partial(jax.jit, static_argnames='shapes')
def sample(value, points, weights, shapes):
    """Weighted sums of what lies at points between cells, bilinearly interpolated, zero outside.

    Args:
      value: [B, N, H, d], cells of all levels, one level after another.
      points: [B, M, H, L, P, 2], (column, row) in cells of level L; the centre of its first cell is (0, 0).
      weights: [B, M, H, L, P].
      shapes: (height, width) of the levels, a tuple.

    Returns:
      [B, M, H, d] of `value`'s dtype.
    """
    sizes = np.array(shapes)[:, None, ::-1]  # [L, 1, 2] (width, height)
    starts = np.cumsum([0] + [height * width for height, width in shapes[:-1]])[:, None]  # [L, 1]
    low = jnp.floor(points)
    past = points - low  # [B, M, H, L, P, 2]
    cells, shares = [], []
    for corner in np.array([(0, 0), (1, 0), (0, 1), (1, 1)]):
        place = low + corner
        near = jnp.where(corner, past, 1 - past).prod(-1)  # [B, M, H, L, P]
        inside = ((place >= 0) & (place < sizes)).all(-1)
        place = jnp.clip(place, 0, sizes - 1).astype(jnp.int32)
        cells.append(starts + place[..., 1] * sizes[..., 0] + place[..., 0])
        shares.append(jnp.where(inside, near * weights, 0))

    def lines(x):  # 4 of [B, M, H, L, P] -> [B, H, 4 L P, M]
        x = jnp.stack(x, 3)
        return x.reshape(*x.shape[:3], -1).transpose(0, 2, 3, 1)

    return weighted_sum(value.swapaxes(1, 2), lines(cells), lines(shares)).swapaxes(1, 2)


@jax.custom_vjp
def weighted_sum(value, cells, shares):
    """Of rows of `value` [B, H, N, d], chosen and weighted by `cells` and `shares` [B, H, K, M]: [B, H, M, d].

    One sum over K, so that a compiler can fuse the gathers into it and nothing of K × M × d is kept in memory. Its own
    derivative would be K scatters; this one takes a head at a time and scatters once.
    """
    return sum(
        take(value, cells[:, :, k]) * shares[:, :, k, :, None].astype(value.dtype)
        for k in range(cells.shape[2])
    )


@partial(jax.vmap, in_axes=(0, 0))
@partial(jax.vmap, in_axes=(0, 0))
def take(value, cells):
    return value[cells]


def weighted_sum_forward(value, cells, shares):
    return weighted_sum(value, cells, shares), (value, cells, shares)


def weighted_sum_backward(kept, gradient):
    def of_head(inputs):
        value, cells, shares, gradient = inputs  # [N, d], [K, M], [K, M], [M, d]
        of_shares = jnp.einsum(
            'kmd,md->km', value[cells], gradient, preferred_element_type=shares.dtype
        )
        of_value = jnp.zeros(value.shape, shares.dtype).at[cells].add(shares[..., None] * gradient)
        return of_value.astype(value.dtype), of_shares

    heads = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), (*kept, gradient))  # [B · H, …]
    of_value, of_shares = jax.lax.map(of_head, heads)
    value, _, shares = kept
    return of_value.reshape(value.shape), None, of_shares.reshape(shares.shape)


weighted_sum.defvjp(weighted_sum_forward, weighted_sum_backward)
