"""PASCAL-Context, 60 and 59 classes: the three kinds of labels, made here in their formats."""

import json

import numpy as np
import pytest
import scipy.io
from pycocotools import mask

from rankseg_jax.data import IGNORE_LABEL, CorruptExample
from rankseg_jax.data.published.label_maps import read_classes
from rankseg_jax.data.published.pascal_context59 import PascalContext59
from rankseg_jax.data.published.pascal_context60 import PascalContext60
from tests import official_cases

IDS = read_classes('pascal_context')['ids']
NAMES = {
    'train': ['2008_000002', '2008_000007', '2010_004402'],
    'val': ['2008_000003', '2010_006082'],
}
SHAPES = {name: (20 + i, 30 - i) for i, name in enumerate(NAMES['train'] + NAMES['val'])}
# The 59 classes in the order of the authors' list, and their numbers in the list of 459.
OFFICIAL = """
    aeroplane 2, bicycle 23, bird 25, boat 31, bottle 34, bus 45, car 59, cat 65, chair 72, cow
    98, table 397, dog 113, horse 207, motorbike 258, person 284, pottedplant 308, sheep 347, sofa
    368, train 416, tvmonitor 427, bag 9, bed 18, bench 22, book 33, building 44, cabinet 46,
    ceiling 68, cloth 80, computer 85, cup 104, door 115, fence 144, floor 158, flower 159, food
    162, grass 187, ground 189, keyboard 220, light 232, mountain 259, mouse 260, curtain 105,
    platform 296, sign 355, plate 295, road 324, rock 326, shelves 349, sidewalk 354, sky 360,
    snow 366, bedclothes 19, track 415, tree 420, truck 424, wall 440, water 445, window 454, wood
    458"""


def numbers(name):
    """What the annotators drew [H, W]: numbers of 459 classes in blocks, 0 for nothing."""
    rng = np.random.default_rng(int(name[-4:]))
    rows, columns = SHAPES[name]
    blocks = rng.choice([*IDS[:20], *IDS[-20:], 1, 3, 457, 459], (rows // 4 + 1, columns // 5 + 1))
    return np.kron(blocks, np.ones((4, 5), int))[:rows, :columns]


def expected(name):
    """The 60-class labels, pixel by pixel."""
    place = {number: i for i, number in enumerate(IDS)}
    return np.array([[place.get(number, 0) for number in row] for row in numbers(name).tolist()])


def fill(root, kind='png', lists='SegmentationContext'):
    root = root / 'VOCdevkit/VOC2010'
    for name, shape in SHAPES.items():
        official_cases.picture(root / f'JPEGImages/{name}.jpg', *shape, seed=int(name[-3:]))
    official_cases.picture(root / 'JPEGImages/2009_000001.jpg', 5, 6)  # an image that is in no list
    (root / f'ImageSets/{lists}').mkdir(parents=True)
    for phase, names in NAMES.items():
        (root / f'ImageSets/{lists}/{phase}.txt').write_text(''.join(f'{name}\n' for name in names))
    if kind == 'mat':
        (root / 'trainval').mkdir()
        for name in SHAPES:
            scipy.io.savemat(
                root / f'trainval/{name}.mat',
                {'LabelMap': numbers(name).astype(np.uint16)},
                do_compression=True,
            )
    elif kind == 'json':
        (root / 'trainval_merged.json').write_text(json.dumps(detail()))
    else:
        for name in SHAPES:
            official_cases.values(
                root / f'SegmentationClassContext/{name}.png', expected(name).astype(np.uint8)
            )


def encoded(there):
    """A mask as in the JSON file: compressed run lengths as text."""
    runs = mask.encode(np.asfortranarray(there, np.uint8))
    return {'size': runs['size'], 'counts': runs['counts'].decode('ascii')}


def detail():
    """The JSON file of the Detail API: images in no order, each mask over those before it."""
    images, annotations = [], []
    for phase, names in {**NAMES, 'test': ['2009_000001']}.items():
        for name in names[::-1]:
            image_id = int(name.replace('_', ''))
            rows, columns = SHAPES.get(name, (5, 6))
            images.append(
                {
                    'file_name': f'{name}.jpg',
                    'phase': phase,
                    'height': rows,
                    'width': columns,
                    'image_id': image_id,
                }
            )
            drawn = numbers(name) if name in SHAPES else np.full((5, 6), 2)
            drawn = np.where(np.isin(drawn, IDS), drawn, 0)
            annotations += [
                {
                    'image_id': image_id,
                    'category_id': number,
                    'iscrowd': 0,
                    'segmentation': encoded(drawn >= number),
                }
                for number in np.unique(drawn).tolist()
                if number
            ]
    annotations.sort(key=lambda annotation: annotation['category_id'])
    return {
        'images': images,
        'annos_segmentation': annotations,
        'annos_occlusion': [],
        'categories': [],
        'parts': [],
    }


class PascalContext60Test(official_cases.Case):
    DATASET_CLASS = PascalContext60
    SPLITS = {'train': 3, 'validation': 2}
    fill = staticmethod(fill)


class PascalContext59Test(official_cases.Case):
    DATASET_CLASS = PascalContext59
    SPLITS = {'train': 3, 'validation': 2}

    @staticmethod
    def fill(root):
        fill(root, 'mat', 'Main')


def test_the_classes():
    with_background, without = (read_classes('pascal_context'), read_classes('pascal_context59'))
    assert (
        with_background['names'][0] == 'background'
        and IDS[0] == 0
        and len(IDS) == len(set(IDS)) == 60
    )
    assert without == {key: values[1:] for key, values in with_background.items()}
    assert without['names'] == sorted(without['names']) and without['ids'] == sorted(without['ids'])
    official_numbers = dict(entry.split() for entry in OFFICIAL.split(','))
    assert {name: int(number) for name, number in official_numbers.items()} == dict(
        zip(*without.values(), strict=True)
    )


@pytest.mark.parametrize('lists', ['SegmentationContext', 'Main'])
@pytest.mark.parametrize('kind', ['png', 'mat', 'json'])
def test_each_kind_of_labels(tmp_path, kind, lists):
    fill(tmp_path, kind, lists)
    for split, phase in (('train', 'train'), ('validation', 'val')):
        sources = [
            official_cases.open_split(build, tmp_path, split)
            for build in (PascalContext60, PascalContext59)
        ]
        for source, first in zip(sources, (0, 1), strict=True):
            assert source.ids == NAMES[phase] and source.category_ids == tuple(IDS[first:])
            assert source.label_values == tuple(range(first, 60))
            assert (
                len(source.class_names) == 60 - first
                and source.class_names[1 - first] == 'aeroplane'
            )
        for index, name in enumerate(NAMES[phase]):
            labels = expected(name)
            np.testing.assert_array_equal(sources[0].load(index)['label'], labels)
            np.testing.assert_array_equal(
                sources[1].load(index)['label'], np.where(labels == 0, IGNORE_LABEL, labels - 1)
            )
            assert 0 in labels and labels.max() > 40


@pytest.mark.parametrize('kind', ['png', 'mat', 'json'])
@pytest.mark.parametrize('build', [PascalContext60, PascalContext59])
def test_records_hold_what_the_folder_holds(tmp_path, build, kind):
    fill(tmp_path / 'data', kind)
    highest = expected('2008_000002').max() if build is PascalContext60 else 65535
    builder = official_cases.prepare(build, tmp_path / 'data', tmp_path / 'records')
    official_cases.assert_same(build, tmp_path / 'data', tmp_path / 'records')
    assert builder.as_data_source('train')[0]['labels'].max() == highest


def test_which_labels_and_lists_are_taken(tmp_path):
    fill(tmp_path, 'json')
    root = tmp_path / 'VOCdevkit/VOC2010'

    def first():
        source = official_cases.open_split(PascalContext60, tmp_path / 'VOCdevkit')
        assert source.ids == NAMES['train']
        return set(np.unique(source.load(0)['label']).tolist())

    (root / 'ImageSets/Main').mkdir()
    (root / 'ImageSets/Main/train.txt').write_text('2010_006082\n')
    (root / 'trainval').mkdir()
    for name in SHAPES:
        scipy.io.savemat(
            root / f'trainval/{name}.mat', {'LabelMap': np.full(SHAPES[name], 458, np.uint16)}
        )
    assert first() == {59}
    for name in SHAPES:
        official_cases.values(
            root / f'SegmentationClassContext/{name}.png', np.full(SHAPES[name], 7, np.uint8)
        )
    assert first() == {7}
    (root / 'trainval').rename(tmp_path / 'away')
    assert first() == {7}
    (root / 'SegmentationClassContext').rename(tmp_path / 'away too')
    assert len(first()) > 10


def test_values_that_are_no_class(tmp_path):
    name = '2008_000002'
    fill(tmp_path / 'png')
    png = tmp_path / f'png/VOCdevkit/VOC2010/SegmentationClassContext/{name}.png'
    official_cases.values(png, np.full(SHAPES[name], 60, np.uint8))
    fill(tmp_path / 'json', 'json')
    content = detail()
    content['annos_segmentation'][-1] = {
        'image_id': 2008000002,
        'category_id': 457,
        'segmentation': encoded(np.ones(SHAPES[name])),
    }
    (tmp_path / 'json/VOCdevkit/VOC2010/trainval_merged.json').write_text(json.dumps(content))
    for kind, message in (
        ('png', rf'SegmentationClassContext/{name}.png: label values \[60\] are neither a class'),
        ('json', rf'trainval_merged.json, {name}: label values \[457\] are neither a class'),
    ):
        for build in (PascalContext60, PascalContext59):
            with pytest.raises(ValueError, match=message):
                official_cases.open_split(build, tmp_path / kind).load(0)


def test_files_that_cannot_be_read(tmp_path):
    fill(tmp_path / 'mat', 'mat')
    root = tmp_path / 'mat/VOCdevkit/VOC2010'
    scipy.io.savemat(root / 'trainval/2008_000002.mat', {'Labels': np.zeros((2, 2))})
    (root / 'trainval/2008_000007.mat').write_bytes(b'not MATLAB')
    official_cases.picture(root / 'JPEGImages/2010_004402.jpg', 9, 8)
    source = official_cases.open_split(PascalContext59, tmp_path / 'mat')
    for index, message in enumerate(
        ("2008_000002.mat: KeyError: 'LabelMap'", '2008_000007.mat: ', '9 x 8')
    ):
        with pytest.raises(CorruptExample, match=message):
            source.load(index)
    fill(tmp_path / 'json', 'json')
    for segmentation in (
        [[1, 1, 5, 1, 5, 5]],
        {'size': [2, 2], 'counts': '04'},
        {'size': [20, 30]},
        {'size': list(SHAPES['2008_000002']), 'counts': '04'},
    ):
        content = detail()
        content['annos_segmentation'][0] |= {'image_id': 2008000002, 'segmentation': segmentation}
        (tmp_path / 'json/VOCdevkit/VOC2010/trainval_merged.json').write_text(json.dumps(content))
        with pytest.raises(CorruptExample, match='trainval_merged.json, 2008_000002: '):
            official_cases.open_split(PascalContext60, tmp_path / 'json').load(0)


def test_broken_json_files_are_named(tmp_path):
    fill(tmp_path, 'json')
    path = tmp_path / 'VOCdevkit/VOC2010/trainval_merged.json'
    for broken in ('', '[]', '{}', path.read_text()[:-9]):
        path.write_text(broken)
        with pytest.raises(
            ValueError, match='trainval_merged.json is broken or not a JSON file of the Detail API'
        ):
            official_cases.open_split(PascalContext60, tmp_path)


def test_images_listed_twice_are_refused(tmp_path):
    fill(tmp_path)
    path = tmp_path / 'VOCdevkit/VOC2010/ImageSets/SegmentationContext/train.txt'
    path.write_text(path.read_text() + '\n2008_000007')
    with pytest.raises(
        ValueError, match="'train': images are listed twice, 2008_000007 among them"
    ):
        official_cases.open_split(PascalContext60, tmp_path)


@pytest.mark.parametrize('builder', [PascalContext60, PascalContext59])
@pytest.mark.parametrize(
    ('kind', 'gone', 'message'),
    [
        (
            'png',
            'JPEGImages/2008_000003.jpg',
            r"split 'validation': 1 of 4 files are missing: \S*/JPEGImages/2008_000003.jpg",
        ),
        (
            'png',
            'SegmentationClassContext/2010_006082.png',
            r'1 of 4 files are missing: \S*/SegmentationClassContext/2010_006082.png',
        ),
        (
            'mat',
            'trainval/2008_000007.mat',
            r"split 'train': 1 of 6 files are missing: \S*/trainval/2008_000007.mat",
        ),
        (
            'mat',
            'trainval',
            r'3 of 6 files are missing: \S*/SegmentationClassContext/2008_000002.png',
        ),
        (
            'json',
            'JPEGImages/2008_000007.jpg',
            r'1 of 3 files are missing: \S*/JPEGImages/2008_000007.jpg',
        ),
        (
            'png',
            'ImageSets/SegmentationContext/val.txt',
            r'1 of 1 files are missing: \S*Context/val.txt or \S*Main/val.txt',
        ),
        (
            'png',
            'JPEGImages',
            'does not hold pascal_context..: neither JPEGImages exists there or in '
            'VOCdevkit/VOC2010 below it',
        ),
    ],
)
def test_missing_files_are_named_and_nothing_is_written(tmp_path, builder, kind, gone, message):
    fill(tmp_path / 'data', kind)
    path = tmp_path / 'data/VOCdevkit/VOC2010' / gone
    path.rename(tmp_path / 'away')
    official_cases.assert_refused(
        builder, tmp_path / 'data', tmp_path / 'records', FileNotFoundError, message
    )
