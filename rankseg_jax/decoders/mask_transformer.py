"""Segmenter's decoder (Strudel et al., 2021) with RankSeg: patches and classes attend together."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import FrozenConfigDict

from rankseg_jax.layers import Block, unit
from rankseg_jax.multilabel import ClassWiseLinear, as_tokens, class_init
from rankseg_jax.outputs import PixelOutput
from rankseg_jax.ranking import RankTemperature, gather
from rankseg_jax.selector import COSINE_TAU, CategorySelector, Choice, RankScale, choose


class MaskTransformer(nn.Module):
    """Features of one stride → PixelOutput at that stride.

    With `rankseg.head = 'first_block'` (as released) the first block is the multi-label head too:
    it takes the patches, pooled to `rankseg.pool`, with all K class embeddings, and its κ best
    outputs go on with the unpooled patches. If nothing is pooled, the patches go on from that block
    as well. Any other head chooses among the class embeddings themselves.

    Attributes:
      num_classes: K.
      channels: D.
      num_layers: transformer blocks, including the shared first one.
      rankseg: the keys of `config.rankseg`, see configs/common.py; None is the baseline.
    """

    num_classes: int
    channels: int = 768
    num_layers: int = 2
    num_heads: int = 12
    mlp_dim: int = 3072
    dropout: float = 0.1
    rankseg: FrozenConfigDict | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        features: jax.Array,
        classes: jax.Array | None = None,
        *,
        train: bool,
        choice: Choice = Choice(),
    ) -> PixelOutput:
        """Classifies the cells of a map.

        Args:
          features: [B, h, w, C].
          classes: [B, K, D] class embeddings from the backbone, or None.

        Raises:
          ValueError: as `CategorySelector` and `RankScale`.
        """
        options = self.rankseg
        blocks = [
            Block(self.num_heads, self.mlp_dim, self.dropout, dtype=self.dtype, name=f'block{i}')
            for i in range(self.num_layers)
        ]
        choice = choice.by_frame()
        project = nn.Dense(self.channels, kernel_init=class_init, dtype=self.dtype, name='project')
        patches = project(as_tokens(features))  # [B, L, D]
        embedding = None
        if classes is None:
            shape = (self.num_classes, self.channels)
            embedding = self.param('class_embedding', class_init, shape)
            classes = jnp.broadcast_to(
                embedding.astype(self.dtype), (patches.shape[0], *shape)
            )  # [B, K, D]
        presence_logits = selection = cell_logits = None
        if options is not None and options.head == 'first_block':
            first, *blocks = blocks
            coarse = project(as_tokens(features, options.pool)) if options.pool else patches
            x = first(jnp.concatenate([coarse, classes], 1), train=train)  # [B, l + K, D]
            if not options.pool:
                patches = x[:, : -self.num_classes]
            norm = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name='class_norm')
            classes = norm(x[:, -self.num_classes :])  # [B, K, D]
            presence_logits = ClassWiseLinear(name='classify')(classes)  # [B, K]
            presence_logits, selection = choose(options, presence_logits, choice, train=train)
        elif options is not None:
            selector = CategorySelector(self.num_classes, options, self.dtype, name='head')
            found = selector(features, choice, embedding, train=train)
            presence_logits, selection, cell_logits = found
        ranks = choice.spread(selection)
        if ranks is not None:
            classes = gather(classes, ranks, 1)  # [B, κ, D]
        x = jnp.concatenate([patches, classes], 1)  # [B, L + κ, D]
        for block in blocks:
            x = block(x, train=train)
        x = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name='norm')(x)

        def direction(name, x):
            init = nn.initializers.normal(self.channels**-0.5)
            dense = nn.Dense(
                self.channels, use_bias=False, kernel_init=init, dtype=self.dtype, name=name
            )
            return unit(dense(x).astype(jnp.float32))

        end = patches.shape[1]
        patches = direction('project_patches', x[:, :end])  # [B, L, D]
        classes = direction('project_classes', x[:, end:])  # [B, κ or K, D]
        logits = jnp.einsum('bld,bkd->blk', patches, classes)
        logits = logits.reshape(*features.shape[:-1], -1)  # [B, h, w, κ or K]
        if options is not None and ranks is not None:
            logits = RankScale(options, self.num_classes, COSINE_TAU, name='rank')(logits, ranks)
        elif options is not None and options.select:
            logits = logits / COSINE_TAU  # the warm-up, whose scale has no parameters of its own
        else:
            logits = RankTemperature(self.num_classes, 'layer_norm', name='classes')(logits)
        return PixelOutput(logits, selection, presence_logits, cell_logits=cell_logits)
