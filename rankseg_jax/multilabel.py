"""Multi-label classification: which of the K categories are in an image?

Each head maps features to `presence_logits` [B, K]. Features are a coarse map [B, h, w, C] or
tokens [B, L, C], where L counts tokens, such as the h · w cells of a map (arXiv 2203.04187,
section 3.2).
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from rankseg_jax.layers import Block, PostNormLayer, adaptive_average_pool, sine_positions

class_init = nn.initializers.truncated_normal(0.02)
# Of layers that return logits: their products are float32 in half precision, too.
float32_products = partial(jax.lax.dot_general, preferred_element_type=jnp.float32)


def pixel_counts(labels: jax.Array, num_classes: int) -> jax.Array:
    """Counts the pixels of each category in each image: [B, …] integers → [B, K] int32.

    Labels outside 0..K-1, such as an ignore label, are not counted. The counts come from a scatter,
    so that the cost does not grow with pixels × K.
    """
    labels = labels.reshape(labels.shape[0], -1)  # [B, pixels]
    slots = jnp.where((labels >= 0) & (labels < num_classes), labels, num_classes)

    def count(slots):
        return jnp.zeros(num_classes + 1, jnp.int32).at[slots].add(1)  # [K + 1]

    return jax.vmap(count)(slots)[:, :num_classes]


class ClassWiseLinear(nn.Module):
    """One linear classifier per class token, [B, K, D] → [B, K] float32."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        num_classes, dim = x.shape[-2:]
        kernel = self.param(
            'kernel',
            nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform', 1, 0),
            (num_classes, dim),
        )
        bias = self.param('bias', nn.initializers.zeros, (num_classes,))
        return jnp.einsum('...kd,kd->...k', x.astype(jnp.float32), kernel) + bias


class SeparableProjection(nn.Module):
    """A depthwise-separable 1 × 1 convolution, [..., C] → [..., D], a ReLU after each part."""

    hidden: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = jnp.asarray(x, self.dtype)
        init = nn.initializers.normal((2 / x.shape[-1]) ** 0.5)
        kernel = self.param('depthwise_kernel', init, (x.shape[-1],))
        bias = self.param('depthwise_bias', nn.initializers.zeros, (x.shape[-1],))
        x = nn.relu(x * kernel.astype(x.dtype) + bias.astype(x.dtype))
        return nn.relu(nn.Dense(self.hidden, dtype=self.dtype, name='pointwise')(x))


class EncoderHead(nn.Module):
    """Tokens and K class embeddings pass one transformer block together (the released default).

    Attributes:
      num_classes: K.
      hidden: D, width of the block.
      num_heads: attention heads of the block.
      mlp_dim: width inside the block's MLP.
      pool: a map is first averaged to pool × pool cells; 0 keeps it as it is.
      separable: whether tokens are projected by a `SeparableProjection`, not a dense layer.
      dropout: rate of attention weights and after each projection, in training.
      dtype: of the computation; parameters and logits are float32.
    """

    num_classes: int
    hidden: int = 512
    num_heads: int = 8
    mlp_dim: int = 2048
    pool: int = 0
    separable: bool = False
    dropout: float = 0.1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, features: jax.Array, class_embedding: jax.Array | None = None, *, train: bool
    ) -> jax.Array:
        """Classifies images, with the head's own class embeddings or shared ones.

        Args:
          features: [B, h, w, C] or [B, L, C].
          class_embedding: [K, D] of the classifier; None: the head learns its own.

        Returns:
          presence_logits [B, K].

        Raises:
          ValueError: as `check_width`.
        """
        projection = SeparableProjection if self.separable else nn.Dense
        project = projection(self.hidden, dtype=self.dtype, name='project')
        tokens = project(as_tokens(features, self.pool))  # [B, L, D]
        if class_embedding is None:
            shape = (self.num_classes, self.hidden)
            class_embedding = self.param('class_embedding', class_init, shape)
        classes = check_width(class_embedding, self.hidden).astype(self.dtype)  # [K, D]
        classes = jnp.broadcast_to(classes, (tokens.shape[0], *classes.shape))  # [B, K, D]
        block = Block(
            num_heads=self.num_heads,
            mlp_dim=self.mlp_dim,
            dropout=self.dropout,
            dtype=self.dtype,
            name='block',
        )
        x = block(jnp.concatenate([tokens, classes], 1), train=train)  # [B, L + K, D]
        norm = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name='norm')
        x = norm(x[:, tokens.shape[1] :])  # [B, K, D]
        return ClassWiseLinear(name='classify')(x)


class DecoderHead(nn.Module):
    """Class embeddings query a coarse map through cross-attention layers (Liu et al., 2021).

    It has the attributes of `EncoderHead` but `separable`, and `num_layers`, the number of layers.
    """

    num_classes: int
    hidden: int = 512
    num_heads: int = 8
    num_layers: int = 2
    mlp_dim: int = 2048
    pool: int = 0
    dropout: float = 0.1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, features: jax.Array, class_embedding: jax.Array | None = None, *, train: bool
    ) -> jax.Array:
        """Classifies images as `EncoderHead` does, from maps [B, h, w, C] only."""
        if self.pool:
            features = adaptive_average_pool(features, (self.pool, self.pool))
        height, width = features.shape[1:3]
        position = sine_positions(height, width, self.hidden).reshape(-1, self.hidden)
        position = position.astype(self.dtype)  # [L, D]
        project = nn.Dense(self.hidden, dtype=self.dtype, name='project')
        memory = project(as_tokens(features))  # [B, L, D]
        if class_embedding is None:
            shape = (self.num_classes, self.hidden)
            class_embedding = self.param('class_embedding', nn.initializers.normal(1.0), shape)
        classes = check_width(class_embedding, self.hidden).astype(self.dtype)  # [K, D]
        x = jnp.zeros((memory.shape[0], *classes.shape), self.dtype)  # [B, K, D]
        for i in range(self.num_layers):
            layer = PostNormLayer(
                num_heads=self.num_heads,
                mlp_dim=self.mlp_dim,
                dropout=self.dropout,
                dtype=self.dtype,
                name=f'layer{i}',
            )
            # [B, K, D]
            x = layer(x, memory, query_position=classes, memory_position=position, train=train)
        x = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name='norm')(x)
        return ClassWiseLinear(name='classify')(x)


class GlobalPoolHead(nn.Module):
    """Classifies the mean over all positions, after one hidden layer of the features' width."""

    num_classes: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features: jax.Array, *, train: bool) -> jax.Array:
        """[B, h, w, C] or [B, L, C] → presence_logits [B, K]."""
        pooled = as_tokens(features).mean(1)  # [B, C]
        hidden = nn.Dense(pooled.shape[-1], dtype=self.dtype, name='hidden')(pooled)  # [B, C]
        classify = nn.Dense(
            self.num_classes, dtype=self.dtype, dot_general=float32_products, name='classify'
        )
        return classify(nn.relu(hidden))  # [B, K]


class LogSumExpHead(nn.Module):
    """Classifies every cell and pools the logits by log-sum-exp, a smooth maximum.

    The logarithm is taken of the mean instead of the sum, so that the result does not depend on the
    number of cells.
    """

    num_classes: int
    dtype: Any = jnp.float32

    def setup(self) -> None:
        self.classify = nn.Dense(self.num_classes, dtype=self.dtype, dot_general=float32_products)

    def cells(self, features: jax.Array) -> jax.Array:
        """[B, *space, C] → logits of each cell [B, *space, K] float32."""
        return self.classify(features)

    def pool(self, cell_logits: jax.Array) -> jax.Array:
        """[B, *space, K] → presence_logits [B, K]."""
        logits = as_tokens(cell_logits)  # [B, L, K]
        return jax.nn.logsumexp(logits, axis=1) - jnp.log(logits.shape[1])

    def __call__(self, features: jax.Array, *, train: bool) -> jax.Array:
        """[B, h, w, C] or [B, L, C] → presence_logits [B, K]."""
        return self.pool(self.cells(features))


def as_tokens(features: jax.Array, pool: int = 0) -> jax.Array:
    """[B, h, w, C] → [B, L, C]; tokens stay as they are.

    A map is first averaged to pool × pool cells, unless `pool` is 0.
    """
    if features.ndim == 4 and pool:
        features = adaptive_average_pool(features, (pool, pool))
    return features.reshape(features.shape[0], -1, features.shape[-1])


def check_width(class_embedding: jax.Array, hidden: int) -> jax.Array:
    """Returns class embeddings [K, hidden] unchanged.

    Raises:
      ValueError: they have another width, which only shared ones can have.
    """
    if class_embedding.shape[-1] != hidden:
        raise ValueError(
            f"the pixel classifier's class embeddings have width {class_embedding.shape[-1]}, but "
            f'the multi-label head that shares them has width {hidden}; set config.model.channels '
            'and config.rankseg.hidden to the same value'
        )
    return class_embedding


ATTENTION_HEADS = {'encoder': EncoderHead, 'decoder': DecoderHead}
POOLING_HEADS = {'global_pool': GlobalPoolHead, 'log_sum_exp': LogSumExpHead}


def build_head(rankseg: ConfigDict, num_classes: int, dtype: Any) -> nn.Module:
    """Builds the head that `rankseg.head` names.

    Args:
      rankseg: the keys of `config.rankseg`, see configs/common.py.
      num_classes: K.
      dtype: of the computation.

    Raises:
      ValueError: the head is unknown, has no class embeddings to share, or its width is not a
        multiple of its attention heads.
    """
    if rankseg.head in POOLING_HEADS:
        if rankseg.share_embedding:
            raise ValueError(
                'config.rankseg.share_embedding needs the encoder or decoder head, not '
                f'{rankseg.head!r}'
            )
        return POOLING_HEADS[rankseg.head](num_classes=num_classes, dtype=dtype)
    if rankseg.head not in ATTENTION_HEADS:
        raise ValueError(
            f'config.rankseg.head = {rankseg.head!r} is unknown; use one of '
            f'{", ".join([*ATTENTION_HEADS, *POOLING_HEADS])}'
        )
    if rankseg.hidden % rankseg.num_heads:
        raise ValueError(
            f'config.rankseg.hidden = {rankseg.hidden} must be a multiple of '
            f'config.rankseg.num_heads = {rankseg.num_heads}'
        )
    options = {'separable': rankseg.separable} if rankseg.head == 'encoder' else {}
    return ATTENTION_HEADS[rankseg.head](
        num_classes=num_classes,
        hidden=rankseg.hidden,
        num_heads=rankseg.num_heads,
        mlp_dim=rankseg.mlp_dim,
        pool=rankseg.pool,
        dtype=dtype,
        **options,
    )
