"""Segmenter's decoder (Strudel et al., 2021), where patches and class embeddings attend to each other, with RankSeg."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from ml_collections import FrozenConfigDict

from rankseg_jax.decoders.pixel_classifier import PixelOutput, RankScale, choose
from rankseg_jax.layers import Block, unit
from rankseg_jax.multilabel import ClassWiseLinear, as_tokens, build_head, class_init
from rankseg_jax.ranking import RankTemperature, Selection, gather

TAU = 0.07  # cosines lie within ±1: what a temperature over them starts from


class MaskTransformer(nn.Module):
    """Features of one stride -> PixelOutput at that stride.

    With `rankseg.head = 'first_block'` (as released) the first block also is the multi-label head: it takes the patches, pooled
    to `rankseg.pool`, with all K class embeddings, and its κ best outputs go on with the unpooled patches. If nothing is pooled,
    the patches go on from that block as well. Any other head chooses among the class embeddings themselves.

    Attributes:
      num_classes: K.
      channels: D.
      num_layers: transformer blocks, the shared first one included.
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
        features,
        classes=None,
        *,
        train: bool,
        presence=None,
        selection: Selection | None = None,
        all_classes: bool = False,
    ) -> PixelOutput:
        """Features [B, h, w, C], optionally class embeddings [B, K, D] from the backbone; the rest as for `PixelClassifier`."""
        options = self.rankseg
        blocks = [
            Block(self.num_heads, self.mlp_dim, self.dropout, dtype=self.dtype, name=f'block{i}')
            for i in range(self.num_layers)
        ]
        project = nn.Dense(self.channels, kernel_init=class_init, dtype=self.dtype, name='project')
        patches = project(as_tokens(features))  # [B, N, D]
        embedding = None
        if classes is None:
            embedding = self.param('class_embedding', class_init, (self.num_classes, self.channels))
            classes = jnp.broadcast_to(
                embedding.astype(self.dtype), (patches.shape[0], *embedding.shape)
            )  # [B, K, D]
        presence_logits = None
        if options is not None:
            if options.head == 'first_block':
                coarse = (
                    project(as_tokens(features, options.pool)) if options.pool else patches
                )  # [B, n, D]
                first, *blocks = blocks
                x = first(jnp.concatenate([coarse, classes], 1), train=train)  # [B, n + K, D]
                if not options.pool:
                    patches = x[:, : -self.num_classes]
                classes = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name='class_norm')(
                    x[:, -self.num_classes :]
                )
                presence_logits = ClassWiseLinear(name='classify')(classes)  # [B, K]
            else:
                shared = {'class_embedding': embedding} if options.share_embedding else {}
                presence_logits = build_head(options, self.num_classes, self.dtype)(
                    features, **shared, train=train
                )
            if options.select and not all_classes:
                if selection is None:
                    selection = choose(options, presence_logits, presence, train=train)
                classes = gather(classes, selection, 1)  # [B, κ, D]
        x = jnp.concatenate([patches, classes], 1)  # [B, N + κ, D]
        for block in blocks:
            x = block(x, train=train)
        x = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name='norm')(x)

        def direction(name, x):
            init = nn.initializers.normal(self.channels**-0.5)
            x = nn.Dense(
                self.channels, use_bias=False, kernel_init=init, dtype=self.dtype, name=name
            )(x)
            return unit(x.astype(jnp.float32))

        end = patches.shape[1]
        logits = jnp.einsum(
            'bnd,bkd->bnk',
            direction('project_patches', x[:, :end]),
            direction('project_classes', x[:, end:]),
        )
        logits = logits.reshape(*features.shape[:3], -1)  # [B, h, w, κ or K]
        if selection is not None:
            logits = RankScale(options, TAU, name='rank')(logits, selection)
        elif options is not None and options.select:
            logits = logits / TAU  # the warm-up, whose scale has no parameters of its own
        else:
            logits = RankTemperature(self.num_classes, 'layer_norm', name='classes')(logits)
        return PixelOutput(logits, selection, presence_logits)
