import os
import re
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from configs import common
from rankseg_jax import tasks, train
from rankseg_jax.data import (
    IGNORE_LABEL,
    CorruptExample,
    folder,
    get_source,
    images,
    label_files,
    pipeline,
)

CAMVID = os.environ.get('RANKSEG_CAMVID')  # the real data set, if there is one to try


def save(path, values, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = values if isinstance(values, Image.Image) else Image.fromarray(np.asarray(values))
    image.save(path, **options)
    return path


def data_config(root, name='folder', **changes):
    config = common.get_config()
    config.data.update({'name': name, 'dir': str(root), **changes})
    return config.data


@pytest.fixture
def dataset(tmp_path):
    """Two pairs of 6 x 8 pixels with labels 0, 1 and 255, and three classes."""
    rng = np.random.default_rng(0)
    for name in 'ab':
        save(tmp_path / f'images/train/{name}.jpg', rng.integers(0, 256, (6, 8, 3)).astype('uint8'))
        label = np.zeros([6, 8], np.uint8)
        label[:, 4:] = 1
        label[0] = 255
        save(tmp_path / f'labels/train/{name}.png', label)
    (tmp_path / 'classes.txt').write_text('wall\nfloor\nlamp shade\n')
    return tmp_path


def test_folder_reads_pairs(dataset):
    source = get_source(data_config(dataset), 'train')
    assert source.class_names == ('wall', 'floor', 'lamp shade')
    assert len(source) == 2 and list(source.ids) == ['a.jpg', 'b.jpg']
    example = source.load(1)
    assert example['image'].dtype == np.uint8 and example['label'].dtype == np.int32
    np.testing.assert_array_equal(
        example['image'], np.array(Image.open(dataset / 'images/train/b.jpg'))
    )
    expected = [[IGNORE_LABEL] * 8] + [[0] * 4 + [1] * 4] * 5
    np.testing.assert_array_equal(example['label'], expected)


def palette_png(values):
    image = Image.fromarray(values.astype(np.uint8)).convert('P')
    image.putdata(values.ravel().tolist())
    image.putpalette(np.random.default_rng(0).integers(0, 256, 768).tolist())
    return image


@pytest.mark.parametrize(
    'make',
    [
        lambda values: Image.fromarray(values.astype(np.uint8)),
        lambda values: Image.fromarray(values.astype(np.uint16)),
        palette_png,
    ],
    ids=['8 bit', '16 bit', 'palette'],
)
def test_label_formats_give_the_same_values(dataset, make):
    values = np.random.default_rng(1).integers(0, 3, (6, 8))
    save(dataset / 'labels/train/a.png', make(values))
    label = get_source(data_config(dataset), 'train').load(0)['label']
    np.testing.assert_array_equal(label, values)


def test_small_palette_and_black_and_white_labels(dataset):
    values = np.random.default_rng(1).integers(0, 2, (6, 8))
    save(dataset / 'labels/train/a.png', palette_png(values), bits=2)
    save(dataset / 'labels/train/b.png', Image.fromarray(values.astype(bool)))
    source = get_source(data_config(dataset), 'train')
    np.testing.assert_array_equal(source.load(0)['label'], values)
    np.testing.assert_array_equal(source.load(1)['label'], values)


def test_many_classes_in_16_bits(dataset):
    (dataset / 'classes.txt').write_text('\n'.join(f'class {i}' for i in range(1000)))
    values = np.random.default_rng(1).integers(0, 1000, (6, 8)).astype(np.uint16)
    values[0, :3] = 255, 999, 65535
    save(dataset / 'labels/train/a.png', values)
    source = get_source(data_config(dataset, ignore_label=65535), 'train')
    label = source.load(0)['label']
    assert label[0, :3].tolist() == [255, 999, IGNORE_LABEL]
    np.testing.assert_array_equal(label[1:], values[1:])


@pytest.mark.parametrize('ignore_label', [255, 2, 0])
@pytest.mark.parametrize('reduce_zero_label', [False, True])
def test_label_rules_pixel_by_pixel(dataset, ignore_label, reduce_zero_label):
    values = np.array([[0, 1, 2, 3, ignore_label, 1, 2, 0]] * 6, np.uint8)
    values = np.where((values == 3) & (not reduce_zero_label), 2, values)
    save(dataset / 'labels/train/a.png', values)
    config = data_config(dataset, ignore_label=ignore_label, reduce_zero_label=reduce_zero_label)
    label = get_source(config, 'train').load(0)['label']
    for value, found in zip(values.ravel(), label.ravel(), strict=True):
        if value == ignore_label or (reduce_zero_label and value == 0):
            assert found == IGNORE_LABEL
        else:
            assert found == value - int(reduce_zero_label)


@pytest.mark.parametrize('value, reduce_zero_label', [(3, False), (4, True), (254, False)])
def test_label_out_of_range_stops_with_its_file_and_value(dataset, value, reduce_zero_label):
    values = np.ones([6, 8], np.uint8)
    values[3, 3] = value
    path = save(dataset / 'labels/train/b.png', values)
    config = data_config(dataset, reduce_zero_label=reduce_zero_label)
    source = get_source(config, 'train')
    message = f'{re.escape(str(path))}: label value {value} .*K = 3.*config.data.ignore_label'
    with pytest.raises(ValueError, match=message) as caught:
        source.load(1)
    assert not isinstance(caught.value, CorruptExample)
    whole = common.get_config()
    whole.batch_size = 2
    with pytest.raises(ValueError, match=message):
        next(pipeline.train_batches(source, whole, tasks.from_source(whole, source), start_step=0))
    report = source.check()
    assert len(report.problems) == 1 and str(path) in report.problems[0]


def test_color_label_is_refused(dataset):
    save(dataset / 'labels/train/a.png', np.zeros([6, 8, 3], np.uint8))
    with pytest.raises(ValueError, match=r'a\.png: a label file needs one value per pixel .* RGB'):
        get_source(data_config(dataset), 'train').load(0)


def test_picture_formats(tmp_path):
    rng = np.random.default_rng(0)
    gray = rng.integers(0, 256, (5, 7)).astype(np.uint8)
    rgb = rng.integers(0, 256, (5, 7, 3)).astype(np.uint8)
    rgba = np.dstack([rgb, gray])
    stacked = np.dstack([gray] * 3)
    cases = {
        'gray.png': (gray, stacked),
        'rgb.png': (rgb, rgb),
        'rgba.png': (rgba, rgb),
        'deep.png': (gray.astype(np.uint16) * 256 + 77, stacked),
        'palette.png': (palette_png(gray), None),
        'gray.bmp': (gray, stacked),
        'rgb.tif': (rgb, rgb),
    }
    for name, (values, expected) in cases.items():
        image = images.read_image(save(tmp_path / name, values))
        assert image.dtype == np.uint8 and image.shape == (5, 7, 3)
        if expected is not None:
            np.testing.assert_array_equal(image, expected, err_msg=name)
    flat = Image.new('CMYK', (7, 5), (0, 255, 255, 0))
    image = images.read_image(save(tmp_path / 'cmyk.jpg', flat))
    assert image.shape == (5, 7, 3)
    assert (np.abs(image.astype(int) - [255, 0, 0]) < 12).all()  # cyan off: red


@pytest.mark.parametrize('orientation', range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    stored = np.zeros([16, 32, 3], np.uint8)
    stored[:8, :16] = 200  # the marked corner is at the top left as stored
    exif = Image.Exif()
    exif[274] = orientation
    path = save(tmp_path / 'a.jpg', stored, exif=exif, quality=95)
    image = images.read_image(path)
    # Where the stored first row and first column end up, by the EXIF standard.
    row_side, column_side = [
        ('top', 'left'),
        ('top', 'right'),
        ('bottom', 'right'),
        ('bottom', 'left'),
        ('left', 'top'),
        ('right', 'top'),
        ('right', 'bottom'),
        ('left', 'bottom'),
    ][orientation - 1]
    assert image.shape == ((16, 32, 3) if orientation < 5 else (32, 16, 3))
    halves = {
        'top': slice(None, image.shape[0] // 2),
        'bottom': slice(image.shape[0] // 2, None),
        'left': slice(None, image.shape[1] // 2),
        'right': slice(image.shape[1] // 2, None),
    }
    vertical = row_side if row_side in ('top', 'bottom') else column_side
    horizontal = row_side if row_side in ('left', 'right') else column_side
    assert image[halves[vertical], halves[horizontal]].mean() > 190
    assert image.mean() < 60


def test_check_turns_headers_too(dataset):
    exif = Image.Exif()
    exif[274] = 6
    save(dataset / 'images/train/a.jpg', np.zeros([8, 6, 3], np.uint8), exif=exif)
    source = get_source(data_config(dataset), 'train')
    assert source.load(0)['image'].shape == (6, 8, 3)
    assert 'a.jpg' not in str(source.check())


@pytest.mark.parametrize('folder_name, suffix', [('images', 'jpg'), ('labels', 'png')])
@pytest.mark.parametrize('damage', ['truncated', 'text', 'empty'])
def test_damaged_file_is_corrupt_and_named(dataset, folder_name, suffix, damage):
    rng = np.random.default_rng(0)
    save(dataset / 'images/train/a.jpg', rng.integers(0, 256, (6, 8, 3)).astype(np.uint8))
    path = dataset / f'{folder_name}/train/a.{suffix}'
    content = {
        'truncated': path.read_bytes()[: len(path.read_bytes()) * 2 // 3],
        'text': b'<html>404</html>',
        'empty': b'',
    }[damage]
    path.write_bytes(content)
    source = get_source(data_config(dataset), 'train')
    with pytest.raises(CorruptExample, match=re.escape(str(path))):
        source.load(0)
    config = common.get_config()
    config.batch_size = 2
    config.augment.crop_size = (6, 8)
    task = tasks.from_source(config, source)
    batch = next(pipeline.train_batches(source, config, task, start_step=0))
    assert sorted(batch['mask'].tolist()) == [False, True]


def test_size_mismatch_is_corrupt(dataset):
    save(dataset / 'labels/train/a.png', np.zeros([8, 6], np.uint8))
    source = get_source(data_config(dataset), 'train')
    with pytest.raises(CorruptExample, match=r'a\.jpg: .* 6 x 8 .*EXIF.* 8 x 6'):
        source.load(0)
    report = source.check()
    assert not report.problems and any('8 x 6' in warning for warning in report.warnings)
    assert any('max_corrupt = 0' in problem for problem in source.check(0).problems)
    for name in source.ids:
        (dataset / 'images/train' / Path(name).name).write_bytes(b'')
    assert any('which is all of them' in problem for problem in source.check(100).problems)


@pytest.mark.parametrize(
    'missing, named', [('classes.txt', 'classes.txt'), ('images', 'images'), ('labels', 'labels')]
)
def test_missing_parts_are_named(dataset, missing, named):
    (dataset / missing).rename(dataset / 'elsewhere')
    with pytest.raises(FileNotFoundError, match=named) as caught:
        get_source(data_config(dataset), 'train')
    assert 'images/train/*' in str(caught.value)


def test_class_names(dataset):
    (dataset / 'classes.txt').write_bytes('\ufeffMauer\r\nFußboden\r\nLampe\r\n\r\n'.encode())
    source = get_source(data_config(dataset, num_classes=3), 'train')
    assert source.class_names == ('Mauer', 'Fußboden', 'Lampe')
    with pytest.raises(ValueError, match='num_classes = 5, .*classes.txt names 3'):
        get_source(data_config(dataset, num_classes=5), 'train')
    (dataset / 'classes.txt').write_text('a\n\nb\n')
    with pytest.raises(ValueError, match='line 2 has no name'):
        get_source(data_config(dataset), 'train')


def test_two_classes_of_one_name(dataset):
    (dataset / 'classes.txt').write_text('wall\nfloor \nlamp\nfloor\n')
    with pytest.raises(ValueError, match=r"classes.txt: lines 2 and 4 have the same name 'floor'"):
        get_source(data_config(dataset), 'train')


def test_subfolders_are_read_and_written(dataset, tmp_path):
    rng = np.random.default_rng(0)
    for name in ('night/a', 'night/rain/a'):
        save(dataset / f'images/train/{name}.png', rng.integers(0, 256, (6, 8, 3)).astype('uint8'))
        save(dataset / f'labels/train/{name}.png', rng.integers(0, 3, (6, 8)).astype('uint8'))
    save(dataset / 'images/train/day/b.png', np.zeros([6, 8, 3], np.uint8))
    (dataset / 'images/train/night/._a.png').write_bytes(b'macOS')
    source = get_source(data_config(dataset), 'train')
    assert list(source.ids) == ['a.jpg', 'b.jpg', 'night/a.png', 'night/rain/a.png']
    writer = label_files.LabelWriter(tmp_path / 'out', source)
    for index, name in enumerate(source.ids):
        example = source.load(index)
        image = np.array(Image.open(dataset / 'images/train' / name))
        np.testing.assert_array_equal(example['image'], image)
        writer.write(name, example['label'])
        written = tmp_path / 'out' / Path(name).with_suffix('.png')
        np.testing.assert_array_equal(source.read_label(written), example['label'])
    assert 'day/b.png' in str(source.check()) and '._a' not in str(source.check())


@pytest.mark.parametrize('suffix', ['tif', 'jpg'])
def test_labels_that_are_no_png_are_named(dataset, suffix):
    label = dataset / 'labels/train/b.png'
    save(label.with_suffix(f'.{suffix}'), np.zeros([6, 8], np.uint8))
    assert 'only .png' not in str(get_source(data_config(dataset), 'train').check())
    label.unlink()
    report = get_source(data_config(dataset), 'train').check()
    assert not report.problems
    assert f'only .png files are labels:\n    {label.with_suffix("." + suffix)}' in str(report)
    (dataset / 'labels/train/a.png').unlink()
    problems = get_source(data_config(dataset), 'train').check().problems
    assert any('only .png files are labels' in problem for problem in problems)


def test_two_label_files_of_one_name_are_refused(dataset):
    save(dataset / 'labels/train/b.PNG', np.zeros([6, 8], np.uint8))
    with pytest.raises(ValueError, match=r'label files with the same name: b\.PNG, b\.png'):
        get_source(data_config(dataset), 'train')


def test_composed_and_decomposed_names_match(dataset):
    for path, name in (('images/train/b.jpg', 'u\u0308'), ('labels/train/b.png', '\u00fc')):
        (dataset / path).rename((dataset / path).with_stem(name))
    assert list(get_source(data_config(dataset), 'train').ids) == ['a.jpg', 'u\u0308.jpg']


def test_images_in_other_formats_are_named(dataset):
    (dataset / 'images/train/b.jpg').rename(dataset / 'images/train/b.HEIC')
    (dataset / 'images/train/a.json').write_text('{}')  # lies beside an image
    report = get_source(data_config(dataset), 'train').check()
    (warning,) = [text for text in report.warnings if 'images have one of' in text]
    assert warning.startswith('1 files that are not read') and warning.endswith('train/b.HEIC')


def test_masks_of_0_and_255(dataset):
    (dataset / 'classes.txt').write_text('background\ntumor\n')
    for name in 'ab':
        save(dataset / f'labels/train/{name}.png', np.array([[0, 255] * 4] * 6, np.uint8))
    report = get_source(data_config(dataset), 'train').check()
    problem = report.unlearnable
    assert not report.problems and f'warning: {problem}' in str(report)
    assert "all labeled pixels are 'background' (value 0)" in problem
    assert '255 (config.data.ignore_label), which is ignored' in problem
    assert 'write one of 0..1 in its place' in problem
    config = data_config(dataset, reduce_zero_label=True)
    problem = get_source(config, 'train').check().unlearnable
    assert problem.startswith('no pixel is labeled') and 'reduce_zero_label' in problem
    save(dataset / 'labels/train/a.png', np.array([[0, 255] * 3 + [1, 1]] * 6, np.uint8))
    assert not get_source(data_config(dataset), 'train').check().unlearnable


def test_a_split_of_one_class_is_evaluated_but_not_trained_on(dataset):
    (dataset / 'classes.txt').write_text('background\ntumor\n')
    for name in 'ab':
        save(dataset / f'labels/train/{name}.png', np.array([[0, 255] * 4] * 6, np.uint8))
    config = common.get_config()
    config.data = data_config(dataset)
    config.data.train_split, config.data.eval_split = 'elsewhere', 'train'
    source = get_source(config.data, 'train')
    assert train.check_source(source, config, 'train').unlearnable
    config.data.train_split = 'train'
    with pytest.raises(ValueError, match="split 'train' cannot be used: all labeled pixels are"):
        train.check_source(source, config, 'train')


def test_turned_tiffs_fit_their_labels(dataset):
    exif = Image.Exif()
    exif[274] = 6
    (dataset / 'images/train/a.jpg').unlink()
    save(dataset / 'images/train/a.tif', np.zeros([8, 6, 3], np.uint8), exif=exif)
    source = get_source(data_config(dataset), 'train')
    assert source.load(0)['image'].shape == (6, 8, 3)
    assert 'a.tif' not in str(source.check())


def test_images_beyond_the_limit_name_its_key(dataset):
    source = get_source(data_config(dataset, max_pixels=47), 'train')
    with pytest.raises(
        CorruptExample, match=r'a\.jpg: 8 x 6 pixels .* config.data.max_pixels = 47'
    ):
        source.load(0)
    assert 'config.data.max_pixels = 47' in str(source.check())
    assert not get_source(data_config(dataset, max_pixels=48), 'train').check().warnings


def test_two_images_of_one_name(dataset):
    save(dataset / 'images/train/a.png', np.zeros([6, 8, 3], np.uint8))
    with pytest.raises(ValueError, match=r'same name: a\.jpg, a\.png'):
        get_source(data_config(dataset), 'train')


def test_check_counts_by_hand(dataset):
    values = np.zeros([6, 8], np.uint8)
    save(dataset / 'labels/train/b.png', values)
    report = get_source(data_config(dataset), 'train').check()
    assert report.pixels.tolist() == [20 + 48, 20, 0]
    assert report.images.tolist() == [2, 1, 0]
    assert report.categories.tolist() == [2, 1]
    assert report.ignored == pytest.approx(8 / 96)
    assert not report.problems
    text = str(report)
    assert 'min 1, median 1.5, mean 1.5, p99 1.99, max 2' in text and '8.3%' in text
    assert 'classes never seen' in text and 'lamp shade' in text


def test_check_names_files_without_a_partner(dataset):
    save(dataset / 'images/train/alone.jpg', np.zeros([6, 8, 3], np.uint8))
    save(dataset / 'labels/train/other.png', np.zeros([6, 8], np.uint8))
    (dataset / 'images/train/Thumbs.db').write_text('')
    source = get_source(data_config(dataset), 'train')
    assert len(source) == 2
    report = source.check()
    assert not report.problems
    assert 'alone.jpg' in str(report) and 'other.png' in str(report)
    assert 'Thumbs' not in str(report)


def test_check_stops_when_nothing_matches_or_nothing_is_there(dataset):
    for path in (dataset / 'labels/train').iterdir():
        path.rename(path.with_name(f'{path.stem}_mask.png'))
    report = get_source(data_config(dataset), 'train').check()
    assert 'no image has a label file of its name' in report.problems[0]
    for path in [*(dataset / 'images/train').iterdir(), *(dataset / 'labels/train').iterdir()]:
        path.unlink()
    assert get_source(data_config(dataset), 'train').check().problems == ['no images']


def test_check_cuts_long_lists(dataset):
    for index in range(9):
        save(dataset / f'images/train/alone{index}.jpg', np.zeros([6, 8, 3], np.uint8))
    assert 'and 4 more' in str(get_source(data_config(dataset), 'train').check())


def miniature_camvid(root):
    rng = np.random.default_rng(0)
    for split, count in (('train', 3), ('val', 2)):
        for index in range(count):
            pixels = rng.integers(0, 256, (9, 12, 3)).astype(np.uint8)
            save(root / split / f'{split}_{index:06}.jpg', pixels)
            label = rng.integers(0, 12, (9, 12)).astype(np.uint8)
            save(root / f'{split}annot' / f'{split}_{index:06}.png', label)
    return root


@pytest.mark.parametrize('real', [False, True] if CAMVID else [False])
def test_camvid(tmp_path, real):
    root = Path(CAMVID) if real else miniature_camvid(tmp_path)
    for split, on_disk in (('train', 'train'), ('validation', 'val'), ('val', 'val')):
        source = get_source(data_config(root, 'camvid', num_classes=11), split)
        assert len(source) == len(list((root / on_disk).iterdir()))
        assert len(source.class_names) == 11
        example = source.load(0)
        path = root / f'{on_disk}annot' / Path(source.ids[0]).with_suffix('.png')
        values = np.array(Image.open(path)).astype(int)
        np.testing.assert_array_equal(example['label'], np.where(values == 11, -1, values))
        assert example['image'].shape == (*values.shape, 3)
    report = source.check()
    assert not report.problems and report.num_examples == len(source)
    total = sum(
        np.bincount(np.array(Image.open(path)).ravel(), minlength=12)
        for path in (root / 'valannot').iterdir()
    )
    np.testing.assert_array_equal(report.pixels, total[:11])
    assert report.ignored == pytest.approx(total[11] / total.sum())


def test_camvid_missing_or_with_other_classes(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'train/\*\.jpg and trainannot/\*\.png'):
        get_source(data_config(tmp_path / 'nowhere', 'camvid'), 'train')
    with pytest.raises(ValueError, match='num_classes = 12, but CamVid names 11'):
        get_source(data_config(miniature_camvid(tmp_path), 'camvid', num_classes=12), 'train')


def test_memory_of_the_check_does_not_grow_with_images_times_classes(monkeypatch):
    number, num_classes = 4000, 2000

    class Sparse(folder.PairedFiles):
        def read_label(self, path):
            number = int(path.name)
            return np.array([[number % num_classes, number % 7, -1]], np.int32)

    monkeypatch.setattr(images, 'read_size', lambda path, max_pixels: (1, 3))
    pairs = tuple((Path(str(i)), Path(str(i))) for i in range(number))
    files = folder.Matched(ids=tuple(map(str, range(number))), pairs=pairs)
    source = Sparse(tuple(map(str, range(num_classes))), files, 255)
    tracemalloc.start()
    try:
        report = source.check()
        # Bytes: less than a dense mask would take.
        assert tracemalloc.get_traced_memory()[1] < number * num_classes
    finally:
        tracemalloc.stop()
    assert report.images.tolist()[7:] == [2] * (num_classes - 7)
    assert report.categories.tolist() == [len({i % num_classes, i % 7}) for i in range(number)]


def test_label_maps_are_written_as_they_are_read(dataset, tmp_path):
    for options in ({}, {'reduce_zero_label': True}):
        source = get_source(data_config(dataset, **options), 'train')
        label = np.array([[0, 1, 2], [2, 2, IGNORE_LABEL]])
        label_files.LabelWriter(tmp_path, source).write(source.ids[0], label)
        found = source.read_label(tmp_path / Path(source.ids[0]).with_suffix('.png').name)
        np.testing.assert_array_equal(found, label)
