import tracemalloc

import numpy as np
import pytest
from PIL import Image

from rankseg_jax import visualize
from rankseg_jax.visualize import colorize, grid, overlay, palette, panel

NAMES = ['sky', 'road', 'person, individual, someone, somebody, mortal, soul', 'Café']


def example(height, width, num_classes=4, seed=0):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return image, rng.integers(-1, num_classes, (height, width)).astype(np.int32)


def has_color(picture, color):
    return (np.asarray(picture) == np.asarray(color)).all(-1).any()


@pytest.mark.parametrize('num_classes', [1, 60, 1284, 20_000])
def test_palette_is_distinct_and_never_gray(num_classes):
    colors = palette(num_classes)
    assert colors.shape == (num_classes, 3) and colors.dtype == np.uint8
    assert len({tuple(color) for color in colors.tolist()}) == num_classes
    assert np.ptp(colors, axis=1).min() > 40
    np.testing.assert_array_equal(colors[:50], palette(50)[:num_classes])


def test_first_colors_are_far_apart():
    colors = palette(60).astype(float)
    distance = np.linalg.norm(colors[:, None] - colors, axis=-1) + 1000 * np.eye(60)
    assert distance.min() > 15


@pytest.mark.parametrize('num_classes', [4, 1284])
def test_colorize_matches_loop(num_classes):
    labels = example(9, 11, num_classes)[1]
    labels[0, :3] = [num_classes, 70_000, -5]
    colors = palette(num_classes)
    result = colorize(labels, colors)
    assert result.shape == (9, 11, 3) and result.dtype == np.uint8
    for y in range(9):
        for x in range(11):
            known = 0 <= labels[y, x] < num_classes
            expected = colors[labels[y, x]] if known else (128, 128, 128)
            assert tuple(result[y, x]) == tuple(expected)


def test_class_255_is_a_class():
    assert tuple(colorize(np.array([[255]]), palette(300))[0, 0]) == tuple(palette(300)[255])


@pytest.mark.parametrize(
    'height, width, expected',
    [
        (96, 96, (384, 384)),
        (96, 50, (200, 384)),
        (1, 1, (384, 384)),
        (400, 500, (500, 400)),
        (1, 500, (500, 1)),
    ],
)
def test_overlay_size(height, width, expected):
    image, labels = example(height, width)
    assert overlay(image, labels, NAMES, legend=False).size == expected
    with_legend = overlay(image, labels, NAMES)
    assert with_legend.width == max(384, expected[0]) and with_legend.height > expected[1]


def test_overlay_blends_classes_and_leaves_ignored_pixels():
    image = np.full((400, 400, 3), 100, np.uint8)
    labels = np.zeros((400, 400), int)
    labels[200:] = -1
    for alpha in (0, 0.25, 1):
        picture = np.asarray(overlay(image, labels, NAMES, alpha, legend=False), float)
        expected = (1 - alpha) * 100 + alpha * palette(4)[0].astype(float)
        assert np.abs(picture[50, 50] - expected).max() <= 0.5
        assert (picture[300] == 100).all()
        assert (picture[200] > 180).all()  # the outline between them
        assert (picture[[150, 250]].std(1) == 0).all()


def test_legend_names_only_what_is_present():
    image, labels = np.zeros((400, 400, 3), np.uint8), np.full((400, 400), 1)
    labels[:10] = 3
    picture = np.asarray(overlay(image, labels, NAMES))[400:]
    colors = palette(4)
    assert [has_color(picture, color) for color in colors] == [False, True, False, True]
    first, second = (np.nonzero((picture == colors[c]).all(-1))[1].min() for c in (1, 3))
    assert first < second  # the larger area comes first

    def legend(names):
        return overlay(image, labels, names).crop((0, 400, 400, 500))

    assert legend(['x', 'road', 'x', 'Café']) == legend(['y', 'road', 'y', 'Cafe\u0301'])
    assert legend(['x', 'road', 'x', 'Café']) != legend(['x', 'roof', 'x', 'Café'])
    assert legend(['x', 'road', 'x', 'Café']) != legend(['x', 'road', 'x', 'Cafe'])
    no_legend = overlay(image, labels, NAMES, legend=False)
    assert no_legend.size == (400, 400)


@pytest.mark.parametrize('name, other', [('道路', '树木'), ('дом', 'сад'), ('طريق', 'شارع')])
def test_names_of_other_scripts_are_no_boxes(name, other):
    """Boxes would be the same for two names of as many characters."""
    image, labels = np.zeros((40, 40, 3), np.uint8), np.zeros((40, 40), int)
    assert overlay(image, labels, [name]) != overlay(image, labels, [other])
    panels = [panel(image, labels, [(n, 0.5)], [n]) for n in (name, other)]
    assert panels[0].crop((800, 0, *panels[0].size)) != panels[1].crop((800, 0, *panels[1].size))


def test_legend_is_limited_to_twelve():
    labels = np.repeat(np.arange(40), 10)[None].repeat(400, 0)
    picture = overlay(np.zeros((400, 400, 3), np.uint8), labels, [f'c{i}' for i in range(40)])
    below = picture.crop((0, 400, 400, picture.height))
    assert sum(has_color(below, color) for color in palette(40)) == 12


def stripes(*ids):
    """Ids [400, 400] in vertical stripes of the same width."""
    return np.repeat(np.array(ids)[np.arange(400) * len(ids) // 400][None], 400, 0)


@pytest.mark.parametrize('background', [0, 255])
def test_segments_of_a_class_that_touch_are_outlined(background):
    image, labels = np.full((400, 400, 3), background, np.uint8), np.ones((400, 400), int)
    plain = np.asarray(overlay(image, labels, NAMES, 0, legend=False))
    assert (plain == background).all()
    picture = np.asarray(
        overlay(image, labels, NAMES, 0, legend=False, segments=stripes(3, 70_000))
    )
    seam = picture[:, 195:205].astype(int)
    assert (seam.max(1) > 170).all() and (seam.min(1) < 90).all()  # a light and a dark line
    assert (picture[:, :195] == background).all() and (picture[:, 205:] == background).all()


def test_outlines_are_thin_however_much_the_picture_is_enlarged():
    image, labels = np.zeros((4, 4, 3), np.uint8), np.ones((4, 4), int)
    picture = np.asarray(
        overlay(image, labels, NAMES, 0, legend=False, segments=np.arange(16).reshape(4, 4) + 1)
    )
    assert picture.shape == (384, 384, 3)
    assert (picture > 0).any(-1).mean() < 0.02


def test_segments_have_shades_of_their_class_and_void_shows_the_image():
    image = np.full((400, 400, 3), 7, np.uint8)
    labels = np.ones((400, 400), int)
    labels[200:] = 2
    ids = stripes(*range(1, 31))
    ids[200:] = 99
    ids[:100] = 0
    picture = np.asarray(overlay(image, labels, NAMES, 1, legend=False, segments=ids)).astype(int)
    assert (picture[:98] == 7).all()
    assert (picture[203:] == palette(4)[2]).all()  # the only segment of its class
    shades = picture[150, np.arange(30) * 400 // 30 + 6]
    np.testing.assert_array_equal(shades[0], palette(4)[1])
    distance = np.abs(shades[:, None] - shades).max(-1) + 1000 * np.eye(30)
    assert distance.min() >= 2 and np.diagonal(distance, 1).min() > 30


@pytest.mark.parametrize('with_segments', [False, True])
def test_bands_join_without_a_seam(monkeypatch, with_segments):
    image = np.random.default_rng(0).integers(0, 256, (390, 50, 3), np.uint8)
    labels = np.kron(np.random.default_rng(1).integers(-1, 5, (78, 5)), np.ones((5, 10), int))
    segments = np.kron(np.arange(39 * 5).reshape(39, 5), np.ones((10, 10), int))
    segments = segments if with_segments else None
    arguments = dict(image=image, labels=labels, class_names=NAMES, segments=segments)
    whole = overlay(**arguments)
    for rows in (1, 2, 7):
        monkeypatch.setattr(visualize, 'BAND', rows * 50)
        assert overlay(**arguments) == whole


def test_memory_does_not_grow_with_the_image(monkeypatch):
    monkeypatch.setattr(visualize, 'BAND', 2**15)
    image, labels = np.zeros((1000, 1000, 3), np.uint8), stripes(0, 1, 2).repeat(3, 0).repeat(3, 1)
    labels = labels[:1000, :1000]
    segments = labels + 1
    tracemalloc.start()
    try:
        overlay(image, labels, NAMES, segments=segments)
        panel(image, labels, [], NAMES, labels)
        assert tracemalloc.get_traced_memory()[1] < 5e6  # bytes, 5 a pixel
    finally:
        tracemalloc.stop()


def test_legend_counts_segments():
    image, labels = np.zeros((400, 400, 3), np.uint8), np.full((400, 400), 2)

    def legend(ids, labels=labels):
        return overlay(image, labels, NAMES, segments=ids).crop((0, 400, 400, 500))

    # The category's name is longer than the row.
    legends = [legend(stripes(*range(1, n + 1))) for n in range(1, 6)]
    assert all(a != b for i, a in enumerate(legends) for b in legends[:i])
    assert legends[0] == legend(None) == legend(stripes(7, 0, 7))
    assert legends[2] == legend(stripes(9, 70_000, 1, 9, 0))
    half_ignored = np.where(stripes(0, 1), labels, -1)
    assert legend(stripes(1, 2, 3, 3), half_ignored) == legends[0]
    assert not has_color(legend(stripes(0)), palette(4)[2])


def test_panel_shows_the_segments_of_each_map():
    image, labels = np.zeros((384, 384, 3), np.uint8), np.ones((384, 384), int)
    ids = stripes(1, 2)[:384, :384]
    plain = panel(image, labels, [], NAMES, labels)
    one, other, both = (
        panel(image, labels, [], NAMES, labels, *given)
        for given in ((ids, None), (None, ids), (ids, ids))
    )
    truth, prediction = (404, 0, 808, plain.height), (808, 0, plain.width, plain.height)
    assert one.crop(truth) == plain.crop(truth) != both.crop(truth)
    assert other.crop(prediction) == plain.crop(prediction) != both.crop(prediction)
    assert (both.crop(truth), both.crop(prediction)) == (other.crop(truth), one.crop(prediction))


@pytest.mark.parametrize('height, width', [(1, 1), (1, 300), (300, 1), (50, 80), (600, 800)])
def test_panel_sizes(height, width):
    image, labels = example(height, width)
    categories = [(name, 1 - i / 4) for i, name in enumerate(NAMES)]
    with_truth = panel(image, labels, categories, NAMES, labels)
    without = panel(image, labels, categories, NAMES)
    chartless = panel(image, labels, [], NAMES)
    assert with_truth.width > without.width > chartless.width > 384
    assert with_truth.mode == 'RGB'
    assert with_truth.getpixel((0, 0)) == (255, 255, 255)


def test_panel_bars_are_in_rank_order_and_as_long_as_their_scores():
    image, prediction = np.zeros((300, 300, 3), np.uint8), np.full((300, 300), -1)
    picture = np.asarray(
        panel(image, prediction, [('road', 1.0), (NAMES[2], 0.5), ('sky', 0.0)], NAMES)
    )
    bars = [np.nonzero((picture == palette(4)[c]).all(-1)) for c in (1, 2, 0)]
    tops, widths = zip(*((y.min(), np.ptp(x)) for y, x in bars), strict=True)
    assert sorted(tops) == list(tops)
    assert widths[1] == pytest.approx(widths[0] / 2, abs=1) and widths[2] == 0


def test_panel_ticks_the_categories_of_the_ground_truth():
    image, labels = np.zeros((300, 300, 3), np.uint8), np.full((300, 300), 1)

    def ticks(names, label):
        picture = np.asarray(panel(image, labels, [(name, 0.5) for name in names], NAMES, label))
        return (picture[50:] == (24, 150, 72)).all(-1).sum()

    assert ticks(NAMES, None) == ticks(['sky', 'Café'], labels) == 0
    one = ticks(['sky', 'road'], labels)
    labels[0, 0], labels[1, 1] = 0, -1
    assert ticks(['sky', 'road'], labels) == 2 * one > 0


def test_panel_with_many_classes_and_all_ignored():
    image, labels = example(70, 90, 1284)
    names = [f'class number {i}' for i in range(1284)]
    categories = [(name, 0.3) for name in names[:200]]
    assert panel(image, labels, categories, names, labels).height < 800
    ignored = np.full((70, 90), -1)
    assert panel(image, ignored, categories, names, ignored).height < 500
    assert overlay(image, ignored, names).width == 450


def test_panels_stack():
    image, labels = example(40, 40)
    panels = [panel(image, labels, [], NAMES, labels), panel(image, labels, [('sky', 1.0)], NAMES)]
    picture = grid(panels)
    assert picture.size == (max(p.width for p in panels), sum(p.height for p in panels))
    assert picture.crop((0, 0, panels[0].width, panels[0].height)) == panels[0]
    assert grid(panels[:1]) == panels[0]


def test_errors_name_the_problem():
    image, labels = example(8, 8)
    with pytest.raises(ValueError, match=r'\(8, 7\).*\(8, 8\)'):
        overlay(image, labels[:, 1:], NAMES)
    with pytest.raises(ValueError, match='float64'):
        overlay(image / 255, labels, NAMES)
    with pytest.raises(ValueError, match=r'\(8, 8\)'):
        overlay(image[..., 0], labels, NAMES)
    with pytest.raises(ValueError, match=r"'sky'.*-2\.5.*sigmoid"):
        panel(image, labels, [('sky', -2.5)], NAMES)
    with pytest.raises(ValueError, match='nan'):
        panel(image, labels, [('sky', float('nan'))], NAMES)
    with pytest.raises(ValueError, match=r'\(4, 8\)'):
        panel(image, labels, [], NAMES, labels[::2])
    with pytest.raises(ValueError, match=r'map of segments is \(4, 8\)'):
        overlay(image, labels, NAMES, segments=labels[::2])
    with pytest.raises(ValueError, match=r'map of segments is \(8, 4\)'):
        panel(image, labels, [], NAMES, labels, labels, labels[:, ::2])


def test_pictures_are_ordinary_images(tmp_path):
    image, labels = example(30, 40)
    overlay(image, labels, NAMES).save(tmp_path / 'a.png')
    assert Image.open(tmp_path / 'a.png').mode == 'RGB'
