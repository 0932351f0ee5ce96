"""BEiT (Bao et al., 2022): a ViT with relative position bias, and a neck that makes a pyramid."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from rankseg_jax.backbones.vit import token_init
from rankseg_jax.layers import Block, remat, resize


class BEiT(nn.Module):
    """Images of any size → features of strides 4, 8, 16 and 32.

    The class token takes part and is left out of the features. Relative positions are biases of
    each block's attention; a bias that all blocks share (pre-training) is the same as its sum with
    that of each block.

    Attributes:
      width: D.
      num_layers: transformer blocks.
      num_heads: attention heads of each block.
      feature_blocks: number of blocks after which the features of strides 4, 8, 16 and 32 are taken
        from the tokens.
      image_size: (height, width) of training images, to which the learned biases belong; for any
        other input they are resized bilinearly.
      epsilon: of the layer norms.
      drop_path: rate of the last block (see `layers.Block`); it rises linearly from 0 at the first.
      layer_scale: initial factor of the blocks' branches.
      remat: name of the policy by which the backward pass keeps results of a block, see
        `layers.remat`; None: it keeps all.
    """

    width: int
    num_layers: int
    num_heads: int
    feature_blocks: tuple[int, ...]
    image_size: tuple[int, int] = (512, 512)
    epsilon: float = 1e-6
    drop_path: float = 0.0
    layer_scale: float = 0.1
    remat: str | None = None
    dtype: Any = jnp.float32
    strides = (4, 8, 16, 32)

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> dict[int, jax.Array]:
        """Images [B, H, W, 3] → {s: features [B, ceil(H / s), ceil(W / s), D]}, s in `strides`.

        Images are padded with zeros below and to the right to a multiple of 16.

        Raises:
          ValueError: `feature_blocks` are not four numbers of blocks.
        """
        known = all(1 <= number <= self.num_layers for number in self.feature_blocks)
        if len(self.feature_blocks) != len(self.strides) or not known:
            raise ValueError(
                f'config.model.feature_blocks = {self.feature_blocks} must be four numbers of '
                f'blocks, 1 to {self.num_layers}'
            )
        size = images.shape[1:3]
        images = jnp.pad(images, ((0, 0), (0, -size[0] % 16), (0, -size[1] % 16), (0, 0)))
        x = nn.Conv(
            self.width,
            kernel_size=(16, 16),
            strides=(16, 16),
            padding='VALID',
            dtype=self.dtype,
            name='patches',
        )(images)  # [B, h, w, D]
        batch, *grid = x.shape[:3]
        token = self.param('class_token', token_init, (self.width,)).astype(self.dtype)
        token = jnp.broadcast_to(token, (batch, 1, self.width))
        x = jnp.concatenate([token, x.reshape(batch, -1, self.width)], 1)  # [B, 1 + L, D]

        def call(block, position_bias, x):
            return block(x, train=train, bias=position_bias(grid))

        run = remat(call, self.remat)
        tokens = {}  # after each of `feature_blocks`
        rows, columns = (-(-side // 16) for side in self.image_size)
        for i in range(self.num_layers):
            block = Block(
                self.num_heads,
                mlp_dim=4 * self.width,
                drop_path=self.drop_path * i / max(self.num_layers - 1, 1),
                epsilon=self.epsilon,
                layer_scale=self.layer_scale,
                unbiased=('key',),
                dtype=self.dtype,
                name=f'block{i}',
            )
            position_bias = PositionBias((rows, columns), self.num_heads, name=f'position_bias{i}')
            x = run(block, position_bias, x)
            tokens[i + 1] = x[:, 1:]
        maps = [tokens[n].reshape(batch, *grid, self.width) for n in self.feature_blocks]
        return neck(maps, size, self.dtype, train=train)


class PositionBias(nn.Module):
    """Biases of an attention by the relative position of its tokens: a class token, then a grid.

    Attributes:
      grid: (rows, columns) that the table of biases belongs to.
      num_heads: attention heads.
    """

    grid: tuple[int, int]
    num_heads: int

    @nn.compact
    def __call__(self, grid: Sequence[int]) -> jax.Array:
        """The biases for a grid of (h, w) cells, [heads, 1 + h · w, 1 + h · w].

        The table is resized to the differences of positions in that grid.
        """
        shape = (2 * self.grid[0] - 1, 2 * self.grid[1] - 1, self.num_heads)
        table = self.param('table', nn.initializers.zeros, shape)
        # Of class token to cells, cells to class token, and class token to itself.
        of_class = self.param('class', nn.initializers.zeros, (3, self.num_heads))
        table = resize(table, [2 * side - 1 for side in grid])
        rows, columns = (np.arange(side)[:, None] - np.arange(side) + side - 1 for side in grid)
        bias = table[rows][:, :, columns]  # [h, h, w, w, heads]: difference of rows, of columns
        length = grid[0] * grid[1]
        bias = bias.transpose(4, 0, 2, 1, 3).reshape(-1, length, length)
        to_cells, to_class, itself = of_class[:, :, None, None]  # [heads, 1, 1] each
        to_cells = jnp.broadcast_to(to_cells, (len(bias), 1, length))
        to_class = jnp.broadcast_to(to_class, (len(bias), length, 1))
        return jnp.block([[itself, to_cells], [to_class, bias]])


def neck(
    maps: Sequence[jax.Array], size: Sequence[int], dtype: Any, *, train: bool
) -> dict[int, jax.Array]:
    """Four maps [B, h, w, D] of stride 16 → {stride: [B, ceil(H / stride), …, D]}.

    To be called inside a compact module, whose layers `neck…` it has.

    Args:
      size: (H, W) of the images; cells beyond it are cut off.
    """

    def double(name, x):
        return nn.ConvTranspose(x.shape[-1], (2, 2), (2, 2), dtype=dtype, name=name)(x)

    first, second, third, last = maps
    first = double('neck4_1', first)  # [B, 2h, 2w, D]
    first = nn.BatchNorm(
        use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=dtype, name='neck4_norm'
    )(first)
    first = double('neck4_2', nn.gelu(first, approximate=False))  # [B, 4h, 4w, D]
    features = {
        4: first,
        8: double('neck8', second),
        16: third,
        32: nn.max_pool(last, (2, 2), (2, 2), 'SAME'),
    }
    return {
        stride: x[:, : -(-size[0] // stride), : -(-size[1] // stride)]
        for stride, x in features.items()
    }


# As published: features after 4, 6, 8 and 12 blocks, or after 8, 12, 16 and 24.
VARIANTS = {
    'beit_b16': partial(BEiT, width=768, num_layers=12, num_heads=12, feature_blocks=(4, 6, 8, 12)),
    'beit_l16': partial(
        BEiT,
        width=1024,
        num_layers=24,
        num_heads=16,
        feature_blocks=(8, 12, 16, 24),
        layer_scale=1e-6,
    ),
}
