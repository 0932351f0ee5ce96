"""Transforms of an image and its label map together, as TensorFlow graph functions.

Sizes, ranges and probabilities are those of mmsegmentation's training pipeline. Everything random
comes from a `seed` [2] key through stateless ops, so a key always gives the same crop.
"""

import tensorflow as tf

from rankseg_jax.data import IGNORE_LABEL

CROP_TRIES = 11  # a first window and ten more
MAX_BRIGHTNESS = 32.0  # of 255
CONTRAST = (0.5, 1.5)
SATURATION = (0.5, 1.5)
HUE_STEPS = 18  # of OpenCV's 180 around the circle: -18 to 17, of which detectron2 has 18 as well
WHOLE_MULTIPLE = 32  # of the sides of a whole image, the stride of the coarsest features


def resize_image(image, size):
    """Bilinear with half-pixel centres: [H, W, 3] -> float32 [h, w, 3]."""
    # No antialiasing, like OpenCV, with which the published recipes were trained and scored.
    return tf.image.resize(image, size, method='bilinear', antialias=False)


def resize_label(label, size):
    """Nearest neighbour on the same half-pixel grid as the image: [H, W] -> [h, w]."""
    return tf.image.resize(label[..., None], size, method='nearest')[..., 0]


def scaled_size(size, base_size, ratio):
    """The keep-ratio rule: the largest size that fits into base_size x ratio.

    Args:
      size: int32 [2], rows and columns.
      base_size: (short, long) side; (0, 0) stands for the image's own sides.
      ratio: float scalar.

    Returns:
      int32 [2] with the ratio of `size`, whose short side is at most int(short * ratio) and whose
      long side is at most int(long * ratio); never below 1.
    """
    size = tf.cast(size, tf.float64)  # in float32, 30 * 0.9 would round up to 27 before it is cut
    sides = tf.sort(size)  # [2] short, long
    target = tf.constant(base_size, tf.float64) if any(base_size) else sides
    factor = tf.reduce_min(tf.floor(target * tf.cast(ratio, tf.float64)) / sides)
    return tf.maximum(tf.cast(size * factor + 0.5, tf.int32), 1)


def random_scale(image, label, seed, *, base_size, scale_range):
    """Resizes by the keep-ratio rule with a ratio uniform in scale_range."""
    ratio = tf.random.stateless_uniform([], seed, *scale_range)
    size = scaled_size(tf.shape(label), base_size, ratio)
    return resize_image(image, size), resize_label(label, size)


def random_crop(image, label, seed, *, crop_size, max_category_ratio):
    """Cuts out a window of at most crop_size that no category dominates.

    A window in which one category covers `max_category_ratio` or more of the labelled pixels is drawn
    again, 10 times at most; the last one is taken. Ignored pixels don't count, and a window of nothing
    else is drawn again. A ratio of 1 or more accepts any window.
    """
    size = tf.minimum(tf.shape(label), crop_size)  # [2]
    margin = tf.shape(label) - size
    uniform = tf.random.stateless_uniform([CROP_TRIES, 2], seed)
    starts = tf.cast(uniform * tf.cast(margin + 1, tf.float32), tf.int32)  # [tries, 2]
    last = CROP_TRIES - 1 if max_category_ratio < 1 else 0
    last = tf.where(tf.reduce_any(margin > 0), last, 0)

    def dominated(attempt):
        window = tf.slice(label, starts[attempt], size)  # [h, w]
        counts = tf.math.bincount(window - IGNORE_LABEL, minlength=2)[1:]  # without the ignored
        limit = max_category_ratio * tf.cast(tf.reduce_sum(counts), tf.float32)
        return tf.cast(tf.reduce_max(counts), tf.float32) >= limit

    (attempt,) = tf.while_loop(
        lambda attempt: tf.cond(attempt < last, lambda: dominated(attempt), lambda: False),
        lambda attempt: [attempt + 1],
        [0],
    )
    start = starts[attempt]
    image = tf.slice(image, tf.pad(start, [[0, 1]]), tf.pad(size, [[0, 1]], constant_values=-1))
    return image, tf.slice(label, start, size)  # [h, w, 3], [h, w]


def random_flip(image, label, seed, *, probability):
    """Mirrors left and right."""
    flip = tf.random.stateless_uniform([], seed) < probability
    return tf.cond(flip, lambda: (image[:, ::-1], label[:, ::-1]), lambda: (image, label))


def photometric_distortion(image, seed):
    """Brightness, contrast, saturation and hue, each with probability 1/2; contrast first or last, with equal odds."""
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
    return distort_colours(image, brightness, contrast, saturation, hue, contrast_first)


def distort_colours(image, brightness, contrast, saturation, hue, contrast_first):
    """Adds `brightness`, shifts the colours as `shift_colours` and multiplies by `contrast`, right after the first or last.

    Takes and returns float32 [..., 3] in 0..255, clipped after every operation but not rounded. All but the image are scalars:
    numbers and, `contrast_first`, a bool. mmsegmentation's PhotoMetricDistortion.
    """
    image = tf.clip_by_value(image + brightness, 0.0, 255.0)
    image = tf.clip_by_value(image * tf.where(contrast_first, contrast, 1.0), 0.0, 255.0)
    shifted = (saturation != 1) | (hue != 0)
    image = tf.cond(shifted, lambda: shift_colours(image, saturation, hue), lambda: image)
    return tf.clip_by_value(image * tf.where(contrast_first, 1.0, contrast), 0.0, 255.0)


def shift_colours(image, saturation, hue):
    """Multiplies the saturation, clipped at full, and turns the hue by a share of the circle."""
    h, s, v = tf.unstack(tf.image.rgb_to_hsv(image / 255), axis=-1)  # each [..., H, W]
    hsv = tf.stack([(h + hue) % 1.0, tf.minimum(s * saturation, 1.0), v], axis=-1)
    return tf.image.hsv_to_rgb(hsv) * 255  # [..., H, W, 3]


def normalize(image, mean, std):
    """0..255 -> float32 with the channels' `mean` and `std` (in 0..255) taken out."""
    return (tf.cast(image, tf.float32) - tf.constant(mean, tf.float32)) / tf.constant(
        std, tf.float32
    )


def pad(image, label, size):
    """Pads at the bottom and right: the normalised image with 0, the label with IGNORE_LABEL."""
    bottom_right = [[0, size[0] - tf.shape(image)[0]], [0, size[1] - tf.shape(image)[1]]]
    image = tf.pad(image, [*bottom_right, [0, 0]])
    label = tf.pad(label, bottom_right, constant_values=IGNORE_LABEL)
    return tf.ensure_shape(image, [*size, 3]), tf.ensure_shape(label, size)


def train_transform(image, label, seed, config):
    """One augmented training example.

    Args:
      image: uint8 [H, W, 3].
      label: int32 [H, W].
      seed: int64 [2], the key of everything random.
      config: the run's config; reads `augment`, `data.mean` and `data.std`.

    Returns:
      Normalised float32 [h, w, 3] and int32 [h, w], where (h, w) is `augment.crop_size`.
    """
    augment = config.augment
    seeds = tf.unstack(tf.random.split(seed, 4))
    scale_seed, crop_seed, flip_seed, colour_seed = seeds
    image, label = random_scale(
        image,
        label,
        scale_seed,
        base_size=augment.base_size,
        scale_range=augment.scale_range,
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
        image = photometric_distortion(image, colour_seed)
    return pad(normalize(image, config.data.mean, config.data.std), label, augment.crop_size)


def fitted_size(size, target):
    """The largest int32 [2] with the ratio of `size` [2] that fits into `target` [2]; never below 1."""
    size, target = tf.cast(size, tf.float32), tf.cast(target, tf.float32)
    fitted = tf.round(size * tf.reduce_min(target / size))
    return tf.cast(tf.clip_by_value(fitted, 1, target), tf.int32)


def eval_views(image, config):
    """What evaluation sees of one image: a view for each of `eval.scales`.

    Args:
      image: uint8 [H, W, 3].
      config: the run's config; reads `eval`, `data.mean` and `data.std`.

    Returns:
      A tuple of {'image': normalised float32 [h, w, 3], zero below and right of the picture, 'content': int32 [2], the rows
      and columns that hold it}. With `eval.base_size` (h, w) is the image's own, rounded up; otherwise `eval.size` × scale.
      Windows, if any, end where it ends.
    """
    evaluation = config.eval
    size = tf.shape(image)[:2]

    def view(scale):
        if any(evaluation.base_size):
            content = scaled_size(size, evaluation.base_size, scale)
            padded = -(-content // WHOLE_MULTIPLE) * WHOLE_MULTIPLE
        else:
            padded = tf.maximum(tf.constant([round(side * scale) for side in evaluation.size]), 1)
            content = fitted_size(size, padded)
        if any(evaluation.window):
            window, stride = tf.constant(evaluation.window), tf.constant(evaluation.stride)
            padded = window + stride * -(-tf.maximum(content - window, 0) // stride)
        picture = normalize(resize_image(image, content), config.data.mean, config.data.std)
        below, right = tf.unstack(padded - content)
        picture = tf.pad(picture, [[0, below], [0, right], [0, 0]])
        return {'image': picture, 'content': content}

    return tuple(view(scale) for scale in evaluation.scales)
