"""Transformer decoders with RankSeg: queries, each of which predicts a category and a mask."""

from typing import Any

import flax
import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import FrozenConfigDict

from rankseg_jax.decoders.pixel_classifier import RankScale, choose
from rankseg_jax.layers import Mlp, attend, resize, sine_positions, unit
from rankseg_jax.multilabel import as_tokens, build_head
from rankseg_jax.ranking import Selection, gather

TAU = 0.07  # cosines lie within ±1: what a temperature over them starts from
linear_init = nn.initializers.xavier_uniform()
embedding_init = nn.initializers.normal(1.0)


@flax.struct.dataclass
class QueryOutput:
    """What a per-query framework returns.

    Attributes:
      class_logits: [B, Q, κ + 1] in rank order, no-object last; [B, Q, K + 1] if there is no selection.
      mask_logits: [B, Q, h, w] at stride 4.
      selection: the categories that the ranks stand for; None for the baseline.
      presence_logits: [B, K] of the multi-label head; None for the baseline.
      auxiliary: (class_logits, mask_logits) of the earlier predictions, first to last, which only training uses.
    """

    class_logits: jax.Array
    mask_logits: jax.Array
    selection: Selection | None = None
    presence_logits: jax.Array | None = None
    auxiliary: tuple = ()


class QueryDecoder(nn.Module):
    """Mask2Former's (Cheng et al., 2022): maps of three strides and pixel embeddings -> QueryOutput.

    Attributes:
      num_classes: K.
      num_queries: Q.
      channels: D of the maps, the pixel embeddings and the queries.
      num_layers: of masked attention, over the maps in turn, the coarsest first.
      mlp_dim: width inside their MLPs.
      cosine: class logits are cosines of queries and class embeddings (as released with RankSeg), not their linear products.
      rankseg: the keys of `config.rankseg`, see configs/common.py; None classifies over all K.
    """

    num_classes: int
    num_queries: int = 100
    channels: int = 256
    num_layers: int = 9
    num_heads: int = 8
    mlp_dim: int = 2048
    cosine: bool = False
    rankseg: FrozenConfigDict | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, maps, pixels, *, train: bool, **choice) -> QueryOutput:
        """{s: [B, h_s, w_s, D]} of three strides and pixel embeddings [B, h, w, D]; `choice`: as `predict`, as are its errors."""
        strides = sorted(maps, reverse=True)
        levels = self.param(
            'level_embedding', embedding_init, (len(strides), self.channels)
        ).astype(self.dtype)
        shapes = [maps[stride].shape[1:3] for stride in strides]
        memories = [
            as_tokens(maps[stride]) + level for stride, level in zip(strides, levels, strict=True)
        ]  # [B, N, D] each
        positions = [
            sine_positions(*shape, self.channels).reshape(-1, self.channels).astype(self.dtype)
            for shape in shapes
        ]
        # A mask resized is the product with resized pixel embeddings, which are the same for all queries and layers.
        coarse = [as_tokens(resize(pixels, shape)) for shape in shapes]  # [B, N, D] each

        query_position = self.param(
            'query_position', embedding_init, (self.num_queries, self.channels)
        ).astype(self.dtype)
        x = self.param('queries', embedding_init, (self.num_queries, self.channels)).astype(
            self.dtype
        )
        x = jnp.broadcast_to(x, (pixels.shape[0], *x.shape))  # [B, Q, D]
        norm = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name='norm')
        embed = MaskEmbedding(self.channels, self.dtype, name='mask')
        states, queries = [x], [norm(x)]  # before the first layer and after each
        embeddings = [embed(queries[0])]
        for i in range(self.num_layers):
            level = i % len(strides)
            inside = (
                jnp.einsum(
                    'bqd,bnd->bqn',
                    embeddings[-1],
                    coarse[level],
                    preferred_element_type=jnp.float32,
                )
                >= 0
            )
            inside |= ~inside.any(
                -1, keepdims=True
            )  # [B, Q, N], a query without a mask looks everywhere
            x = QueryLayer(self.num_heads, self.mlp_dim, self.dtype, name=f'layer{i}')(
                x, query_position, memories[level], positions[level], inside, train=train
            )
            states.append(x)
            queries.append(norm(x))
            embeddings.append(embed(queries[-1]))

        return self.predict(states, queries, embeddings, maps, pixels, train=train, **choice)

    def predict(
        self,
        states,
        queries,
        embeddings,
        maps,
        pixels,
        *,
        train: bool,
        presence=None,
        selection: Selection | None = None,
        all_classes: bool = False,
    ) -> QueryOutput:
        """The end of `__call__`, where its layers have been: -> QueryOutput.

        Args:
          states: [B, Q, D] before the first layer and after each, one of which the multi-label head may see.
          queries: [B, Q, D] of each prediction, to be classified.
          embeddings: [B, Q, D] of each prediction, whose masks are their products with `pixels` [B, h, w, D].
          maps: {stride: [B, h, w, D]}, one of which the multi-label head may see instead.
          presence, selection, all_classes: as for `PixelClassifier`.

        Raises:
          ValueError: the multi-label head's input does not exist or does not suit it, or as `choose`.
        """
        options = self.rankseg
        classes = QueryClasses(self.num_classes, self.channels, self.cosine, name='classes')
        presence_logits = None
        if options is not None:
            seen = head_input(options, states, maps)
            shared = {'class_embedding': classes.embedding[:-1]} if options.share_embedding else {}
            presence_logits = build_head(options, self.num_classes, self.dtype)(
                seen, **shared, train=train
            )  # [B, K]
            if options.select and not all_classes and selection is None:
                selection = choose(options, presence_logits, presence, train=train)
        class_logits = classes(
            jnp.stack(queries, 1), selection
        )  # [B, predictions, Q, κ + 1 or K + 1]
        if selection is not None:
            class_logits = RankScale(
                options, TAU if self.cosine else 1.0, no_object=True, name='rank'
            )(class_logits, selection)
        elif self.cosine:
            class_logits = class_logits / TAU
        mask_logits = [
            jnp.einsum('bqd,bhwd->bqhw', embedding, pixels, preferred_element_type=jnp.float32)
            for embedding in embeddings
        ]
        *auxiliary, (class_logits, mask_logits) = zip(
            class_logits.swapaxes(0, 1), mask_logits, strict=True
        )
        return QueryOutput(class_logits, mask_logits, selection, presence_logits, tuple(auxiliary))


class DetrDecoder(QueryDecoder):
    """MaskFormer's (Cheng et al., 2021), which is DETR's (Carion et al., 2020): queries look at all of one map.

    Attributes: as `QueryDecoder`'s, and
      dropout: as `QueryLayer`'s.
    """

    dropout: float = 0.0

    @nn.compact
    def __call__(self, memory, maps, pixels, *, train: bool, **choice) -> QueryOutput:
        """The map to look at [B, h', w', C], {s: [B, h_s, w_s, D]} and pixel embeddings [B, h, w, D]; `choice`: as `predict`."""
        position = (
            sine_positions(*memory.shape[1:3], self.channels)
            .reshape(-1, self.channels)
            .astype(self.dtype)
        )  # [N, D]
        memory = as_tokens(memory)  # [B, N, C]
        if memory.shape[-1] != self.channels:
            memory = nn.Dense(
                self.channels, kernel_init=linear_init, dtype=self.dtype, name='project'
            )(memory)  # [B, N, D]
        query_position = self.param(
            'query_position', embedding_init, (self.num_queries, self.channels)
        ).astype(self.dtype)
        states = [jnp.zeros((memory.shape[0], *query_position.shape), self.dtype)]  # [B, Q, D]
        for i in range(self.num_layers):
            states.append(
                QueryLayer(
                    self.num_heads,
                    self.mlp_dim,
                    self.dtype,
                    self.dropout,
                    self_first=True,
                    name=f'layer{i}',
                )(states[-1], query_position, memory, position, train=train)
            )
        norm = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name='norm')
        embed = MaskEmbedding(self.channels, self.dtype, name='mask')
        queries = [norm(x) for x in states[1:]]
        return self.predict(
            states, queries, [embed(x) for x in queries], maps, pixels, train=train, **choice
        )


def head_input(options, states, maps):
    """What the multi-label head sees: queries [B, Q, D] after layer `rankseg.layer`, or the map of stride `rankseg.stride`."""
    if not 0 <= options.layer < len(states):
        raise ValueError(
            f'config.rankseg.layer = {options.layer} must be 0 or one of the {len(states) - 1} layers'
        )
    if options.layer:
        if options.head == 'decoder':
            raise ValueError(
                "config.rankseg.head = 'decoder' needs a map, not queries: set config.rankseg.layer = 0"
            )
        return states[options.layer]
    if options.stride not in maps:
        raise ValueError(f'config.rankseg.stride = {options.stride} must be one of {sorted(maps)}')
    return maps[options.stride]


class QueryLayer(nn.Module):
    """Post-norm cross-attention, self-attention and MLP: [B, Q, D] -> [B, Q, D].

    Attributes:
      dropout: share dropped in training, within the MLP and after each of the three.
      self_first: self-attention comes before cross-attention.
    """

    num_heads: int
    mlp_dim: int
    dtype: Any = jnp.float32
    dropout: float = 0.0
    self_first: bool = False

    @nn.compact
    def __call__(self, x, query_position, memory, position, mask=None, *, train: bool):
        """Queries [B, Q, D] and their codes [Q, D], cells [B, N, D] and theirs [N, D], where queries look [B, Q, N] or None."""
        drop = nn.Dropout(self.dropout, deterministic=not train)

        def attention(name, *inputs, mask=None):
            return nn.MultiHeadDotProductAttention(
                self.num_heads,
                kernel_init=linear_init,
                dtype=self.dtype,
                attention_fn=attend,
                name=name,
            )(*inputs, mask=mask)

        def cross(x):
            return attention('cross', x + query_position, memory + position, memory, mask=mask)

        def own(x):
            return attention('self', x + query_position, x + query_position, x)

        def mlp(x):
            return Mlp(self.mlp_dim, self.dropout, nn.relu, self.dtype, name='mlp')(x, train=train)

        for i, part in enumerate((own, cross, mlp) if self.self_first else (cross, own, mlp), 1):
            x = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name=f'norm{i}')(x + drop(part(x)))
        return x


class MaskEmbedding(nn.Module):
    """Three dense layers, [B, Q, D] -> [B, Q, channels]: what a query's pixels have in common."""

    channels: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        for _ in range(2):
            x = nn.relu(nn.Dense(self.channels, dtype=self.dtype)(x))
        return nn.Dense(self.channels, dtype=self.dtype)(x)


class QueryClasses(nn.Module):
    """A classifier of queries over categories and no-object, the last: [B, P, Q, D] -> [B, P, Q, κ + 1 or K + 1] float32."""

    num_classes: int
    dim: int
    cosine: bool = False

    def setup(self):
        self.embedding = self.param(
            'embedding',
            nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform', 1, 0),
            (self.num_classes + 1, self.dim),
        )
        if not self.cosine:
            self.bias = self.param('bias', nn.initializers.zeros, (self.num_classes + 1,))

    def __call__(self, queries, selection: Selection | None):
        def of_ranks(x):  # [K + 1, …] -> [B, κ + 1, …], or as it is
            return x if selection is None else gather(x, selection, 0, keep_last=True)

        def products(queries, embedding):
            equation = 'bpqd,kd->bpqk' if selection is None else 'bpqd,bkd->bpqk'
            return jnp.einsum(equation, queries, embedding, preferred_element_type=jnp.float32)

        embedding = of_ranks(self.embedding)
        if self.cosine:
            return products(unit(queries.astype(jnp.float32)), unit(embedding))
        return products(queries, embedding.astype(queries.dtype)) + jnp.expand_dims(
            of_ranks(self.bias), (-3, -2)
        )
