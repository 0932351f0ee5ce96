"""Transformer decoders whose queries each predict a category and a mask."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import FrozenConfigDict

from rankseg_jax.decoders.query_classifier import QueryClassifier, head_input
from rankseg_jax.layers import Mlp, attend, linear_init, resize, sine_code, sine_positions
from rankseg_jax.multilabel import as_tokens
from rankseg_jax.outputs import QueryOutput
from rankseg_jax.selector import Choice

embedding_init = nn.initializers.normal(1.0)


class TransformerDecoder(nn.Module):
    """What both decoders share: their sizes, and the classifier at the end.

    Attributes:
      num_classes: K.
      num_queries: Q.
      channels: D of the maps, the pixel embeddings and the queries.
      num_layers: layers of the decoder.
      num_heads: attention heads of each layer.
      mlp_dim: width inside the layers' MLPs.
      cosine, rankseg: see `QueryClassifier`.
      dtype: of the computation; parameters and logits are float32.
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

    def position_codes(self, shape: Sequence[int], choice: Choice) -> jax.Array:
        """The position codes of a map's cells, [L, D] of images, [1 or B, t · L, D] of clips.

        Rows and columns have half of the channels each. The time, as a share of the clip's own
        length, is coded in all channels and added.
        """
        space = sine_positions(*shape, self.channels).reshape(-1, self.channels)  # [L, D]
        if choice.frames is not None:
            shown = choice.shown
            if shown is None:
                shown = jnp.ones((1, choice.frames))
            length = shown.sum(-1, keepdims=True)  # [B, 1]
            share = jnp.arange(1, choice.frames + 1) / (length + 1e-6)  # [B, t]
            time = sine_code(share, self.channels)  # [B, t, D]
            space = (space + time[:, :, None]).reshape(shown.shape[0], -1, self.channels)
        return space.astype(self.dtype)

    def predict(
        self,
        states: list[jax.Array],
        queries: list[jax.Array],
        embeddings: list[jax.Array],
        maps: Mapping[int, jax.Array],
        pixels: jax.Array,
        *,
        train: bool,
        choice: Choice,
    ) -> QueryOutput:
        """Makes a prediction from the queries before the first layer and after each.

        Args:
          states: list of [B, Q, D] before the first layer and after each; the multi-label head may
            see one of them.
          queries: [B, Q, D] of each prediction, to be classified.
          embeddings: [B, Q, D] of each prediction; masks are their products with `pixels`.
          maps: {stride: [B · t, h, w, D]}; the multi-label head may see one of them instead, frame
            by frame.
          pixels: [B, *space, D].

        Raises:
          ValueError: as `head_input` and `QueryClassifier`.
        """
        mask_logits = [mask_products(x, pixels) for x in embeddings]
        classifier = QueryClassifier(
            num_classes=self.num_classes,
            dim=self.channels,
            cosine=self.cosine,
            rankseg=self.rankseg,
            dtype=self.dtype,
        )
        nn.share_scope(self, classifier)  # its parameters lie beside the decoder's own
        features = head_input(self.rankseg, states, maps)
        return classifier(features, queries, mask_logits, train=train, choice=choice)


class QueryDecoder(TransformerDecoder):
    """Mask2Former's decoder (Cheng et al., 2022): masked attention over maps of three strides.

    The layers look at the maps in turn, coarsest first. The queries of a clip look at all its
    frames at once (Cheng et al., arXiv 2112.10764).
    """

    @nn.compact
    def __call__(
        self,
        maps: Mapping[int, jax.Array],
        pixels: jax.Array,
        *,
        train: bool,
        choice: Choice = Choice(),
    ) -> QueryOutput:
        """Decodes the maps of images, or of the frames of clips.

        Args:
          maps: {s: [B · t, h_s, w_s, D]} of three strides.
          pixels: [B · t, h, w, D] pixel embeddings.

        Raises:
          ValueError: as `TransformerDecoder.predict`.
        """
        strides = sorted(maps, reverse=True)
        levels = self.param('level_embedding', embedding_init, (len(strides), self.channels))
        shapes = [maps[stride].shape[-3:-1] for stride in strides]
        memories = [
            clip_tokens(maps[stride], choice) + level
            for stride, level in zip(strides, levels.astype(self.dtype), strict=True)
        ]  # [B, t · L, D] each
        positions = [self.position_codes(shape, choice) for shape in shapes]
        # A resized mask is the product with resized pixel embeddings, which all queries and layers
        # share.
        coarse = [clip_tokens(resize(pixels, shape), choice) for shape in shapes]
        if choice.frames is not None:
            pixels = pixels.reshape(-1, choice.frames, *pixels.shape[1:])  # [B, t, h, w, D]

        shape = (self.num_queries, self.channels)
        query_position = self.param('query_position', embedding_init, shape).astype(self.dtype)
        x = self.param('queries', embedding_init, shape).astype(self.dtype)
        x = jnp.broadcast_to(x, (pixels.shape[0], *shape))  # [B, Q, D]
        norm = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name='norm')
        embed = MaskEmbedding(self.channels, self.dtype, name='mask')
        states, queries = [x], [norm(x)]  # before the first layer and after each
        embeddings = [embed(queries[0])]
        for i in range(self.num_layers):
            level = i % len(strides)
            inside = jnp.einsum(
                'bqd,bld->bql', embeddings[-1], coarse[level], preferred_element_type=jnp.float32
            )
            inside = inside >= 0  # [B, Q, t · L]
            everywhere = True
            if choice.shown is not None:
                cells = inside.shape[-1] // choice.shown.shape[-1]  # of a frame
                everywhere = jnp.repeat(choice.shown, cells, axis=-1)
                everywhere = everywhere[:, None]  # [B, 1, t · L]
                inside &= everywhere
            # A query without a mask looks everywhere.
            inside |= everywhere & ~inside.any(-1, keepdims=True)
            layer = QueryLayer(self.num_heads, self.mlp_dim, self.dtype, name=f'layer{i}')
            x = layer(
                x,
                query_position,
                memory=memories[level],
                position=positions[level],
                mask=inside,
                train=train,
            )  # [B, Q, D]
            states.append(x)
            queries.append(norm(x))
            embeddings.append(embed(queries[-1]))
        return self.predict(
            states,
            queries,
            embeddings=embeddings,
            maps=maps,
            pixels=pixels,
            train=train,
            choice=choice,
        )


class DetrDecoder(TransformerDecoder):
    """MaskFormer's decoder (Cheng et al., 2021), DETR's (Carion et al., 2020): one map in full.

    Attributes:
      dropout: as `QueryLayer`'s.
    """

    dropout: float = 0.0

    @nn.compact
    def __call__(
        self,
        memory: jax.Array,
        maps: Mapping[int, jax.Array],
        pixels: jax.Array,
        *,
        train: bool,
        choice: Choice = Choice(),
    ) -> QueryOutput:
        """Decodes the maps of an image.

        Args:
          memory: [B, h', w', C], the map that queries look at.
          maps: {s: [B, h_s, w_s, D]}.
          pixels: [B, h, w, D] pixel embeddings.

        Raises:
          ValueError: as `TransformerDecoder.predict`, or for clips.
        """
        if choice.frames is not None:
            raise ValueError(
                'DetrDecoder sees single images; videos need a framework that sees clips'
            )
        position = self.position_codes(memory.shape[-3:-1], choice)  # [L, D]
        memory = as_tokens(memory)  # [B, L, C]
        if memory.shape[-1] != self.channels:
            project = nn.Dense(
                self.channels, kernel_init=linear_init, dtype=self.dtype, name='project'
            )
            memory = project(memory)  # [B, L, D]
        shape = (self.num_queries, self.channels)
        query_position = self.param('query_position', embedding_init, shape).astype(self.dtype)
        states = [jnp.zeros((memory.shape[0], *shape), self.dtype)]  # [B, Q, D]
        for i in range(self.num_layers):
            layer = QueryLayer(
                num_heads=self.num_heads,
                mlp_dim=self.mlp_dim,
                dtype=self.dtype,
                dropout=self.dropout,
                self_first=True,
                name=f'layer{i}',
            )
            states.append(
                layer(states[-1], query_position, memory=memory, position=position, train=train)
            )
        norm = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name='norm')
        embed = MaskEmbedding(self.channels, self.dtype, name='mask')
        queries = [norm(x) for x in states[1:]]
        embeddings = [embed(x) for x in queries]
        return self.predict(
            states,
            queries,
            embeddings=embeddings,
            maps=maps,
            pixels=pixels,
            train=train,
            choice=choice,
        )


def clip_tokens(maps: jax.Array, choice: Choice) -> jax.Array:
    """[B · t, h, w, D] → [B, t · L, D], the cells of a clip frame by frame; t is 1 for images."""
    return as_tokens(maps).reshape(-1, (choice.frames or 1) * maps[0, ..., 0].size, maps.shape[-1])


class QueryLayer(nn.Module):
    """Post-norm cross-attention, self-attention and MLP: [B, Q, D] → [B, Q, D].

    Attributes:
      dropout: rate in training, of attention weights, within the MLP and after each of the three.
      self_first: self-attention comes before cross-attention.
    """

    num_heads: int
    mlp_dim: int
    dtype: Any = jnp.float32
    dropout: float = 0.0
    self_first: bool = False

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        query_position: jax.Array,
        memory: jax.Array,
        position: jax.Array,
        mask: jax.Array | None = None,
        *,
        train: bool,
    ) -> jax.Array:
        """Updates the queries.

        Args:
          x: [B, Q, D] queries.
          query_position: [Q, D], their position codes.
          memory: [B, L, D] cells.
          position: [(B,) L, D], their position codes.
          mask: [B, Q, L] bool, the cells that each query looks at; None: all.
        """
        drop = nn.Dropout(self.dropout, deterministic=not train)

        def attention(name, *inputs, mask=None):
            module = nn.MultiHeadDotProductAttention(
                self.num_heads,
                kernel_init=linear_init,
                dtype=self.dtype,
                dropout_rate=self.dropout,
                attention_fn=attend,
                name=name,
            )
            return module(*inputs, mask=mask, deterministic=not train)

        def cross_attention(x):
            return attention('cross', x + query_position, memory + position, memory, mask=mask)

        def self_attention(x):
            return attention('self', x + query_position, x + query_position, x)

        def mlp(x):
            return Mlp(
                self.mlp_dim, dropout=self.dropout, activation=nn.relu, dtype=self.dtype, name='mlp'
            )(x, train=train)

        parts = [cross_attention, self_attention, mlp]
        if self.self_first:
            parts = [self_attention, cross_attention, mlp]
        for i, part in enumerate(parts, 1):
            norm = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name=f'norm{i}')
            x = norm(x + drop(part(x)))  # [B, Q, D]
        return x


class MaskEmbedding(nn.Module):
    """Mask embeddings of queries, by an MLP of three layers: [B, Q, D] → [B, Q, D]."""

    channels: int
    dtype: Any = jnp.float32
    activation: Callable = nn.relu

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for _ in range(2):
            x = self.activation(nn.Dense(self.channels, dtype=self.dtype)(x))  # [B, Q, channels]
        return nn.Dense(self.channels, dtype=self.dtype)(x)  # [B, Q, channels]


def mask_products(embeddings: jax.Array, pixels: jax.Array) -> jax.Array:
    """Mask logits float32 [B, Q, *space] of mask and pixel embeddings [B, Q, D], [B, *space, D]."""
    return jnp.einsum('bqd,b...d->bq...', embeddings, pixels, preferred_element_type=jnp.float32)
