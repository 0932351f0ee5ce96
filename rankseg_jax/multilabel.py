"""Multi-label classification: which of the K categories does an image hold? (arXiv 2203.04187, section 3.2)

Each head maps features to `class_logits` [B, K]. Features are a coarse map [B, h, w, C] or tokens [B, N, C].
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from rankseg_jax.layers import Block, Mlp, adaptive_average_pool, attend, sine_positions

class_init = nn.initializers.truncated_normal(0.02)


def pixel_counts(labels, num_classes: int):
    """Pixels of each category in each image: [B, …] integers -> [B, K] int32.

    Labels outside 0..K-1 (an ignore label) count for nothing. A scatter: its cost does not grow with pixels × K.
    """
    labels = labels.reshape(labels.shape[0], -1)  # [B, pixels]
    slots = jnp.where((labels >= 0) & (labels < num_classes), labels, num_classes)
    counts = jax.vmap(lambda slots: jnp.zeros(num_classes + 1, jnp.int32).at[slots].add(1))(
        slots
    )  # [B, K + 1]
    return counts[:, :num_classes]


class ClassWiseLinear(nn.Module):
    """One linear classifier for each of K class tokens, [B, K, D] -> [B, K] float32."""

    @nn.compact
    def __call__(self, x):
        num_classes, dim = x.shape[-2:]
        kernel = self.param(
            'kernel',
            nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform', 1, 0),
            (num_classes, dim),
        )
        bias = self.param('bias', nn.initializers.zeros, (num_classes,))
        return jnp.einsum('...kd,kd->...k', x.astype(jnp.float32), kernel) + bias


class EncoderHead(nn.Module):
    """The released default: tokens and K class embeddings pass one transformer block together.

    Attributes:
      num_classes: K.
      hidden: width of the block.
      mlp_dim: width inside its MLP.
      pool: a map is first averaged to pool × pool; 0: as it is.
    """

    num_classes: int
    hidden: int = 512
    num_heads: int = 8
    mlp_dim: int = 2048
    pool: int = 0
    dropout: float = 0.1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features, class_embedding=None, *, train: bool):
        """[B, h, w, C] or [B, N, C], optionally shared class embeddings [K, hidden] -> class_logits [B, K]."""
        tokens = nn.Dense(self.hidden, dtype=self.dtype, name='project')(
            as_tokens(features, self.pool)
        )  # [B, N, D]
        classes = (
            self.param('class_embedding', class_init, (self.num_classes, self.hidden))
            if class_embedding is None
            else check_width(class_embedding, self.hidden)
        )
        classes = jnp.broadcast_to(
            classes.astype(self.dtype), (tokens.shape[0], *classes.shape)
        )  # [B, K, D]
        x = jnp.concatenate([tokens, classes], 1)  # [B, N + K, D]
        x = Block(self.num_heads, self.mlp_dim, self.dropout, dtype=self.dtype, name='block')(
            x, train=train
        )
        x = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name='norm')(
            x[:, tokens.shape[1] :]
        )  # [B, K, D]
        return ClassWiseLinear(name='classify')(x)


class CrossLayer(nn.Module):
    """Post-norm cross-attention without self-attention: queries [B, K, D], memory [B, N, D] -> [B, K, D]."""

    num_heads: int
    mlp_dim: int
    dropout: float
    dtype: Any

    @nn.compact
    def __call__(self, x, memory, query_position, memory_position, *, train: bool):
        drop = nn.Dropout(self.dropout, deterministic=not train)
        attended = nn.MultiHeadDotProductAttention(
            self.num_heads, dtype=self.dtype, attention_fn=attend, name='attention'
        )(
            x + query_position, memory + memory_position, inputs_v=memory, deterministic=not train
        )  # [B, K, D]
        x = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name='norm1')(x + drop(attended))
        y = Mlp(self.mlp_dim, self.dropout, nn.relu, self.dtype, name='mlp')(x, train=train)
        return nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name='norm2')(x + drop(y))


class DecoderHead(nn.Module):
    """Class embeddings query the coarse map through cross-attention layers (Liu et al., 2021).

    Attributes as `EncoderHead`'s; `num_layers` layers.
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
    def __call__(self, features, class_embedding=None, *, train: bool):
        """[B, h, w, C], optionally shared class embeddings [K, hidden] -> class_logits [B, K]."""
        if self.pool:
            features = adaptive_average_pool(features, (self.pool, self.pool))
        height, width = features.shape[1:3]
        position = (
            sine_positions(height, width, self.hidden).reshape(-1, self.hidden).astype(self.dtype)
        )  # [N, D]
        memory = nn.Dense(self.hidden, dtype=self.dtype, name='project')(
            as_tokens(features)
        )  # [B, N, D]
        queries = (
            self.param(
                'class_embedding', nn.initializers.normal(1.0), (self.num_classes, self.hidden)
            )
            if class_embedding is None
            else check_width(class_embedding, self.hidden)
        )
        queries = queries.astype(self.dtype)
        x = jnp.zeros((memory.shape[0], *queries.shape), self.dtype)  # [B, K, D]
        for i in range(self.num_layers):
            x = CrossLayer(
                self.num_heads, self.mlp_dim, self.dropout, self.dtype, name=f'layer{i}'
            )(x, memory, queries, position, train=train)
        return ClassWiseLinear(name='classify')(
            nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name='norm')(x)
        )


class GlobalPoolHead(nn.Module):
    """The mean over positions, one hidden layer of its width, classified: [B, h, w, C] or [B, N, C] -> class_logits [B, K]."""

    num_classes: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features, *, train: bool):
        pooled = as_tokens(features).mean(1)  # [B, C]
        hidden = nn.relu(
            nn.Dense(pooled.shape[-1], dtype=self.dtype, name='hidden')(pooled)
        )  # [B, C]
        return nn.Dense(self.num_classes, dtype=self.dtype, name='classify')(hidden).astype(
            jnp.float32
        )


class LogSumExpHead(nn.Module):
    """Every position is classified; log-sum-exp, a smooth maximum, pools the verdicts.

    [B, h, w, C] or [B, N, C] -> class_logits [B, K]. The mean, not the sum, is taken inside the logarithm, so that the result
    does not depend on the number of positions.
    """

    num_classes: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features, *, train: bool):
        tokens = as_tokens(features)  # [B, N, C]
        logits = nn.Dense(self.num_classes, dtype=self.dtype, name='classify')(tokens).astype(
            jnp.float32
        )  # [B, N, K]
        return jax.nn.logsumexp(logits, axis=1) - jnp.log(tokens.shape[1])


def as_tokens(features, pool: int = 0):
    """[B, h, w, C] -> [B, N, C], averaged to pool × pool first if asked; tokens stay as they are."""
    if features.ndim == 4 and pool:
        features = adaptive_average_pool(features, (pool, pool))
    return features.reshape(features.shape[0], -1, features.shape[-1])


def check_width(class_embedding, hidden: int):
    """Shared class embeddings, if they are as wide as the head; a ValueError that names both widths if not."""
    if class_embedding.shape[-1] != hidden:
        raise ValueError(
            f"the pixel classifier's class embeddings have width {class_embedding.shape[-1]}, but the "
            f'multi-label head that shares them has width {hidden}: make model.channels equal rankseg.hidden'
        )
    return class_embedding


def build_head(rankseg, num_classes: int, dtype) -> nn.Module:
    """The head that `rankseg.head` names, from the `config.rankseg` keys of configs/common.py.

    Raises:
      ValueError: there is no such head, or it has no class embeddings to share.
    """
    options = dict(num_classes=num_classes, dtype=dtype)
    attention = options | dict(
        hidden=rankseg.hidden,
        num_heads=rankseg.num_heads,
        mlp_dim=rankseg.mlp_dim,
        pool=rankseg.pool,
    )
    heads = {
        'encoder': (EncoderHead, attention),
        'decoder': (DecoderHead, attention),
        'global_pool': (GlobalPoolHead, options),
        'log_sum_exp': (LogSumExpHead, options),
    }
    if rankseg.head not in heads:
        raise ValueError(
            f'config.rankseg.head = {rankseg.head!r} is unknown; use one of {", ".join(heads)}'
        )
    if rankseg.share_embedding and rankseg.head not in ('encoder', 'decoder'):
        raise ValueError(
            f'config.rankseg.share_embedding needs the encoder or decoder head, not {rankseg.head!r}'
        )
    if rankseg.head in ('encoder', 'decoder') and rankseg.hidden % rankseg.num_heads:
        raise ValueError(
            f'config.rankseg.hidden = {rankseg.hidden} must be a multiple of num_heads = {rankseg.num_heads}'
        )
    head, fields = heads[rankseg.head]
    return head(**fields)
