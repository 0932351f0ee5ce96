"""Vision transformer (Dosovitskiy et al., 2021): one feature map, at the stride of its patches."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from rankseg_jax.layers import Block

token_init = nn.initializers.truncated_normal(0.02)


class ViT(nn.Module):
    """Images -> {patch: features}; the class token takes part and is dropped at the end.

    Attributes:
      patch: side of a patch in pixels. Images are padded with zeros below and to the right to a
        multiple of it.
      width: D.
      num_layers: transformer blocks.
      num_heads: attention heads of each block.
      image_size: (height, width) of training images, to which the learned position codes belong;
        for any other input they are resized bicubically.
      drop_path: rate of the last block (see `layers.Block`); it rises linearly from 0 at the first.
      num_classes: if above 0, K class embeddings join the tokens before the last block (RankSeg's
        OCE variant), and the result also holds 'classes' [B, K, D].
    """

    patch: int
    width: int
    num_layers: int
    num_heads: int
    image_size: tuple[int, int] = (512, 512)
    drop_path: float = 0.0
    num_classes: int = 0
    dtype: Any = jnp.float32

    @property
    def strides(self) -> tuple[int, ...]:
        return (self.patch,)

    @nn.compact
    def __call__(self, images, *, train: bool) -> dict[int | str, jax.Array]:
        """Images [B, H, W, 3] -> {patch: [B, ceil(H / patch), ceil(W / patch), D]}."""
        height, width = images.shape[1:3]
        images = jnp.pad(
            images, ((0, 0), (0, -height % self.patch), (0, -width % self.patch), (0, 0))
        )
        x = nn.Conv(
            self.width,
            kernel_size=(self.patch, self.patch),
            strides=(self.patch, self.patch),
            padding='VALID',
            dtype=self.dtype,
            name='patches',
        )(images)  # [B, h, w, D]
        batch, *grid = x.shape[:3]
        trained_grid = (-(-side // self.patch) for side in self.image_size)
        position = self.param('position', token_init, (*trained_grid, self.width))
        x = x + resize_bicubic(position, grid).astype(self.dtype)
        x = x.reshape(batch, -1, self.width)  # [B, L, D]
        token = self.param('class_token', nn.initializers.zeros, (self.width,))
        token = jnp.broadcast_to(
            token + self.param('class_position', token_init, (self.width,)), (batch, 1, self.width)
        )
        x = jnp.concatenate([token.astype(self.dtype), x], 1)  # [B, 1 + L, D]
        for i in range(self.num_layers):
            if self.num_classes and i == self.num_layers - 1:
                classes = self.param('class_embedding', token_init, (self.num_classes, self.width))
                classes = jnp.broadcast_to(classes.astype(self.dtype), (batch, *classes.shape))
                x = jnp.concatenate([x, classes], 1)  # [B, 1 + L + K, D]
            x = Block(
                self.num_heads,
                mlp_dim=4 * self.width,
                drop_path=self.drop_path * i / max(self.num_layers - 1, 1),
                epsilon=1e-6,
                dtype=self.dtype,
                name=f'block{i}',
            )(x, train=train)
        x = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, name='norm')(x)
        end = 1 + grid[0] * grid[1]
        features = {self.patch: x[:, 1:end].reshape(batch, *grid, self.width)}  # [B, h, w, D]
        return features | ({'classes': x[:, end:]} if self.num_classes else {})


def resize_bicubic(x, shape):
    """[h, w, D] -> [*shape, D], half-pixel centers, edges repeated.

    Equals `torch.nn.functional.interpolate(mode='bicubic', align_corners=False)`, whose cubic
    differs from that of `jax.image`.
    """
    if x.shape[:2] == tuple(shape):
        return x
    rows, columns = (bicubic_weights(a, b) for a, b in zip(x.shape[:2], shape, strict=True))
    return jnp.einsum('hwd,ih,jw->ijd', x, rows, columns, precision='highest')


def bicubic_weights(size: int, new_size: int, a: float = -0.75):
    """Weights [new_size, size] of cubic convolution (Keys, 1981) with the parameter `a`."""
    position = (np.arange(new_size) + 0.5) * size / new_size - 0.5
    near = np.floor(position)[:, None] + np.arange(-1, 3)  # [new_size, 4]
    d = np.abs(position[:, None] - near)  # distances
    cubic = np.where(d <= 1, (a + 2) * d**3 - (a + 3) * d**2 + 1, a * (d**3 - 5 * d**2 + 8 * d - 4))
    weights = np.zeros((new_size, size), np.float32)
    np.add.at(
        weights, (np.arange(new_size)[:, None], np.clip(near, 0, size - 1).astype(int)), cubic
    )
    return weights


SIZES = {  # width, num_layers, num_heads
    'ti': (192, 12, 3),
    's': (384, 12, 6),
    'b': (768, 12, 12),
    'l': (1024, 24, 16),
}
VARIANTS = {
    f'vit_{size}{patch}': partial(
        ViT, patch=patch, width=width, num_layers=num_layers, num_heads=num_heads
    )
    for size, (width, num_layers, num_heads) in SIZES.items()
    for patch in (8, 16, 32)
}
