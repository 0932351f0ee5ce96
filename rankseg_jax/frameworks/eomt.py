"""EoMT (Kerssies et al., 2025) with RankSeg: a plain ViT whose last blocks carry the queries.

    patches → blocks → [queries, class token, registers, patches] → joint blocks → predictions

Before each joint block a prediction is made, whose masks say where queries look in that block
(masked attention). Each block's masks are annealed away in training, so that a finished model makes
one prediction, at the end.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict, FrozenConfigDict

from rankseg_jax import backbones
from rankseg_jax.backbones.vit import ViT
from rankseg_jax.decoders.query_classifier import QueryClassifier, head_input
from rankseg_jax.decoders.query_decoder import MaskEmbedding, embedding_init, mask_products
from rankseg_jax.layers import remat, resize
from rankseg_jax.outputs import QueryOutput
from rankseg_jax.selector import Choice


class EncoderOnly(nn.Module):
    """What image and video models of this kind share: the tokens, the parts of a prediction.

    Attributes:
      backbone: a ViT.
      num_classes: K.
      num_queries: Q.
      num_joint: n, the last blocks of the backbone, which the queries join.
      cosine, rankseg: as for `QueryClassifier`.
    """

    backbone: ViT
    num_classes: int
    num_queries: int = 200
    num_joint: int = 4
    cosine: bool = False
    rankseg: FrozenConfigDict | None = None
    dtype: Any = jnp.float32

    def setup(self) -> None:
        width, dtype = self.backbone.width, self.dtype
        self.queries = self.param('queries', embedding_init, (self.num_queries, width))
        self.mask = MaskEmbedding(width, dtype, self.activation)
        self.upscale = [
            Upscale(self.activation, dtype) for _ in range(num_upscales(self.backbone.patch))
        ]
        self.decoder = QueryClassifier(
            self.num_classes, width, cosine=self.cosine, rankseg=self.rankseg, dtype=dtype
        )

    @property
    def activation(self) -> Callable:
        """The activation in mask embeddings and upscaling.

        GELU, but SiLU on gated DINOv3 backbones, as in their MLPs.
        """
        gated = self.backbone.gated and self.backbone.codes == 'rotary'
        return nn.silu if gated else partial(nn.gelu, approximate=False)

    def encode(
        self, images: jax.Array, *, train: bool
    ) -> tuple[jax.Array, tuple[int, int], jax.Array | None]:
        """Tokens [B, L, D] of images before the joint blocks, (h, w), and the blocks' rotation."""
        x, grid, rotation = self.backbone.embed(images, train=train)
        for i in range(self.backbone.num_layers - self.num_joint):
            x = self.backbone.run_block(i, x, train=train, rotation=rotation)
        return x, grid, rotation

    def embeddings(
        self, x: jax.Array, grid: tuple[int, int]
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Splits tokens after a block into queries and pixels.

        Returns:
          Queries [B, Q, D], their mask embeddings [B, Q, D], and pixel embeddings [B, h', w', D].
        """
        x = self.backbone.norm(x)
        queries, pixels = x[:, : self.num_queries], self.backbone.patch_map(x, grid)
        double = remat(lambda upscale, pixels: upscale(pixels), self.backbone.remat)
        for upscale in self.upscale:
            pixels = double(upscale, pixels)
        return queries, self.mask(queries), pixels

    def head_features(
        self, before: jax.Array, grid: tuple[int, int], states: list[jax.Array]
    ) -> jax.Array | None:
        """What the multi-label head sees, see `rankseg.layer` and `rankseg.tokens`.

        Args:
          before: normalized tokens before the first joint block.
          states: tokens before the first joint block and after each, with queries.

        Raises:
          ValueError: as `head_input`, or there are no such tokens.
        """
        options, registers = self.rankseg, self.backbone.num_registers
        if options is None or options.layer or options.tokens == 'patches':
            queries = [self.backbone.norm(x[:, : self.num_queries]) for x in states]
            maps = {self.backbone.patch: self.backbone.patch_map(before, grid)}
            return head_input(options, queries, maps)
        tokens = {'class': before[:, :1], 'registers': before[:, 1 : 1 + registers]}
        if options.tokens not in tokens or not tokens[options.tokens].size:
            raise ValueError(
                f"config.rankseg.tokens = {options.tokens!r} must be 'patches' or 'class', or "
                "'registers' of a backbone that has some"
            )
        if options.head == 'decoder':
            raise ValueError(
                "config.rankseg.head = 'decoder' needs a map: set config.rankseg.tokens = 'patches'"
            )
        return tokens[options.tokens]


class EoMT(EncoderOnly):
    """Images → QueryOutput, masks at a quarter of a patch's side (half, if that is below 16).

    The probability that a query's mask is used in a joint block is a variable, which training
    sets and a checkpoint holds: `mask_probability` [n] among 'batch_stats'. In training each query
    draws; otherwise masks are used where it is above 0.

    Attributes:
      anneal_start: of each joint block, the step until which all queries use their masks.
      anneal_end: the step from which none does. Both empty: the variable stays as it is.
    """

    anneal_start: tuple[int, ...] = ()
    anneal_end: tuple[int, ...] = ()

    def setup(self) -> None:
        super().setup()
        self.mask_probability = self.variable(
            'batch_stats', 'mask_probability', jnp.ones, (self.num_joint,)
        )

    def __call__(self, images: jax.Array, *, train: bool, choice: Choice = Choice()) -> QueryOutput:
        """Takes normalized images [B · views, H, W, 3]; see `selector.Choice`.

        Raises:
          ValueError: for clips, or as `head_input` and `QueryClassifier`.
        """
        if choice.frames is not None:
            raise ValueError('eomt sees single images; videos need a framework that sees clips')
        x, grid, rotation = self.encode(images, train=train)
        before = self.backbone.norm(x)

        x = jnp.concatenate([self.backbone.repeat(self.queries, x.shape[0]), x], 1)  # [B, Q + L, D]
        probability = self.probability(choice.step) if train else self.mask_probability.value
        states, predictions = [x], []
        for i in range(self.num_joint):

            def joint(self, x, mask=None, number=self.backbone.num_layers - self.num_joint + i):
                options = {'train': train, 'mask': mask, 'rotation': rotation}
                return self.backbone.run_block(number, x, **options)

            def masked(self, x, joint=joint):
                return joint(self, x, self.attention_mask(*self.embeddings(x, grid)[1:]))

            if train:
                queries, embedding, pixels = self.embeddings(x, grid)
                predictions.append((queries, mask_products(embedding, pixels)))
                x = joint(self, x, self.attention_mask(embedding, pixels, probability[i]))
            elif self.is_initializing():
                x = joint(self, x)
            else:
                x = nn.cond(probability[i] > 0, masked, joint, self, x)
            states.append(x)
        queries, embedding, pixels = self.embeddings(x, grid)
        predictions.append((queries, mask_products(embedding, pixels)))
        queries, mask_logits = map(list, zip(*predictions, strict=True))
        features = self.head_features(before, grid, states)
        return self.decoder(features, queries, mask_logits, train=train, choice=choice)

    def probability(self, step: jax.Array | None) -> jax.Array:
        """The probability of masks [n] in a training step; sets the one that holds after it."""
        if step is None or not self.anneal_start:
            return self.mask_probability.value
        start, end = np.array([self.anneal_start, self.anneal_end], np.float32)

        def at(step):
            return (1 - jnp.clip((step - start) / (end - start), 0, 1)) ** POWER

        self.mask_probability.value = at(step + 1)
        return at(step)

    def attention_mask(
        self, embedding: jax.Array, pixels: jax.Array, probability: jax.Array | None = None
    ) -> jax.Array:
        """The attention mask, bool [B, Q + L, Q + L].

        Queries attend to the patches in their masks and to all other tokens; other tokens attend
        everywhere.

        Args:
          embedding: of the queries' masks, see `embeddings`.
          pixels: their embeddings, see `embeddings`.
          probability: that a query's mask is used; None: 1.
        """
        scale = 2 ** len(self.upscale)
        grid = pixels.shape[1] // scale, pixels.shape[2] // scale
        # A resized mask is the product with resized pixel embeddings.
        inside = mask_products(embedding, resize(pixels, grid)) > 0  # [B, Q, h, w]
        inside = inside.reshape(*inside.shape[:2], -1)
        if probability is not None:
            draws = jax.random.uniform(self.make_rng('dropout'), (*inside.shape[:2], 1))
            inside |= draws > probability
        others = 1 + self.backbone.num_registers
        inside = jnp.pad(
            inside, ((0, 0), (0, 0), (self.num_queries + others, 0)), constant_values=True
        )
        more = others + grid[0] * grid[1]
        return jnp.pad(inside, ((0, 0), (0, more), (0, 0)), constant_values=True)


POWER = 0.9  # of the annealing


def num_upscales(patch: int) -> int:
    """How often a map of patches is doubled: to stride 4 for 16 pixels, as released."""
    return max(1, patch.bit_length() - 3)


class Upscale(nn.Module):
    """Doubles a map: transposed convolution, depthwise convolution, norm; [B, h, w, D] alike."""

    activation: Callable
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, height, width, dim = x.shape
        # A kernel of 2 × 2 at stride 2 is a dense layer of four cells.
        x = nn.DenseGeneral((2, 2, dim), use_bias=False, dtype=self.dtype, name='expand')(x)
        x = x.swapaxes(2, 3).reshape(batch, 2 * height, 2 * width, dim)
        bias = self.param('bias', nn.initializers.zeros, (dim,))
        x = self.activation(x + bias.astype(self.dtype))
        # Sums of nine shifted maps, which XLA fuses; its grouped convolutions are slow on CPUs.
        kernel = self.param('depthwise', nn.initializers.normal(1 / 3), (3, 3, dim))
        kernel = kernel.astype(self.dtype)
        padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        total = sum(
            padded[:, i : i + 2 * height, j : j + 2 * width] * kernel[i, j]
            for i in range(3)
            for j in range(3)
        )
        return nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, name='norm')(total)


def fields(config: ConfigDict, num_classes: int) -> dict[str, Any]:
    """The fields of `EncoderOnly` that `config` (configs/common.py) describes, for K categories.

    Raises:
      ValueError: as `backbones.from_config`, or the backbone has too few blocks.
    """
    options = config.model
    backbone = cast(ViT, backbones.from_config(config, None, num_classes=0))
    if options.joint_blocks > backbone.num_layers:
        raise ValueError(
            f'config.model.joint_blocks = {options.joint_blocks} must be at most the '
            f'{backbone.num_layers} blocks of {options.backbone}'
        )
    return {
        'backbone': backbone,
        'num_classes': num_classes,
        'num_queries': options.num_queries,
        'num_joint': options.joint_blocks,
        'cosine': options.cosine,
        'rankseg': config.rankseg and FrozenConfigDict(config.rankseg),
        'dtype': jnp.dtype(options.dtype),
    }


def build(config: ConfigDict, num_classes: int) -> EoMT:
    """The model that `config` (configs/common.py) describes, for K categories.

    Raises:
      ValueError: as `fields`, or the annealing is not that of each joint block.
    """
    options = config.model
    start, end = options.anneal_start, options.anneal_end
    if start or end:
        right = len(start) == len(end) == options.joint_blocks
        if not right or any(a >= b for a, b in zip(start, end, strict=True)):
            raise ValueError(
                f'config.model.anneal_start = {start} and anneal_end = {end} must each hold a step '
                f'for each of the {options.joint_blocks} joint blocks, the end after the start'
            )
    return EoMT(**fields(config, num_classes), anneal_start=tuple(start), anneal_end=tuple(end))
