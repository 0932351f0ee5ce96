"""From images of any size to label maps: whole or by sliding windows, at several scales, mirrored too; in rank space throughout.

An image's categories are selected once, from all that its windows show, so that ranks mean the same in each of them.
"""

import jax
import jax.numpy as jnp
from jax import lax

from rankseg_jax import models
from rankseg_jax.data import IGNORE_LABEL
from rankseg_jax.decoders.pixel_classifier import choose
from rankseg_jax.ranking import from_ranks

ROWS = 64  # of the label map are upsampled at once, so that memory stays at κ × these


def segment(model, variables, views, size, config, *, canvas, presence=None):
    """Label maps of a batch at the images' own sizes; made for `jit`.

    Args:
      views: for each scale {'image': [B, H, W, 3], 'content': [B, 2]}, as of `transforms.eval_views`.
      size: [B, 2] int32, rows and columns of the original images.
      config: reads `eval` and `rankseg`.
      canvas: (rows, columns) of the result, static, at least `size`.
      presence: [B, K] bool, the categories of the ground truth; for the oracle.

    Returns:
      labels [B, *canvas] int32, IGNORE_LABEL outside the original image; their Selection, None for the baseline;
      class_logits [B, K], the best over windows, averaged over scales and mirror images, or None.
    """
    batch_size = size.shape[0]
    windows, layouts = zip(*(cut(view, config.eval) for view in views), strict=True)  # [B, n, h, w, 3] each

    def forward(windows, selection=None):
        n = windows.shape[1]

        def for_each(x):  # [B, …] -> [B · n, …]
            return jnp.broadcast_to(x[:, None], (batch_size, n, *x.shape[1:])).reshape(-1, *x.shape[1:])

        choice = jax.tree.map(for_each, {'presence': presence, 'selection': selection})
        return models.forward(model, variables, windows.reshape(-1, *windows.shape[2:]), **choice)

    outputs = [forward(x) for x in windows]
    class_logits, selection = outputs[0].class_logits, outputs[0].selection
    if class_logits is not None and sum(x.shape[1] for x in windows) > 1:
        num_classes = class_logits.shape[-1]
        seen = [output.class_logits.reshape(batch_size, 1 + config.eval.flip, -1, num_classes).max(2) for output in outputs]
        class_logits = jnp.concatenate(seen, 1).mean(1)  # [B, K]
        if selection is not None:
            selection = choose(config.rankseg, class_logits, presence, train=False)
            outputs = [forward(x, selection) for x in windows]  # compiled, what both passes share is computed once
    mosaics = []
    for output, layout in zip(outputs, layouts, strict=True):
        mosaics += layout(output.logits, size, canvas)
    ranks = best_rank(mosaics)
    inside = ((jnp.arange(canvas[0]) < size[:, :1])[:, :, None] & (jnp.arange(canvas[1]) < size[:, 1:])[:, None])
    labels = ranks if selection is None else from_ranks(ranks, selection)
    return jnp.where(inside, labels, IGNORE_LABEL), selection, class_logits


def cut(view, evaluation):
    """Cuts a batch of images into windows, those of the mirrored images after the others.

    Returns:
      [B, n, h, w, 3], and a function (logits [B · n, h', w', κ], size, canvas) -> mosaics (see `best_rank`), one for each
      mirror image.
    """
    image, content = view['image'], view['content']
    whole = image.shape[1:3]
    window, stride = (evaluation.window, evaluation.stride) if any(evaluation.window) else (whole, whole)
    mirrored = (False, True) if evaluation.flip else (False,)
    counts = [-(-max(image.shape[1 + axis] - window[axis], 0) // stride[axis]) + 1 for axis in (0, 1)]
    missing = [max(window[axis] + stride[axis] * (counts[axis] - 1) - image.shape[1 + axis], 0) for axis in (0, 1)]
    image = jnp.pad(image, ((0, 0), *((0, n) for n in missing), (0, 0)))
    # The last window ends where the picture does.
    starts = [jnp.minimum(jnp.arange(counts[axis]) * stride[axis], jnp.maximum(content[:, axis, None] - window[axis], 0))
              for axis in (0, 1)]  # [B, rows of windows], [B, columns of windows]

    def slices(image, content, rows, columns):  # of one image
        x = jnp.arange(image.shape[1])
        images = [image[:, jnp.where(x < content[1], content[1] - 1 - x, x)] if mirror else image for mirror in mirrored]
        return jnp.stack([lax.dynamic_slice(image, (row, column, 0), (*window, 3))
                          for image in images for row in rows for column in columns])

    def layout(logits, size, canvas):
        batch_size, num_ranks = size.shape[0], logits.shape[-1]
        logits = logits.reshape(batch_size, len(mirrored), *counts, *logits.shape[1:])  # [B, mirror, n, m, h', w', κ]
        cells = logits.shape[4:6]
        mosaic = logits.swapaxes(3, 4).reshape(
            batch_size, len(mirrored), counts[0] * cells[0], counts[1] * cells[1], num_ranks)  # [B, mirror, n h', m w', κ]

        def weights(axis, mirror=False):
            return interpolation(canvas[axis], size[:, axis], content[:, axis], starts[axis], window[axis], stride[axis],
                                 cells[axis], mirror)

        return [(mosaic[:, i], weights(0), weights(1, mirror)) for i, mirror in enumerate(mirrored)]

    return jax.vmap(slices)(image, content, *starts), layout


def interpolation(length: int, size, content, starts, window: int, stride: int, cells: int, mirror: bool):
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
    used = jnp.arange(starts.shape[1]) * stride < content[:, None] - window + stride  # [B, n], the rest repeat the last
    used = used.at[:, 0].set(True)
    last = jnp.ceil(jnp.clip(content[:, None] - starts, 1, window) * (cells / window)) - 1  # [B, n]
    last = jnp.minimum(last, cells - 1)  # 90 · (7 / 90) is more than 7

    def of_pixel(pixel):  # [B, length] -> [B, length, n, cells]
        local = pixel[:, :, None] - starts[:, None]  # [B, length, n]
        covered = used[:, None] & (local >= 0) & (local < window)
        position = jnp.clip((local + 0.5) * (cells / window) - 0.5, 0, last[:, None])
        weight = jnp.maximum(0.0, 1.0 - jnp.abs(position[..., None] - jnp.arange(cells)))
        return weight * (covered / jnp.maximum(covered.sum(-1, keepdims=True), 1))[..., None]

    after = jnp.minimum(before + 1, content[:, None] - 1)
    share = (place - before)[..., None, None]
    weights = (1 - share) * of_pixel(before) + share * of_pixel(after)  # [B, length, n, cells]
    return weights.reshape(*weights.shape[:2], -1)


def best_rank(mosaics):
    """The rank of the highest logit, or mean probability of several views, at every pixel: [B, rows, columns] int32.

    Args:
      mosaics: for each view (logits [B, h, w, κ], weights of its rows [B, rows, h], of its columns [B, columns, w]).
    """
    num_rows = mosaics[0][1].shape[1]
    blocks = -(-num_rows // ROWS)

    def in_blocks(rows):  # [B, rows, h] -> [blocks, B, ROWS, h]
        rows = jnp.pad(rows, ((0, 0), (0, blocks * ROWS - num_rows), (0, 0)))
        return rows.reshape(rows.shape[0], blocks, ROWS, -1).swapaxes(0, 1)

    def upsample(rows, columns, logits):
        logits = jnp.einsum('brh,bhwk->brwk', rows, logits, precision='highest')
        return jnp.einsum('bcw,brwk->brck', columns, logits, precision='highest')  # [B, ROWS, columns, κ]

    def of_block(rows_of_views):
        views = [upsample(rows, columns, logits) for rows, (logits, _, columns) in zip(rows_of_views, mosaics, strict=True)]
        scores = views[0] if len(views) == 1 else sum(jax.nn.softmax(logits) for logits in views)
        return scores.argmax(-1).astype(jnp.int32)

    ranks = lax.map(of_block, [in_blocks(rows) for _, rows, _ in mosaics])  # [blocks, B, ROWS, columns]
    return ranks.swapaxes(0, 1).reshape(ranks.shape[1], blocks * ROWS, -1)[:, :num_rows]  # [B, rows, columns]
