"""Vision transformer (Dosovitskiy et al., 2021) as a backbone: one feature map, at the stride of its patches."""

from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from rankseg_jax.layers import Block

token_init = nn.initializers.truncated_normal(0.02)


class ViT(nn.Module):
    """Images -> {patch: features}, with a class token inside that is left out at the end.

    Attributes:
      patch: side of a patch in pixels. Images are padded with zeros below and to the right up to a multiple of it.
      width: D.
      num_layers: transformer blocks.
      image_size: (height, width) of training images, to which the learned position codes belong; for any other input they are
        resized bicubically.
      drop_path: of the last block; it rises linearly from 0 at the first.
      num_classes: if above 0, so many class embeddings join the tokens before the last block (RankSeg's OCE variant), and
        the result also holds 'classes' [B, K, D].
    """

    patch: int
    width: int
    num_layers: int
    num_heads: int
    image_size: tuple[int, int] = (512, 512)
    drop_path: float = 0.0
    num_classes: int = 0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images, *, train: bool):
        """Images [B, H, W, 3] -> {patch: [B, ceil(H / patch), ceil(W / patch), D]}."""
        height, width = images.shape[1:3]
        images = jnp.pad(
            images, ((0, 0), (0, -height % self.patch), (0, -width % self.patch), (0, 0))
        )
        x = nn.Conv(
            self.width,
            (self.patch, self.patch),
            (self.patch, self.patch),
            'VALID',
            dtype=self.dtype,
            name='patches',
        )(images)  # [B, h, w, D]
        batch, *grid = x.shape[:3]
        position = self.param(
            'position',
            token_init,
            (*(-(-side // self.patch) for side in self.image_size), self.width),
        )
        x = (x + resize_bicubic(position, grid).astype(self.dtype)).reshape(
            batch, -1, self.width
        )  # [B, N, D]
        token = self.param('class_token', nn.initializers.zeros, (self.width,))
        token = jnp.broadcast_to(
            token + self.param('class_position', token_init, (self.width,)), (batch, 1, self.width)
        )
        x = jnp.concatenate([token.astype(self.dtype), x], 1)  # [B, 1 + N, D]
        for i in range(self.num_layers):
            if self.num_classes and i == self.num_layers - 1:
                classes = self.param('class_embedding', token_init, (self.num_classes, self.width))
                classes = jnp.broadcast_to(classes.astype(self.dtype), (batch, *classes.shape))
                x = jnp.concatenate([x, classes], 1)  # [B, 1 + N + K, D]
            x = Block(
                self.num_heads,
                4 * self.width,
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
    """[h, w, D] -> [*shape, D], half-pixel centres, edges repeated.

    Equals `torch.nn.functional.interpolate(mode='bicubic', align_corners=False)`, whose cubic differs from jax.image's.
    """
    if x.shape[:2] == tuple(shape):
        return x
    rows, columns = (bicubic_weights(a, b) for a, b in zip(x.shape[:2], shape, strict=True))
    return jnp.einsum('hwd,ih,jw->ijd', x, rows, columns, precision='highest')


def bicubic_weights(size: int, new_size: int, a: float = -0.75):
    """Weights [new_size, size] of Keys' cubic convolution."""
    position = (np.arange(new_size) + 0.5) * size / new_size - 0.5
    near = np.floor(position)[:, None] + np.arange(-1, 3)  # [new_size, 4]
    t = np.abs(position[:, None] - near)
    cubic = np.where(t <= 1, (a + 2) * t**3 - (a + 3) * t**2 + 1, a * (t**3 - 5 * t**2 + 8 * t - 4))
    weights = np.zeros((new_size, size), np.float32)
    np.add.at(
        weights, (np.arange(new_size)[:, None], np.clip(near, 0, size - 1).astype(int)), cubic
    )
    return weights


SIZES = {
    'ti': (192, 12, 3),
    's': (384, 12, 6),
    'b': (768, 12, 12),
    'l': (1024, 24, 16),
}  # width, layers, heads
VARIANTS = {
    f'vit_{size}{patch}': partial(ViT, patch, *shape)
    for size, shape in SIZES.items()
    for patch in (8, 16, 32)
}
