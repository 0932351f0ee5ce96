"""Swin transformer (Liu et al., 2021): attention within windows, shifted in every other block."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from rankseg_jax.backbones.vit import resize_bicubic, token_init
from rankseg_jax.layers import Mlp, attend, remat


class Swin(nn.Module):
    """Images of any size → features of strides 4, 8, 16 and 32, each with its own layer norm.

    Images are padded with zeros below and to the right to a multiple of 4, maps to whole windows
    and even sizes.

    Attributes:
      width: channels at stride 4, doubled at every further stride.
      depths: number of blocks of each stage.
      num_heads: attention heads of the blocks of each stage.
      window: side of a window, in cells.
      position_shape: (rows, columns) of learned absolute position codes, resized bicubically to the
        input's grid; None: no such codes.
      drop_path: rate of the last block (see `SwinBlock`); it rises linearly from 0 at the first.
      remat: name of the policy by which the backward pass keeps results of a block, see
        `layers.remat`; None: it keeps all.
    """

    width: int
    depths: Sequence[int]
    num_heads: Sequence[int]
    window: int = 7
    position_shape: tuple[int, int] | None = None
    drop_path: float = 0.0
    remat: str | None = None
    dtype: Any = jnp.float32
    strides = (4, 8, 16, 32)

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> dict[int, jax.Array]:
        """Images [B, H, W, 3] → {s: features [B, ceil(H / s), ceil(W / s), D]}, s in `strides`."""

        def norm(name, x):
            return nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name=name)(x)

        def call(block, x):
            return block(x, train=train)

        run = remat(call, self.remat)
        x = nn.Conv(
            self.width,
            kernel_size=(4, 4),
            strides=(4, 4),
            padding='VALID',
            dtype=self.dtype,
            name='patches',
        )(pad_to(images, 4))
        x = norm('patch_norm', x)  # [B, H/4, W/4, D]
        if self.position_shape is not None:
            position = self.param('position', token_init, (*self.position_shape, self.width))
            x = x + resize_bicubic(position, x.shape[1:3]).astype(self.dtype)
        features, number = {}, 0  # of the blocks so far
        for i, (depth, num_heads) in enumerate(zip(self.depths, self.num_heads, strict=True)):
            if i:
                x = space_to_depth(pad_to(x, 2))  # [B, H/2s, W/2s, 4D]
                x = nn.Dense(x.shape[-1] // 2, use_bias=False, dtype=self.dtype, name=f'merge{i}')(
                    norm(f'merge{i}_norm', x)
                )
            for j in range(depth):
                block = SwinBlock(
                    num_heads,
                    window=self.window,
                    shift=self.window // 2 * (j % 2),
                    drop_path=self.drop_path * number / max(sum(self.depths) - 1, 1),
                    dtype=self.dtype,
                    name=f'stage{i + 1}_block{j + 1}',
                )
                x = run(block, x)
                number += 1
            features[4 * 2**i] = norm(f'norm{4 * 2**i}', x)  # [B, H/s, W/s, D]
        return features


class SwinBlock(nn.Module):
    """A pre-norm transformer block with attention inside windows: [B, h, w, D] → [B, h, w, D].

    Attributes:
      num_heads: attention heads.
      window: side of a window, in cells.
      shift: cells by which windows are moved down and to the right.
      drop_path: in training, the probability that a branch is left out for an image.
    """

    num_heads: int
    window: int
    shift: int = 0
    drop_path: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        drop_path = nn.Dropout(self.drop_path, broadcast_dims=(1, 2, 3), deterministic=not train)
        table = self.param(
            'position_bias', token_init, (2 * self.window - 1, 2 * self.window - 1, self.num_heads)
        )
        # The L = window² cells of a window are the tokens of its attention.
        rows, columns = np.indices((self.window, self.window)).reshape(2, -1)  # [L] each
        row_offsets = rows[:, None] - rows + self.window - 1  # [L, L]
        column_offsets = columns[:, None] - columns + self.window - 1  # [L, L]
        bias = table[row_offsets, column_offsets].transpose(2, 0, 1)  # [heads, L, L]

        y = pad_to(nn.LayerNorm(epsilon=1e-5, dtype=self.dtype)(x), self.window)
        y = jnp.roll(y, (-self.shift, -self.shift), (1, 2))
        mask = None
        if self.shift:
            height, width = y.shape[1:3]
            mask = same_region(height, width, window=self.window, shift=self.shift)
        padded, y = y.shape, to_windows(y, self.window)  # [B, windows, L, D]
        y = nn.MultiHeadDotProductAttention(
            self.num_heads, dtype=self.dtype, attention_fn=partial(attend, bias=bias)
        )(y, mask=mask, deterministic=not train)
        y = jnp.roll(from_windows(y, padded, self.window), (self.shift, self.shift), (1, 2))
        x = x + drop_path(y[:, : x.shape[1], : x.shape[2]])  # [B, h, w, D]
        y = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype)(x)
        return x + drop_path(Mlp(4 * x.shape[-1], dtype=self.dtype)(y, train=train))


def pad_to(x: jax.Array, multiple: int) -> jax.Array:
    """[B, h, w, D] → the same with zeros below and to the right, to a multiple of h and w."""
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % multiple), (0, -x.shape[2] % multiple), (0, 0)))


def space_to_depth(x: jax.Array) -> jax.Array:
    """[B, 2h, 2w, D] → [B, h, w, 4D]: of four neighbors the two of the left column come first."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // 2, 2, width // 2, 2, channels)
    return x.transpose(0, 1, 3, 4, 2, 5).reshape(batch, height // 2, width // 2, 4 * channels)


def to_windows(x: jax.Array | np.ndarray, window: int) -> jax.Array | np.ndarray:
    """[B, h, w, D] → [B, windows, window², D]."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // window, window, width // window, window, channels)
    return x.swapaxes(2, 3).reshape(batch, -1, window**2, channels)


def from_windows(x: jax.Array, shape: tuple[int, ...], window: int) -> jax.Array:
    """The inverse of `to_windows`: [B, windows, window², D] → `shape`, (B, h, w, D)."""
    batch, height, width, channels = shape
    x = x.reshape(batch, height // window, width // window, window, window, channels)
    return x.swapaxes(2, 3).reshape(shape)


def same_region(height: int, width: int, *, window: int, shift: int) -> jax.Array | np.ndarray:
    """Which cells of a window were neighbors before the map was rolled by `shift`.

    Returns:
      bool [windows, window², window²].
    """

    def regions(size):
        # 0, and in the last window 1 where nothing moved and 2 where the roll brought the other end
        place = np.arange(size)
        return (place >= size - window).astype(int) + (place >= size - shift)

    region = 3 * regions(height)[:, None] + regions(width)
    region = to_windows(region[None, :, :, None], window)[0, :, :, 0]  # [windows, window²]
    return region[:, :, None] == region[:, None]


SIZES = {  # width, depths, num_heads
    't': (96, (2, 2, 6, 2), (3, 6, 12, 24)),
    's': (96, (2, 2, 18, 2), (3, 6, 12, 24)),
    'b': (128, (2, 2, 18, 2), (4, 8, 16, 32)),
    'l': (192, (2, 2, 18, 2), (6, 12, 24, 48)),
}
VARIANTS = {
    f'swin_{size}{window}': partial(
        Swin, width=width, depths=depths, num_heads=num_heads, window=window
    )
    for size, (width, depths, num_heads) in SIZES.items()
    for window in (7, 12)
}
