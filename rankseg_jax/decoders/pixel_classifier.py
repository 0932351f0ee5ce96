"""Where RankSeg enters a per-pixel framework: pixels × embeddings of the selected categories."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import FrozenConfigDict

from rankseg_jax.outputs import PixelOutput
from rankseg_jax.ranking import Selection, gather
from rankseg_jax.selector import CategorySelector, Choice, RankScale, head_feature


class ClassEmbedding(nn.Module):
    """A linear pixel classifier whose rows can be selected: [B, *space, D] → [B, *space, κ or K].

    The logits are float32.
    """

    num_classes: int
    dim: int

    def setup(self) -> None:
        self.embedding = self.param(
            'embedding', nn.initializers.normal(0.02), (self.num_classes, self.dim)
        )
        self.bias = self.param('bias', nn.initializers.zeros, (self.num_classes,))

    def __call__(self, pixels: jax.Array, selection: Selection | None) -> jax.Array:
        def products(equation, embedding):
            return jnp.einsum(equation, pixels, embedding, preferred_element_type=jnp.float32)

        embedding, bias = self.embedding.astype(pixels.dtype), self.bias  # [K, D], [K]
        if selection is None:
            return products('b...d,kd->b...k', embedding) + bias  # [B, *space, K]
        embedding = gather(embedding, selection, 0)  # [B, κ, D]
        bias = jnp.expand_dims(gather(bias, selection, 0), range(1, pixels.ndim - 1))
        return products('b...d,bkd->b...k', embedding) + bias  # [B, *space, κ]


class PixelClassifier(nn.Module):
    """Classifies pixels over the κ categories ranked first (arXiv 2203.04187, section 3).

    Attributes:
      num_classes: K.
      rankseg: the keys of `config.rankseg`, see configs/common.py; None classifies over all K.
    """

    num_classes: int
    rankseg: FrozenConfigDict | None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        pixels: jax.Array,
        features: Mapping[int, jax.Array],
        auxiliary: jax.Array | None = None,
        *,
        train: bool,
        choice: Choice = Choice(),
    ) -> PixelOutput:
        """Classifies pixel embeddings [B, *space, D].

        Args:
          features: {stride: [B, *space', D']}, of which the multi-label head sees the map of stride
            `rankseg.stride`.
          auxiliary: pixel embeddings [B, *space'', D''] of an auxiliary head, classified over the
            same categories, or over all K without `rankseg.select_auxiliary`.

        Raises:
          ValueError: as `head_feature`, `CategorySelector` and `RankScale`.
        """
        choice = choice.by_frame()
        classes = ClassEmbedding(self.num_classes, pixels.shape[-1], name='classes')
        presence_logits = selection = cell_logits = None
        if self.rankseg is not None:
            selector = CategorySelector(self.num_classes, self.rankseg, self.dtype, name='head')
            presence_logits, selection, cell_logits = selector(
                head_feature(self.rankseg, features), choice, classes.embedding, train=train
            )
        ranks = choice.spread(selection)
        logits = classes(pixels, ranks)  # [B, *space, κ or K]
        if self.rankseg is not None and ranks is not None:
            logits = RankScale(self.rankseg, self.num_classes, name='rank')(logits, ranks)
        if auxiliary is not None:
            dim = auxiliary.shape[-1]
            classes = ClassEmbedding(self.num_classes, dim, name='auxiliary_classes')
            selects = self.rankseg is not None and self.rankseg.select_auxiliary
            auxiliary = classes(auxiliary, ranks if selects else None)
        return PixelOutput(
            logits,
            selection=selection,
            presence_logits=presence_logits,
            auxiliary_logits=auxiliary,
            cell_logits=cell_logits,
        )
