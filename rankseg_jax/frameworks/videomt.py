"""VidEoMT (Norouzi et al., 2026) with RankSeg: an EoMT whose queries go from frame to frame.

    frames → blocks → in order of time: [queries, tokens of a frame] → joint blocks → predictions
                                            ↑ queries + update(queries of the frame before)

A query stays with its object, so that nothing is left to link, and attention has no masks. What is
known of a video's frames is handed from one clip to the next: a video of any length takes the
memory of a clip. A single image is a clip of one frame.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from rankseg_jax.decoders.query_decoder import mask_products
from rankseg_jax.frameworks import eomt
from rankseg_jax.outputs import Memory, QueryOutput
from rankseg_jax.selector import Choice

CARRIES = True  # from one clip of a video to the next, see `VidEoMT.memory`


class VidEoMT(eomt.EncoderOnly):
    """Clips, frame by frame, → QueryOutput, masks as in `EoMT`.

    The class logits of a clip are those of its queries' mean over the frames. For products this is
    the mean of the frames' class logits, which the authors take. Presence logits are averaged
    likewise. See `Choice.average_over` for averages that each frame has of its own.
    """

    def setup(self) -> None:
        super().setup()
        self.update = nn.Dense(self.backbone.width, dtype=self.dtype)

    def memory(self, count: int) -> Memory:
        """The memory of `count` videos before their first frame."""
        queries = (count, self.num_queries, self.backbone.width)
        return Memory(
            frames=jnp.zeros(count),
            next_queries=jnp.zeros(queries, self.dtype),
            queries=jnp.zeros(queries),
            presence_logits=None if self.rankseg is None else jnp.zeros((count, self.num_classes)),
        )

    def __call__(self, images: jax.Array, *, train: bool, choice: Choice = Choice()) -> QueryOutput:
        """Takes normalized images, or frames of clips, [B · views · t, H, W, 3].

        Raises:
          ValueError: as `head_features` and `QueryClassifier`.
        """
        length, views = choice.frames or 1, choice.views[0] * choice.views[1]
        x, grid, rotation = self.encode(images, train=train)  # [B · views · t, L, D]
        before = self.backbone.norm(x)
        x = x.reshape(-1, length, *x.shape[1:])  # [B · views, t, L, D]
        past = self.memory(x.shape[0]) if choice.memory is None else choice.memory
        shown = jnp.ones(x.shape[:2], bool) if choice.shown is None else choice.shown
        states, next_queries = self.propagate(x, past, shown, rotation=rotation, train=train)

        def averages(values, mean):  # [B · views · t, …] → [B · views, t or 1, …]
            values = values.astype(jnp.float32).reshape(-1, length, *values.shape[1:])
            return averaged(values, mean, count=past.frames, shown=shown, over=choice.average_over)

        # As released, nothing is learned from the prediction before the last block.
        used = [*states[:-2], states[-1]] if train else states[-1:]
        predictions = [self.embeddings(state, grid) for state in used]
        queries = [averages(x, past.queries) for x, *_ in predictions]  # [B · views, t or 1, Q, D]
        mask_logits = [mask_products(*rest) for _, *rest in predictions]  # [B · views · t, Q, h, w]
        if choice.frames is not None:
            mask_logits = [
                x.reshape(-1, length, *x.shape[1:]).swapaxes(1, 2) for x in mask_logits
            ]  # [B · views, Q, t, h, w]
        output = self.decoder(
            self.head_features(before, grid, states),
            [views_last(x, views).astype(self.dtype) for x in queries],
            mask_logits,
            train=train,
            choice=average_choice(choice, queries[0].shape[1]),
            over_frames=lambda x: views_last(averages(x, past.presence_logits), views),
        )
        return clip_output(output, queries[-1], next_queries, past=past, shown=shown, choice=choice)

    def propagate(
        self,
        x: jax.Array,
        past: Memory,
        shown: jax.Array,
        rotation: jax.Array | None,
        *,
        train: bool,
    ) -> tuple[list[jax.Array], jax.Array]:
        """Sends queries through the frames of clips, in order of time.

        Args:
          x: tokens [B, t, L, D] before the joint blocks.
          past: of B clips.
          shown: [B, t] bool; other frames change no query.
          rotation: of the blocks.

        Returns:
          States before the first joint block and after each, with queries in front, a list of
          [B · t, Q + L, D]; without `train`, all but the last have queries alone. And the queries
          that the next frame starts from, [B, Q, D].
        """

        def through_frame(self, start, frame):
            x, shown = frame
            states = [jnp.concatenate([start, x], 1)]  # [B, Q + L, D]
            end = self.backbone.num_layers
            for i in range(end - self.num_joint, end):
                options = {'train': train, 'rotation': rotation}
                states.append(self.backbone.run_block(i, states[-1], **options))
            following = self.update(states[-1][:, : self.num_queries]) + self.queries
            following = following.astype(start.dtype)
            if not train:
                states[:-1] = [state[:, : self.num_queries] for state in states[:-1]]
            return jnp.where(shown[:, None, None], following, start), states

        first = self.backbone.repeat(self.queries, x.shape[0])  # [B, Q, D]
        start = jnp.where(past.frames[:, None, None] > 0, past.next_queries, first)
        scan = nn.scan(
            through_frame,
            variable_broadcast='params',
            split_rngs={'params': False, 'dropout': True},
            in_axes=1,
            out_axes=1,
        )
        # [B, Q, D], and a list of [B, t, Q + L, D]; in prediction all but the last [B, t, Q, D]
        following, states = scan(self, start, (x, shown))
        return [state.reshape(-1, *state.shape[2:]) for state in states], following


def averaged(
    values: jax.Array, mean: jax.Array, count: jax.Array, shown: jax.Array, over: str
) -> jax.Array:
    """Averages over the frames of a video, those before the clip included.

    Args:
      values: [B, t, …] of the frames of clips.
      mean: [B, …] over `count` [B] frames before.
      shown: [B, t] bool, the frames that count.
      over: 'clip', 'past' or 'frame', see `config.eval.average_over`.

    Returns:
      [B, 1, …] of whole clips for 'clip', otherwise [B, t, …].
    """
    if over == 'frame':
        return values

    def wide(x):
        return x.reshape(*x.shape, *(1,) * (values.ndim - x.ndim))

    total = jnp.where(wide(shown), values, 0)
    if over == 'clip':
        total, number = total.sum(1, keepdims=True), shown.sum(1, keepdims=True)
    else:
        total, number = jnp.cumsum(total, 1), jnp.cumsum(shown, 1)
    count = count[:, None]
    return (total + wide(count) * mean[:, None]) / wide(jnp.maximum(number + count, 1))


def views_last(x: jax.Array, views: int) -> jax.Array:
    """Averages [B · views, t, …] as those of images, [B · t · views, …], see `average_choice`."""
    x = x.reshape(-1, views, *x.shape[1:])
    return x.swapaxes(1, 2).reshape(-1, *x.shape[3:])


def average_choice(choice: Choice, length: int) -> Choice:
    """The choice for t averages a clip: one for each of them, as if it were an image."""
    presence, selection = jax.tree.map(
        lambda x: x.reshape(-1, x.shape[-1]) if x.ndim == 3 else jnp.repeat(x, length, axis=0),
        (choice.presence, choice.selection),
    )
    return dataclasses.replace(
        choice, presence=presence, selection=selection, frames=None, shown=None
    )


def clip_output(
    output: QueryOutput,
    queries: jax.Array,
    next_queries: jax.Array,
    past: Memory,
    shown: jax.Array,
    choice: Choice,
) -> QueryOutput:
    """The output of clips from that of their t averages, and what it hands to the next clips.

    Args:
      output: for [B · t · views], see `views_last`.
      queries: [B · views, t, Q, D], averages.
      next_queries: [B · views, Q, D], which the next frame starts from.
      past: before the clips.
      shown: [B · views, t] bool, the frames that count.
    """
    views, length = choice.views[0] * choice.views[1], queries.shape[1]
    presence_logits = output.presence_logits
    if presence_logits is not None:
        presence_logits = presence_logits.reshape(-1, length, presence_logits.shape[-1])
    memory = Memory(
        frames=past.frames + shown.sum(1),
        next_queries=next_queries,
        queries=queries[:, -1],
        presence_logits=None
        if presence_logits is None
        else jnp.repeat(presence_logits[:, -1], views, axis=0),
    )
    cell_logits = output.cell_logits  # [B · t, h, w, K] of frames, in training
    if cell_logits is not None and choice.frames is not None:
        cell_logits = cell_logits.reshape(-1, choice.frames, *cell_logits.shape[1:])
    output = dataclasses.replace(output, cell_logits=cell_logits, memory=memory, follows=True)
    if choice.frames is None or choice.average_over == 'clip':
        return output

    def by_frame(x, count):  # [B · t · count, …] → [B · count, t, …]
        x = x.reshape(-1, length, count, *x.shape[1:])
        return x.swapaxes(1, 2).reshape(-1, length, *x.shape[3:])

    return dataclasses.replace(
        output,
        class_logits=by_frame(output.class_logits, views),
        queries=by_frame(output.queries, views),
        selection=jax.tree.map(lambda x: by_frame(x, 1), output.selection),
        presence_logits=presence_logits,
    )


def build(config: ConfigDict, num_classes: int) -> VidEoMT:
    """The model that `config` (configs/common.py) describes, for K categories.

    Raises:
      ValueError: as `eomt.fields`.
    """
    return VidEoMT(**eomt.fields(config, num_classes))
