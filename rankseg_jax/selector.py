"""The category selector (arXiv 2203.04187, section 3): which categories, in which order.

    features → multi-label head → presence_logits → pool over a group → Selection → rank scale

The windows and mirror images of an image, or the frames of a clip, form a group. A group shares one
selection, so that a rank means the same in all its members.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from ml_collections import ConfigDict, FrozenConfigDict

from rankseg_jax.multilabel import LogSumExpHead, build_head
from rankseg_jax.outputs import Memory
from rankseg_jax.ranking import RankTemperature, Selection, select


@struct.dataclass
class Choice:
    """What a model is told besides its images, above all about their categories.

    Attributes:
      presence: [B, K] bool, the categories in the ground truth. Training forces them into the
        selection (`rankseg.missed='force'`), and the oracle selects them.
      selection: classify over these categories, chosen elsewhere, instead of choosing.
      shown: [B · views, t] bool, the frames of clips that are not padding; None: all.
      frames: t, static: the batch holds the t frames of a clip where that of images holds an image;
        None: images.
      views: (mirrors, windows), static. The batch holds mirrors · windows images for each of the B
        selections, one group after another; within a group all windows of one mirror image come
        first.
      all_classes: classify over all K this time (the warm-up); static.
      step: [] int32, the number of training steps done; None: unknown.
      memory: of the frames before the clips, for a model that carries it; None: there are none.
      average_over: see `config.eval.average_over`; static.
    """

    presence: jax.Array | None = None
    selection: Selection | None = None
    shown: jax.Array | None = None
    frames: int | None = struct.field(pytree_node=False, default=None)
    views: tuple[int, int] = struct.field(pytree_node=False, default=(1, 1))
    all_classes: bool = struct.field(pytree_node=False, default=False)
    step: jax.Array | None = None
    memory: Memory | None = None
    average_over: str = struct.field(pytree_node=False, default='clip')

    def by_frame(self) -> 'Choice':
        """The same for what sees frames one by one: those of a clip are windows like others."""
        if self.frames is None:
            return self
        mirrors, windows = self.views
        shown = None if self.shown is None else self.shown.reshape(-1, 1)
        views = mirrors, windows * self.frames
        return dataclasses.replace(self, views=views, frames=None, shown=shown)

    def spread(self, selection: Selection | None) -> Selection | None:
        """Repeats a selection of B groups for every image of each group."""
        count = self.views[0] * self.views[1]
        if selection is None or count == 1:
            return selection
        return jax.tree.map(lambda x: jnp.repeat(x, count, axis=0), selection)


class CategorySelector(nn.Module):
    """Features → (presence_logits [B, K], Selection [B, κ] or None, cell_logits or None).

    cell_logits [B · views, h, w, K] are what a `LogSumExpHead` pools of a map, in training only.

    Attributes:
      num_classes: K.
      options: the keys of `config.rankseg`, see configs/common.py.
    """

    num_classes: int
    options: FrozenConfigDict
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        features: jax.Array,
        choice: Choice,
        class_embedding: jax.Array | None,
        *,
        train: bool,
        over_frames: Callable | None = None,
    ) -> tuple[jax.Array, Selection | None, jax.Array | None]:
        """Ranks the categories of each group of images.

        Args:
          features: [B · views, h, w, C] or tokens [B · views, L, C].
          choice: that of `Choice.by_frame` if these are features of single frames.
          class_embedding: [K, D] of the classifier; the head uses it with `share_embedding`.
          over_frames: makes the presence logits of `choice`'s images from those of `features`.

        Raises:
          ValueError: as `build_head` and `choose`.
        """
        head = build_head(self.options, self.num_classes, self.dtype)
        nn.share_scope(self, head)  # the head's parameters lie directly under this module's name
        shared = {'class_embedding': class_embedding} if self.options.share_embedding else {}
        cell_logits = None
        if train and isinstance(head, LogSumExpHead) and features.ndim == 4:
            cell_logits = head.cells(features)  # [B · views, h, w, K]
            presence_logits = head.pool(cell_logits)  # [B · views, K]
        else:
            presence_logits = head(features, **shared, train=train)  # [B · views, K]
        if over_frames is not None:
            presence_logits = over_frames(presence_logits)
        return *choose(self.options, presence_logits, choice, train=train), cell_logits


def choose(
    options: ConfigDict, presence_logits: jax.Array, choice: Choice, *, train: bool
) -> tuple[jax.Array, Selection | None]:
    """Pools the presence logits of each group and selects its categories, unless told otherwise.

    Args:
      options: the keys of `config.rankseg`.
      presence_logits: [B · views, K] of the multi-label head.

    Returns:
      presence_logits [B, K], and the selection: `choice.selection` if there is one, None where
      nothing is selected.

    Raises:
      ValueError: the oracle without `choice.presence`, or an unknown option.
    """
    presence_logits = pool(presence_logits, choice)  # [B, K]
    if not options.select or choice.all_classes or choice.selection is not None:
        return presence_logits, choice.selection
    kept = num_ranks(options, presence_logits.shape[-1]) if train else options.num_selected
    if options.oracle:
        if choice.presence is None:
            raise ValueError(
                'config.rankseg.oracle = True selects by the ground truth: '
                'give `presence`, or set it to False'
            )
        scores = choice.presence.astype(jnp.float32)  # [B, K]
        return presence_logits, select(scores, kept)
    if options.missed not in ('force', 'ignore'):
        raise ValueError(
            f"config.rankseg.missed = {options.missed!r} is unknown; use 'force' or 'ignore'"
        )
    forced = choice.presence if train and options.missed == 'force' else None
    return presence_logits, select(presence_logits, kept, must_include=forced)


def num_ranks(options: ConfigDict, num_classes: int) -> int:
    """How many categories training keeps: `rankseg.train_selected`, at least κ and at most K."""
    return min(max(options.num_selected, options.train_selected), num_classes)


def pool(presence_logits: jax.Array, choice: Choice) -> jax.Array:
    """[B · mirrors · windows, K] → [B, K]: the best over windows, the mean over mirror images."""
    if choice.views == (1, 1):
        return presence_logits
    # [B, mirrors, windows, K]
    grouped = presence_logits.reshape(-1, *choice.views, presence_logits.shape[-1])
    if choice.shown is not None and choice.frames is None:
        shown = choice.shown.reshape(-1, *choice.views, 1)  # [B, mirrors, windows, 1]
        grouped = jnp.where(shown, grouped, -jnp.inf)
    return grouped.max(2).mean(1)  # [B, K]


def ranked_categories(
    options: ConfigDict, presence_logits: jax.Array, selection: Selection | None
) -> Selection:
    """The κ categories that the multi-label head ranks first, even if others were selected."""
    if selection is None or options.oracle:
        return select(presence_logits, options.num_selected)
    return selection


def head_feature(options: ConfigDict, features: Mapping[int, jax.Array]) -> jax.Array:
    """The map that the multi-label head sees: the one of stride `rankseg.stride`.

    Args:
      features: {stride: [B, h, w, C]}.

    Raises:
      ValueError: there is no map of that stride.
    """
    if options.stride not in features:
        raise ValueError(
            f'config.rankseg.stride = {options.stride} must be one of {sorted(features)}'
        )
    return features[options.stride]


COSINE_TAU = 0.07  # initial temperature over cosines, which lie within ±1


class RankScale(nn.Module):
    """Scales the logits by rank and by the score of their category: [B, …, κ] → [B, …, κ].

    Attributes:
      options: the keys of `config.rankseg`.
      num_classes: K.
      tau: initial temperature.
      no_object: a last logit, which stands for no category, follows the κ ranks; it has a
        temperature but no score.

    Raises:
      ValueError: as `RankTemperature`.
    """

    options: FrozenConfigDict
    num_classes: int
    tau: float = 1.0
    no_object: bool = False

    @nn.compact
    def __call__(self, logits: jax.Array, selection: Selection) -> jax.Array:
        ranks, kind = num_ranks(self.options, self.num_classes), self.options.temperature
        if kind == 'shared':
            scale = RankTemperature(1, 'temperature', self.tau, name='temperature')
        else:
            scale = RankTemperature(
                ranks, kind, tau=self.tau, no_object=self.no_object, name='temperature'
            )
        logits = scale(logits)
        scores = selection.scores  # [B, κ]
        if self.no_object:  # is always present
            scores = jnp.pad(scores, ((0, 0), (0, 1)), constant_values=jnp.inf)  # [B, κ + 1]
        scores = jnp.expand_dims(scores, range(1, logits.ndim - 1))  # [B, 1, …, κ]
        if self.options.oracle:
            # Absent categories only fill the selection up to κ.
            return jnp.where(scores > 0, logits, -100.0)
        if self.options.score_prior:
            return logits + jax.nn.log_sigmoid(scores)  # + log p(the image holds the category)
        return logits
