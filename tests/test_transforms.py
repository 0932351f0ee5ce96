import colorsys

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from configs import common, deeplabv3, mask2former, segmenter
from rankseg_jax.data import IGNORE_LABEL, transforms


def coded(rows, columns):
    """An image and a label that say where each pixel came from."""
    row, column = np.mgrid[:rows, :columns]
    image = np.stack([row, column, np.zeros_like(row)], axis=-1).astype(np.float32)
    return image, (row * columns + column).astype(np.int32)


def keys(count, seed=0):
    return tf.constant([[seed, n] for n in range(count)], tf.int64)


@pytest.mark.parametrize('size', [(17, 23), (8, 5), (40, 30), (13, 64)])
def test_resize_image_against_scipy(size):
    image = np.random.default_rng(0).integers(0, 256, (16, 20, 3)).astype(np.uint8)
    rows = (np.arange(size[0]) + 0.5) * 16 / size[0] - 0.5
    columns = (np.arange(size[1]) + 0.5) * 20 / size[1] - 0.5
    grid = np.meshgrid(rows, columns, indexing='ij')
    expected = [
        ndimage.map_coordinates(image[..., c].astype(float), grid, order=1, mode='nearest')
        for c in range(3)
    ]
    found = transforms.resize_image(image, size).numpy()
    np.testing.assert_allclose(found, np.stack(expected, axis=-1), atol=1e-2)


@pytest.mark.parametrize('size', [(17, 23), (9, 7), (48, 40), (13, 63)])  # no ties between pixels
def test_resize_label_against_pillow(size):
    label = np.random.default_rng(0).integers(-1, 2000, (16, 20)).astype(np.int32)
    expected = np.array(Image.fromarray(label).resize(size[::-1], Image.Resampling.NEAREST))
    found = transforms.resize_label(label, size).numpy()
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == np.int32


@pytest.mark.parametrize('antialias', [False, True])
@pytest.mark.parametrize('size', [(23, 31), (7, 9), (61, 40), (90, 111), (60, 81)])
def test_resize_image_against_opencv_and_pillow(antialias, size):
    image = np.random.default_rng(0).integers(0, 256, (60, 80, 3)).astype(np.uint8)
    pillow = Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR)
    expected = (
        np.array(pillow) if antialias else pytest.importorskip('cv2').resize(image, size[::-1])
    )
    found = transforms.resize_image(image, size, antialias).numpy()
    np.testing.assert_allclose(found, expected, atol=1.01)  # they round to whole levels, twice


def test_every_short_side_is_as_likely():
    image, label = coded(20, 30)
    options = {'base_size': (1, 39), 'scale_range': (0.5, 2.0), 'short_sides': (10, 20, 30)}
    sizes = [transforms.random_scale(image, label, key, **options)[1].shape for key in keys(150)]
    assert set(sizes) == {(10, 15), (20, 30), (26, 39)}  # the long side is at most 39
    assert min(sizes.count(size) for size in set(sizes)) > 35


def test_scale_keeps_image_and_label_together():
    label = ndimage.zoom(np.arange(6).reshape(2, 3), 16, order=0).astype(np.int32)
    image = np.repeat(40 * label[..., None], 3, axis=-1).astype(np.uint8)
    for key in keys(20):
        scaled, labels = transforms.random_scale(
            image, label, key, base_size=(0, 0), scale_range=(0.5, 2.0)
        )
        assert scaled.shape[:2] == labels.shape
        assert 16 <= labels.shape[0] <= 64 and abs(labels.shape[0] * 1.5 - labels.shape[1]) <= 1
        assert set(np.unique(labels)) == set(range(6))
        # Away from the borders between regions, both must still agree.
        agree = np.abs(scaled[..., 0].numpy() - 40 * labels.numpy()) < 1
        assert agree.mean() > 0.75


def test_scale_covers_its_range_evenly():
    image, label = coded(200, 200)
    sides = [
        transforms.random_scale(image, label, key, base_size=(0, 0), scale_range=(0.5, 2.0))[
            1
        ].shape[0]
        for key in keys(200)
    ]
    histogram, _ = np.histogram(sides, bins=3, range=(100, 401))
    assert histogram.min() > 45


@pytest.mark.parametrize('rows, columns', [(20, 30), (5, 30), (20, 4), (5, 4)])
def test_crop_is_a_window(rows, columns):
    image, label = coded(rows, columns)
    starts = set()
    for key in keys(60):
        crop, labels = transforms.random_crop(
            image, label, key, crop_size=(8, 10), max_category_ratio=0.75
        )
        height, width = min(rows, 8), min(columns, 10)
        row, column = crop[0, 0, :2].astype(int)
        starts.add((row, column))
        np.testing.assert_array_equal(crop, image[row : row + height, column : column + width])
        np.testing.assert_array_equal(labels, label[row : row + height, column : column + width])
        assert crop.shape == (height, width, 3)
    for axis, last in enumerate((max(rows - 8, 0), max(columns - 10, 0))):
        reached = {start[axis] for start in starts}
        assert reached <= set(range(last + 1))
        assert len(reached) > 0.8 * last and {0, last} & reached


def test_no_category_dominates_a_crop():
    image, _ = coded(32, 32)
    label = np.zeros([32, 32], np.int32)
    label[:, 16:] = 1

    def shares(limit):
        found = []
        for key in keys(100):
            _, crop = transforms.random_crop(
                image, label, key, crop_size=(8, 8), max_category_ratio=limit
            )
            found.append(np.unique(crop, return_counts=True)[1].max() / 64)
        return np.array(found)

    # 3 of the 25 columns to start at give a share below 0.75, and 7 one below 0.95.
    assert abs((shares(1.0) >= 0.75).mean() - 22 / 25) < 0.1
    assert abs((shares(0.75) >= 0.75).mean() - (22 / 25) ** 11) < 0.13
    assert abs((shares(0.95) >= 0.95).mean() - (18 / 25) ** 11) < 0.08


def test_crop_takes_the_last_window_when_all_are_dominated():
    image, _ = coded(32, 32)
    _, crop = transforms.random_crop(
        image, np.zeros([32, 32], np.int32), keys(1)[0], crop_size=(8, 8), max_category_ratio=0.75
    )
    np.testing.assert_array_equal(crop, np.zeros([8, 8]))


def test_ignored_pixels_do_not_dominate():
    # Every window holds as much of class 0 as of class 1; half of it is ignored, or class 2.
    pattern = np.tile([[0, 2], [2, 1]], [16, 16]).astype(np.int32)
    image, _ = coded(32, 32)
    starts = {}
    for name, label in {
        'ignored': np.where(pattern == 2, IGNORE_LABEL, pattern),
        'counted': pattern,
        'balanced': np.tile([[0, 1], [1, 0]], [16, 16]).astype(np.int32),
    }.items():
        starts[name] = [
            transforms.random_crop(image, label, key, crop_size=(8, 8), max_category_ratio=0.505)[
                0
            ][0, 0]
            for key in keys(30)
        ]
    np.testing.assert_array_equal(starts['ignored'], starts['balanced'])
    np.testing.assert_array_equal(starts['counted'], starts['balanced'])


def test_ignored_share_does_not_hide_a_dominant_category():
    # Class 0 covers 40 % of the pixels but all that is labeled on the left: drawn again.
    label = np.full([16, 64], IGNORE_LABEL, np.int32)
    label[:, ::2] = 0
    label[::2, 32::2] = 1
    image, _ = coded(16, 64)
    shares = []
    for key in keys(60):
        _, crop = transforms.random_crop(
            image, label, key, crop_size=(16, 16), max_category_ratio=0.75
        )
        counted = crop[crop != IGNORE_LABEL]
        shares.append((counted == 0).mean())
    assert np.mean(np.array(shares) < 0.75) > 0.95


def test_all_ignored_windows_are_drawn_again():
    label = np.full([16, 64], IGNORE_LABEL, np.int32)
    label[:, 32:] = np.tile([[0, 1], [1, 0]], [8, 16])
    image, _ = coded(16, 64)
    for key in keys(60):
        _, crop = transforms.random_crop(
            image, label, key, crop_size=(16, 16), max_category_ratio=0.75
        )
        assert (crop != IGNORE_LABEL).any()


def test_flip_mirrors_both_half_of_the_time():
    image, label = coded(4, 6)
    flips = 0
    for key in keys(200):
        flipped, labels = transforms.random_flip(image, label, key, probability=0.5)
        turned = flipped[0, 0, 1] == 5
        flips += int(turned)
        np.testing.assert_array_equal(flipped, np.fliplr(image) if turned else image)
        np.testing.assert_array_equal(labels, np.fliplr(label) if turned else label)
    assert 70 < flips < 130


@settings(max_examples=20, deadline=None)
@given(st.floats(0, 2, width=32), st.floats(-0.5, 0.5, width=32), st.integers(0, 1000))
def test_shift_colors_against_colorsys(saturation, hue, seed):
    image = np.random.default_rng(seed).integers(0, 256, (3, 4, 3)).astype(np.float32)
    found = transforms.shift_colors(image, saturation, hue).numpy()
    for index in np.ndindex(3, 4):
        h, s, v = colorsys.rgb_to_hsv(*(image[index] / 255))
        expected = colorsys.hsv_to_rgb((h + hue) % 1, min(s * saturation, 1), v)
        np.testing.assert_allclose(found[index], 255 * np.array(expected), atol=0.05)


def convert(x, factor=1.0, offset=0.0):
    return np.clip(x.astype(np.float32) * factor + offset, 0, 255).astype(np.uint8)


def photometric_distortion(image, brightness, contrast, saturation, hue, contrast_first):
    """mmsegmentation's algorithm, in 8 bits."""
    cv2 = pytest.importorskip('cv2')
    image = convert(image, offset=brightness)
    image = convert(image, contrast) if contrast_first else image
    if saturation != 1:
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
        hsv[..., 1] = convert(hsv[..., 1], saturation)
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    if hue:
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
        hsv[..., 0] = (hsv[..., 0].astype(int) + hue) % 180
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    return image if contrast_first else convert(image, contrast)


# 8 bits cut off less than a level of the sum and of the product each, the first multiplied by the
# contrast. Their hue has steps of 2 degrees, of which half a step is 255 / 60 levels of one
# channel; saturation and result are rounded to a level as well.
@pytest.mark.parametrize(
    'draws, largest, mean',
    [
        ((20.3, 1.0, 1.0, 0, True), 1, 0.5),
        ((0.0, 1.37, 1.0, 0, True), 1, 0.5),
        ((-25.5, 1.5, 1.0, 0, False), 2.5, 0.75),
        ((0.0, 1.0, 1.3, 0, True), 6, 0.75),
        ((0.0, 1.0, 0.6, 0, True), 6, 0.75),
        ((0.0, 1.0, 1.0, -18, True), 6, 0.75),
        ((0.0, 1.0, 1.0, 17, False), 6, 0.75),
        ((0.0, 1.0, 1.4, -9, True), 6, 0.75),
        ((12.5, 1.45, 1.4, -9, True), 9, 1.5),
        ((12.5, 1.45, 0.6, 13, False), 9, 1.5),
        ((-30.0, 0.55, 1.5, 17, True), 9, 1.5),
        ((-30.0, 1.5, 1.5, 17, False), 9, 1.5),
    ],
)
def test_distortion_against_opencv(draws, largest, mean):
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    brightness, contrast, saturation, hue, contrast_first = draws
    found = transforms.distort_colors(
        image.astype(np.float32),
        brightness=brightness,
        contrast=contrast,
        saturation=saturation,
        hue=hue / 180,
        contrast_first=contrast_first,
    ).numpy()
    error = np.abs(found - photometric_distortion(image, *draws))
    assert error.max() < largest and error.mean() < mean


def test_hue_turns_by_whole_steps():
    red = np.array([[[100, 0, 0]]], np.float32)  # brightness and contrast leave its hue alone
    out = [transforms.photometric_distortion(red, key).numpy()[0, 0] for key in keys(400)]
    steps = np.array([180 * colorsys.rgb_to_hsv(*x)[0] for x in out])
    np.testing.assert_allclose(steps, steps.round(), atol=1e-3)
    assert set((steps.round() + 90) % 180 - 90) == set(range(-18, 18))


def test_distortion_of_gray_is_brightness_and_contrast():
    gray = np.full([1, 1, 3], 100, np.float32)
    out = np.array([transforms.photometric_distortion(gray, key)[0, 0] for key in keys(400)])
    np.testing.assert_allclose(out, out[:, :1] + np.zeros(3), atol=1e-3)
    value = out[:, 0]
    assert (68 * 0.5 <= value).all() and (value <= 132 * 1.5).all()
    assert value.min() < 50 and value.max() > 160
    assert 0.18 < (np.abs(value - 100) < 1e-3).mean() < 0.32  # neither: 1/4


def test_distortion_of_color_stays_in_range():
    color = np.array([[[200, 100, 60]]], np.float32)
    hue, saturation, _ = colorsys.rgb_to_hsv(*(color[0, 0] / 255))
    hues, saturations = [], []
    for key in keys(400):
        out = transforms.photometric_distortion(color, key).numpy()[0, 0]
        assert (out >= 0).all() and (out <= 255).all()
        h, s, v = colorsys.rgb_to_hsv(*(out / 255))
        hues.append(h)
        saturations.append(s)
    turned = np.array([(h - hue + 0.5) % 1 - 0.5 for h in hues])
    assert np.abs(turned).max() <= 0.1 + 0.05  # clipping shifts a hue by a little
    assert turned.min() < -0.07 and turned.max() > 0.07
    assert 0.3 < (np.abs(turned) < 1e-3).mean() < 0.55
    assert min(saturations) < 0.6 * saturation and max(saturations) > 1.3 * saturation


def test_normalize_comes_before_padding():
    image = np.full([2, 3, 3], 10, np.uint8)
    label = np.ones([2, 3], np.int32)
    image = transforms.normalize(image, (10, 5, 0), (1, 2, 5))
    np.testing.assert_allclose(image[0, 0], [0, 2.5, 2])
    image, label = transforms.pad(image, label, (4, 4), 0.0)
    np.testing.assert_allclose(image[:2, :3] - [0, 2.5, 2], np.zeros([2, 3, 3]), atol=1e-6)
    assert np.count_nonzero(image) == 2 * 3 * 2
    assert np.count_nonzero(label == 1) == 6 and np.count_nonzero(label == IGNORE_LABEL) == 10


def test_train_transform_is_a_function_of_its_key():
    config = common.get_config()
    config.augment.crop_size = (24, 32)
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (40, 30, 3)).astype(np.uint8)
    label = rng.integers(-1, 5, (40, 30)).astype(np.int32)

    @tf.function
    def compiled(key):
        return transforms.train_transform(image, label, key, config)

    outputs = []
    for key in keys(6):
        first, again = compiled(key), compiled(key)
        np.testing.assert_array_equal(first[0], again[0])
        np.testing.assert_array_equal(first[1], again[1])
        assert first[0].shape == (24, 32, 3) and first[0].dtype == tf.float32
        assert first[1].shape == (24, 32) and set(np.unique(first[1])) <= set(range(-1, 5))
        outputs.append(first[0].numpy().tobytes())
    assert len(set(outputs)) == 6


MEAN, STD = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])


def picture(rows, columns, seed=0):
    """A random image, and a label map with another class at each pixel; some are ignored."""
    rng = np.random.default_rng(seed)
    label = np.arange(rows * columns, dtype=np.int32).reshape(rows, columns)
    label[rng.random(label.shape) < 0.1] = IGNORE_LABEL
    return rng.integers(0, 256, (rows, columns, 3)).astype(np.uint8), label


def pillow(image, label, size):
    """Both resized to (rows, columns). From odd sides, so that no label has two nearest ones."""
    image = Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR)
    return np.array(image), np.array(
        Image.fromarray(label).resize(size[::-1], Image.Resampling.NEAREST)
    )


def windows(image, label, size, starts):
    return [
        (image[r : r + size[0], c : c + size[1]], label[r : r + size[0], c : c + size[1]])
        for r, c in starts
    ]


def mirrored(image, label):
    return image[:, ::-1], label[:, ::-1]


def finished(image, label, size, color):
    """Padded to `size`, the image with `color`, and normalized."""
    canvas, labels = np.full((*size, 3), color), np.full(size, IGNORE_LABEL)
    canvas[: label.shape[0], : label.shape[1]] = image
    labels[: label.shape[0], : label.shape[1]] = label
    return (canvas - MEAN) / STD, labels


def draws_of(config, image, label, candidates, count):
    """Which of the candidates each of `count` keys gives; each must give one, to a level of 255."""
    transform = tf.function(lambda key: transforms.train_transform(image, label, key, config))
    found = []
    for key in keys(count):
        pixels, labels = (x.numpy() for x in transform(key))
        found += [
            [
                np.array_equal(labels, y) and np.all(np.abs(pixels - x) * STD < 1.01)
                for x, y in candidates
            ].index(True)
        ]
    return np.array(found)


@pytest.mark.parametrize(
    'config', [segmenter.get_config('coco_stuff10k_b16'), deeplabv3.get_config('coco_stuff10k')]
)
def test_mmsegmentations_training_example(config):
    cv2 = pytest.importorskip('cv2')
    config.augment.update(base_size=(10, 40), crop_size=(16, 16), photometric=False)
    image, label = picture(10, 20)
    label[:, :12] = 0  # until column 24 of the enlarged image
    for ratio, margin in ((1, (0, 4)), (2, (4, 24))):
        config.augment.scale_range = (ratio, ratio)
        size = (20 * ratio, 10 * ratio)
        larger = (
            cv2.resize(image, size, interpolation=cv2.INTER_LINEAR),
            cv2.resize(label, size, interpolation=cv2.INTER_NEAREST),
        )
        cut = windows(
            *larger, (16, 16), [(r, c) for r in range(margin[0] + 1) for c in range(margin[1] + 1)]
        )
        counted = [np.unique(y[y != IGNORE_LABEL], return_counts=True)[1] for _, y in cut]
        cut = [x for x, n in zip(cut, counted, strict=True) if n.max() / n.sum() < 0.75]
        candidates = [finished(*x, (16, 16), MEAN) for x in cut] + [
            finished(*mirrored(*x), (16, 16), MEAN) for x in cut
        ]
        found = draws_of(config, image, label, candidates, 60)
        assert 20 < (found < len(cut)).sum() < 40  # not mirrored
        assert len(set(found)) > 0.5 * min(len(candidates), 60)


def test_mask2formers_training_example():
    config = mask2former.get_config('ade20k_r50')
    config.augment.update(
        base_size=(16, 34), crop_size=(16, 16), short_sides=(12, 24), photometric=False
    )
    image, label = picture(21, 31)
    small = windows(*pillow(image, label, (12, 18)), (16, 16), [(0, c) for c in range(3)])
    large = pillow(image, label, (23, 34))  # 24 × 36, but for the limit
    large = windows(*large, (16, 16), [(r, c) for r in range(8) for c in range(19)])
    candidates = [
        finished(*f(*x), (16, 16), 128.0) for x in small + large for f in (lambda *x: x, mirrored)
    ]
    found = draws_of(config, image, label, candidates, 80)
    assert 25 < (found < 6).sum() < 55 and 25 < (found % 2).sum() < 55
    assert set(range(6)) <= set(found) and len(set(found[found >= 6])) > 20


@pytest.mark.parametrize('ratio, size', [(2.0, (27, 32)), (1.1, (15, 18)), (0.45, (6, 7))])
def test_large_scale_jitters_training_example(ratio, size):
    config = mask2former.get_config('coco_panoptic_r50')
    config.augment.update(crop_size=(16, 16), scale_range=(ratio, ratio))
    image, label = picture(21, 25)
    margin = np.maximum(np.subtract(size, 16), 0)
    starts = {tuple(np.round(margin * share).astype(int)) for share in np.linspace(0, 1, 1000)}
    cut = [
        window
        for x in ((image, label), mirrored(image, label))
        for window in windows(*pillow(*map(np.ascontiguousarray, x), size), (16, 16), starts)
    ]
    found = draws_of(config, image, label, [finished(*x, (16, 16), 128.0) for x in cut], 60)
    assert 20 < (found < len(starts)).sum() < 40 and len(set(found)) > 0.5 * len(cut)


def test_large_scale_jitter_covers_its_range_evenly():
    image, label = coded(40, 40)
    crops = [
        transforms.large_scale_jitter(
            image, label, key, crop_size=(30, 30), scale_range=(0.1, 2.0), antialias=False
        )[1].shape
        for key in keys(200)
    ]
    assert crops.count((30, 30)) / 200 == pytest.approx(1 / 1.9, abs=0.1)
    histogram, _ = np.histogram(
        [shape[0] for shape in crops if shape[0] < 30], bins=3, range=(3, 30)
    )
    assert histogram.min() > 18


def test_a_mirror_image_may_be_cut_out_or_a_window_mirrored():
    size, window, start = (40, 44), (16, 18), (5, 9)

    def cut(image, label, start):
        # Twice as large: the weights of pixels are whole quarters.
        image, label = transforms.resize_image(image, size), transforms.resize_label(label, size)
        return transforms.crop(image, label, tf.constant(start), tf.constant(window))

    image, label = picture(20, 22)
    first, last = (
        cut(*mirrored(image, label), start),
        cut(image, label, (start[0], size[1] - window[1] - start[1])),
    )
    for x, y in zip(first, mirrored(*last), strict=True):
        np.testing.assert_array_equal(x, y)


def video_config():
    config = mask2former.get_config('ade20k_r50')
    config.augment.update(
        base_size=(18, 44),
        crop_size=(24, 48),
        short_sides=(12, 18),
        photometric=False,
        pad_value=-1.0,
    )
    return config


def test_videos_training_example():
    frames = [picture(21, 31, seed) for seed in range(2)]
    candidates = []
    for size in ((12, 18), (18, 27)):
        for f in (lambda *x: x, mirrored):
            examples = [finished(*f(*pillow(*x, size)), (24, 48), MEAN) for x in frames]
            candidates.append([np.stack(x) for x in zip(*examples, strict=True)])
    found = draws_of(video_config(), *map(np.stack, zip(*frames, strict=True)), candidates, 80)
    assert np.bincount(found).min() > 10 and set(found) == {0, 1, 2, 3}


CONFIGS = {
    'mmsegmentation': segmenter.get_config('ade20k_b16'),
    'mask2former': mask2former.get_config('ade20k_r50'),
    'large_scale_jitter': mask2former.get_config('coco_panoptic_r50'),
    'video': video_config(),
}


@pytest.mark.parametrize('name', CONFIGS)
def test_a_clip_is_transformed_like_its_frames(name):
    config = CONFIGS[name].copy_and_resolve_references()
    config.augment.update(base_size=(20, 80), crop_size=(16, 16), photometric=True)
    config.augment.short_sides = config.augment.short_sides and (12, 24)
    image, label = picture(21, 31)
    label = label // 40  # so that categories dominate
    specs = [([None, None, None, 3], tf.uint8), ([None, None, None], tf.int32), ([2], tf.int64)]
    of_clip = tf.function(
        lambda *x: transforms.train_transform(*x, config), [tf.TensorSpec(*spec) for spec in specs]
    )
    of_image = tf.function(lambda key: transforms.train_transform(image, label, key, config))
    for key in keys(8):
        pixels, labels = of_image(key)
        for length in (1, 2):
            clip = of_clip(np.stack([image] * length), np.stack([label] * length), key)
            assert clip[0].shape == (length, 16, 16, 3) and np.array_equal(clip[0][0], clip[0][-1])
            np.testing.assert_allclose(clip[0][0], pixels, atol=1e-4)
            np.testing.assert_array_equal(clip[1], np.stack([labels] * length))
        _, ignored = of_clip(
            np.stack([image] * 3), np.full([3, 21, 31], IGNORE_LABEL, np.int32), key
        )
        assert ignored.shape == (3, 16, 16) and np.all(ignored == IGNORE_LABEL)


@pytest.mark.parametrize(
    'name, color',
    [('mmsegmentation', None), ('mask2former', 128), ('large_scale_jitter', 128), ('video', None)],
)
def test_what_is_padded_is_not_distorted(name, color):
    config = CONFIGS[name].copy_and_resolve_references()
    config.augment.update(
        base_size=(20, 80), crop_size=(16, 40), photometric=True, scale_range=(0.4, 0.4)
    )
    config.augment.short_sides = config.augment.short_sides and (8,)
    expected = (
        np.zeros(3) if color is None else (color - np.array(config.data.mean)) / config.data.std
    )
    rows = 6 if config.augment.large_scale_jitter else 8
    for key in keys(10):
        pixels, labels = transforms.train_transform(*picture(20, 30), key, config)
        np.testing.assert_allclose(
            pixels[rows:], np.broadcast_to(expected, (16 - rows, 40, 3)), atol=1e-6 * (color or 0)
        )
        assert np.all(labels[rows:] == IGNORE_LABEL) and np.all(
            pixels[:rows, 0].numpy().std(axis=0) > 0
        )
