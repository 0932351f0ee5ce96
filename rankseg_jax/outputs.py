"""The two kinds of output: per pixel and per query, both in rank space.

`*space` is (h, w) for images and (t, h, w) for clips; only `split_views`, `by_clip` and `frame`
tell them apart.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from rankseg_jax.ranking import Selection


@struct.dataclass
class PixelOutput:
    """Output of a per-pixel framework.

    Attributes:
      logits: [B, *space, κ] in rank order; [B, *space, K] without a selection.
      selection: the categories that the ranks stand for; None for the baseline.
      presence_logits: [B, K] of the multi-label head; None for the baseline.
      auxiliary_logits: [B, *space', κ or K] of the auxiliary head, used in training only, over all
        K without `rankseg.select_auxiliary`; None without such a head.
      cell_logits: [B, *space'', K] of the cells of the map that the multi-label head sees, used in
        training only; None if there are none.
      direct: logits are resized directly to the image, not to the network's input first; static.
    """

    logits: jax.Array
    selection: Selection | None = None
    presence_logits: jax.Array | None = None
    auxiliary_logits: jax.Array | None = None
    cell_logits: jax.Array | None = None
    direct: bool = struct.field(pytree_node=False, default=False)

    joins_windows = True  # in `split_views`

    @property
    def cells(self) -> tuple[int, int]:
        """(h, w) of the logits."""
        return self.logits.shape[-3], self.logits.shape[-2]

    def split_views(self, mirrors: int, windows: tuple[int, int]) -> list['PixelOutput']:
        """An output for each mirror image, with the logits of its windows side by side.

        Args:
          mirrors: mirror images in the batch, see `selector.Choice`.
          windows: (n, m), windows below and beside each other.
        """
        height, width, num_ranks = self.logits.shape[-3:]
        (n, m), time = windows, self.logits.shape[1:-3]  # (t,) of a clip
        logits = self.logits.reshape(-1, mirrors, n, m, math.prod(time), height, width, num_ranks)
        logits = logits.transpose(0, 1, 4, 2, 5, 3, 6, 7)  # [B, mirrors, t, n, h, m, w, κ]
        logits = logits.reshape(-1, mirrors, *time, n * height, m * width, num_ranks)
        return [PixelOutput(logits[:, i]) for i in range(mirrors)]

    def by_clip(self, length: int) -> 'PixelOutput':
        """The output for clips of `length` frames, from that for their frames."""

        def by_clip(logits):
            return logits.reshape(-1, length, *logits.shape[1:])

        names = ('logits', 'auxiliary_logits', 'cell_logits')
        by_frame = {name: x for name in names if (x := getattr(self, name)) is not None}
        return dataclasses.replace(self, **jax.tree.map(by_clip, by_frame))

    def frame(self, number: jax.Array) -> 'PixelOutput':
        """The output for a frame of each clip, as for an image; `number`: [] int32."""
        logits = lax.dynamic_index_in_dim(self.logits, number, 1, keepdims=False)
        return PixelOutput(logits, direct=self.direct)

    def keep_ranks(self, kept: jax.Array) -> 'PixelOutput':
        """The same where only the first `kept` [B] ranks can win a pixel."""
        return dataclasses.replace(self, logits=keep_ranks(self.logits, kept))

    def settle(self, size: tuple[int, int]) -> 'PixelOutput':
        """The same, to be resized directly to the image; `size` is (-1, -1)."""
        return dataclasses.replace(self, direct=True)

    def rank_scores(self, rows: jax.Array, columns: jax.Array, *, probabilities: bool) -> jax.Array:
        """Scores of the ranks in a tile of the result, [B, *t, *tile, κ] float32.

        Args:
          rows: [B, tile[0], h], weights of the logits' rows.
          columns: [B, tile[1], w], weights of the logits' columns.
          probabilities: normalize over the ranks, so that scores of several views add up.
        """
        logits = jnp.einsum('brh,b...hwk->b...rwk', rows, self.logits, precision='highest')
        logits = jnp.einsum('bcw,b...rwk->b...rck', columns, logits, precision='highest')
        return jax.nn.softmax(logits) if probabilities else logits


@struct.dataclass
class Memory:
    """What a model keeps of the frames of videos that it has seen; zeros before the first.

    Attributes:
      frames: [B] float32, their number.
      next_queries: [B, Q, D], which the next frame starts from.
      queries: [B, Q, D] float32, the mean of the queries that were classified.
      presence_logits: [B, K] float32, their mean; None for the baseline.
    """

    frames: jax.Array
    next_queries: jax.Array
    queries: jax.Array
    presence_logits: jax.Array | None


@struct.dataclass
class QueryOutput:
    """Output of a per-query framework.

    Attributes:
      class_logits: [B, Q, κ + 1] in rank order, no-object last; [B, Q, K + 1] without a selection.
        Where each frame of a clip has its own, [B, t, Q, …]; selection, presence_logits and queries
        then have the axis of time at the same place.
      mask_logits: [B, Q, *space] at stride 4.
      selection: the categories that the ranks stand for; None for the baseline.
      presence_logits: [B, K] of the multi-label head; None for the baseline.
      cell_logits: [B, *space', K], as in `PixelOutput`.
      queries: [B, Q, D], the embeddings that are classified.
      auxiliary: (class_logits, mask_logits) of the earlier predictions, first to last, used in
        training only.
      memory: what the next clip of a video goes on from, for a model that carries it.
      direct: `mask_logits` hold probabilities, to be resized directly to the image, see `settle`;
        static.
      follows: a query stays with its object from frame to frame and from clip to clip; static.
    """

    class_logits: jax.Array
    mask_logits: jax.Array
    selection: Selection | None = None
    presence_logits: jax.Array | None = None
    cell_logits: jax.Array | None = None
    queries: jax.Array | None = None
    auxiliary: tuple = ()
    memory: Memory | None = None
    direct: bool = struct.field(pytree_node=False, default=False)
    follows: bool = struct.field(pytree_node=False, default=False)

    joins_windows = False  # each window has queries of its own

    @property
    def cells(self) -> tuple[int, int]:
        """(h, w) of the masks."""
        return self.mask_logits.shape[-2], self.mask_logits.shape[-1]

    def split_views(self, mirrors: int, windows: tuple[int, int]) -> list['QueryOutput']:
        """An output for each window of each mirror image; see `PixelOutput.split_views`."""
        count = mirrors * math.prod(windows)
        return [
            QueryOutput(
                class_logits=self.class_logits[i::count],
                mask_logits=self.mask_logits[i::count],
                queries=None if self.queries is None else self.queries[i::count],
                direct=self.direct,
                follows=self.follows,
            )
            for i in range(count)
        ]

    def by_clip(self, length: int) -> 'QueryOutput':
        """The same: its masks have an axis of time already."""
        return self

    def frame(self, number: jax.Array) -> 'QueryOutput':
        """The output for a frame of each clip, as for an image; `number`: [] int32."""
        take = functools.partial(lax.dynamic_index_in_dim, index=number, keepdims=False)
        frame = dataclasses.replace(self, mask_logits=take(self.mask_logits, axis=2), auxiliary=())
        if self.class_logits.ndim == 3:
            return frame
        frame_arrays = {
            name: take(getattr(self, name), axis=1) for name in ('class_logits', 'queries')
        }
        return dataclasses.replace(frame, **frame_arrays)

    def keep_ranks(self, kept: jax.Array) -> 'QueryOutput':
        """The same where queries have one of the first `kept` [B] ranks, or none."""
        ranks, no_object = self.class_logits[..., :-1], self.class_logits[..., -1:]
        logits = jnp.concatenate([keep_ranks(ranks, kept), no_object], axis=-1)
        return dataclasses.replace(self, class_logits=logits)

    def settle(self, size: tuple[int, int]) -> 'QueryOutput':
        """Turns mask logits into probabilities before they are resized to the image.

        The post-processing of Hugging Face's transformers does the same.

        Args:
          size: (rows, columns) that logits are resized to first; (-1, -1): their own.
        """
        logits = self.mask_logits.astype(jnp.float32)
        if tuple(size) != (-1, -1):
            shape = (*logits.shape[:-2], *size)
            logits = jax.image.resize(logits, shape, 'bilinear', antialias=False)
        return dataclasses.replace(self, mask_logits=jax.nn.sigmoid(logits), direct=True)

    def mask_probabilities(self, rows: jax.Array, columns: jax.Array) -> jax.Array:
        """σ of the masks in a tile of the result, [B, Q, *t, *tile] float32.

        Args: as `PixelOutput.rank_scores`.
        """
        masks = self.mask_logits.astype(jnp.float32)
        masks = jnp.einsum('brh,b...hw->b...rw', rows, masks, precision='highest')
        masks = jnp.einsum('bcw,b...rw->b...rc', columns, masks, precision='highest')
        return masks if self.direct else jax.nn.sigmoid(masks)

    def rank_scores(self, rows: jax.Array, columns: jax.Array, *, probabilities: bool) -> jax.Array:
        """Σ over the queries of p(rank | query) · σ(mask), as `PixelOutput.rank_scores`."""
        del probabilities  # scores of queries are probabilities in any case
        classes = jax.nn.softmax(self.class_logits.astype(jnp.float32))[..., :-1]  # [B, Q, κ]
        masks = self.mask_probabilities(rows, columns)  # [B, Q, *t, *tile]
        return jnp.einsum('bq...,bqk->b...k', masks, classes, precision='highest')


def keep_ranks(logits: jax.Array, kept: jax.Array) -> jax.Array:
    """Logits [B · views, …, κ] that are as low as can be from rank `kept` [B] on.

    They stay finite, since they are interpolated: 0 · ∞ is no number.
    """
    kept = jnp.repeat(kept, len(logits) // len(kept))
    kept = jnp.expand_dims(kept, range(1, logits.ndim))  # [B · views, 1, …, 1]
    lowest = jnp.finfo(logits.dtype).min / 2
    return jnp.where(jnp.arange(logits.shape[-1]) < kept, logits, lowest)
