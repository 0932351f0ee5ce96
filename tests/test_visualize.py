import tracemalloc

import numpy as np
import pytest
from PIL import Image

from rankseg_jax.visualize import painting
from rankseg_jax.visualize.colors import colorize, palette
from rankseg_jax.visualize.overlays import frame_overlay, overlay, track_overlay
from rankseg_jax.visualize.panels import grid, panel

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
        monkeypatch.setattr(painting, 'BAND', rows * 50)
        assert overlay(**arguments) == whole


def test_memory_does_not_grow_with_the_image(monkeypatch):
    monkeypatch.setattr(painting, 'BAND', 2**15)
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


def box(top, left, bottom, right, size=(400, 500)):
    mask = np.zeros(size, bool)
    mask[top:bottom, left:right] = True
    return mask


def tracks_on(image, *masks, ids=None, names=None, **options):
    masks = np.stack(masks) if masks else np.zeros((0, *image.shape[:2]), bool)
    ids = list(range(1, len(masks) + 1)) if ids is None else ids
    names = ['dog'] * len(masks) if names is None else names
    return np.asarray(track_overlay(image, masks, ids, names, **options))


GRAY = np.full((400, 500, 3), 100, np.uint8)


@pytest.mark.parametrize('track_id', [0, 3, 41, 10**6])
def test_a_track_has_the_color_of_its_id(track_id):
    """Whatever else there is, and wherever it is."""
    color = palette(42)[track_id].astype(int) if track_id < 42 else None
    alone = tracks_on(GRAY, box(100, 100, 200, 200), ids=[track_id])
    others = tracks_on(
        GRAY, box(0, 0, 60, 60), box(250, 300, 350, 400), box(5, 5, 50, 50), ids=[5, track_id, 7]
    )
    np.testing.assert_array_equal(alone[150, 150], others[300, 350])
    if color is not None:
        assert np.abs(alone[150, 150] - (0.5 * 100 + 0.5 * color)).max() <= 1
        assert (alone[100, 150] == color).all() and (alone[150, 199] == color).all()  # outline
    assert (alone[300] == 100).all() and (alone[:, 300:] == 100).all()
    for alpha in (0, 1):
        picture = tracks_on(GRAY, box(100, 100, 200, 200), ids=[track_id], alpha=alpha)
        assert (picture[150, 150] == (alone[100, 150] if alpha else 100)).all()


def test_neighboring_ids_differ():
    masks = [box(10 * i, 0, 10 * i + 10, 400) for i in range(40)]
    picture = tracks_on(GRAY, *masks, alpha=1).astype(int)
    colors = picture[5::10, 390]
    assert np.abs(colors[1:] - colors[:-1]).max(1).min() > 60


def test_smaller_masks_lie_on_larger_ones():
    large, small = box(50, 50, 350, 350), box(150, 150, 200, 200)
    both = tracks_on(GRAY, small, large, alpha=1)
    np.testing.assert_array_equal(both, tracks_on(GRAY, large, small, ids=[2, 1], alpha=1))
    assert (both[175, 175] == palette(3)[1]).all() and (both[300, 300] == palette(3)[2]).all()


@pytest.mark.parametrize(
    'size', [(96, 96), (96, 54), (1, 1), (1, 300), (300, 1), (480, 854), (1080, 1920)]
)
def test_frames_of_a_video_have_one_size(size):
    image = example(*size)[0]
    full, empty = np.ones(size, bool), np.zeros(size, bool)
    pictures = [
        tracks_on(image),
        tracks_on(image, empty),
        tracks_on(image, full, names=['a name that is much too long for any picture' * 3]),
        tracks_on(image, full, empty, full, ids=[1, 2, 10**9], scores=[1, 0.5, 0.25]),
        np.asarray(frame_overlay(image, np.zeros(size, int), NAMES)),
        np.asarray(frame_overlay(image, np.full(size, -1), NAMES)),
        np.asarray(overlay(image, np.full(size, -1), NAMES, legend=False)),
    ]
    assert len({picture.shape for picture in pictures}) == 1
    for nothing in (pictures[0], pictures[1], pictures[5]):
        np.testing.assert_array_equal(nothing, pictures[6])
    assert (pictures[2] != pictures[0]).any() and (pictures[3] != pictures[2]).any()


def tag_of(picture, without):
    """(top, left, bottom, right) of what differs from a picture."""
    rows, columns = np.nonzero((picture != without).any(-1))
    return rows.min(), columns.min(), rows.max() + 1, columns.max() + 1


@pytest.mark.parametrize(
    'top, left', [(0, 0), (0, 499), (399, 0), (399, 499), (200, 250), (5, 490)]
)
def test_tags_are_near_their_mask_and_in_the_picture(monkeypatch, top, left):
    mask = box(top, left, top + 1, left + 1)
    color = palette(2)[1]
    picture = tracks_on(GRAY, mask)
    ground = (picture == color).all(-1)
    assert ground.sum() > 300  # the tag's ground; the mask has one pixel
    rows, columns = np.nonzero(ground)
    assert rows.min() >= top - 25 and rows.max() <= top + 25
    assert columns.min() <= left <= columns.max() + 1
    height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
    assert 15 <= height <= 25 and 40 <= width <= 80  # all of it, none is cut off


def test_tags_do_not_cover_each_other():
    mask = box(200, 100, 240, 140)
    picture = tracks_on(GRAY, mask, mask, mask, alpha=0)
    boxes = []
    for color in palette(4)[1:]:
        rows, columns = np.nonzero((picture == color).all(-1))
        boxes.append((rows.min(), rows.max()))
        assert len(rows) > 300
    assert len(set(boxes)) == 3


def test_tags_say_name_id_and_score():
    mask = box(200, 100, 300, 300)

    def tag(**options):
        return tracks_on(GRAY, mask, **options).tobytes()

    plain = tag()
    assert plain == tag() == tag(names=['dog'])
    variants = [
        plain,
        tag(names=['cat']),
        tag(ids=[2]),
        tag(ids=[11]),
        tag(scores=[0.5]),
        tag(scores=[0.51]),
        tag(scores=[1]),
    ]
    assert len(set(variants)) == len(variants)
    assert tag(scores=[0.5]) == tag(scores=np.array([0.501]))


@pytest.mark.parametrize('name, other', [('道路', '树木'), ('дом', 'сад'), ('طريق', 'شارع')])
def test_tags_in_other_scripts(name, other):
    mask = box(100, 100, 300, 400)
    assert (tracks_on(GRAY, mask, names=[name]) != tracks_on(GRAY, mask, names=[other])).any()
    labels = np.zeros((400, 500), int)
    assert frame_overlay(GRAY, labels, [name]) != frame_overlay(GRAY, labels, [other])


def test_outlines_of_tracks_are_thin_when_enlarged_and_wider_in_large_frames():
    small = np.zeros((48, 48, 3), np.uint8)
    picture = tracks_on(small, box(10, 10, 40, 40, (48, 48)), alpha=0)
    assert (picture[200, 80:320] == 0).all(-1).mean() > 0.98
    assert (picture[200, 80] == palette(2)[1]).all() and (picture[200, 319] == palette(2)[1]).all()
    large = np.zeros((1080, 1920, 3), np.uint8)
    picture = tracks_on(large, box(300, 300, 900, 900, (1080, 1920)), alpha=0)
    assert (picture[600, 300:303] == palette(2)[1]).all() and (picture[600, 303:897] == 0).all()


@pytest.mark.parametrize('size', [(390, 50), (30, 40)])
def test_bands_of_tracks_join_without_a_seam(monkeypatch, size):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (*size, 3), np.uint8)
    masks = [np.kron(rng.random((size[0] // 5, 5)) < 0.5, np.ones((5, size[1] // 5))) > 0] * 2
    whole = tracks_on(image, *masks)
    for band in (1, 60, 999):
        monkeypatch.setattr(painting, 'BAND', band)
        np.testing.assert_array_equal(tracks_on(image, *masks), whole)


def test_memory_of_tracks_does_not_grow_with_the_frame(monkeypatch):
    monkeypatch.setattr(painting, 'BAND', 2**15)
    image, masks = np.zeros((2000, 2000, 3), np.uint8), np.ones((2, 2000, 2000), bool)
    tracks_on(image[:400, :400], masks[0, :400, :400])  # fonts are loaded once
    tracemalloc.start()
    try:
        track_overlay(image, masks, [1, 2], ['dog', 'cat'])
        frame_overlay(image, masks[0], NAMES)
        assert tracemalloc.get_traced_memory()[1] < 10e6  # bytes, 2.5 a pixel
    finally:
        tracemalloc.stop()


def test_names_lie_on_the_larger_regions():
    labels = np.zeros((400, 500), int)
    labels[:, 250:] = 1
    labels[:3] = 3  # too flat for a name
    labels[300:, 250:] = -1
    plain = np.asarray(overlay(GRAY, labels, NAMES, legend=False))
    picture = np.asarray(frame_overlay(GRAY, labels, NAMES))
    changed = (plain != picture).any(-1)
    for left, right, middle, name in ((0, 250, 200, 0), (250, 500, 150, 1)):
        rows, columns = np.nonzero(changed[:, left:right])
        assert abs(rows.mean() - middle) < 30 and abs(columns.mean() - 125) < 40
        assert has_color(picture[:, left:right], palette(4)[name])
    assert not changed[:5].any() and not changed[305:, 250:].any()
    assert not has_color(picture, palette(4)[3])


def test_a_name_lies_in_a_region_not_in_its_hole():
    labels = np.full((400, 500), 2)
    labels[20:380, 20:380] = -1
    plain = np.asarray(overlay(GRAY, labels, ['a', 'b', 'c'], legend=False))
    rows, columns = np.nonzero((plain != np.asarray(frame_overlay(GRAY, labels, 'abc'))).any(-1))
    assert columns.min() >= 380 and abs(rows.mean() - 200) < 30


def test_errors_of_frames_name_the_problem():
    mask = box(0, 0, 9, 9)
    for masks in (mask, mask[None].astype(int), mask[None, 1:], mask[None, None]):
        with pytest.raises(ValueError, match='masks are .*not bool'):
            track_overlay(GRAY, masks, [1], ['dog'])
    with pytest.raises(ValueError, match='1 masks, 2 ids, 1 names and 2 scores'):
        track_overlay(GRAY, mask[None], [1, 2], ['dog'])
    with pytest.raises(ValueError, match='1 masks, 1 ids, 1 names and 0 scores'):
        track_overlay(GRAY, mask[None], [1], ['dog'], scores=[])
    with pytest.raises(ValueError, match='float64'):
        track_overlay(GRAY / 255, mask[None], [1], ['dog'])
    with pytest.raises(ValueError, match=r'\(399, 500\).*\(400, 500\)'):
        frame_overlay(GRAY, np.zeros((399, 500), int), NAMES)


def test_a_tag_is_above_the_top_of_its_mask_not_in_the_corner_of_its_box():
    mask = box(300, 50, 380, 450) | box(100, 400, 300, 420)
    picture = tracks_on(GRAY, mask, alpha=0)
    rows, columns = np.nonzero((picture == palette(2)[1]).all(-1)[:99])
    assert rows.min() > 70 and abs(columns.mean() - 410) < 10
