"""From a model's outputs to maps of class ids, a block of rows at a time to bound the memory."""

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from rankseg_jax.data import IGNORE_LABEL
from rankseg_jax.outputs import PixelOutput, QueryOutput
from rankseg_jax.ranking import Selection, from_ranks

ROWS = 64  # rows of the result that are upsampled at once: memory is bounded by κ or Q times these


@struct.dataclass
class View:
    """One pass over a batch of images, and its place in the result; see `inference.interpolation`.

    Attributes:
      output: of the model, its cells [h, w].
      rows: [B, R, h], weights of the cells' rows in each of the result's R rows.
      columns: [B, C, w], likewise for columns.
    """

    output: PixelOutput | QueryOutput
    rows: jax.Array
    columns: jax.Array


def label_maps(views: list[View], selection: Selection | None, size, canvas: tuple[int, int]):
    """Class ids of the pixels, [B, *t, *canvas] int32, IGNORE_LABEL outside the image.

    Args:
      views: of the same images; their scores are added up.
      selection: the categories that the ranks stand for; None: all K.
      size: [B, 2] int32, rows and columns of the images.
      canvas: (R, C) of the result, at least `size`.
    """
    labels = best_ranks(views)  # [B, *t, R, C]
    if selection is not None:
        labels = from_ranks(labels, selection)
    inside = jnp.expand_dims(covered(size, canvas), range(1, labels.ndim - 2))
    return jnp.where(inside, labels, IGNORE_LABEL)


def best_ranks(views: list[View]):
    """The rank with the highest score in each pixel, over the sum of the views: [B, *t, R, C]."""

    def best_in_block(blocks, _):
        scores = [
            view.output.rank_scores(rows, view.columns, probabilities=len(views) > 1)
            for view, rows in zip(views, blocks, strict=True)
        ]  # [B, *t, ROWS, C, κ] each
        return sum(scores[1:], scores[0]).argmax(-1).astype(jnp.int32)

    blocks = map_blocks(best_in_block, [view.rows for view in views])
    return join_blocks(blocks, views[0].rows.shape[1])


def map_blocks(function, rows):
    """Stacks the results of `function` for each block of ROWS rows.

    Args:
      function: (weights of the block's rows in each view, number of its first row) → tree.
      rows: [B, R, h] for each view.
    """
    num_rows = rows[0].shape[1]
    count = -(-num_rows // ROWS)

    def cut(rows):  # [B, R, h] → [count, B, ROWS, h]
        rows = jnp.pad(rows, ((0, 0), (0, count * ROWS - num_rows), (0, 0)))
        return rows.reshape(rows.shape[0], count, ROWS, -1).swapaxes(0, 1)

    return lax.map(
        lambda block: function(*block), ([cut(x) for x in rows], ROWS * jnp.arange(count))
    )


def join_blocks(maps, num_rows: int):
    """[blocks, B, *t, ROWS, C] → [B, *t, num_rows, C]."""
    maps = jnp.moveaxis(maps, 0, -3)  # [B, *t, blocks, ROWS, C]
    return maps.reshape(*maps.shape[:-3], -1, maps.shape[-1])[..., :num_rows, :]


def covered(size, canvas: tuple[int, int]):
    """[B, *canvas] bool: the first `size` [B, 2] rows and columns."""
    rows, columns = (jnp.arange(canvas[axis]) < size[:, axis, None] for axis in (0, 1))
    return rows[:, :, None] & columns[:, None]
