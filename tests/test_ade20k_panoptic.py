"""ADE20K panoptic: official files made here, and panopticapi's PQ against published JSON files."""

import json
from functools import partial

import numpy as np
import pytest
from PIL import Image

from rankseg_jax.data import IGNORE_LABEL, CorruptExample, coco
from rankseg_jax.data.published import ade20k_panoptic
from rankseg_jax.data.published.label_maps import read_classes
from tests import official_cases
from tests.test_panoptic_metric import panopticapi_scores

CLASSES = read_classes('ade20k_panoptic')
# The value, of 150, of each instance category 1..100, by the table of the Places Challenge 2017.
CATEGORY_VALUES = [
    8,
    9,
    11,
    13,
    15,
    16,
    19,
    20,
    21,
    23,
    24,
    25,
    28,
    31,
    32,
    33,
    34,
    36,
    37,
    38,
    39,
    40,
    42,
    43,
    44,
    45,
    46,
    48,
    50,
    51,
    54,
    56,
    57,
    58,
    59,
    63,
    65,
    66,
    67,
    68,
    70,
    71,
    72,
    73,
    74,
    75,
    76,
    77,
    79,
    81,
    82,
    83,
    84,
    86,
    87,
    88,
    89,
    90,
    91,
    93,
    94,
    96,
    98,
    99,
    103,
    104,
    105,
    108,
    109,
    111,
    112,
    113,
    116,
    117,
    119,
    120,
    121,
    122,
    124,
    125,
    126,
    127,
    128,
    130,
    131,
    133,
    134,
    135,
    136,
    137,
    138,
    139,
    140,
    143,
    144,
    145,
    147,
    148,
    149,
    150,
]
# Label values; beds are instances of category 1, windows of category 2.
WALL, SKY, FLOOR, BED, WINDOW = 1, 3, 4, 8, 9


def write(root, name, semantic, instances, shape=None):
    """Writes an image of `shape`, its values [H, W] and its instances, each over those before.

    An instance is (category, number, rows, columns).
    """
    colors = np.zeros((*semantic.shape, 3), np.uint8)
    for category, number, rows, columns in instances:
        colors[rows, columns] = category, number, number % 7  # blue means nothing
    root = root / 'ADEChallengeData2016'
    official_cases.picture(root / f'images/{name}.jpg', *(shape or semantic.shape), seed=len(name))
    official_cases.values(root / f'annotations/{name}.png', semantic.astype(np.uint8))
    official_cases.values(root / f'annotations_instance/{name}.png', colors)
    return semantic, colors


def random_maps(rng, shape=(30, 40)):
    """Blocks of any values, and instances anywhere, things or not below them."""
    semantic = np.kron(
        rng.integers(0, 151, (shape[0] // 10, shape[1] // 10)), np.ones((10, 10), int)
    )
    instances = []
    for number in rng.choice(np.arange(1, 256), 12, replace=False).tolist():
        top, left = rng.integers(0, shape[0] - 4), rng.integers(0, shape[1] - 4)
        rows, columns = (
            slice(top, top + rng.integers(1, 12)),
            slice(left, left + rng.integers(1, 12)),
        )
        instances.append((int(rng.integers(1, 101)), number, rows, columns))
    return semantic, instances


def fill(root):
    """Three training images, the last without instances, and two for validation, the last void."""
    rng = np.random.default_rng(0)
    for i in range(2):
        write(root, f'training/ADE_train_{i + 1:08}', *random_maps(rng))
    write(root, 'training/ADE_train_00000003', random_maps(rng)[0], [])
    write(root, 'validation/ADE_val_00000001', *random_maps(rng, (50, 20)))
    write(root, 'validation/ADE_val_00000002', np.zeros((9, 8), int), [])


class Ade20kPanopticTest(official_cases.Case):
    DATASET_CLASS = ade20k_panoptic.Ade20kPanoptic
    SPLITS = {'train': 3, 'validation': 2}
    fill = staticmethod(fill)


folder = official_cases.folder_fixture(fill)
open_split = partial(official_cases.open_split, ade20k_panoptic.Ade20kPanoptic)


def published(semantic, colors):
    """Ids [H, W] and segments by the published rule: areas from before instances are pasted."""
    ids, segments = np.zeros(semantic.shape, int), []

    def paste(mask, category):
        rows, columns = np.nonzero(mask)
        number = 1000 * len(segments) + 77
        ids[mask] = number
        segments.append(
            {
                'id': number,
                'category_id': category,
                'iscrowd': 0,
                'area': len(rows),
                'bbox': [
                    min(columns),
                    min(rows),
                    max(columns) - min(columns) + 1,
                    max(rows) - min(rows) + 1,
                ],
            }
        )

    for value in range(1, 151):
        if not CLASSES['isthing'][value - 1] and (semantic == value).any():
            paste(semantic == value, value - 1)
    for number in range(1, 256):
        mask = colors[..., 1] == number
        if mask.any():
            paste(mask, CATEGORY_VALUES[colors[..., 0][mask][0] - 1] - 1)
    return ids, segments


def recomputed(ids, segments):
    """The segments that have a pixel, with area and box of those they have."""
    kept = []
    for segment in segments:
        rows, columns = np.nonzero(ids == segment['id'])
        if len(rows):
            kept.append(
                segment
                | {
                    'area': len(rows),
                    'bbox': [
                        min(columns),
                        min(rows),
                        max(columns) - min(columns) + 1,
                        max(rows) - min(rows) + 1,
                    ],
                }
            )
    return kept


def maps(folder, name):
    root = folder / 'ADEChallengeData2016'
    return [
        np.array(Image.open(root / f'{kind}/{name}.png'))
        for kind in ('annotations', 'annotations_instance')
    ]


def assert_segments(source, index, semantic, colors):
    """An example has the segments of the published rule, ids 1..N, areas and boxes of the map."""
    ids, segments = source.segments(index)
    expected_ids, expected = published(semantic, colors)
    expected = recomputed(expected_ids, expected)
    assert [segment['id'] for segment in segments] == list(range(1, len(expected) + 1))
    label = source.load(index)['label']
    assert (ids[expected_ids == 0] == 0).all() and (label[expected_ids == 0] == IGNORE_LABEL).all()
    for segment, wanted in zip(segments, expected, strict=True):
        assert segment | {'id': wanted['id']} == wanted
        np.testing.assert_array_equal(ids == segment['id'], expected_ids == wanted['id'])
        assert (label[ids == segment['id']] == segment['category_id']).all()


def test_instance_categories_are_the_things_in_order():
    assert [i + 1 for i, thing in enumerate(CLASSES['isthing']) if thing] == CATEGORY_VALUES
    assert (
        CLASSES['ids'] == list(range(150))
        and len(CLASSES['names']) == 150
        and sum(CLASSES['isthing']) == 100
    )
    names = {value: CLASSES['names'][value - 1] for value in (WALL, SKY, FLOOR, BED, WINDOW)}
    assert list(names.values()) == ['wall', 'sky', 'floor', 'bed', 'window']


def test_stuff_first_things_over_it(folder):
    for split, long, count in (('train', 'training', 3), ('validation', 'validation', 2)):
        source = open_split(folder, split)
        assert len(source) == count and source.image_ids == source.ids and sum(source.things) == 100
        assert source.category_ids == tuple(range(150)) and source.label_values == tuple(
            range(1, 151)
        )
        for index, name in enumerate(source.ids):
            assert_segments(source, index, *maps(folder, f'{long}/{name}'))


def test_records_hold_what_the_folder_holds(folder, tmp_path):
    builder = official_cases.prepare(ade20k_panoptic.Ade20kPanoptic, folder, tmp_path / 'records')
    official_cases.assert_same(ade20k_panoptic.Ade20kPanoptic, folder, tmp_path / 'records')
    record = builder.as_data_source('validation')[1]
    assert (
        (record['labels'] == 65535).all()
        and not record['panoptic_ids'].any()
        and not len(record['segments']['id'])
    )


def example(tmp_path, semantic, instances):
    """Source of one image, and its two maps."""
    arrays = write(tmp_path, 'training/ADE_train_00000001', semantic, instances)
    return open_split(tmp_path), *arrays


def test_covered_stuff_things_without_instances_and_instances_on_void(tmp_path):
    semantic = np.full((20, 30), WALL)
    semantic[:4, :6], semantic[10:], semantic[:4, 20:] = SKY, BED, 0
    everywhere = slice(None)
    instances = [
        (2, 9, slice(0, 5), slice(0, 7)),  # a window over all of the sky
        (1, 255, slice(12, 20), everywhere),  # the lower part of the bed
        (100, 3, slice(0, 2), slice(25, 30)),  # a flag where nothing was labeled
    ]
    source, *arrays = example(tmp_path, semantic, instances)
    assert_segments(source, 0, *arrays)
    ids, segments = source.segments(0)
    assert [segment['category_id'] for segment in segments] == [0, 149, 8, 7] and len(
        published(*arrays)[1]
    ) == 5
    assert (ids[10:12] == 0).all() and (source.load(0)['label'][10:12] == IGNORE_LABEL).all()
    assert segments[0]['area'] == 10 * 30 - 5 * 7 - 4 * 10 and segments[1]['bbox'] == [25, 0, 5, 2]


@pytest.mark.parametrize(
    'semantic', [np.full((6, 7), 0), np.full((6, 7), BED), np.full((6, 7), FLOOR)]
)
def test_images_without_instances(tmp_path, semantic):
    source, *arrays = example(tmp_path, semantic, [])
    assert_segments(source, 0, *arrays)
    assert len(source.segments(0)[1]) == (semantic[0, 0] == FLOOR)


def test_more_segments_than_a_byte_holds(tmp_path):
    stuff = [value for value in range(1, 151) if value not in CATEGORY_VALUES]
    semantic = np.resize(stuff, (20, 50))
    instances = [(1 + number % 100, number, number // 50, number % 50) for number in range(1, 256)]
    source, *arrays = example(tmp_path, semantic, instances)
    assert_segments(source, 0, *arrays)
    assert source.segments(0)[0].max() == 50 + 255
    write(tmp_path, 'validation/ADE_val_00000001', semantic, [])
    official_cases.prepare(ade20k_panoptic.Ade20kPanoptic, tmp_path, tmp_path / 'records')
    official_cases.assert_same(
        ade20k_panoptic.Ade20kPanoptic, tmp_path, tmp_path / 'records', 'train'
    )


def pq(tmp_path, source, arrays, rule):
    """PQ of the truth, written like predictions, against the JSON file that `rule` makes."""
    categories = [
        {'id': i, 'name': name, 'isthing': thing, 'color': [i, 0, 0]}
        for i, (name, thing) in enumerate(zip(CLASSES['names'], CLASSES['isthing'], strict=True))
    ]
    annotations, truth = [], tmp_path / f'{rule.__name__}.json'
    truth.with_suffix('').mkdir()
    with coco.Writer(
        tmp_path / f'predictions_{rule.__name__}.json', coco.categories(source)
    ) as writer:
        for index, name in enumerate(source.ids):
            ids, segments = source.segments(index)
            writer.write(
                source.image_ids[index], name, ids, [segment['category_id'] for segment in segments]
            )
            ids, segments = rule(*arrays[index])
            Image.fromarray(coco.ids_to_rgb(ids)).save(truth.with_suffix('') / f'{name}.png')
            annotations.append(
                {'image_id': name, 'file_name': f'{name}.png', 'segments_info': segments}
            )
    content = {
        'images': [{'id': name} for name in source.ids],
        'annotations': annotations,
        'categories': categories,
    }
    truth.write_text(json.dumps(content, default=int))
    return panopticapi_scores(truth, writer.path)


def test_the_truth_has_a_pq_of_1_but_not_by_the_published_areas(tmp_path):
    rng = np.random.default_rng(3)
    arrays = [write(tmp_path, f'training/ADE_train_{i:08}', *random_maps(rng)) for i in range(6)]
    source = open_split(tmp_path)

    def updated(semantic, colors):
        ids, segments = published(semantic, colors)
        return ids, recomputed(ids, segments)

    ours, theirs = pq(tmp_path, source, arrays, updated), pq(tmp_path, source, arrays, published)
    assert ours['PQ'] == ours['SQ'] == ours['RQ'] == ours['PQ_stuff'] == 1
    assert theirs['PQ_stuff'] < theirs['PQ'] < 1 and theirs['PQ_things'] == 1


def test_what_the_published_areas_do_to_a_stuff(tmp_path):
    semantic = np.full((10, 10), WALL)
    semantic[:2] = SKY
    instances = [(2, 1, slice(0, 4), slice(None))]  # over all of the sky and a quarter of the wall
    source, *arrays = example(tmp_path, semantic, instances)
    scores = pq(tmp_path, source, [arrays], published)
    # The IoU of the wall is 60 / 80; nothing is left of the sky, which counts as missed; the window
    # is found.
    np.testing.assert_allclose([scores['PQ_stuff'], scores['PQ_things']], [(60 / 80 + 0) / 2, 1])


@pytest.mark.parametrize(
    ('instances', 'message'),
    [
        (
            [(1, 5, 0, 0), (2, 5, 3, 3)],
            r'the instance 5 \(green\) has more than one category \(red\): \[1, 2\]',
        ),
        ([(101, 5, 0, 0)], r'instances of the categories \[101\], but red must be in 1..100'),
        ([(0, 5, 0, 0)], r'instances of the categories \[0\]'),
    ],
)
def test_instances_that_cannot_be(tmp_path, instances, message):
    source, *_ = example(tmp_path, np.full((6, 7), WALL), instances)
    with pytest.raises(
        ValueError, match=rf'annotations_instance/training/ADE_train_00000001.png: {message}'
    ):
        source.load(0)


def test_files_that_do_not_go_together(folder):
    root = folder / 'ADEChallengeData2016'
    source = open_split(folder)
    official_cases.values(
        root / 'annotations/training/ADE_train_00000001.png', np.full((30, 40), 151, np.uint8)
    )
    official_cases.values(
        root / 'annotations_instance/training/ADE_train_00000002.png',
        np.zeros((31, 40, 3), np.uint8),
    )
    official_cases.values(
        root / 'annotations_instance/training/ADE_train_00000003.png', np.zeros((30, 40), np.uint8)
    )
    for index, kind, message in (
        (0, ValueError, r'label values \[151\]'),
        (1, CorruptExample, '31 x 40 .* has 30 x 40'),
        (2, ValueError, r'it has none \(mode L\)'),
    ):
        with pytest.raises(kind, match=f'ADE_train_{index + 1:08}.png: .*{message}'):
            source.load(index)


def test_nothing_is_written_for_a_wrong_folder(folder, tmp_path):
    root = folder / 'ADEChallengeData2016'

    def refused(path, match):
        official_cases.assert_refused(
            ade20k_panoptic.Ade20kPanoptic, path, tmp_path / 'records', FileNotFoundError, match
        )

    (tmp_path / 'other/annotations').mkdir(parents=True)
    refused(tmp_path / 'other', 'does not hold ade20k_panoptic: neither images/training nor')
    (root / 'annotations/validation/ADE_val_00000002.png').unlink()
    refused(folder, r'1 of 4 files are missing: \S*/annotations/validation/ADE_val_00000002')
    official_cases.values(
        root / 'annotations/validation/ADE_val_00000002.png', np.zeros((9, 8), np.uint8)
    )
    (root / 'annotations_instance').rename(root / 'instances')
    refused(folder, r'3 of 6 files are missing: \S*/annotations_instance/training/ADE_train')
