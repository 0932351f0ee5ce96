"""From a model's outputs to maps of class ids, a tile at a time to bound the memory."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from rankseg_jax.data import IGNORE_LABEL
from rankseg_jax.outputs import PixelOutput, QueryOutput
from rankseg_jax.ranking import Selection, from_ranks

# Of the result, upsampled at once: memory is bounded by κ or Q times these.
ROWS, COLUMNS = 64, 256


@struct.dataclass
class View:
    """One pass over a batch of images, and its place in the result; see `windows.interpolation`.

    Attributes:
      output: of the model, its cells [h, w].
      rows: [B, canvas[0], h], weights of the cells' rows in each row of the result.
      columns: [B, canvas[1], w], likewise for columns.
      held: [B, 2] int32, rows and columns of the cells that the image covers; None: not known.
    """

    output: PixelOutput | QueryOutput
    rows: jax.Array
    columns: jax.Array
    held: jax.Array | None = None


def label_maps(
    views: list[View], selection: Selection | None, size: jax.Array, canvas: tuple[int, int]
) -> jax.Array:
    """Class ids of the pixels, [B, *t, *canvas] int32, IGNORE_LABEL outside the image.

    Args:
      views: of the same images; their scores are added up.
      selection: the categories that the ranks stand for; None: all K.
      size: [B, 2] int32, rows and columns of the images.
      canvas: (rows, columns) of the result, at least `size`.
    """
    labels = best_ranks(views, size)  # [B, *t, *canvas]
    if selection is not None:
        labels = from_ranks(labels, selection)
    inside = jnp.expand_dims(covered(size, canvas), range(1, labels.ndim - 2))
    return jnp.where(inside, labels, IGNORE_LABEL)


def best_ranks(views: list[View], size: jax.Array) -> jax.Array:
    """The rank with the highest score in each pixel, over the sum of the views: [B, *t, *canvas].

    Args:
      size: [B, 2] int32, rows and columns of the images; what lies beyond them is arbitrary.
    """

    def best_in_tile(views, place):
        del place
        scores = [
            view.output.rank_scores(view.rows, view.columns, probabilities=len(views) > 1)
            for view in views
        ]  # [1, *t, ROWS, COLUMNS, κ] each
        return sum(scores[1:], scores[0]).argmax(-1).astype(jnp.int32), ()

    return map_tiles(best_in_tile, views, size)[0]


def map_tiles(
    function: Callable, views: list[View], size: jax.Array, *others: Any
) -> tuple[jax.Array, Any]:
    """Computes the maps of each image tile by tile, and sums over its tiles.

    Tiles beyond an image are skipped: the time depends on its size, not on the canvas, so that few
    canvases, and few programs, serve all sizes.

    Args:
      function: (views of a tile of one image, (row, column) where it begins, *others of the image)
        → (int32 [1, *t, ROWS, COLUMNS], tree of sums).
      views: of B images.
      size: [B, 2] int32, rows and columns of the images.
      others: trees of arrays [B, …].

    Returns:
      The map, [B, *t, *canvas], zero in tiles beyond the image, and the tree of sums.
    """
    canvas = views[0].rows.shape[1], views[0].columns.shape[1]
    tile = min(ROWS, canvas[0]), min(COLUMNS, canvas[1])

    def pad(weights, length):  # [B, canvas[0], h] → to a multiple of `length` rows
        return jnp.pad(weights, ((0, 0), (0, -weights.shape[1] % length), (0, 0)))

    views = [View(v.output, pad(v.rows, tile[0]), pad(v.columns, tile[1])) for v in views]
    padded = views[0].rows.shape[1], views[0].columns.shape[1]

    def cut(views, place):
        row, column = place
        return [
            View(
                view.output,
                lax.dynamic_slice_in_dim(view.rows, row, tile[0], axis=1),
                lax.dynamic_slice_in_dim(view.columns, column, tile[1], axis=1),
            )
            for view in views
        ]

    def one_image(image):
        size, image = image[0], jax.tree.map(lambda x: x[None], image[1:])
        views, *others = image
        down, across = (-(-size[axis] // tile[axis]) for axis in (0, 1))

        def add(number, carry):
            whole, total = carry
            place = number // across * tile[0], number % across * tile[1]
            part, sums = function(cut(views, place), place, *others)
            start = (*(0,) * (whole.ndim - 2), *place)
            return lax.dynamic_update_slice(whole, part, start), jax.tree.map(jnp.add, total, sums)

        shapes = jax.eval_shape(lambda: function(cut(views, (0, 0)), (0, 0), *others))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        whole = jnp.zeros((*zeros[0].shape[:-2], *padded), zeros[0].dtype)
        return lax.fori_loop(0, down * across, add, (whole, zeros[1]))

    maps, sums = jax.tree.map(lambda x: x[:, 0], lax.map(one_image, (size, views, *others)))
    return maps[..., : canvas[0], : canvas[1]], sums


def covered(size: jax.Array, canvas: Sequence[int]) -> jax.Array:
    """[B, *canvas] bool: the first `size` [B, 2] rows and columns."""
    rows, columns = (jnp.arange(canvas[axis]) < size[:, axis, None] for axis in (0, 1))
    return rows[:, :, None] & columns[:, None]
