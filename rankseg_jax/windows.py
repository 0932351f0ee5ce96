"""How images are cut into windows, and the weights that put what is found in them back in place."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax
from ml_collections import ConfigDict

from rankseg_jax.data.fitting import window_stride


@struct.dataclass
class Cut:
    """How a batch of images is cut into windows, those of the mirrored images after the others.

    Attributes:
      content: [B, 2], rows and columns of the network's input that an image covers.
      starts: [B, n] rows and [B, m] columns where windows begin.
      window: (rows, columns) of a window; static, as are the following.
      stride: from one window to the next, (rows, columns).
      mirrored: for each mirror image, whether it is one.
      fringe: whether the first cells beyond the image count where its border lies between cells.
        They do in the released code, which pads images to a multiple of 32 pixels alone, and in
        Hugging Face's.
    """

    content: jax.Array
    starts: list[jax.Array]
    window: tuple[int, int] = struct.field(pytree_node=False)
    stride: tuple[int, int] = struct.field(pytree_node=False)
    mirrored: tuple[bool, ...] = struct.field(pytree_node=False)
    fringe: bool = struct.field(pytree_node=False)

    @property
    def counts(self) -> tuple[int, int]:
        """(n, m), windows below and beside each other."""
        return self.starts[0].shape[1], self.starts[1].shape[1]

    @property
    def views(self) -> tuple[int, int]:
        """(mirrors, windows), see `selector.Choice`."""
        return len(self.mirrored), self.counts[0] * self.counts[1]

    def held(self, cells: tuple[int, int]) -> jax.Array:
        """[B, 2] int32, rows and columns of cells that an image covers, of (h, w) of a window."""
        return -(-self.content * jnp.array(cells) // jnp.array(self.window))

    def places(
        self, cells: tuple[int, int], size: jax.Array, canvas: tuple[int, int], direct: bool = False
    ) -> list[tuple[jax.Array, jax.Array]]:
        """For each mirror image the weights (of rows, of columns) of its windows in the result.

        Args:
          cells: (h, w) of a window's logits.
          size: [B, 2] int32, rows and columns of the original images.
          canvas: (rows, columns) of the result.
          direct: from the cells of the one window, without its pixels in between. Of several, a
            cell is a pixel.
        """

        def weights(axis, mirror=False):
            content, window = self.content[:, axis], self.window[axis]
            stride = self.stride[axis]
            if direct:
                content = self.held(cells)[:, axis]
                window, stride = cells[axis], stride * cells[axis] // window
            return interpolation(
                length=canvas[axis],
                size=size[:, axis],
                content=content,
                starts=self.starts[axis],
                window=window,
                stride=stride,
                cells=cells[axis],
                mirror=mirror,
                fringe=self.fringe,
            )

        return [(weights(0), weights(1, mirror)) for mirror in self.mirrored]


def cut_windows(view: Mapping[str, jax.Array], evaluation: ConfigDict) -> tuple[Cut, jax.Array]:
    """Cuts {'image': [B, (t,) H, W, 3], 'content': [B, 2]} as `config.eval` says.

    Returns:
      The cut, and its windows [B, mirrors · windows, (t,) *window, 3].
    """
    image, content = view['image'], view['content']
    leading, whole = image.shape[1:-3], image.shape[-3:-1]
    window, stride = whole, whole
    if any(evaluation.window):
        window, stride = evaluation.window, window_stride(evaluation)
    counts = [-(-max(whole[axis] - window[axis], 0) // stride[axis]) + 1 for axis in (0, 1)]
    ends = [window[axis] + stride[axis] * (counts[axis] - 1) for axis in (0, 1)]
    missing = [(0, max(ends[axis] - whole[axis], 0)) for axis in (0, 1)]
    image = jnp.pad(image, ((0, 0), *((0, 0) for _ in leading), *missing, (0, 0)))

    def start(axis):  # [B, windows]; the last window ends where the image does
        number, last = jnp.arange(counts[axis]), content[:, axis, None] - window[axis]
        last = jnp.maximum(last, 0)  # [B, 1]
        if any(evaluation.stride):
            return jnp.minimum(number * stride[axis], last)
        gaps = -(-last // window[axis])  # between the windows that this image needs
        return jnp.minimum(number, gaps) * last // jnp.maximum(gaps, 1)

    starts = [start(axis) for axis in (0, 1)]
    mirrored = (False, True) if evaluation.flip else (False,)

    def windows(image, content, rows, columns):  # of one image
        x = jnp.arange(image.shape[-2])
        flipped = jnp.where(x < content[1], content[1] - 1 - x, x)
        first = (0,) * len(leading)
        return jnp.stack(
            [
                lax.dynamic_slice(source, (*first, row, column, 0), (*leading, *window, 3))
                for source in (image[..., flipped, :] if mirror else image for mirror in mirrored)
                for row in rows
                for column in columns
            ]
        )

    images = jax.vmap(windows)(image, content, *starts)
    padded_to_size = not any(evaluation.base_size) and any(evaluation.size)
    fringe = not padded_to_size or bool(evaluation.resample)
    cut = Cut(
        content=content,
        starts=starts,
        window=(window[0], window[1]),
        stride=(stride[0], stride[1]),
        mirrored=mirrored,
        fringe=fringe,
    )
    return cut, images


def interpolation(
    *,
    length: int,
    size: jax.Array,
    content: jax.Array,
    starts: jax.Array,
    window: int,
    stride: int,
    cells: int,
    mirror: bool,
    fringe: bool = False,
) -> jax.Array:
    """Weights of all windows' logits in each row (or column) of the result: [B, length, n · cells].

    Two bilinear resizes with half-pixel centers in one: from a window's cells to its pixels, where
    overlapping windows are averaged, and from those to the original image. Cells beyond the image
    have no weight, see `fringe`.

    Args:
      length: of the result, static.
      size: [B] of the original images.
      content: [B] of the network's input that an image covers.
      starts: [B, n] where windows of `window` pixels and `cells` logits begin, at most `stride`
        apart.
      mirror: the image is mirrored along this axis.
      fringe: see `Cut`.
    """
    place = jnp.arange(length)
    place = size[:, None] - 1 - place if mirror else place  # [B, length]
    place = (place + 0.5) * (content / size)[:, None] - 0.5
    place = jnp.clip(place, 0, content[:, None] - 1)
    before = jnp.floor(place)
    # [B, n], the other windows repeat the last.
    used = jnp.arange(starts.shape[1]) * stride < content[:, None] - window + stride
    used = used.at[:, 0].set(True)
    # In integers: 70 * (18 / 70) is above 18 in float32, and would add a cell that does not exist.
    last = (jnp.clip(content[:, None] - starts, 1, window) * cells - 1) // window  # [B, n]
    last = jnp.minimum(last + fringe, cells - 1)

    def pixel_weights(pixel):  # [B, length] → [B, length, n, cells]
        local = pixel[:, :, None] - starts[:, None]  # [B, length, n]
        seen = used[:, None] & (local >= 0) & (local < window)
        position = jnp.clip((local + 0.5) * (cells / window) - 0.5, 0, last[:, None])
        weight = jnp.maximum(0.0, 1.0 - jnp.abs(position[..., None] - jnp.arange(cells)))
        return weight * (seen / jnp.maximum(seen.sum(-1, keepdims=True), 1))[..., None]

    after = jnp.minimum(before + 1, content[:, None] - 1)
    share = (place - before)[..., None, None]
    weights = (1 - share) * pixel_weights(before) + share * pixel_weights(after)
    return weights.reshape(*weights.shape[:2], -1)  # [B, length, n · cells]
