"""Building blocks shared by backbones, decoders and heads. Images are channels-last."""

from collections.abc import Callable, Sequence
from functools import partial
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from rankseg_jax.depthwise import depthwise

REMAT_POLICIES = ('nothing_saveable', 'dots_with_no_batch_dims_saveable')
linear_init = nn.initializers.xavier_uniform()


def remat(run: Callable, policy: str | None) -> Callable:
    """A function of modules and arrays that the backward pass runs again: less memory, more time.

    Args:
      policy: the name in `jax.checkpoint_policies`, one of REMAT_POLICIES, that says which results
        are kept; None: all, and nothing runs again.
    """
    return nn.remat(run, policy=getattr(jax.checkpoint_policies, policy)) if policy else run


class ConvNorm(nn.Module):
    """Convolution, batch norm, activation: any [B, H, W, C] → [B, ceil(H / s), ceil(W / s), D].

    Under jit a batch axis sharded over a mesh is still one batch, so the statistics are those of
    the global batch. As everywhere in Flax, the running variance is the biased one.

    Attributes:
      features: D.
      kernel: side of the kernel.
      stride: s.
      dilation: of the kernel.
      groups: of channels that are convolved on their own; C: a depthwise convolution.
      same: pad as TensorFlow's 'SAME', which depends on the input's size; otherwise by
        dilation · (kernel // 2) on every side, as in PyTorch.
      activation: that follows; None: none.
      frozen: whether the norm keeps its statistics, scale and bias in training too.
      epsilon: of the norm.
      scale_init: initializer of the norm's scale.
      dtype: of the computation; parameters and statistics are float32.
    """

    features: int
    kernel: int = 3
    stride: int = 1
    dilation: int = 1
    groups: int = 1
    same: bool = False
    activation: Callable | None = nn.relu
    frozen: bool = False
    epsilon: float = 1e-5
    scale_init: Any = nn.initializers.ones
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        pad = self.dilation * (self.kernel // 2)
        x = nn.Conv(
            self.features,
            (self.kernel, self.kernel),
            (self.stride, self.stride),
            padding='SAME' if self.same else ((pad, pad), (pad, pad)),
            kernel_dilation=self.dilation,
            feature_group_count=self.groups,
            use_bias=False,
            # As by He et al.; of a kernel's outputs, an input reaches those of its group.
            kernel_init=nn.initializers.variance_scaling(2.0 * self.groups, 'fan_out', 'normal'),
            conv_general_dilated=depthwise if self.groups == x.shape[-1] == self.features else None,
            dtype=self.dtype,
            name='conv',
        )(x)
        batch_norm = nn.BatchNorm
        if self.frozen:
            batch_norm = nn.map_variables(
                batch_norm, 'params', jax.lax.stop_gradient, init=self.is_initializing()
            )
        x = batch_norm(
            use_running_average=self.frozen or not train,
            momentum=0.9,
            epsilon=self.epsilon,
            scale_init=self.scale_init,
            dtype=self.dtype,
            name='norm',
        )(x)
        return self.activation(x) if self.activation else x


def resize(x: jax.Array, shape: Sequence[int]) -> jax.Array:
    """Bilinear resize of [..., h, w, C] to [..., *shape, C], half-pixel centers, no antialiasing.

    Equals `torch.nn.functional.interpolate(mode='bilinear', align_corners=False)`, either way.
    """
    return jax.image.resize(x, (*x.shape[:-3], *shape, x.shape[-1]), 'bilinear', antialias=False)


def unit(x: jax.Array) -> jax.Array:
    """Vectors [..., D] scaled to length 1; one of length 0 stays 0, with finite gradients."""
    return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), 1e-12))


def adaptive_average_pool(x: jax.Array, shape: Sequence[int]) -> jax.Array:
    """Means over a grid of windows, [..., h, w, C] → [..., *shape, C], for any two sizes.

    Equals `torch.nn.functional.adaptive_avg_pool2d`: window i of n spans floor(i·h/n) to
    ceil((i+1)·h/n), so windows overlap where n does not divide h.
    """

    def windows(size, count):
        index = np.arange(count)[:, None]
        start, stop = index * size // count, -(-(index + 1) * size // count)
        inside = (np.arange(size) >= start) & (np.arange(size) < stop)  # [count, size]
        return (inside / (stop - start)).astype(np.float32)

    rows, columns = (windows(n, m) for n, m in zip(x.shape[-3:-1], shape, strict=True))
    pooled = jnp.einsum('...hwc,ih,jw->...ijc', x, rows, columns, precision='highest')
    return pooled.astype(x.dtype)


class Mlp(nn.Module):
    """Two dense layers, [..., D] → [..., D], with dropout between them in training."""

    hidden: int
    dropout: float = 0.0
    activation: Callable = partial(nn.gelu, approximate=False)
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        y = self.activation(nn.Dense(self.hidden, dtype=self.dtype)(x))  # [..., hidden]
        y = nn.Dropout(self.dropout, deterministic=not train)(y)
        return nn.Dense(x.shape[-1], dtype=self.dtype)(y)  # [..., D]


class GatedMlp(nn.Module):
    """silu(gate) · up, then down (Shazeer, 2020): [..., D] → [..., D]; dropout as in `Mlp`."""

    hidden: int
    dropout: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        gate = nn.Dense(self.hidden, dtype=self.dtype, name='gate')(x)  # [..., hidden]
        y = nn.silu(gate) * nn.Dense(self.hidden, dtype=self.dtype, name='up')(x)
        y = nn.Dropout(self.dropout, deterministic=not train)(y)
        return nn.Dense(x.shape[-1], dtype=self.dtype, name='down')(y)  # [..., D]


@partial(jax.jit, static_argnames='dropout_rate')
def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    bias: jax.Array | None = None,
    mask: jax.Array | None = None,
    dropout_rng: jax.Array | None = None,
    dropout_rate: float = 0.0,
) -> jax.Array:
    """Softmax attention for `nn.MultiHeadDotProductAttention`.

    The softmax is computed in float32 or finer. A CPU takes one head after another, so that the
    scores stay in its cache: for a ViT-B at 512 × 512 they take 4 MB for one head, 50 MB for all.
    The backward pass computes the scores, and draws the dropped weights, again instead of keeping
    them.

    Args:
      query: [..., targets, heads, depth].
      key: [..., sources, heads, depth].
      value: [..., sources, heads, depth].
      bias: [heads, targets, sources], added to the scores.
      mask: bool [..., targets, sources], where a target may look, the same for all heads; each
        target needs at least one such source.
      dropout_rng: random key; None: no weight is dropped.
      dropout_rate: probability that a weight is dropped, each on its own; the others are divided by
        1 - dropout_rate.

    Returns:
      [..., targets, heads, depth].
    """

    @jax.checkpoint
    def one_head(inputs):
        q, k, v, b, rng = inputs  # of this head, without the axis of heads
        scores = jnp.einsum(
            '...td,...sd->...ts',
            q * q.shape[-1] ** -0.5,
            k,
            preferred_element_type=jnp.promote_types(q.dtype, 'float32'),
        )  # [..., targets, sources]
        scores = scores if b is None else scores + b
        scores = scores if mask is None else jnp.where(mask, scores, -jnp.inf)
        weights = nn.softmax(scores)
        if rng is not None:
            kept = draw_kept(rng, weights.shape, dropout_rate)
            weights = jnp.where(kept, weights / (1 - dropout_rate), 0)
        return jnp.einsum('...ts,...sd->...td', weights.astype(v.dtype), v)

    rngs = None if dropout_rng is None else jax.random.split(dropout_rng, query.shape[-2])
    # [heads, ..., targets or sources, depth], the bias [heads, targets, sources], keys [heads]
    heads = [*(jnp.moveaxis(x, -2, 0) for x in (query, key, value)), bias, rngs]
    out = jax.lax.platform_dependent(
        heads, cpu=lambda heads: jax.lax.map(one_head, heads), default=jax.vmap(one_head)
    )
    return jnp.moveaxis(out, 0, -2)


def draw_kept(rng: jax.Array, shape: tuple[int, ...], dropout_rate: float) -> jax.Array:
    """Draws what dropout keeps, bool of `shape` [..., n, m], with a rate rounded to 2⁻¹⁶.

    Two elements share 32 random bits, which takes half the time of `jax.random.bernoulli`.
    """
    *batch, n, m = shape
    words = jax.random.bits(rng, (*batch, -(-n // 2), m))  # uint32
    bits = jnp.concatenate([words & 0xFFFF, words >> 16], -2)[..., :n, :]  # 16 in each
    return bits >= round(dropout_rate * 2**16)


class SelfAttention(nn.Module):
    """Tokens attend to each other, [B, tokens, D] → [B, tokens, D].

    Its parameters are those of `nn.MultiHeadDotProductAttention`.

    Attributes:
      num_heads: of which each has D / num_heads channels.
      dropout: rate of attention weights, in training.
      unbiased: those of 'query', 'key' and 'value' whose projection has no bias.
    """

    num_heads: int
    dropout: float = 0.0
    unbiased: tuple[str, ...] = ()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        *,
        train: bool,
        bias: jax.Array | None = None,
        mask: jax.Array | None = None,
        rotation: jax.Array | None = None,
    ) -> jax.Array:
        """Attends.

        Args:
          bias: [heads, tokens, tokens], added to the scores.
          mask: bool [B, tokens, tokens], where a token may look, see `attend`.
          rotation: of queries and keys, see `rotate`.
        """
        width = x.shape[-1]

        def project(name):  # [B, tokens, heads, depth]
            return nn.DenseGeneral(
                (self.num_heads, width // self.num_heads),
                use_bias=name not in self.unbiased,
                dtype=self.dtype,
                name=name,
            )(x)

        query, key, value = (project(name) for name in ('query', 'key', 'value'))
        if rotation is not None:
            query, key = rotate(query, rotation), rotate(key, rotation)
        y = attend(
            query,
            key,
            value,
            bias=bias,
            mask=mask,
            dropout_rng=self.make_rng('dropout') if train and self.dropout else None,
            dropout_rate=self.dropout,
        )  # [B, tokens, heads, depth]
        return nn.DenseGeneral(width, axis=(-2, -1), dtype=self.dtype, name='out')(y)


def rotate(x: jax.Array, angles: jax.Array) -> jax.Array:
    """Rotates pairs of channels of the last L tokens (Su et al., 2021); the others stay.

    Channels j and j + depth / 2 make a pair.

    Args:
      x: [B, tokens, heads, depth].
      angles: float32 [L, depth / 2].
    """
    others, x = jnp.split(x, [x.shape[1] - len(angles)], axis=1)
    cos, sin = jnp.cos(angles)[:, None], jnp.sin(angles)[:, None]  # [L, 1, depth / 2]
    a, b = jnp.split(x.astype(angles.dtype), 2, axis=-1)
    rotated = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)
    return jnp.concatenate([others, rotated.astype(x.dtype)], 1)


class Block(nn.Module):
    """A pre-norm transformer block, [B, tokens, D] → [B, tokens, D].

    Attributes:
      num_heads: attention heads.
      mlp_dim: width inside the MLP.
      dropout: rate of attention weights and after each projection, in training.
      drop_path: in training, the probability that a branch is left out for an image (Huang et al.,
        2016).
      epsilon: of the layer norms.
      layer_scale: initial factor of each channel of both branches (Touvron et al., 2021); None: the
        branches have no such factors.
      gated: the MLP is a `GatedMlp`.
      unbiased: see `SelfAttention`.
    """

    num_heads: int
    mlp_dim: int
    dropout: float = 0.0
    drop_path: float = 0.0
    epsilon: float = 1e-5
    layer_scale: float | None = None
    gated: bool = False
    unbiased: tuple[str, ...] = ()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        *,
        train: bool,
        bias: jax.Array | None = None,
        mask: jax.Array | None = None,
        rotation: jax.Array | None = None,
    ) -> jax.Array:
        """Updates tokens; `bias`, `mask` and `rotation` as in `SelfAttention`."""
        drop = nn.Dropout(self.dropout, deterministic=not train)
        drop_path = nn.Dropout(self.drop_path, broadcast_dims=(1, 2), deterministic=not train)

        def add(x, y, number):
            y = drop(y)
            if self.layer_scale is not None:
                init = nn.initializers.constant(self.layer_scale)
                scale = self.param(f'layer_scale{number}', init, (x.shape[-1],))
                y = y * scale.astype(self.dtype)
            return x + drop_path(y)

        y = nn.LayerNorm(epsilon=self.epsilon, dtype=self.dtype)(x)
        attention = SelfAttention(
            num_heads=self.num_heads,
            dropout=self.dropout,
            unbiased=self.unbiased,
            dtype=self.dtype,
            name='MultiHeadDotProductAttention_0',
        )
        y = attention(y, train=train, bias=bias, mask=mask, rotation=rotation)
        x = add(x, y, 1)
        y = nn.LayerNorm(epsilon=self.epsilon, dtype=self.dtype)(x)
        mlp = GatedMlp if self.gated else Mlp
        y = mlp(self.mlp_dim, self.dropout, dtype=self.dtype)(y, train=train)
        return add(x, y, 2)


class PostNormLayer(nn.Module):
    """A post-norm transformer layer whose tokens look at others, or at themselves.

    Attributes:
      num_heads: attention heads.
      mlp_dim: width inside the MLP.
      dropout: rate in training, of attention weights, within the MLP and after both parts.
    """

    num_heads: int
    mlp_dim: int
    dropout: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        memory: jax.Array,
        query_position: jax.Array,
        memory_position: jax.Array,
        *,
        train: bool,
    ) -> jax.Array:
        """[B, M, D] look at `memory` [B, L, D], each plus its position codes: → [B, M, D]."""
        drop = nn.Dropout(self.dropout, deterministic=not train)
        attention = nn.MultiHeadDotProductAttention(
            num_heads=self.num_heads,
            dtype=self.dtype,
            dropout_rate=self.dropout,
            attention_fn=attend,
            name='attention',
        )
        query, key = x + query_position, memory + memory_position  # [B, M, D], [B, L, D]
        y = attention(query, key, inputs_v=memory, deterministic=not train)  # [B, M, D]
        x = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name='norm1')(x + drop(y))
        mlp = Mlp(
            hidden=self.mlp_dim,
            dropout=self.dropout,
            activation=nn.relu,
            dtype=self.dtype,
            name='mlp',
        )
        y = mlp(x, train=train)  # [B, M, D]
        return nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name='norm2')(x + drop(y))


def sine_positions(height: int, width: int, dim: int) -> jax.Array:
    """Sine and cosine codes of the positions of a grid, float32 [height, width, dim].

    The first half of the channels codes the row, the second the column, both scaled to (0, 2π]
    (Carion et al., 2020).

    Raises:
      ValueError: `dim` is not a multiple of 4.
    """
    if dim % 4:
        raise ValueError(f'position codes need a width that is a multiple of 4, got {dim}')
    rows, columns = (
        sine_code(np.arange(1, size + 1) / (size + 1e-6), dim // 2, np) for size in (height, width)
    )  # [height, dim / 2], [width, dim / 2]
    rows = np.broadcast_to(rows[:, None], (height, width, dim // 2))
    columns = np.broadcast_to(columns[None], (height, width, dim // 2))
    return jnp.asarray(np.concatenate([rows, columns], -1), jnp.float32)


def sine_code(
    share: jax.Array | np.ndarray, dim: int, np: ModuleType = jnp
) -> jax.Array | np.ndarray:
    """Sine and cosine codes of shares of a length, in (0, 1]: [...] → [..., dim].

    Args:
      np: NumPy's or JAX's functions.
    """
    frequencies = 10_000.0 ** (-2 * np.arange(dim // 2) / dim)  # [dim / 2]
    angles = 2 * np.pi * share[..., None] * frequencies  # [..., dim / 2]
    codes = np.stack([np.sin(angles), np.cos(angles)], -1)  # interleaved
    return codes.reshape(*share.shape, dim)
