"""Where RankSeg enters a per-pixel framework: pixel embeddings × the embeddings of the selected categories."""

from typing import Any

import flax
import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import FrozenConfigDict

from rankseg_jax.multilabel import build_head
from rankseg_jax.ranking import RankTemperature, Selection, gather, select


@flax.struct.dataclass
class PixelOutput:
    """What a per-pixel framework returns.

    Attributes:
      logits: [B, h, w, κ] in rank order; [B, h, w, K] if there is no selection.
      selection: the categories that the ranks stand for; None for the baseline.
      presence_logits: [B, K] of the multi-label head; None for the baseline.
      auxiliary_logits: [B, h', w', κ or K] of the auxiliary head, which only training uses; None where there is none.
    """

    logits: jax.Array
    selection: Selection | None = None
    presence_logits: jax.Array | None = None
    auxiliary_logits: jax.Array | None = None


def choose(options, presence_logits, presence, *, train: bool) -> Selection:
    """The categories that pixels are classified over.

    Args:
      options: the keys of `config.rankseg`, see configs/common.py.
      presence_logits: [B, K] of the multi-label head.
      presence: [B, K] bool, the categories of the ground truth; for training with `missed='force'`, and for the oracle.

    Raises:
      ValueError: the oracle without `presence`, or an unknown option.
    """
    if options.oracle:
        if presence is None:
            raise ValueError(
                'rankseg.oracle selects by the ground truth: give `presence`, or set it to False'
            )
        return select(presence.astype(jnp.float32), options.num_selected)
    if options.missed not in ('force', 'ignore'):
        raise ValueError(
            f"config.rankseg.missed = {options.missed!r} is unknown; use 'force' or 'ignore'"
        )
    forced = presence if train and options.missed == 'force' else None
    return select(presence_logits, options.num_selected, must_include=forced)


class RankScale(nn.Module):
    """What the rank and the score of a category do to its logits, [B, …, κ] -> [B, …, κ].

    Attributes:
      options: the keys of `config.rankseg`.
      tau: what temperatures start from.
      no_object: there is a last logit after the κ, of no category; it has a temperature but no score.
    """

    options: FrozenConfigDict
    tau: float = 1.0
    no_object: bool = False

    @nn.compact
    def __call__(self, logits, selection: Selection):
        shared = self.options.temperature == 'shared'
        num_ranks = self.options.num_selected + self.no_object
        num_ranks, kind = (1, 'temperature') if shared else (num_ranks, self.options.temperature)
        logits = RankTemperature(num_ranks, kind, self.tau, name='temperature')(logits)
        scores = jnp.pad(
            selection.scores, ((0, 0), (0, int(self.no_object))), constant_values=jnp.inf
        )  # certain
        scores = jnp.expand_dims(scores, range(1, logits.ndim - 1))  # [B, 1, …, κ]
        if self.options.oracle:
            return jnp.where(scores > 0, logits, -100.0)  # the absent fill up to κ only
        if self.options.score_prior:
            return logits + jax.nn.log_sigmoid(scores)  # + log p(the image holds the category)
        return logits


class ClassEmbedding(nn.Module):
    """A linear pixel classifier whose rows can be selected: [B, h, w, D] -> [B, h, w, κ or K] float32."""

    num_classes: int
    dim: int

    def setup(self):
        self.embedding = self.param(
            'embedding', nn.initializers.normal(0.02), (self.num_classes, self.dim)
        )
        self.bias = self.param('bias', nn.initializers.zeros, (self.num_classes,))

    def __call__(self, pixels, selection: Selection | None):
        embedding = self.embedding.astype(pixels.dtype)
        if selection is None:
            return (pixels @ embedding.T).astype(jnp.float32) + self.bias  # [B, h, w, K]
        embedding, bias = (
            gather(embedding, selection, 0),
            gather(self.bias, selection, 0),
        )  # [B, κ, D], [B, κ]
        return (
            jnp.einsum('bhwd,bkd->bhwk', pixels, embedding).astype(jnp.float32)
            + bias[:, None, None]
        )


class PixelClassifier(nn.Module):
    """Classifies pixels over the κ categories that a multi-label head ranks first (arXiv 2203.04187, section 3).

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
        pixels,
        features,
        auxiliary=None,
        *,
        train: bool,
        presence=None,
        selection: Selection | None = None,
        all_classes: bool = False,
    ):
        """Pixel embeddings [B, h, w, D] -> PixelOutput.

        Args:
          features: {stride: [B, h', w', C]}, of which the multi-label head sees the map of stride `rankseg.stride`.
          auxiliary: pixel embeddings [B, h'', w'', D''] of an auxiliary head, classified over the same categories.
          presence: see `choose`.
          selection: classify over these categories, chosen elsewhere, instead of the image's own.
          all_classes: leave the selection out this time (the warm-up); static.

        Raises:
          ValueError: there is no map of that stride, or as `choose`.
        """
        options = self.rankseg
        classes = ClassEmbedding(self.num_classes, pixels.shape[-1], name='classes')
        presence_logits = None
        if options is not None:
            if options.stride not in features:
                raise ValueError(
                    f'config.rankseg.stride = {options.stride} must be one of {sorted(features)}'
                )
            head = build_head(options, self.num_classes, self.dtype)
            shared = {'class_embedding': classes.embedding} if options.share_embedding else {}
            presence_logits = head(features[options.stride], **shared, train=train)  # [B, K]
            if options.select and not all_classes and selection is None:
                selection = choose(options, presence_logits, presence, train=train)
        logits = classes(pixels, selection)
        if selection is not None:
            logits = RankScale(options, name='rank')(logits, selection)
        if auxiliary is not None:
            classes = ClassEmbedding(
                self.num_classes, auxiliary.shape[-1], name='auxiliary_classes'
            )
            auxiliary = classes(auxiliary, selection)
        return PixelOutput(logits, selection, presence_logits, auxiliary)
