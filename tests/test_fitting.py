"""Fitting of images in NumPy, against TensorFlow, SciPy, Pillow and OpenCV."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from configs import common
from rankseg_jax import export, inference
from rankseg_jax.data import fitting

SIDES = st.integers(1, 700)


def noise(rows, columns, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (rows, columns, 3), np.uint8)


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 90), st.integers(1, 90)),
    st.tuples(st.integers(1, 150), st.integers(1, 150)),
    st.booleans(),
)
def test_resize_against_tensorflow(size, target, antialias):
    image = noise(*size)
    expected = tf.image.resize(image, target, method='bilinear', antialias=antialias)
    found = fitting.resize(image, target, antialias)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=2e-2)  # TensorFlow's places are float32


@pytest.mark.parametrize('antialias', [False, True])
@pytest.mark.parametrize('target', [(512, 683), (375, 500), (97, 129), (480, 320), (480, 640)])
def test_resize_of_photo_sizes_against_tensorflow(target, antialias):
    image = noise(480, 640)
    expected = tf.image.resize(image, target, method='bilinear', antialias=antialias)
    np.testing.assert_allclose(fitting.resize(image, target, antialias), expected, atol=5e-2)


@pytest.mark.parametrize('size', [(17, 23), (8, 5), (40, 30), (13, 64)])
def test_resize_against_scipy(size):
    image = noise(16, 20)
    rows = (np.arange(size[0]) + 0.5) * 16 / size[0] - 0.5
    columns = (np.arange(size[1]) + 0.5) * 20 / size[1] - 0.5
    grid = np.meshgrid(rows, columns, indexing='ij')
    expected = [
        ndimage.map_coordinates(image[..., c].astype(float), grid, order=1, mode='nearest')
        for c in range(3)
    ]
    np.testing.assert_allclose(fitting.resize(image, size), np.stack(expected, axis=-1), atol=1e-3)


@pytest.mark.parametrize('antialias', [False, True])
@pytest.mark.parametrize('size', [(23, 31), (7, 9), (61, 40), (90, 111), (60, 81)])
def test_resize_against_opencv_and_pillow(antialias, size):
    image = noise(60, 80)
    pillow = Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR)
    expected = (
        np.array(pillow) if antialias else pytest.importorskip('cv2').resize(image, size[::-1])
    )
    found = fitting.resize(image, size, antialias)
    np.testing.assert_allclose(found, expected, atol=1.01)  # they round to whole levels, twice


def test_nearest_pixels_are_torchs_where_two_are_as_near():
    """From 640 to 448 columns, every seventh place lies between two pixels."""
    torch = pytest.importorskip('torch')
    image = noise(20, 640)
    expected = torch.nn.functional.interpolate(
        torch.tensor(image).permute(2, 0, 1)[None], (14, 448), mode='nearest-exact'
    )
    found = fitting.resize(image, (14, 448), resample='nearest')
    np.testing.assert_array_equal(found, expected[0].permute(1, 2, 0))


@pytest.mark.parametrize('resample', ['bilinear', 'bicubic', 'lanczos'])
@pytest.mark.parametrize('size', [(20, 50), (31, 90), (96, 44), (7, 5), (31, 44), (1, 1)])
def test_filters_are_torchvisions(resample, size):
    torch = pytest.importorskip('torch')
    functional = pytest.importorskip('torchvision.transforms.v2.functional')
    if 'AVX' not in torch.backends.cpu.get_cpu_capability():
        pytest.skip('elsewhere torchvision computes with floats')
    image = noise(31, 44)
    expected = functional.resize(
        torch.tensor(image).permute(2, 0, 1), list(size), interpolation=resample, antialias=True
    )
    found = fitting.resize(image, size, resample=resample)
    np.testing.assert_array_equal(found, expected.permute(1, 2, 0))


@pytest.mark.parametrize('resample, level', [('box', 0), ('hamming', 0), ('bilinear', 1)])
def test_filters_of_a_clip_are_pillows(resample, level):
    """But for other rounding."""
    frames = np.stack([noise(31, 44, seed) for seed in range(2)])
    found = fitting.resize(frames, (20, 50), resample=resample)
    for frame, expected in zip(found, frames, strict=True):
        pillow = Image.fromarray(expected).resize((50, 20), Image.Resampling[resample.upper()])
        np.testing.assert_allclose(frame, pillow, rtol=0, atol=level)


def test_resize_to_the_same_size_is_exact_and_leaves_the_image_alone():
    image = noise(31, 17).astype(np.float32)
    found = fitting.resize(image, (31, 17), antialias=True)
    np.testing.assert_array_equal(found, image)
    found += 1
    np.testing.assert_array_equal(image, noise(31, 17))


@settings(max_examples=200, deadline=None)
@given(st.tuples(SIDES, SIDES), st.tuples(SIDES, SIDES))
def test_fitted_size_is_the_largest_that_fits(size, target):
    found = fitting.fitted_size(size, target)
    assert (found >= 1).all() and (found <= target).all()
    assert (found == target).any()
    exact = np.array(size) * min(target[0] / size[0], target[1] / size[1])
    assert (np.abs(found - np.maximum(exact, 1)) <= 0.501).all()


def test_fit_pads_below_and_to_the_right():
    image = np.maximum(noise(20, 50), 1)
    fitted, content = fitting.fit(image, (32, 40))
    assert fitted.shape == (32, 40, 3) and fitted.dtype == np.uint8
    assert content.tolist() == [16, 40] and content.dtype == np.int32
    resized = tf.image.resize(image, (16, 40)).numpy()
    assert np.abs(fitted[:16] - resized).max() <= 0.51 and not fitted[16:].any()


@pytest.mark.parametrize(
    'size, base, ratio, expected',
    [
        ((480, 640), (512, 2048), 1.0, (512, 683)),
        ((600, 1000), (800, 1333), 1.0, (800, 1333)),
        ((427, 640), (800, 1333), 1.0, (800, 1199)),
        ((100, 1000), (512, 2048), 1.0, (205, 2048)),
        ((500, 375), (520, 520), 1.0, (520, 390)),
        ((360, 480), (0, 0), 0.5, (180, 240)),
        ((360, 480), (0, 0), 2.0, (720, 960)),
    ],
)
def test_scaled_size_of_known_recipes(size, base, ratio, expected):
    assert tuple(fitting.scaled_size(size, base, ratio)) == expected


@settings(max_examples=60, deadline=None)
@given(SIDES, SIDES, st.tuples(SIDES, SIDES).map(sorted), st.floats(0.25, 2, width=32))
def test_scaled_size_is_the_largest_that_fits(rows, columns, base, ratio):
    found = fitting.scaled_size([rows, columns], tuple(base), ratio)
    short, long = (int(side * ratio) for side in base)
    # Brute force: every length of the long side, from the largest that is allowed downwards.
    for side in range(long, -1, -1):
        other = side * min(rows, columns) / max(rows, columns)
        if other <= short + 1e-6:
            break
    # The rule itself need not land on a whole pixel of the long side.
    assert side - 0.51 <= found.max() <= side + 1.51 or found.max() == 1
    assert found.max() <= max(long, 1) and found.min() <= max(short, 1)
    ratio_error = abs(found.max() * min(rows, columns) / max(rows, columns) - found.min())
    assert ratio_error <= 1 or found.min() == 1


def resize_shortest_edge(rows, columns, short, longest):
    """The arithmetic of detectron2."""
    scale = short / min(rows, columns)
    height, width = (short, scale * columns) if rows < columns else (scale * rows, short)
    if max(height, width) > longest:
        scale = longest / max(height, width)
        height, width = height * scale, width * scale
    return int(height + 0.5), int(width + 0.5)


@pytest.mark.parametrize(
    'short_sides, longest',
    [
        ((256, 307, 358, 512, 921, 1024), 2048),
        ((320, 640, 1280), 2560),
        ((360, 480), 1333),
        ((800,), 1333),
    ],
)
def test_limited_size_is_detectron2s(short_sides, longest):
    rng = np.random.default_rng(0)
    for size in [(480, 640), (640, 480), (100, 1000), (1000, 99), *rng.integers(50, 3000, (40, 2))]:
        for short in short_sides:
            expected = resize_shortest_edge(*size, short, longest)
            assert tuple(fitting.limited_size(size, (short, longest))) == expected
            # As in evaluation.
            assert tuple(fitting.scaled_size(size, (short, longest), 1.0)) == expected


def test_eval_view_is_normalized_exactly_where_nothing_is_resized():
    config = common.get_config()
    config.eval.size = (48, 64)
    image = noise(48, 40)
    (view,) = fitting.eval_views(image, config)
    mean, std = (tf.constant(x, tf.float32) for x in (config.data.mean, config.data.std))
    expected = (tf.cast(image, tf.float32) - mean) / std
    np.testing.assert_array_equal(view['image'][:, :40], expected)
    assert not view['image'][:, 40:].any() and view['image'].dtype == np.float32


def test_eval_views_of_a_clip_are_its_frames():
    config = common.get_config()
    config.eval.update(base_size=(32, 50), scales=(0.5, 1.0))
    frames = np.stack([noise(51, 101, seed) for seed in range(2)])
    for t, frame in enumerate(frames):
        for view, expected in zip(
            fitting.eval_views(frames, config), fitting.eval_views(frame, config), strict=True
        ):
            np.testing.assert_array_equal(view['image'][t], expected['image'])
            np.testing.assert_array_equal(view['content'], expected['content'])


@pytest.mark.parametrize('antialias', [False, True])
def test_eval_view_is_resized_as_the_config_says(antialias):
    config = common.get_config()
    config.eval.base_size, config.data.antialias = (20, 80), antialias
    image = noise(51, 101)
    (view,) = fitting.eval_views(image, config)
    small = Image.fromarray(image).resize((40, 20), Image.Resampling.BILINEAR)
    expected = np.array(small) if antialias else pytest.importorskip('cv2').resize(image, (40, 20))
    np.testing.assert_allclose(
        view['image'][:20, :40] * config.data.std + config.data.mean, expected, atol=1.01
    )


@pytest.mark.parametrize(
    'size, content',
    [
        ((10, 20), (24, 48)),
        ((96, 24), (48, 12)),
        ((48, 48), (48, 48)),
        ((1, 500), (1, 48)),
        ((47, 49), (46, 48)),
    ],
)
def test_eval_view_fits_and_pads(size, content):
    config = common.get_config()
    config.eval.size = (48, 48)
    config.data.mean, config.data.std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    image = np.random.default_rng(0).integers(1, 256, (*size, 3)).astype(np.uint8)
    (view,) = fitting.eval_views(image, config)
    found = view['image']
    assert tuple(view['content']) == content and found.shape == (48, 48, 3)
    rows, columns = content
    assert not np.any(found[rows:]) and not np.any(found[:, columns:])
    assert np.all(found[:rows, :columns] > 0)
    if rows >= size[0] and columns >= size[1]:  # Pillow filters when it makes smaller
        expected = Image.fromarray(image).resize((columns, rows), Image.Resampling.BILINEAR)
        np.testing.assert_allclose(found[:rows, :columns], np.array(expected), atol=1.01)


@pytest.mark.parametrize(
    'options, contents, shapes',
    [
        ({'base_size': (32, 128)}, [(32, 63)], [(32, 64)]),
        ({'base_size': (32, 50), 'scales': (0.5, 1.0)}, [(13, 25), (25, 50)], [(32, 32), (32, 64)]),
        ({'base_size': (32, 128), 'window': (32, 32), 'stride': (32, 32)}, [(32, 63)], [(32, 64)]),
        ({'base_size': (32, 128), 'window': (32, 32), 'stride': (8, 20)}, [(32, 63)], [(32, 72)]),
        ({'base_size': (20, 80), 'window': (32, 48), 'stride': (32, 48)}, [(20, 40)], [(32, 48)]),
        ({'size': (40, 40), 'scales': (1.0, 1.5)}, [(20, 40), (30, 60)], [(40, 40), (60, 60)]),
        ({'size': (40, 40), 'window': (16, 16), 'stride': (16, 16)}, [(20, 40)], [(32, 48)]),
    ],
)
def test_eval_views_of_free_size(options, contents, shapes):
    config = common.get_config()
    config.eval.update(options)
    image = np.random.default_rng(0).integers(0, 256, (51, 101, 3)).astype(np.uint8)
    views = fitting.eval_views(image, config)
    assert [tuple(view['content']) for view in views] == contents
    assert [view['image'].shape[:2] for view in views] == shapes


def test_exported_models_see_padded_images_as_prediction_does(monkeypatch):
    config = common.get_config()
    config.data.mean, config.data.std = (50.0, 100.0, 150.0), (50.0, 40.0, 60.0)
    config.eval.update(size=(40, 40), pad_value=0.0, resample='bilinear')
    image, seen = noise(50, 31), []
    (expected,) = fitting.eval_views(image, config)
    assert expected['content'].tolist() == [40, 25]
    np.testing.assert_allclose(expected['image'][:, 25:], np.full((40, 15, 3), (-1, -2.5, -2.5)))

    def segment(model, variables, views, *_, **__):
        seen.extend(views)
        return inference.Prediction({}, None, None)

    monkeypatch.setattr(inference, 'segment', segment)
    fitted, content = fitting.fit(image, (40, 40), resample='bilinear')
    export.serve(None, config, None)(None, fitted[None], content[None])
    np.testing.assert_allclose(seen[0]['image'][0], expected['image'], rtol=1e-5, atol=1e-6)
