"""Swin transformer (Liu et al., 2021): attention within windows, shifted in every other block."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from rankseg_jax.backbones.vit import resize_bicubic, token_init
from rankseg_jax.layers import Mlp, attend


class Swin(nn.Module):
    """Images of any size -> features of strides 4, 8, 16 and 32, each through a layer norm of its own.

    Images are padded with zeros below and to the right up to a multiple of 4, maps up to whole windows and even sizes.

    Attributes:
      width: channels at stride 4, doubled at every further stride.
      depths: blocks of each stage.
      num_heads: of the blocks of each stage.
      window: side of a window, in cells.
      position_shape: (rows, columns) of learned absolute position codes, resized bicubically to the input's; None: no such codes.
      drop_path: of the last block; it rises linearly from 0 at the first.
      remat: compute each block again in the backward pass instead of keeping what it computed.
    """

    width: int
    depths: Sequence[int]
    num_heads: Sequence[int]
    window: int = 7
    position_shape: tuple[int, int] | None = None
    drop_path: float = 0.0
    remat: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images, *, train: bool):
        """Images [B, H, W, 3] -> {s: features [B, ceil(H / s), ceil(W / s), C]} for s = 4, 8, 16 and 32."""

        def norm(name, x):
            return nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name=name)(x)

        def run(block, x):
            return block(x, train=train)

        run = nn.remat(run) if self.remat else run
        x = nn.Conv(self.width, (4, 4), (4, 4), 'VALID', dtype=self.dtype, name='patches')(
            pad_to(images, 4)
        )
        x = norm('patch_norm', x)  # [B, H/4, W/4, C]
        if self.position_shape is not None:
            position = self.param('position', token_init, (*self.position_shape, self.width))
            x = x + resize_bicubic(position, x.shape[1:3]).astype(self.dtype)
        features, number = {}, 0
        for i, (depth, num_heads) in enumerate(zip(self.depths, self.num_heads, strict=True)):
            if i:
                x = space_to_depth(pad_to(x, 2))  # [B, H/2s, W/2s, 4C]
                x = nn.Dense(x.shape[-1] // 2, use_bias=False, dtype=self.dtype, name=f'merge{i}')(
                    norm(f'merge{i}_norm', x)
                )
            for j in range(depth):
                drop_path = self.drop_path * number / max(sum(self.depths) - 1, 1)
                x = run(
                    SwinBlock(
                        num_heads,
                        self.window,
                        self.window // 2 * (j % 2),
                        drop_path,
                        self.dtype,
                        name=f'stage{i + 1}_block{j + 1}',
                    ),
                    x,
                )
                number += 1
            features[4 * 2**i] = norm(f'norm{4 * 2**i}', x)  # [B, H/s, W/s, C]
        return features


class SwinBlock(nn.Module):
    """A pre-norm transformer block whose attention stays within windows: [B, h, w, C] -> [B, h, w, C].

    Attributes:
      window: side of a window.
      shift: cells by which windows are moved down and to the right.
      drop_path: share of the images of a batch for which a branch is left out, in training.
    """

    num_heads: int
    window: int
    shift: int = 0
    drop_path: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, *, train: bool):
        drop_path = nn.Dropout(self.drop_path, broadcast_dims=(1, 2, 3), deterministic=not train)
        table = self.param(
            'position_bias', token_init, (2 * self.window - 1, 2 * self.window - 1, self.num_heads)
        )
        rows, columns = (i.reshape(-1) for i in np.indices((self.window, self.window)))
        apart = [
            i[:, None] - i + self.window - 1 for i in (rows, columns)
        ]  # [N, N] each, N cells of a window
        bias = table[apart[0], apart[1]].transpose(2, 0, 1)  # [heads, N, N]

        y = pad_to(nn.LayerNorm(epsilon=1e-5, dtype=self.dtype)(x), self.window)
        y = jnp.roll(y, (-self.shift, -self.shift), (1, 2))
        mask = same_region(*y.shape[1:3], self.window, self.shift) if self.shift else None
        padded, y = y.shape, to_windows(y, self.window)  # [B, windows, N, C]
        y = nn.MultiHeadDotProductAttention(
            self.num_heads, dtype=self.dtype, attention_fn=partial(attend, bias=bias)
        )(y, mask=mask, deterministic=not train)
        y = jnp.roll(from_windows(y, padded, self.window), (self.shift, self.shift), (1, 2))
        x = x + drop_path(y[:, : x.shape[1], : x.shape[2]])
        y = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype)(x)
        return x + drop_path(Mlp(4 * x.shape[-1], dtype=self.dtype)(y, train=train))


def pad_to(x, multiple: int):
    """[B, h, w, C] with zeros below and to the right, up to multiples of a number."""
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % multiple), (0, -x.shape[2] % multiple), (0, 0)))


def space_to_depth(x):
    """[B, 2h, 2w, C] -> [B, h, w, 4C]: of four neighbours the two of the left column come first."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // 2, 2, width // 2, 2, channels)
    return x.transpose(0, 1, 3, 4, 2, 5).reshape(batch, height // 2, width // 2, 4 * channels)


def to_windows(x, window: int):
    """[B, h, w, C] -> [B, windows, window², C]."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // window, window, width // window, window, channels)
    return x.swapaxes(2, 3).reshape(batch, -1, window**2, channels)


def from_windows(x, shape, window: int):
    """The inverse of `to_windows`: -> `shape`, [B, h, w, C]."""
    batch, height, width, channels = shape
    x = x.reshape(batch, height // window, width // window, window, window, channels)
    return x.swapaxes(2, 3).reshape(shape)


def same_region(height: int, width: int, window: int, shift: int):
    """Which cells of a window were neighbours before the map was rolled by `shift`, [windows, window², window²] bool."""

    def regions(
        size,
    ):  # 0, then 1 and 2 in the last window: what was there, and what the roll brought
        place = np.arange(size)
        return (place >= size - window).astype(int) + (place >= size - shift)

    region = 3 * regions(height)[:, None] + regions(width)
    region = to_windows(region[None, :, :, None], window)[0, :, :, 0]  # [windows, window²]
    return region[:, :, None] == region[:, None]


SIZES = {  # width, depths, heads
    't': (96, (2, 2, 6, 2), (3, 6, 12, 24)),
    's': (96, (2, 2, 18, 2), (3, 6, 12, 24)),
    'b': (128, (2, 2, 18, 2), (4, 8, 16, 32)),
    'l': (192, (2, 2, 18, 2), (6, 12, 24, 48)),
}
VARIANTS = {
    f'swin_{size}{window}': partial(Swin, *shape, window)
    for size, shape in SIZES.items()
    for window in (7, 12)
}
