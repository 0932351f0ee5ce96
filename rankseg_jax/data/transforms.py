"""Transforms of a training image and its label map together, as TensorFlow graph functions.

Sizes, ranges and probabilities are those of mmsegmentation's training pipeline and, where the
config says so, of detectron2's. Everything random comes from a `seed` [2] key through stateless
ops, so a key always gives the same crop. Every function also takes a clip [t, H, W, 3] instead of
an image [H, W, 3], and any number of label maps [n, H, W]: all are transformed alike.
"""

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf
from ml_collections import ConfigDict

from rankseg_jax.data import IGNORE_LABEL, fitting

Pair = tuple[tf.Tensor, tf.Tensor]  # an image and its label map
CROP_TRIES = 11  # a first window and ten more
MAX_BRIGHTNESS = 32.0  # of 255
CONTRAST = (0.5, 1.5)
SATURATION = (0.5, 1.5)
HUE_STEPS = 18  # of OpenCV's 180 around the circle: -18 to 17; detectron2 includes 18


def resize_image(image: tf.Tensor, size: tf.Tensor, antialias: bool = False) -> tf.Tensor:
    """Bilinear with half-pixel centers: [..., H, W, 3] → float32 [..., h, w, 3].

    The same as `fitting.resize`.
    """
    return tf.image.resize(image, size, method='bilinear', antialias=antialias)


def resize_label(label: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """Nearest neighbor on the same half-pixel grid as the image: [..., H, W] → [..., h, w]."""
    # The released semantic recipes shift labels against the image by up to half a pixel: OpenCV's
    # INTER_NEAREST starts at corners.
    return tf.image.resize(label[..., None], size, method='nearest')[..., 0]


def compute_size(function: Callable, *arguments: Any) -> tf.Tensor:
    """The int32 [2] that a function of `fitting` returns, in a graph."""
    return tf.ensure_shape(tf.numpy_function(function, arguments, tf.int32), [2])


def random_scale(
    image: tf.Tensor,
    label: tf.Tensor,
    seed: tf.Tensor,
    *,
    base_size: tuple[int, int],
    scale_range: tuple[float, float],
    short_sides: tuple[int, ...] = (),
    antialias: bool = False,
) -> Pair:
    """Resizes by the keep-ratio rule with a ratio uniform in scale_range.

    With `short_sides` the short side gets one of these lengths instead, all equally likely, unless
    the long side would exceed that of base_size: detectron2's ResizeShortestEdge.
    """
    size = tf.shape(label)[-2:]
    if short_sides:
        choice = tf.random.stateless_uniform([], seed, 0, len(short_sides), tf.int32)
        limits = [tf.constant(short_sides)[choice], max(base_size)]
        size = compute_size(fitting.limited_size, size, limits)
    else:
        ratio = tf.random.stateless_uniform([], seed, *scale_range)
        size = compute_size(fitting.scaled_size, size, base_size, ratio)
    return resize_image(image, size, antialias), resize_label(label, size)


def crop(image: tf.Tensor, label: tf.Tensor, start: tf.Tensor, size: tf.Tensor) -> Pair:
    """The window of `size` [2] rows and columns that begins at `start` [2]."""
    (top, left), (bottom, right) = tf.unstack(start), tf.unstack(start + size)
    return image[..., top:bottom, left:right, :], label[..., top:bottom, left:right]


def random_crop(
    image: tf.Tensor,
    label: tf.Tensor,
    seed: tf.Tensor,
    *,
    crop_size: tuple[int, int],
    max_category_ratio: float,
) -> Pair:
    """Cuts out a window of at most crop_size that no category dominates.

    A window in which one category covers `max_category_ratio` or more of the labeled pixels is
    drawn again, 10 times at most; the last one is taken. A window of ignored pixels alone is drawn
    again as well. A ratio of 1 or more accepts any window.
    """
    size = tf.minimum(tf.shape(label)[-2:], crop_size)  # [2]
    margin = tf.shape(label)[-2:] - size
    uniform = tf.random.stateless_uniform([CROP_TRIES, 2], seed)
    starts = tf.cast(uniform * tf.cast(margin + 1, tf.float32), tf.int32)  # [tries, 2]
    last = CROP_TRIES - 1 if max_category_ratio < 1 else 0
    last = tf.where(tf.reduce_any(margin > 0), last, 0)

    def dominated(attempt):
        _, window = crop(image, label, start=starts[attempt], size=size)  # [..., h, w]
        counts = tf.math.bincount(window - IGNORE_LABEL, minlength=2)[1:]  # without the ignored
        limit = max_category_ratio * tf.cast(tf.reduce_sum(counts), tf.float32)
        return tf.cast(tf.reduce_max(counts), tf.float32) >= limit

    (attempt,) = tf.while_loop(
        lambda attempt: tf.cond(attempt < last, lambda: dominated(attempt), lambda: False),
        lambda attempt: [attempt + 1],
        [0],
    )
    return crop(image, label, start=starts[attempt], size=size)  # [..., h, w, 3], [..., h, w]


def random_flip(image: tf.Tensor, label: tf.Tensor, seed: tf.Tensor, *, probability: float) -> Pair:
    """Mirrors left and right."""
    flip = tf.random.stateless_uniform([], seed) < probability
    return tf.cond(flip, lambda: (image[..., ::-1, :], label[..., ::-1]), lambda: (image, label))


def large_scale_jitter(
    image: tf.Tensor,
    label: tf.Tensor,
    seed: tf.Tensor,
    *,
    crop_size: tuple[int, int],
    scale_range: tuple[float, float],
    antialias: bool,
) -> Pair:
    """Resizes to crop_size times a ratio uniform in scale_range and crops to crop_size at most.

    The window begins at the same fraction of the leftover rows and of the leftover columns:
    detectron2's ResizeScale and FixedSizeCrop.
    """
    scale_seed, crop_seed = tf.unstack(tf.random.split(seed))
    size = tf.cast(tf.shape(label)[-2:], tf.float64)
    target = tf.random.stateless_uniform([], scale_seed, *scale_range, tf.float64) * tf.constant(
        crop_size, tf.float64
    )
    size = tf.maximum(tf.cast(tf.round(size * tf.reduce_min(target / size)), tf.int32), 1)
    image, label = resize_image(image, size, antialias), resize_label(label, size)
    window = tf.minimum(size, crop_size)
    share = tf.random.stateless_uniform([], crop_seed, dtype=tf.float64)
    start = tf.cast(tf.round(share * tf.cast(size - window, tf.float64)), tf.int32)
    return crop(image, label, start=start, size=window)


def photometric_distortion(image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Changes brightness, contrast, saturation and hue, each with probability 1/2.

    Contrast comes first or last, with equal odds.
    """
    uniform = tf.random.stateless_uniform([9], seed)
    brightness_on, contrast_on, saturation_on, hue_on, contrast_first = tf.unstack(
        uniform[:5] < 0.5
    )
    brightness, contrast, saturation, hue = tf.unstack(uniform[5:])
    brightness = tf.where(brightness_on, MAX_BRIGHTNESS * (2 * brightness - 1), 0.0)
    contrast = CONTRAST[0] + (CONTRAST[1] - CONTRAST[0]) * contrast
    contrast = tf.where(contrast_on, contrast, 1.0)
    saturation = SATURATION[0] + (SATURATION[1] - SATURATION[0]) * saturation
    saturation = tf.where(saturation_on, saturation, 1.0)
    hue = tf.where(hue_on, tf.floor(2 * HUE_STEPS * hue) - HUE_STEPS, 0.0) / 180
    return distort_colors(
        image,
        brightness=brightness,
        contrast=contrast,
        saturation=saturation,
        hue=hue,
        contrast_first=contrast_first,
    )


def distort_colors(
    image: tf.Tensor,
    *,
    brightness: float | tf.Tensor,
    contrast: float | tf.Tensor,
    saturation: float | tf.Tensor,
    hue: float | tf.Tensor,
    contrast_first: bool | tf.Tensor,
) -> tf.Tensor:
    """mmsegmentation's PhotoMetricDistortion with given strengths.

    Args:
      image: float32 [..., 3] in 0..255.
      brightness: added.
      contrast: factor, applied right after brightness or at the end.
      saturation: see `shift_colors`.
      hue: see `shift_colors`.
      contrast_first: bool.

    Returns:
      float32 [..., 3] in 0..255, clipped after every operation but not rounded.
    """
    image = tf.clip_by_value(image + brightness, 0.0, 255.0)
    image = tf.clip_by_value(image * tf.where(contrast_first, contrast, 1.0), 0.0, 255.0)
    shifted = (saturation != 1) | (hue != 0)
    image = tf.cond(shifted, lambda: shift_colors(image, saturation, hue), lambda: image)
    return tf.clip_by_value(image * tf.where(contrast_first, 1.0, contrast), 0.0, 255.0)


def shift_colors(
    image: tf.Tensor, saturation: float | tf.Tensor, hue: float | tf.Tensor
) -> tf.Tensor:
    """Multiplies the saturation, clipped at 1, and turns the hue by a fraction of the circle."""
    h, s, v = tf.unstack(tf.image.rgb_to_hsv(image / 255), axis=-1)  # each [..., H, W]
    hsv = tf.stack([(h + hue) % 1.0, tf.minimum(s * saturation, 1.0), v], axis=-1)
    return tf.image.hsv_to_rgb(hsv) * 255  # [..., H, W, 3]


def normalize(image: tf.Tensor, mean: Sequence[float], std: Sequence[float]) -> tf.Tensor:
    """0..255 → float32 with zero mean and unit deviation, given the channels' `mean` and `std`."""
    mean, std = tf.constant(mean, tf.float32), tf.constant(std, tf.float32)
    return (tf.cast(image, tf.float32) - mean) / std


def pad(image: tf.Tensor, label: tf.Tensor, size: tuple[int, int], value: float) -> Pair:
    """Pads below and right up to `size`: the image with `value`, the label with IGNORE_LABEL."""
    bottom, right = tf.unstack(size - tf.shape(label)[-2:])
    widths, frames, maps = [[0, bottom], [0, right]], image.shape[:-3], label.shape[:-2]
    image = tf.pad(image, [*[[0, 0]] * len(frames), *widths, [0, 0]], constant_values=value)
    label = tf.pad(label, [*[[0, 0]] * len(maps), *widths], constant_values=IGNORE_LABEL)
    return tf.ensure_shape(image, [*frames, *size, 3]), tf.ensure_shape(label, [*maps, *size])


def train_transform(
    image: tf.Tensor, label: tf.Tensor, seed: tf.Tensor, config: ConfigDict
) -> Pair:
    """Augments a training example.

    Args:
      image: uint8 [H, W, 3], or of a clip [t, H, W, 3].
      label: int32 [H, W] or [n, H, W].
      seed: int64 [2], the key of everything random.
      config: the run's config; reads `augment`, `data.mean`, `data.std` and `data.antialias`.

    Returns:
      Normalized float32 [(t,) h, w, 3] and int32 [(n,) h, w], where (h, w) is `augment.crop_size`.
    """
    augment, data = config.augment, config.data
    scale_seed, crop_seed, flip_seed, color_seed = tf.unstack(tf.random.split(seed, 4))
    if augment.large_scale_jitter:
        image, label = random_flip(image, label, flip_seed, probability=augment.flip)
        image, label = large_scale_jitter(
            image,
            label,
            scale_seed,
            crop_size=augment.crop_size,
            scale_range=augment.scale_range,
            antialias=data.antialias,
        )
    else:
        image, label = random_scale(
            image,
            label,
            scale_seed,
            base_size=augment.base_size,
            scale_range=augment.scale_range,
            short_sides=augment.short_sides,
            antialias=data.antialias,
        )
        image, label = random_crop(
            image,
            label,
            crop_seed,
            crop_size=augment.crop_size,
            max_category_ratio=augment.max_category_ratio,
        )
        image, label = random_flip(image, label, flip_seed, probability=augment.flip)
    if augment.photometric:
        image = photometric_distortion(image, color_seed)
    if augment.pad_value < 0:  # the mean color is 0 after normalization
        return pad(normalize(image, data.mean, data.std), label, augment.crop_size, value=0.0)
    image, label = pad(image, label, augment.crop_size, value=augment.pad_value)
    return normalize(image, data.mean, data.std), label
