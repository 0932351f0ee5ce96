"""Fits images to the sizes that models see, with NumPy and Pillow alone.

Evaluation, prediction and exported models share these functions. --mode=export copies the source
of the functions that `fit` needs into its example.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from ml_collections import ConfigDict


def fitted_size(
    size: np.ndarray | tuple[int, int], target: np.ndarray | tuple[int, int], resample: str = ''
) -> np.ndarray:
    """The largest int32 [2] with the ratio of `size` [2] that fits in `target` [2], at least 1.

    With `resample` it is rounded as by Hugging Face's processors, which know squares alone: the
    long side may lack a pixel.
    """
    if resample and target[0] == target[1]:
        return np.minimum(stretched_size(size, target, 1), target).astype(np.int32)
    size, target = np.asarray(size, np.float32), np.asarray(target, np.float32)
    return np.clip(np.round(size * (target / size).min()), 1, target).astype(np.int32)


def limited_size(
    size: np.ndarray | tuple[int, int], limits: np.ndarray | tuple[int, int]
) -> np.ndarray:
    """The largest size with the ratio of `size` whose sides keep to limits.

    Args:
      size: [2], rows and columns.
      limits: [2], of the short and of the long side.

    Returns:
      int32 [2], rounded, at least 1.
    """
    size = np.asarray(size, np.float64)
    factor = (np.asarray(limits, np.float64) / np.sort(size)).min()
    return np.maximum((size * factor + 0.5).astype(np.int32), 1)


def scaled_size(
    size: np.ndarray | tuple[int, int], base_size: np.ndarray | tuple[int, int], ratio: float
) -> np.ndarray:
    """The keep-ratio rule: the largest size that fits into base_size x ratio.

    Args:
      size: [2], rows and columns.
      base_size: (short, long) side; (0, 0) stands for the image's own sides.
      ratio: float.

    Returns:
      int32 [2] with the ratio of `size`, whose short side is at most int(short * ratio) and whose
      long side is at most int(long * ratio); at least 1.
    """
    sides = np.asarray(base_size if any(base_size) else np.sort(size), np.float64)
    # In float32, 30 * 0.9 would round up to 27 before it is cut.
    return limited_size(size, np.floor(sides * np.float64(ratio)))


def stretched_size(
    size: np.ndarray | tuple[int, int], base_size: np.ndarray | tuple[int, int], multiple: int
) -> np.ndarray:
    """The size that Hugging Face's processors resize to, which roughly keeps the aspect ratio.

    Args:
      size: [2], rows and columns.
      base_size: (shortest, longest) edge.
      multiple: `size_divisor`.

    Returns:
      int32 [2], rows and columns.
    """
    low, high = np.sort(size).tolist()
    short, longest = (int(edge) for edge in base_size)
    exact = short
    if high / low * short > longest:
        exact = longest * low / high
        short = round(exact)
    if low == short:
        fitted = np.array(size)
    else:
        sides = short, int(exact * high / low)  # in this order, or it rounds elsewhere
        fitted = np.array(sides if size[0] <= size[1] else sides[::-1])
    return (-(-np.maximum(fitted, 1) // multiple) * multiple).astype(np.int32)


def resize(
    image: np.ndarray,
    size: np.ndarray | tuple[int, int],
    antialias: bool = False,
    resample: str = '',
) -> np.ndarray:
    """Resizes with half-pixel centers: [..., H, W, D] → float32 [..., h, w, D].

    Bilinear: without `antialias` like OpenCV (mmsegmentation), which looks at two pixels per axis
    however far it shrinks; with it like Pillow (detectron2), whose filter grows as it shrinks, but
    without rounding. With `resample` exactly as Hugging Face, see `filtered`.
    """
    if resample:
        return filtered(image, size, resample)
    *leading, rows, columns, depth = image.shape
    resized = np.array(image, np.float32).reshape(*leading, rows, columns * depth)
    for axis, old, new, step in ((-2, rows, size[0], 1), (-1, columns, size[1], depth)):
        if new == old:
            continue
        reach = max(old / new, 1.0) if antialias else 1.0  # of the triangular filter
        centers = (np.arange(new) + 0.5) * old / new - 0.5
        taps = np.ceil(centers - reach) + np.arange(np.ceil(2 * reach))[:, None]  # [taps, new]
        weights = np.maximum(1 - np.abs(taps - centers) / reach, 0)
        weights *= (taps >= 0) & (taps < old)
        weights = (weights / weights.sum(0)).astype(np.float32)
        taps = np.clip(taps, 0, old - 1).astype(int)
        resized = blend(resized, axis, taps, weights=weights, step=step)
    return resized.reshape(*leading, *size, depth)


def blend(
    image: np.ndarray, axis: int, taps: np.ndarray, weights: np.ndarray, step: int
) -> np.ndarray:
    """Weighted sums along an axis of rows (-2) or columns (-1): [..., H, W * D] → as `image`.

    Args:
      taps: [taps, new] places that are summed up.
      weights: [taps, new], of the image's type.
      step: numbers that belong to a place: D for columns, 1 for rows.
    """
    places = (taps[..., None] * step + np.arange(step)).reshape(len(taps), -1)
    weights = weights.repeat(step, 1)
    total = image.dtype.type(0)
    for place, weight in zip(places, weights, strict=True):
        part = image.take(place, axis, mode='clip')  # 'clip' avoids a copy
        part *= weight[:, None] if axis == -2 else weight
        part += total
        total = part
    return total


def filtered(image: np.ndarray, size: np.ndarray | tuple[int, int], resample: str) -> np.ndarray:
    """Resizes uint8 [..., H, W, 3] as torchvision does, to whole float32 [..., h, w, 3].

    Hugging Face's processors use torchvision by default. It matches Pillow except for 16-bit
    weights and for nearest pixels, some of which Pillow misplaces. torchvision lacks box and
    hamming; Pillow does those.
    """
    *leading, rows, columns, depth = image.shape
    if resample == 'nearest':
        for axis, old, new in ((-3, rows, size[0]), (-2, columns, size[1])):
            places = np.arange(0.5, new, dtype=np.float32) * (np.float32(old) / np.float32(new))
            image = image.take(places.astype(int), axis, mode='clip')
        return image.astype(np.float32)
    if resample in ('box', 'hamming'):
        kernel = Image.Resampling[resample.upper()]
        shape = int(size[1]), int(size[0])
        frames = image.reshape(-1, rows, columns, depth)
        resized = [np.asarray(Image.fromarray(frame).resize(shape, kernel)) for frame in frames]
        return np.stack(resized).reshape(*leading, *size, depth).astype(np.float32)
    resized = image.reshape(*leading, rows, columns * depth)
    for axis, old, new, step in ((-1, columns, size[1], depth), (-2, rows, size[0], 1)):
        if new == old:
            continue
        taps, weights = filter_weights(old, new, resample)
        bits = 22
        while int(0.5 + weights.max() * 2**bits) >= 2**15:
            bits -= 1
        weights = np.trunc(weights * 2**bits + np.copysign(0.5, weights)).astype(np.int32)
        total = blend(resized.astype(np.int32), axis, taps, weights=weights, step=step)
        total = total + 2 ** (bits - 1)
        resized = np.clip(total >> bits, 0, 255).astype(np.uint8)
    return resized.reshape(*leading, *size, depth).astype(np.float32)


def filter_weights(old: int, new: int, resample: str) -> tuple[np.ndarray, np.ndarray]:
    """The pixels that make up each new one along an axis, and their weights, [taps, new] each.

    Args:
      resample: bilinear, bicubic or lanczos; the filter grows as images shrink.
    """
    reach = {'bilinear': 1.0, 'bicubic': 2.0, 'lanczos': 3.0}[resample]
    scale = max(old / new, 1.0)
    centers = np.arange(0.5, new) * (old / new)
    first = np.maximum(centers - reach * scale + 0.5, 0).astype(int)
    end = np.minimum(centers + reach * scale + 0.5, old).astype(int)
    taps = first + np.arange((end - first).max())[:, None]  # [taps, new]
    x = np.abs(taps - centers + 0.5) / scale
    if resample == 'bilinear':
        weights = 1 - x
    elif resample == 'bicubic':
        near, far = (1.5 * x - 2.5) * x * x + 1, ((2.5 - 0.5 * x) * x - 4) * x + 2
        weights = np.where(x < 1, near, far)
    else:
        weights = np.sinc(x) * np.sinc(x / 3)
    weights = np.where((taps < end) & (x < reach), weights, 0.0)
    return np.minimum(taps, old - 1), weights / weights.sum(0)


def fit(
    image: np.ndarray,
    size: tuple[int, int],
    antialias: bool = False,
    resample: str = '',
    stretch: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Resizes an image to the largest of its ratio that fits into `size`, and pads it with zeros.

    Args:
      image: uint8 [H, W, 3], or a clip [t, H, W, 3].
      size: (h, w).
      antialias: see `resize`.
      resample: likewise.
      stretch: resize to `size` itself.

    Returns:
      uint8 [(t,) h, w, 3] with the image at the top left, and int32 [2], its rows and columns
      there.
    """
    own = image.shape[-3:-1]
    content = np.array(size, np.int32) if stretch else fitted_size(own, size, resample)
    rows, columns = content
    fitted = np.zeros((*image.shape[:-3], *size, 3), np.uint8)
    fitted[..., :rows, :columns, :] = resize(
        image, content, antialias=antialias, resample=resample
    ).round()
    return fitted, content


def view_sizes(
    size: tuple[int, int], evaluation: ConfigDict, scale: float
) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of an image of `size` in its view of a scale, and those of the view.

    Args:
      size: (rows, columns).
      evaluation: `config.eval`.

    Returns:
      int32 [2] each.
    """
    fixed = not any(evaluation.base_size) and any(evaluation.size)
    if fixed:
        view = np.maximum([round(side * scale) for side in evaluation.size], 1).astype(np.int32)
        content = view if evaluation.stretch else fitted_size(size, view, evaluation.resample)
    elif evaluation.stretch:
        base_size = evaluation.base_size if any(evaluation.base_size) else np.sort(size)
        base_size = np.floor(np.multiply(base_size, scale))
        content = view = stretched_size(size, base_size, evaluation.multiple)
    else:
        content = scaled_size(size, evaluation.base_size, scale)
        view = -(-content // evaluation.multiple) * evaluation.multiple
    if any(evaluation.window):
        window, stride = np.array(evaluation.window), np.array(window_stride(evaluation))
        view = window + stride * -(-np.maximum(content - window, 0) // stride)
    return content, view


def window_stride(evaluation: ConfigDict) -> tuple[int, int]:
    """The most rows and columns from one window of `config.eval` to the next."""
    return evaluation.stride if any(evaluation.stride) else evaluation.window


def padding_color(config: ConfigDict) -> np.ndarray:
    """The value of padding after normalization, float32 [3]; 0 is the mean color."""
    mean, std = (np.array(x, np.float32) for x in (config.data.mean, config.data.std))
    value = config.eval.pad_value
    return np.zeros(3, np.float32) if value < 0 else (value - mean) / std


def eval_views(image: np.ndarray, config: ConfigDict) -> tuple[dict[str, np.ndarray], ...]:
    """The views of an image in evaluation, one for each of `eval.scales`.

    Args:
      image: uint8 [H, W, 3], or a clip [t, H, W, 3].
      config: the run's config; reads `eval`, `data.mean`, `data.std` and `data.antialias`.

    Returns:
      A tuple of {'image': normalized float32 [(t,) h, w, 3], of `padding_color` below and to the
      right of the content, 'content': int32 [2], its rows and columns}. If `eval.size` holds,
      (h, w) is that × scale; otherwise the content's size, rounded up to `eval.multiple`. With
      windows, the last one ends where (h, w) does.
    """
    evaluation, data = config.eval, config.data
    views = []
    for scale in evaluation.scales:
        content, size = view_sizes(image.shape[-3:-1], evaluation, scale)
        # [(t,) rows, columns, 3]
        fitted = resize(image, content, antialias=data.antialias, resample=evaluation.resample)
        view = np.broadcast_to(padding_color(config), (*image.shape[:-3], *size, 3)).copy()
        rows, columns = content
        # A row at a time: NumPy is slow where only three numbers are repeated.
        flat = fitted.reshape(*fitted.shape[:-2], -1)  # [(t,) rows, columns * 3]
        flat -= np.tile(np.array(data.mean, np.float32), columns)
        flat /= np.tile(np.array(data.std, np.float32), columns)
        view[..., :rows, :columns, :] = fitted
        views.append({'image': view, 'content': content})
    return tuple(views)
