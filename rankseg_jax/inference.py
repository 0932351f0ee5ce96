"""From images of any size to label maps: whole or by sliding windows, at several scales, mirrored too; in rank space throughout.

An image's categories are selected once, from all that its windows show, so that ranks mean the same in each of them.
"""

import flax
import jax
import jax.numpy as jnp
from jax import lax

from rankseg_jax import models, postprocessing
from rankseg_jax.data import IGNORE_LABEL
from rankseg_jax.decoders.pixel_classifier import choose
from rankseg_jax.decoders.query_decoder import QueryOutput
from rankseg_jax.postprocessing import Segments
from rankseg_jax.ranking import Selection, from_ranks, gather, select


@flax.struct.dataclass
class Prediction:
    """What a model says of a batch of images.

    Attributes:
      labels: [B, rows, columns] int32 class ids, IGNORE_LABEL outside the original image.
      selection: the categories of each image; None for the baseline.
      presence_logits: [B, K] of the multi-label head, the best over windows, averaged over scales and mirror images; or None.
      segments: panoptic Segments, whose labels are class ids; None if they were not asked for.
    """

    labels: jax.Array
    selection: Selection | None
    presence_logits: jax.Array | None
    segments: Segments | None


def segment(
    model, variables, views, size, config, *, canvas, presence=None, things=None
) -> Prediction:
    """Segments a batch at the images' own sizes; made for `jit`.

    Args:
      views: for each scale {'image': [B, H, W, 3], 'content': [B, 2]}, as of `transforms.eval_views`.
      size: [B, 2] int32, rows and columns of the original images.
      config: reads `eval` and `rankseg`.
      canvas: (rows, columns) of the result, static, at least `size`.
      presence: [B, K] bool, the categories of the ground truth; for the oracle.
      things: [K] bool, the categories whose objects are segments of their own; for panoptic segments.

    Raises:
      ValueError: the oracle without `presence`; windows with a per-query model; panoptic segments from one that is none, or from
        several views.
    """
    batch_size = size.shape[0]
    windows, counts, layouts = zip(
        *(cut(view, config.eval) for view in views), strict=True
    )  # [B, n, h, w, 3] each

    def forward(windows, selection=None):
        n = windows.shape[1]

        def for_each(x):  # [B, …] -> [B · n, …]
            return jnp.broadcast_to(x[:, None], (batch_size, n, *x.shape[1:])).reshape(
                -1, *x.shape[1:]
            )

        choice = jax.tree.map(for_each, {'presence': presence, 'selection': selection})
        return models.forward(model, variables, windows.reshape(-1, *windows.shape[2:]), **choice)

    def of_mirrors(x):  # [B · n, …] -> for each mirror image [B, windows, …]
        x = x.reshape(batch_size, 1 + config.eval.flip, -1, *x.shape[1:])
        return [x[:, i] for i in range(x.shape[1])]

    outputs = [forward(x) for x in windows]
    presence_logits, selection = outputs[0].presence_logits, outputs[0].selection
    if presence_logits is not None and sum(x.shape[1] for x in windows) > 1:
        best = [
            x.max(1) for output in outputs for x in of_mirrors(output.presence_logits)
        ]  # [B, K] each
        presence_logits = jnp.stack(best, 1).mean(1)
        if selection is not None:
            selection = choose(config.rankseg, presence_logits, presence, train=False)
            outputs = [
                forward(x, selection) for x in windows
            ]  # compiled, what both passes share is computed once

    per_query = isinstance(outputs[0], QueryOutput)
    check_views(config, per_query, things is not None)
    seen = []  # for each scale and mirror image its logits and their places, see `postprocessing`
    for output, count, layout in zip(outputs, counts, layouts, strict=True):
        if per_query:
            cells = output.mask_logits.shape[2:]
            parts = zip(
                of_mirrors(output.class_logits), of_mirrors(output.mask_logits), strict=True
            )
            logits = [
                (classes[:, 0], masks[:, 0]) for classes, masks in parts
            ]  # there is one window
        else:
            cells = output.logits.shape[1:3]
            logits = [(mosaic(x, count),) for x in of_mirrors(output.logits)]
        seen += [
            (*x, *weights) for x, weights in zip(logits, layout(cells, size, canvas), strict=True)
        ]
    ranks = postprocessing.semantic_ranks(seen) if per_query else postprocessing.best_ranks(seen)
    labels = ranks if selection is None else from_ranks(ranks, selection)  # [B, *canvas]
    labels = jnp.where(covered(size, canvas), labels, IGNORE_LABEL)
    segments = None
    if things is not None:
        of_ranks = (
            jnp.broadcast_to(things, (batch_size, len(things)))
            if selection is None
            else gather(things, selection, 0)
        )
        segments = postprocessing.panoptic_segments(
            seen[0], of_ranks, size, threshold=config.eval.threshold, overlap=config.eval.overlap
        )
        if selection is not None:
            segments = segments.replace(labels=from_ranks(segments.labels, selection))
    return Prediction(labels, selection, presence_logits, segments)


def served(prediction: Prediction, config) -> dict:
    """What a user is told, by name; without what there is none of:

    'labels' int32 [B, rows, columns]; of a multi-label head the best 'categories' int32 [B, κ] and their 'confidences' float32
    [B, κ]; of panoptic segments 'segment_ids' int32 [B, rows, columns], 'segment_labels' int32 [B, Q] and 'segment_scores' float32
    [B, Q], see `postprocessing.Segments`.
    """
    found = {'labels': prediction.labels}
    if prediction.presence_logits is not None:
        selection = select(prediction.presence_logits, config.rankseg.num_selected)
        found |= {'categories': selection.labels, 'confidences': jax.nn.sigmoid(selection.scores)}
    if prediction.segments is not None:
        found |= {
            f'segment_{name}': getattr(prediction.segments, name)
            for name in ('ids', 'labels', 'scores')
        }
    return found


def check_views(config, per_query: bool, panoptic: bool):
    """Raises a ValueError if `config.eval` asks for what the model cannot give."""
    options = config.eval
    if panoptic and not per_query:
        raise ValueError(
            f"config.task = 'panoptic' needs a per-query framework such as mask2former, not {config.model.framework}"
        )
    if per_query and any(options.window):
        raise ValueError(
            f'config.eval.window = {options.window}: {config.model.framework} sees images whole, set it to (0, 0)'
        )
    if panoptic and (options.flip or len(options.scales) > 1):
        raise ValueError(
            f'config.eval.scales = {options.scales} and config.eval.flip = {options.flip}: panoptic segments come '
            'from one view, set one scale and no flip'
        )


def mosaic(logits, counts):
    """The logits [B, n · m, h, w, κ] of `counts` (n, m) windows, side by side: [B, n h, m w, κ]."""
    batch_size, _, height, width, num_ranks = logits.shape
    logits = logits.reshape(batch_size, *counts, height, width, num_ranks).swapaxes(2, 3)
    return logits.reshape(batch_size, counts[0] * height, counts[1] * width, num_ranks)


def covered(size, canvas):
    """bool [B, *canvas]: is it one of the first `size` [B, 2] rows and columns?"""
    rows, columns = (
        jnp.arange(canvas[axis]) < size[:, axis, None] for axis in (0, 1)
    )  # [B, rows], [B, columns]
    return rows[:, :, None] & columns[:, None]


def cut(view, evaluation):
    """Cuts a batch of images into windows, those of the mirrored images after the others.

    Returns:
      [B, n, h, w, 3], how many windows are below and beside each other, and a function that gives, for each mirror image, the
      weights (of rows, of columns) of the windows' logits in the label map: (their (h', w'), size, canvas) -> see `interpolation`.
    """
    image, content = view['image'], view['content']
    whole = image.shape[1:3]
    window, stride = (
        (evaluation.window, evaluation.stride) if any(evaluation.window) else (whole, whole)
    )
    mirrored = (False, True) if evaluation.flip else (False,)
    counts = [
        -(-max(image.shape[1 + axis] - window[axis], 0) // stride[axis]) + 1 for axis in (0, 1)
    ]
    missing = [
        max(window[axis] + stride[axis] * (counts[axis] - 1) - image.shape[1 + axis], 0)
        for axis in (0, 1)
    ]
    image = jnp.pad(image, ((0, 0), *((0, n) for n in missing), (0, 0)))
    # The last window ends where the picture does.
    starts = [
        jnp.minimum(
            jnp.arange(counts[axis]) * stride[axis],
            jnp.maximum(content[:, axis, None] - window[axis], 0),
        )
        for axis in (0, 1)
    ]  # [B, rows of windows], [B, columns of windows]

    def slices(image, content, rows, columns):  # of one image
        x = jnp.arange(image.shape[1])
        images = [
            image[:, jnp.where(x < content[1], content[1] - 1 - x, x)] if mirror else image
            for mirror in mirrored
        ]
        return jnp.stack(
            [
                lax.dynamic_slice(image, (row, column, 0), (*window, 3))
                for image in images
                for row in rows
                for column in columns
            ]
        )

    def layout(cells, size, canvas):
        def weights(axis, mirror=False):
            return interpolation(
                canvas[axis],
                size[:, axis],
                content[:, axis],
                starts[axis],
                window[axis],
                stride[axis],
                cells[axis],
                mirror,
            )

        return [(weights(0), weights(1, mirror)) for mirror in mirrored]

    return jax.vmap(slices)(image, content, *starts), counts, layout


def interpolation(
    length: int, size, content, starts, window: int, stride: int, cells: int, mirror: bool
):
    """Weights of all windows' logits in each row (or column) of the label map, [B, length, n · cells].

    Two bilinear resizes with half-pixel centres in one: from a window's cells to its pixels, where overlapping windows are
    averaged, and from those to the original image. Cells beyond the picture have no weight.

    Args:
      length: of the label map, static.
      size: [B] of the original image.
      content: [B] of the network's input that the picture covers.
      starts: [B, n] where windows of `window` pixels and `cells` logits begin, at most `stride` apart.
      mirror: the picture was mirrored along this axis.
    """
    place = jnp.arange(length)
    place = size[:, None] - 1 - place if mirror else place  # [B, length]
    place = (place + 0.5) * (content / size)[:, None] - 0.5
    place = jnp.clip(place, 0, content[:, None] - 1)
    before = jnp.floor(place)
    used = (
        jnp.arange(starts.shape[1]) * stride < content[:, None] - window + stride
    )  # [B, n], the rest repeat the last
    used = used.at[:, 0].set(True)
    # In integers: 70 * (18 / 70) is above 18 in float32, and would count a cell that is not there.
    last = (jnp.clip(content[:, None] - starts, 1, window) * cells - 1) // window  # [B, n]

    def of_pixel(pixel):  # [B, length] -> [B, length, n, cells]
        local = pixel[:, :, None] - starts[:, None]  # [B, length, n]
        seen = used[:, None] & (local >= 0) & (local < window)
        position = jnp.clip((local + 0.5) * (cells / window) - 0.5, 0, last[:, None])
        weight = jnp.maximum(0.0, 1.0 - jnp.abs(position[..., None] - jnp.arange(cells)))
        return weight * (seen / jnp.maximum(seen.sum(-1, keepdims=True), 1))[..., None]

    after = jnp.minimum(before + 1, content[:, None] - 1)
    share = (place - before)[..., None, None]
    weights = (1 - share) * of_pixel(before) + share * of_pixel(after)  # [B, length, n, cells]
    return weights.reshape(*weights.shape[:2], -1)
