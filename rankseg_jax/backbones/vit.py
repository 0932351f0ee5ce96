"""Vision transformer (Dosovitskiy et al., 2021): one feature map, at the stride of its patches."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from rankseg_jax.layers import Block, remat

token_init = nn.initializers.truncated_normal(0.02)


class ViT(nn.Module):
    """Images → {patch: features}; class token and registers take part and are dropped at the end.

    DINOv2 and DINOv3 are among `VARIANTS`. Tokens are in the order class token, registers, patches;
    whatever joins them goes in front.

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
      mlp_dim: width inside the MLPs; 0: 4 · D.
      num_registers: further tokens (Darcet et al., 2024).
      codes: 'all', learned for class token and patches; 'patches', learned for these alone, and
        antialiased where they are made fewer; or 'rotary', queries and keys are rotated
        (see `patch_angles`).
      rescale: with rotary codes, in training, coordinates are multiplied by one factor drawn
        between 1 / rescale and rescale.
      remat: name of the policy by which the backward pass keeps results of a block, see
        `layers.remat`; None: it keeps all.
      epsilon, layer_scale, gated, unbiased: see `layers.Block`.
    """

    patch: int
    width: int
    num_layers: int
    num_heads: int
    image_size: tuple[int, int] = (512, 512)
    drop_path: float = 0.0
    num_classes: int = 0
    mlp_dim: int = 0
    num_registers: int = 0
    codes: str = 'all'
    rescale: float = 2.0
    remat: str | None = None
    epsilon: float = 1e-6
    layer_scale: float | None = None
    gated: bool = False
    unbiased: tuple[str, ...] = ()
    dtype: Any = jnp.float32

    @property
    def strides(self) -> tuple[int, ...]:
        return (self.patch,)

    def setup(self) -> None:
        width = self.width
        self.patches = nn.Conv(
            width,
            kernel_size=(self.patch, self.patch),
            strides=(self.patch, self.patch),
            padding='VALID',
            dtype=self.dtype,
        )
        if self.codes != 'rotary':
            trained_grid = (-(-side // self.patch) for side in self.image_size)
            self.position = self.param('position', token_init, (*trained_grid, width))
        self.class_token = self.param('class_token', nn.initializers.zeros, (width,))
        if self.codes == 'all':
            self.class_position = self.param('class_position', token_init, (width,))
        if self.num_classes:
            shape = (self.num_classes, width)
            self.class_embedding = self.param('class_embedding', token_init, shape)
        if self.num_registers:
            shape = (self.num_registers, width)
            self.registers = self.param('registers', token_init, shape)
        for i in range(self.num_layers):
            block = Block(
                self.num_heads,
                mlp_dim=self.mlp_dim or 4 * width,
                drop_path=self.drop_path * i / max(self.num_layers - 1, 1),
                epsilon=self.epsilon,
                layer_scale=self.layer_scale,
                gated=self.gated,
                unbiased=self.unbiased,
                dtype=self.dtype,
            )
            setattr(self, f'block{i}', block)
        self.norm = nn.LayerNorm(epsilon=self.epsilon, dtype=self.dtype)

    def run_block(self, number: int, x: jax.Array, **options: Any) -> jax.Array:
        """Tokens [B, L, D] after block `number`, from 0, with the options of `layers.Block`."""

        def call(self, x):
            return getattr(self, f'block{number}')(x, **options)

        return remat(call, self.remat)(self, x)

    def embed(
        self, images: jax.Array, *, train: bool
    ) -> tuple[jax.Array, tuple[int, int], jax.Array | None]:
        """The tokens of images [B, H, W, 3] before the first block.

        Returns:
          Tokens [B, 1 + registers + h · w, D], (h, w), and the rotation that the blocks take.
        """
        height, width = images.shape[1:3]
        images = jnp.pad(
            images, ((0, 0), (0, -height % self.patch), (0, -width % self.patch), (0, 0))
        )
        x = self.patches(images)  # [B, h, w, D]
        batch, grid = x.shape[0], (x.shape[1], x.shape[2])
        token, rotation = self.class_token, None
        if self.codes == 'rotary':
            rotation = jnp.asarray(patch_angles(grid, self.width // self.num_heads))
            if train and self.rescale != 1:
                limit = np.log(self.rescale)
                draw = jax.random.uniform(self.make_rng('dropout'), (), minval=-limit, maxval=limit)
                rotation = rotation * jnp.exp(draw)
        else:
            x = x + resize_codes(self.position, grid, self.codes == 'patches').astype(self.dtype)
        if self.codes == 'all':
            token = token + self.class_position
        tokens = [self.repeat(token[None], batch)]
        if self.num_registers:
            tokens.append(self.repeat(self.registers, batch))
        x = jnp.concatenate([*tokens, x.reshape(batch, -1, self.width)], 1)
        return x, grid, rotation

    def repeat(self, tokens: jax.Array, batch: int) -> jax.Array:
        """Learned tokens [T, D] for each image of a batch, [B, T, D]."""
        return jnp.broadcast_to(tokens.astype(self.dtype), (batch, *tokens.shape))

    def patch_map(self, x: jax.Array, grid: tuple[int, int]) -> jax.Array:
        """The patches among tokens [B, …, D], the last of them: [B, h, w, D]."""
        return x[:, -grid[0] * grid[1] :].reshape(x.shape[0], *grid, self.width)

    def __call__(self, images: jax.Array, *, train: bool) -> dict[int | str, jax.Array]:
        """Images [B, H, W, 3] → {patch: [B, ceil(H / patch), ceil(W / patch), D]}."""
        x, grid, rotation = self.embed(images, train=train)  # [B, L, D]
        for i in range(self.num_layers):
            if self.num_classes and i == self.num_layers - 1:
                classes = self.repeat(self.class_embedding, x.shape[0])
                x = jnp.concatenate([classes, x], 1)  # [B, K + L, D]
            x = self.run_block(i, x, train=train, rotation=rotation)
        x = self.norm(x)
        features: dict[int | str, jax.Array] = {self.patch: self.patch_map(x, grid)}
        return features | ({'classes': x[:, : self.num_classes]} if self.num_classes else {})


def patch_angles(grid: tuple[int, int], depth: int, theta: float = 100.0) -> np.ndarray:
    """DINOv3's rotary codes, float32 [h · w, depth / 2], for `layers.rotate`.

    Half of the pairs of channels turn with the row, half with the column, each at its own
    frequency. Rows and columns run from -1 to 1, whatever the grid's size.
    """
    frequencies = theta ** (-4 * np.arange(depth // 4) / depth)  # [depth / 4]
    rows, columns = ((2 * np.arange(size) + 1) / size - 1 for size in grid)
    coordinates = np.stack(np.meshgrid(rows, columns, indexing='ij'), -1)  # [h, w, 2]
    angles = 2 * np.pi * coordinates[..., None] * frequencies  # [h, w, 2, depth / 4]
    return angles.reshape(-1, depth // 2).astype(np.float32)


def resize_codes(
    codes: jax.Array | np.ndarray, shape: Sequence[int], antialias: bool
) -> jax.Array | np.ndarray:
    """Position codes [h, w, D] for another grid, [*shape, D].

    Equals PyTorch's bicubic interpolation, with and without `antialias`, whose cubics differ.
    """
    if antialias and codes.shape[:2] != tuple(shape):
        return jax.image.resize(codes, (*shape, codes.shape[-1]), 'bicubic', antialias=True)
    return resize_bicubic(codes, shape)


def resize_bicubic(x: jax.Array | np.ndarray, shape: Sequence[int]) -> jax.Array | np.ndarray:
    """[h, w, D] → [*shape, D], half-pixel centers, edges repeated.

    Equals `torch.nn.functional.interpolate(mode='bicubic', align_corners=False)`, whose cubic
    differs from that of `jax.image`.
    """
    if x.shape[:2] == tuple(shape):
        return x
    rows, columns = (bicubic_weights(a, b) for a, b in zip(x.shape[:2], shape, strict=True))
    return jnp.einsum('hwd,ih,jw->ijd', x, rows, columns, precision='highest')


def bicubic_weights(size: int, new_size: int, a: float = -0.75) -> np.ndarray:
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
    'g': (1536, 40, 24),
    'hplus': (1280, 32, 20),
    '7b': (4096, 40, 32),
}


def variant(size: str, **fields: Any) -> partial[ViT]:
    width, num_layers, num_heads = SIZES[size]
    return partial(ViT, width=width, num_layers=num_layers, num_heads=num_heads, **fields)


def dinov2(size: str, **fields: Any) -> partial[ViT]:
    """DINOv2 (Oquab et al., 2023); the giant has gated MLPs."""
    gated = {'gated': True, 'mlp_dim': 4096} if size == 'g' else {}
    return variant(size, layer_scale=1e-5, **gated, **fields)


def dinov3(size: str, **fields: Any) -> partial[ViT]:
    """DINOv3 (Siméoni et al., 2025)."""
    return variant(
        size,
        patch=16,
        num_registers=4,
        codes='rotary',
        epsilon=1e-5,
        layer_scale=1e-5,
        unbiased=('query', 'key', 'value') if size == '7b' else ('key',),
        **fields,
    )


VARIANTS = {
    f'vit_{size}{patch}': variant(size, patch=patch)
    for size in ('ti', 's', 'b', 'l')
    for patch in (8, 16, 32)
}
VARIANTS['vit_slim8'] = partial(ViT, patch=8, width=128, num_layers=6, num_heads=4)  # for CPUs
VARIANTS |= {f'dinov2_{size}14': dinov2(size, patch=14) for size in 'sblg'}
# With registers; with patches of 16 pixels as EoMT has them.
VARIANTS |= {
    f'dinov2_reg_{size}{patch}': dinov2(size, patch=patch, num_registers=4, codes='patches')
    for size in 'sblg'
    for patch in (14, 16)
}
VARIANTS |= {f'dinov3_{size}16': dinov3(size) for size in 'sbl'}
VARIANTS |= {
    'dinov3_splus16': dinov3('s', gated=True),
    'dinov3_hplus16': dinov3('hplus', gated=True),
    'dinov3_7b16': dinov3('7b', gated=True, mlp_dim=8192),
}
