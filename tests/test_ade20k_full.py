"""ADE20K-Full: its three common layouts, made here, and three real images with annotations."""

import io
import json
import shutil
from functools import partial

import numpy as np
import pytest
from PIL import Image, ImageDraw
from scipy import ndimage

from rankseg_jax.data import IGNORE_LABEL, CorruptExample, fitting
from rankseg_jax.data.published import ade20k_full
from rankseg_jax.data.published.label_maps import read_classes
from tests import official_cases

IDS = read_classes('ade20k_full')['ids']
RELEASE = 'ADE20K_2021_17_01/images/ADE'
SCENES = {
    'training/urban/street/ADE_train_00000001': (40, 50),
    'training/home_or_hotel/attic/ADE_train_00000002': (530, 700),
    'training/urban/alley/ADE_train_00000003': (512, 600),
    'validation/urban/street/ADE_val_00000001': (30, 20),
    'validation/cultural/apse__indoor/ADE_val_00000002': (641, 523),
}
# No object, and three numbers that are not classes; the last is the largest that fits.
OTHERS = [0, 1, 3156, 6655]


def write_objects(path, objects, instances=0):
    """Writes a _seg.png: red is 10 times the high byte plus a digit, green the low byte."""
    digit = np.arange(objects.size).reshape(objects.shape) % 6
    colors = np.stack(
        [objects // 256 * 10 + digit, objects % 256, np.broadcast_to(instances, objects.shape)], -1
    )
    official_cases.values(path, colors.astype(np.uint8))


def write_example(stem, shape, seed=0):
    """Writes an image of the release and its files; blocks of classes and of other numbers."""
    rng = np.random.default_rng(seed)
    official_cases.picture(stem.with_name(f'{stem.name}.jpg'), *shape, seed=seed)
    blocks = rng.choice(IDS[:40] + IDS[-40:] + OTHERS, (shape[0] // 4 + 1, shape[1] // 3 + 1))
    objects = np.kron(blocks, np.ones((4, 3), int))[: shape[0], : shape[1]]
    write_objects(stem.with_name(f'{stem.name}_seg.png'), objects, rng.integers(9))
    official_cases.values(
        stem.with_name(f'{stem.name}_parts_1.png'), np.zeros((*shape, 3), np.uint8)
    )
    official_cases.values(stem / f'instance_000_{stem.name}.png', np.zeros(shape, np.uint8))
    stem.with_name(f'{stem.name}.json').write_text('{}')
    stem.with_name(f'._{stem.name}.jpg').write_bytes(b'by a Mac')


def fill(root):
    """Three training and two validation images of four scenes."""
    for seed, (name, shape) in enumerate(SCENES.items()):
        write_example(root / RELEASE / name, shape, seed)


class Ade20kFullTest(official_cases.Case):
    DATASET_CLASS = ade20k_full.Ade20kFull
    SPLITS = {'train': 3, 'validation': 2}
    fill = staticmethod(fill)


folder = official_cases.folder_fixture(fill)
open_split = partial(official_cases.open_split, ade20k_full.Ade20kFull)


def decoded(path):
    """The labels of a _seg.png, pixel by pixel.

    They are the place of red // 10 * 256 + green among the ids, or IGNORE_LABEL.
    """
    place = {number: i for i, number in enumerate(IDS)}
    rows = np.array(Image.open(path)).tolist()
    return np.array(
        [
            [place.get(red // 10 * 256 + green, IGNORE_LABEL) for red, green, _ in row]
            for row in rows
        ]
    )


def test_objects_that_are_classes_count(folder):
    source = open_split(folder)
    assert source.ids == [f'ADE_train_{i:08}' for i in (1, 2, 3)] and len(source.class_names) == 847
    assert source.published == 25_574 and source.category_ids == tuple(IDS)
    for index in (0, 2):
        stem = folder / RELEASE / list(SCENES)[index]
        label = source.load(index)['label']
        np.testing.assert_array_equal(label, decoded(stem.with_name(f'{stem.name}_seg.png')))
        assert label.min() == IGNORE_LABEL and label.max() > 800 and len(np.unique(label)) > 20
        # Not over 512: the file is taken as it is, and so is one of exactly 512.
        assert source.example(index)['image'] == stem.with_name(f'{stem.name}.jpg').read_bytes()


@pytest.mark.parametrize(
    ('index', 'split', 'size'), [(1, 'train', (512, 676)), (1, 'validation', (628, 512))]
)
def test_large_images_are_shrunk_as_opencv_shrinks(folder, index, split, size):
    cv2 = pytest.importorskip('cv2')
    source = open_split(folder, split)
    name = next(name for name in SCENES if name.endswith(source.ids[index]))
    stem = folder / RELEASE / name
    picture = np.array(Image.open(stem.with_name(f'{stem.name}.jpg')))
    example, loaded = source.example(index), source.load(index)
    assert (
        tuple(example['original_size']) == SCENES[name] == picture.shape[:2]
        and loaded['label'].shape == size
    )
    label = decoded(stem.with_name(f'{stem.name}_seg.png')).astype(np.int32)
    np.testing.assert_array_equal(
        loaded['label'], cv2.resize(label, size[::-1], interpolation=cv2.INTER_NEAREST)
    )
    shrunk = cv2.resize(picture, size[::-1], interpolation=cv2.INTER_LINEAR)
    ours = (fitting.resize(picture, size) + 0.5).astype(np.uint8)
    assert np.abs(ours.astype(int) - shrunk).max() <= 1
    stream = io.BytesIO()
    Image.fromarray(ours).save(stream, 'jpeg', quality=95)
    assert example['image'] == stream.getvalue()


def test_sizes_are_the_published_ones():
    def published(rows, columns):
        if columns >= rows > 512:
            return 512, round(columns / float(rows) * 512)
        if rows >= columns > 512:
            return round(rows / float(columns) * 512), 512
        return rows, columns

    rng = np.random.default_rng(0)
    for size in [
        (511, 600),
        (512, 512),
        (513, 513),
        (512, 4000),
        (4000, 513),
        *rng.integers(300, 4000, (2000, 2)).tolist(),
    ]:
        assert ade20k_full.shrunk_size(tuple(size)) == published(*size)


def test_records_hold_what_the_folder_holds(folder, tmp_path):
    builder = official_cases.prepare(ade20k_full.Ade20kFull, folder, tmp_path / 'records')
    official_cases.assert_same(ade20k_full.Ade20kFull, folder, tmp_path / 'records')
    record = builder.as_data_source('train')[1]
    assert (
        record['labels'].dtype == np.uint16
        and 256 < record['labels'][record['labels'] < 65535].max() < 847
    )
    assert record['image'].shape == (512, 676, 3) and record['original_size'].tolist() == [530, 700]


@pytest.mark.parametrize(
    'layout',
    [
        (
            'ADE20K_2021_17_01/images_detectron2/{}',
            'ADE20K_2021_17_01/annotations_detectron2/{}',
            'training',
            'validation',
        ),
        ('{}/image', '{}/label', 'train', 'val'),
    ],
)
def test_converted_folders_are_read_as_they_are(tmp_path, layout):
    images, labels, *names = layout
    rng = np.random.default_rng(0)
    for split, name in zip(('train', 'validation'), names, strict=True):
        values = rng.choice([0, 254, 255, 256, 846, 65535], (9, 8)).astype(np.uint16)
        official_cases.picture(tmp_path / images.format(name) / 'ADE_1.jpg', 9, 8)
        official_cases.values(tmp_path / labels.format(name) / 'ADE_1.tif', values)
        source = open_split(tmp_path, split)
        np.testing.assert_array_equal(
            source.load(0)['label'], np.where(values == 65535, IGNORE_LABEL, values.astype(int))
        )
        assert source.ids == ['ADE_1']
    official_cases.prepare(ade20k_full.Ade20kFull, tmp_path, tmp_path / 'records')
    official_cases.assert_same(ade20k_full.Ade20kFull, tmp_path, tmp_path / 'records', 'train')
    official_cases.values(
        tmp_path / labels.format(names[0]) / 'ADE_1.tif', np.full((9, 8), 847, np.uint16)
    )
    with pytest.raises(ValueError, match=r'ADE_1.tif: label values \[847\]'):
        open_split(tmp_path).load(0)
    (tmp_path / labels.format(names[1]) / 'ADE_1.tif').unlink()
    with pytest.raises(
        FileNotFoundError, match=r"'validation': 1 of 2 files are missing: .*ADE_1.tif"
    ):
        open_split(tmp_path, 'validation')


def test_the_release_comes_before_what_was_converted(folder):
    (folder / 'ADE20K_2021_17_01/images_detectron2/training').mkdir(parents=True)
    assert len(open_split(folder)) == 3


def test_a_name_in_two_scenes_is_refused(folder):
    write_example(folder / RELEASE / 'training/urban/plaza/ADE_train_00000001', (8, 9))
    with pytest.raises(
        ValueError,
        match=r'2 images share their names with others: '
        r'\S*plaza/ADE_train_00000001.jpg, \S*street/',
    ):
        open_split(folder)


def test_missing_files_are_named(folder):
    street = folder / RELEASE / 'training/urban/street'
    (street / 'ADE_train_00000001_seg.png').unlink()
    (folder / RELEASE / 'training/urban/alley/ADE_train_00000003.jpg').unlink()
    with pytest.raises(
        FileNotFoundError,
        match=r'2 of 6 files are missing: \S*00000003.jpg, \S*00000001_seg.png. There must be\n',
    ):
        open_split(folder)
    for path in (folder / RELEASE / 'validation').rglob('*.*'):
        path.unlink()
    with pytest.raises(
        FileNotFoundError,
        match=r"'validation': 2 of 2 files are missing: \S*/validation/\*/\*/\*.jpg",
    ):
        open_split(folder, 'validation')


def test_nothing_is_written_for_a_wrong_folder(folder, tmp_path):
    def refused(path, match):
        official_cases.assert_refused(
            ade20k_full.Ade20kFull, path, tmp_path / 'records', FileNotFoundError, match
        )

    (tmp_path / 'other/images').mkdir(parents=True)
    refused(
        tmp_path / 'other',
        'neither images/ADE nor images_detectron2 nor train/image nor val/image exists there',
    )
    (folder / RELEASE / 'validation/urban/street/ADE_val_00000001_seg.png').unlink()
    refused(folder, r'1 of 4 files are missing: \S*/street/ADE_val_00000001_seg.png')


def test_files_that_are_not_what_they_should_be(folder):
    stem = folder / RELEASE / list(SCENES)[1]
    source = open_split(folder)
    official_cases.picture(stem.with_name(f'{stem.name}.jpg'), 531, 700)
    with pytest.raises(CorruptExample, match='531 x 700'):
        source.load(1)
    seg = stem.with_name(f'{stem.name}_seg.png')
    official_cases.values(seg, np.zeros((530, 700), np.uint8))
    with pytest.raises(
        ValueError, match=r'_seg.png: its colors should be numbers, but it has none \(mode L\)'
    ):
        source.load(1)
    seg.write_bytes(seg.read_bytes()[:100])
    with pytest.raises(CorruptExample, match='_seg.png'):
        source.load(1)


def inside(polygon, size):
    """[H, W] of the pixels in a polygon of the JSON files, without its outline."""
    points, picture = list(zip(polygon['x'], polygon['y'], strict=True)), Image.new('L', size[::-1])
    ImageDraw.Draw(picture).polygon(points, fill=1, outline=0)
    return ndimage.binary_erosion(np.array(picture), np.ones((5, 5)))


def test_real_annotations(tmp_path):
    cv2 = pytest.importorskip('cv2')
    sample = shutil.copytree(official_cases.SAMPLES / 'ade20k_full_2021', tmp_path / 'sample')
    for path in sample.rglob('*_seg.png'):
        columns, rows = Image.open(path).size
        official_cases.blank_image(
            path.with_name(path.name.replace('_seg.png', '.jpg')), rows, columns
        )
    source = open_split(sample)
    assert source.ids == ['ADE_train_00016869', 'ADE_train_00016900', 'ADE_train_00016964']
    for index, name in enumerate(source.ids):
        path = sample / 'images/ADE/training/urban/street' / f'{name}.json'
        annotation = json.loads(path.read_text())['annotation']
        size = tuple(annotation['imsize'][:2])
        red, green, _ = np.moveaxis(
            np.array(Image.open(path.with_name(f'{name}_seg.png'))).astype(int), -1, 0
        )
        numbers = red // 10 * 256 + green  # [H, W]
        whole = [thing for thing in annotation['object'] if thing['parts']['part_level'] == 0]
        listed = {thing['name_ndx']: thing['name'] for thing in whole}
        assert set(np.unique(numbers)) - {0} == set(listed)
        ours = dict(zip(source.category_ids, source.class_names, strict=True))
        assert all(ours.get(number, text) == text for number, text in listed.items())
        assert len(listed.keys() & ours.keys()) >= len(listed) - 1
        # Objects may cover each other, but most pixels of most polygons are those of their object.
        shares = []
        for thing in whole:
            mask = inside(thing['polygon'], size)
            shares += [(numbers[mask] == thing['name_ndx']).mean()] if mask.sum() > 100 else []
        assert np.median(shares) > 0.95 and np.mean(np.array(shares) > 0.5) > 0.8
        loaded = source.load(index)
        assert (
            tuple(source.example(index)['original_size']) == size
            and min(loaded['label'].shape) == 512
        )
        place = np.array(
            [IDS.index(number) if number in ours else IGNORE_LABEL for number in range(7000)]
        )
        expected = cv2.resize(
            place[numbers].astype(np.int32),
            loaded['label'].shape[::-1],
            interpolation=cv2.INTER_NEAREST,
        )
        np.testing.assert_array_equal(loaded['label'], expected)
