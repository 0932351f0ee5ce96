"""From images of any size to a task's maps: cut into windows, select, forward, assemble.

Images are seen whole or by sliding windows, at several scales, mirrored too. The categories of an
image are selected once, from all its views, so that a rank means the same in each of them. Clips
pass the network as a whole; from then on each of their frames is treated like an image.
"""

import collections
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jax import lax
from ml_collections import ConfigDict

from rankseg_jax import models, selector, sharding
from rankseg_jax.data import IGNORE_LABEL
from rankseg_jax.multilabel import pixel_counts
from rankseg_jax.outputs import Memory, PixelOutput, QueryOutput
from rankseg_jax.postprocessing import View
from rankseg_jax.ranking import Selection
from rankseg_jax.selector import Choice
from rankseg_jax.tasks import Task
from rankseg_jax.windows import Cut, cut_windows

PROGRAMS = 16  # of a network that are kept, one for each input shape
CLIP_ARRAYS = ('categories', 'confidences')  # what `served` returns once a clip, not once a frame


@struct.dataclass
class Prediction:
    """What a model predicts for a batch of images.

    Attributes:
      maps: what the task makes of the model's output, by name, see `tasks.Task.postprocess`; most
        have 'labels' [B, *canvas] int32 class ids.
      selection: the categories of each image; None for the baseline.
      presence_logits: [B, K] of the multi-label head, the best over windows, averaged over scales
        and mirror images; None for the baseline.
    """

    maps: dict[str, jax.Array]
    selection: Selection | None
    presence_logits: jax.Array | None


def segment(
    model: nn.Module,
    variables: dict[str, Any],
    views: Sequence[dict[str, jax.Array]],
    size: jax.Array,
    config: ConfigDict,
    task: Task,
    *,
    canvas: tuple[int, int],
    presence: jax.Array | None = None,
    shown: jax.Array | None = None,
) -> Prediction:
    """Segments a batch at the images' own sizes; made for `jit`. `compiled` is `segment` in parts.

    Args:
      views: for each scale {'image': [B, (t,) H, W, 3], 'content': [B, 2]}, see
        `fitting.eval_views`.
      size: [B, 2] int32, rows and columns of the original images.
      config: reads `eval` and `rankseg`.
      task: a `tasks.Task`.
      canvas: (rows, columns) of the result, static, at least `size`.
      presence: [B, K] bool, the categories in the ground truth, for the oracle.
      shown: [B, t] bool, the frames of clips that are not padding; None: all.

    Raises:
      ValueError: the oracle without `presence`, or `config.eval` asks for what the model or the
        task cannot give.
    """
    seen = see(model, variables, views, config, task, presence=presence, shown=shown)

    def postprocess(seen):
        return task.postprocess(assemble(seen, size, canvas), seen.selection, size, canvas)

    image = views[0]['image']
    if image.ndim == 5:  # a clip
        numbers = jnp.arange(image.shape[1])
        frames = lax.map(lambda number: postprocess(seen.frame(number)), numbers)
        maps = jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), frames)  # [B, t, …] each
    else:
        maps = postprocess(seen)
    return Prediction(maps, seen.selection, seen.presence_logits)


def compiled(
    model: nn.Module, config: ConfigDict, task: Task, mesh: jax.sharding.Mesh, then: Callable
) -> Callable:
    """(model variables, batch, canvas) → then(Prediction, batch), compiled for a mesh's devices.

    The network is one program for each shape of the views, the last `PROGRAMS` of which are kept;
    what follows is one for each canvas. So a new image size costs at most a small program.

    Args:
      then: made for `jit`. The batch has no 'views', but with RankSeg and labels 'pixels' [B, K]
        int32, those of each category. That of a frame has the pixels of its clip, its own labels,
        and 'last' [B] bool, clips that it is the last frame of.

    Returns:
      A function of variables, on the mesh; a batch of `batching.stack`, split over it; the
      canvas, (rows, columns); and for clips that follow each other a `Stream`. It yields one result
      for images, and for clips one for each frame. The oracle selects by the batch's labels. If the
      batch has 'kept' [B] int32, only that many of the κ ranks take part, from the first on; the
      network sees nothing of it.
    """
    networks = collections.OrderedDict()  # shapes of the views → program

    def network(variables, views, *, presence, shown, memory, begins, mask):
        given = dict(presence=presence, shown=shown)
        if memory is None:
            return see(model, variables, views, config, task, **given), None
        before = where_images(begins, jax.tree.map(jnp.zeros_like, memory), memory)
        seen = see(model, variables, views, config, task, memory=before, **given)
        outputs = [cast(QueryOutput, output) for output in seen.outputs]
        after = where_images(mask, [output.memory for output in outputs], memory)
        outputs = [dataclasses.replace(output, memory=None) for output in outputs]
        return dataclasses.replace(seen, outputs=outputs), after

    @functools.partial(jax.jit, static_argnames='canvas')
    def finish(seen, batch, canvas, number=None):
        if number is not None:
            seen, batch = seen.frame(number), frame_of(batch, number)
        if 'kept' in batch:
            outputs = [output.keep_ranks(batch['kept']) for output in seen.outputs]
            seen = dataclasses.replace(seen, outputs=outputs)

        def postprocess(seen, size):
            return task.postprocess(assemble(seen, size, canvas), seen.selection, size, canvas)

        if mesh.size > 1:  # each device goes through its own images
            split = sharding.split(mesh).spec
            postprocess = jax.shard_map(
                postprocess, mesh=mesh, in_specs=split, out_specs=split, check_vma=False
            )
        maps = postprocess(seen, batch['size'])
        return then(Prediction(maps, seen.selection, seen.presence_logits), batch)

    @jax.jit
    def count(labels):
        return pixel_counts(labels, task.num_classes)  # [B, K]

    def run(variables, batch, canvas: tuple[int, int], stream: Stream | None = None) -> Iterator:
        views, presence, shown = batch['views'], None, batch.get('shown')
        memory, begins = None, batch.get('begins')
        if stream is not None and begins is not None and models.carries(config):
            memory = stream.memory
            if memory is None:
                cut = functools.partial(cut_windows, evaluation=config.eval)
                windows = [jax.eval_shape(cut, view)[1].shape for view in views]
                memory = [model.memory(shape[0] * shape[1]) for shape in windows]
        batch = {name: x for name, x in batch.items() if name not in ('views', 'begins')}
        if 'label' in batch and config.rankseg:
            batch['pixels'] = count(batch['label'])
            if config.rankseg.oracle:
                presence = batch['pixels'] > 0
        shapes = tuple(view['image'].shape for view in views)
        if shapes not in networks:
            # A new function each time, since `clear_cache` drops all programs of a function.
            networks[shapes] = jax.jit(functools.partial(network))
        networks.move_to_end(shapes)
        if len(networks) > PROGRAMS:
            networks.popitem(last=False)[1].clear_cache()
        seen, memory = networks[shapes](
            variables,
            views,
            presence=presence,
            shown=shown,
            memory=memory,
            begins=begins,
            mask=batch['mask'],
        )
        if stream is not None:
            stream.memory = memory
        if shown is None:
            yield finish(seen, batch, canvas)
        else:
            for number in range(shown.shape[1]):
                yield finish(seen, batch, canvas, number)

    return run


class Stream:
    """What the clips of videos pass on to the next, for each place in a batch.

    Attributes:
      memory: for each scale that of the model, see `models.carries`; None before the first batch.
    """

    memory = None


def where_images(where, these, others):
    """Trees of [B · views, …], `these` for the images in `where` [B] bool, elsewhere `others`."""

    def choose(this, other):
        mask = jnp.repeat(where, len(this) // len(where))
        return jnp.where(jnp.expand_dims(mask, range(1, this.ndim)), this, other)

    return jax.tree.map(choose, these, others)


def frame_of(batch: dict[str, jax.Array], number: jax.Array) -> dict[str, jax.Array]:
    """A batch of clips, as one of their frames; see `compiled`."""
    batch = dict(batch)
    counted = batch.pop('counted')[:, number]  # [B]
    if 'label' in batch:
        label = batch['label'][:, number]  # [B, *canvas]
        batch['label'] = jnp.where(counted[:, None, None], label, IGNORE_LABEL)
    last = number == batch['shown'].sum(1) - 1  # [B]
    return batch | {'mask': batch['mask'] & counted, 'last': batch['mask'] & last}


def served(prediction: Prediction, config: ConfigDict) -> dict[str, jax.Array]:
    """What a user is told, by name.

    Returns:
      The prediction's maps and, of a multi-label head, the best 'categories' int32 [B, κ] and their
      'confidences' float32 [B, κ].
    """
    if prediction.presence_logits is None:
        return prediction.maps
    ranked = selector.ranked_categories(
        config.rankseg, prediction.presence_logits, prediction.selection
    )
    confidences = jax.nn.sigmoid(ranked.scores)
    return prediction.maps | {'categories': ranked.labels, 'confidences': confidences}


def check(config: ConfigDict, output: PixelOutput | QueryOutput) -> None:
    """Raises a ValueError if `config.eval` asks for what the model cannot give.

    That is masks, masks at a size of their own in windows, or clips that overlap.
    """
    mask_size = tuple(config.eval.mask_size)
    if isinstance(output, PixelOutput) and mask_size not in ((0, 0), (-1, -1)):
        raise ValueError(
            f'config.eval.mask_size = {mask_size}: {config.model.framework} has no masks; set it '
            'to (0, 0), or to (-1, -1) to resize logits directly to the image'
        )
    if any(mask_size) and any(config.eval.window):
        raise ValueError(
            f'config.eval.mask_size = {mask_size}: windows are joined at their own size; set '
            'config.eval.mask_size or config.eval.window to (0, 0)'
        )
    if isinstance(output, QueryOutput) and output.follows and config.eval.clip_overlap:
        raise ValueError(
            f'config.eval.clip_overlap = {config.eval.clip_overlap}: {config.model.framework} '
            'carries its memory from clip to clip; set it to 0'
        )


@struct.dataclass
class Seen:
    """What the network says of a batch of images.

    Attributes:
      cuts: for each scale, how the images were cut.
      outputs: for each scale, the output for all windows.
      selection, presence_logits: see `Prediction`; [B, t, …] where frames have their own.
    """

    cuts: list[Cut]
    outputs: list[PixelOutput | QueryOutput]
    selection: Selection | None
    presence_logits: jax.Array | None

    def frame(self, number: jax.Array) -> 'Seen':
        """The same for a frame of each clip, as for an image; `number`: [] int32."""

        def own(x):
            return lax.dynamic_index_in_dim(x, number, 1, keepdims=False) if x.ndim == 3 else x

        selection, presence_logits = jax.tree.map(own, (self.selection, self.presence_logits))
        outputs = [output.frame(number) for output in self.outputs]
        return Seen(self.cuts, outputs, selection, presence_logits)


def see(
    model: nn.Module,
    variables: dict[str, Any],
    views: Sequence[dict[str, jax.Array]],
    config: ConfigDict,
    task: Task,
    *,
    presence: jax.Array | None = None,
    shown: jax.Array | None = None,
    memory: Sequence[Memory] | None = None,
) -> Seen:
    """Selects the categories of each image or clip once, and predicts all its windows over them.

    The first part of `segment`, which says what the arguments are; `shown` is that of
    `batching.stack`, `memory` that of `Stream`.
    """
    memories = memory or [None] * len(views)
    cuts, windows = zip(*[cut_windows(view, config.eval) for view in views], strict=True)

    def run(cut, images, memory, **choice):
        frames = None if shown is None else jnp.repeat(shown, images.shape[1], axis=0)
        images = images.reshape(-1, *images.shape[2:])  # [B · views, (t,) H, W, 3]
        choice = Choice(
            shown=frames,
            views=cut.views,
            memory=memory,
            average_over=config.eval.average_over,
            **choice,
        )
        return models.forward(model, variables, images, choice)

    selection = presence_logits = None
    if len(cuts) > 1 and config.rankseg:
        # Compiled, the two passes share the computation of all that precedes the selection.
        logits = [
            run(*view, all_classes=True).presence_logits
            for view in zip(cuts, windows, memories, strict=True)
        ]  # [B, K] each
        presence_logits, selection = selector.choose(
            config.rankseg, jnp.stack(logits).mean(0), Choice(presence), train=False
        )
    outputs = [
        run(*view, presence=presence, selection=selection)
        for view in zip(cuts, windows, memories, strict=True)
    ]
    check(config, outputs[0])
    task.check(outputs[0])
    if presence_logits is None:
        selection, presence_logits = outputs[0].selection, outputs[0].presence_logits
    if any(config.eval.mask_size):
        outputs = [output.settle(config.eval.mask_size) for output in outputs]
    elif any(config.eval.window) and isinstance(outputs[0], QueryOutput):
        outputs = [output.settle(config.eval.window) for output in outputs]
    return Seen(list(cuts), outputs, selection, presence_logits)


def assemble(seen: Seen, size: jax.Array, canvas: tuple[int, int]) -> list[View]:
    """A view for each scale and mirror image: its windows side by side, or one for each of them."""
    found = []
    for cut, output in zip(seen.cuts, seen.outputs, strict=True):
        views = output.split_views(cut.views[0], cut.counts)
        places = cut.places(output.cells, size, canvas, output.direct)
        if not output.joins_windows:
            n, m = cut.counts
            places = [
                (rows, columns)
                for below, beside in places
                for rows in jnp.split(below, n, axis=-1)  # [B, canvas[0], h]
                for columns in jnp.split(beside, m, axis=-1)  # [B, canvas[1], w]
            ]
        held = cut.held(output.cells)
        found += [View(x, *place, held) for x, place in zip(views, places, strict=True)]
    return found
