"""The end of every per-query framework: each query gets a category, in rank order, and a mask."""

from collections.abc import Callable, Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict, FrozenConfigDict

from rankseg_jax.layers import unit
from rankseg_jax.outputs import QueryOutput
from rankseg_jax.ranking import Selection, gather
from rankseg_jax.selector import COSINE_TAU, CategorySelector, Choice, RankScale, head_feature


class QueryClassifier(nn.Module):
    """Classifies queries over the κ categories ranked first (arXiv 2203.04187, section 3).

    Attributes:
      num_classes: K.
      dim: D of the queries.
      cosine: class logits are cosines of queries and class embeddings (as released with RankSeg),
        not their inner products.
      rankseg: the keys of `config.rankseg`, see configs/common.py; None classifies over all K.
    """

    num_classes: int
    dim: int
    cosine: bool = False
    rankseg: FrozenConfigDict | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        features: jax.Array | None,
        queries: list[jax.Array],
        mask_logits: list[jax.Array],
        *,
        train: bool,
        choice: Choice,
        over_frames: Callable | None = None,
    ) -> QueryOutput:
        """Classifies the queries of each prediction; the last is the output's own.

        Args:
          features: what the multi-label head sees, see `head_input`; None without RankSeg.
          queries: list of [B, Q, D].
          mask_logits: list of [B, Q, *space].
          over_frames: see `CategorySelector`.

        Raises:
          ValueError: as `CategorySelector` and `RankScale`.
        """
        options = self.rankseg
        classes = QueryClasses(self.num_classes, self.dim, self.cosine, name='classes')
        presence_logits = selection = cell_logits = None
        if options is not None:
            selector = CategorySelector(self.num_classes, options, self.dtype, name='head')
            presence_logits, selection, cell_logits = selector(
                cast(jax.Array, features),
                choice if options.layer else choice.by_frame(),
                classes.embedding[:-1],
                train=train,
                over_frames=over_frames,
            )
            if cell_logits is not None and choice.frames is not None:
                cell_logits = cell_logits.reshape(-1, choice.frames, *cell_logits.shape[1:])
        ranks = choice.spread(selection)
        class_logits = classes(jnp.stack(queries, 1), ranks)  # [B, predictions, Q, κ + 1 or K + 1]
        tau = COSINE_TAU if self.cosine else 1.0
        if options is None or ranks is None:
            class_logits = class_logits / tau
        else:
            scale = RankScale(options, self.num_classes, tau, no_object=True, name='rank')
            class_logits = scale(class_logits, ranks)
        *auxiliary, last = zip(class_logits.swapaxes(0, 1), mask_logits, strict=True)
        return QueryOutput(
            *last,
            selection,
            presence_logits,
            cell_logits=cell_logits,
            queries=queries[-1],
            auxiliary=tuple(auxiliary),
        )


def head_input(
    options: ConfigDict | None, states: list[jax.Array], maps: Mapping[int, jax.Array]
) -> jax.Array | None:
    """Input of the multi-label head: queries after layer `rankseg.layer`, or a map for layer 0.

    Args:
      options: the keys of `config.rankseg`; None: there is no head.
      states: list of [B, Q, D] before the first layer and after each.
      maps: {stride: [B · t, h, w, D]}, seen frame by frame.

    Raises:
      ValueError: there is no such layer or map, or the head needs a map.
    """
    if options is None:
        return None
    if not 0 <= options.layer < len(states):
        raise ValueError(
            f'config.rankseg.layer = {options.layer} must be 0 or one of the '
            f'{len(states) - 1} layers'
        )
    if not options.layer:
        return head_feature(options, maps)
    if options.head == 'decoder':
        raise ValueError(
            "config.rankseg.head = 'decoder' needs a map, not queries: set config.rankseg.layer = 0"
        )
    return states[options.layer]


class QueryClasses(nn.Module):
    """Classifies queries over categories and no-object, the last.

    [B, predictions, Q, D] → [B, predictions, Q, κ + 1]. The logits are float32; over all K + 1
    without a selection.
    """

    num_classes: int
    dim: int
    cosine: bool = False

    def setup(self) -> None:
        init = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform', 1, 0)
        self.embedding = self.param('embedding', init, (self.num_classes + 1, self.dim))
        if not self.cosine:
            self.bias = self.param('bias', nn.initializers.zeros, (self.num_classes + 1,))

    def __call__(self, queries: jax.Array, selection: Selection | None) -> jax.Array:
        def ranked(x):  # [K + 1, …] → [B, κ + 1, …]
            return x if selection is None else gather(x, selection, 0, keep_last=True)

        def products(queries, embedding):
            equation = 'bpqd,kd->bpqk' if selection is None else 'bpqd,bkd->bpqk'
            return jnp.einsum(equation, queries, embedding, preferred_element_type=jnp.float32)

        embedding = ranked(self.embedding)
        if self.cosine:
            return products(unit(queries.astype(jnp.float32)), unit(embedding))
        bias = jnp.expand_dims(ranked(self.bias), (-3, -2))
        return products(queries, embedding.astype(queries.dtype)) + bias
