"""COCO+LVIS: LVIS v1's JSON files over maps of COCO-Stuff, made here in the official formats."""

import copy
import json
import shutil
from functools import partial

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from pycocotools import coco as coco_api
from pycocotools import mask as coco_mask

from rankseg_jax.data import IGNORE_LABEL
from rankseg_jax.data.published import coco_lvis, preparation
from rankseg_jax.data.published.label_maps import read_classes
from tests import official_cases

LVIS_NAMES = tfds.core.tfds_path('datasets/lvis/classes.txt').read_text().split('\n')[:1203]
STUFF_NAMES = read_classes('coco_stuff')['names'][80:]  # of the categories 92..182
CATEGORIES = [
    {
        'id': i,
        'name': name,
        'synset': f'{name}.n.01',
        'synonyms': [name],
        'def': '…',
        'frequency': 'r',
        'image_count': 1,
        'instance_count': 1,
    }
    for i, name in enumerate(LVIS_NAMES, 1)
]
# folder and id of each image
IMAGES = {
    'train': (('train2017', 9), ('train2017', 391895), ('train2017', 25)),
    'val': (('val2017', 139), ('train2017', 285)),
}
ROWS, COLUMNS = 24, 40


def rectangle(top, bottom, left, right):
    """A polygon that covers these rows and columns."""
    return [left, top, right, top, right, bottom, left, bottom]


def runs(top, bottom, left, right, compressed):
    """The same as run lengths of either kind."""
    mask = np.zeros((ROWS, COLUMNS), np.uint8)
    mask[top:bottom, left:right] = 1
    if compressed:
        found = coco_mask.encode(np.asfortranarray(mask))
        return {'size': [ROWS, COLUMNS], 'counts': found['counts'].decode()}
    flat = [0, *mask.ravel('F').tolist(), 2]
    changes = [i for i in range(1, len(flat)) if flat[i] != flat[i - 1]]
    return {'size': [ROWS, COLUMNS], 'counts': np.diff([1, *changes]).tolist()}


def annotations(image_id):
    """Pairs of (category, segmentation); the first lies on top, others reach under it."""
    rng = np.random.default_rng(image_id)
    corners = rng.uniform(0, (COLUMNS, ROWS), (30, 4, 2)).round(2)  # as in LVIS, to a hundredth
    many = [(int(rng.integers(1, 1204)), [polygon.ravel().tolist()]) for polygon in corners[:4]]
    return [
        (1203, [rectangle(2, 6, 3, 9)]),
        (1, [rectangle(4, 8, 6, 12)]),
        (181, runs(10, 14, 0, 5, compressed=True)),
        (257, runs(12, 20, 2, 8, compressed=False)),
        (600, [corners[5].ravel().tolist(), rectangle(20, 22, 30, 39)]),
        *many,
    ]


def stuff_map(image_id):
    """Values of a PNG of COCO-Stuff: the last two rows hold each once.

    Above them are a few, 0 (person) and 255 (unlabeled).
    """
    values = (
        np.random.default_rng(image_id)
        .choice([0, 89, 91, 97, 92, 180, 109, 181, 255], (ROWS, COLUMNS))
        .astype(np.uint8)
    )
    values[-3:] = 255
    values[-3:].ravel()[:91] = np.arange(91, 182)
    return values


def lvis_json(split):
    """The content of a JSON file, annotations of the images mixed."""
    images = [
        {
            'id': image_id,
            'coco_url': f'http://images.cocodataset.org/{folder}/{image_id:012}.jpg',
            'height': ROWS,
            'width': COLUMNS,
            'flickr_url': '',
            'neg_category_ids': [1],
            'not_exhaustive_category_ids': [],
            'license': 1,
            'date_captured': '2013-11-14',
        }
        for folder, image_id in IMAGES[split]
    ]
    listed = [
        (place, image_id, *annotation)
        for _, image_id in IMAGES[split][:2]
        for place, annotation in enumerate(annotations(image_id))
    ]
    found = [
        {
            'id': i,
            'image_id': image_id,
            'category_id': category,
            'segmentation': segmentation,
            'area': 1.5,
            'bbox': [0, 0, 1, 1],
        }
        for i, (_, image_id, category, segmentation) in enumerate(
            sorted(listed, key=lambda row: row[0]), 1
        )
    ]
    return {
        'info': {},
        'annotations': found,
        'images': images,
        'licenses': [],
        'categories': CATEGORIES,
    }


def fill(root):
    """Three training images, one without annotations; two for validation, from both folders."""
    root = root / 'coco'
    for split, images in IMAGES.items():
        for folder, image_id in images:
            official_cases.picture(
                root / f'{folder}/{image_id:012}.jpg', ROWS, COLUMNS, seed=image_id
            )
            official_cases.values(
                root / f'stuffthingmaps/{folder}/{image_id:012}.png', stuff_map(image_id)
            )
        (root / f'lvis_v1_{split}.json').write_text(json.dumps(lvis_json(split)))


def expected_labels(root, split, image_id):
    """Pixel by pixel, with the classes found by their names and the masks by COCO's own API."""
    api = coco_api.COCO(root / f'lvis_v1_{split}.json')
    masks = [
        (annotation['category_id'] - 1, api.annToMask(annotation))
        for annotation in api.imgToAnns.get(image_id, [])
    ]
    alone = [name for name in STUFF_NAMES if name not in LVIS_NAMES]
    class_of = {
        91 + i: LVIS_NAMES.index(name) if name in LVIS_NAMES else 1203 + alone.index(name)
        for i, name in enumerate(STUFF_NAMES)
    }
    values = stuff_map(image_id).tolist()
    labels = np.zeros((ROWS, COLUMNS), int)
    for y in range(ROWS):
        for x in range(COLUMNS):
            things = [label for label, mask in masks if mask[y, x]]
            labels[y, x] = things[0] if things else class_of.get(values[y][x], IGNORE_LABEL)
    return labels


class CocoLvisTest(official_cases.Case):
    DATASET_CLASS = coco_lvis.CocoLvis
    SPLITS = {'train': 3, 'validation': 2}
    fill = staticmethod(fill)


folder = official_cases.folder_fixture(fill)
open_split = partial(official_cases.open_split, coco_lvis.CocoLvis)


def test_things_lie_over_stuff(folder):
    for split, name in (('train', 'train'), ('validation', 'val')):
        source = open_split(folder, split)
        assert source.image_ids == sorted(image_id for _, image_id in IMAGES[name])
        for index, image_id in enumerate(source.image_ids):
            found = source.load(index)
            np.testing.assert_array_equal(
                found['label'], expected_labels(folder / 'coco', name, image_id)
            )
            assert found['label'].max() > 1203 and found['image'].shape == (ROWS, COLUMNS, 3)
    assert source.ids == ['000000000139', '000000000285'] and source.published == 19_809
    assert len(source.class_names) == 1284 and source.class_names[:1203] == tuple(LVIS_NAMES)


def test_the_first_of_masks_that_overlap_wins(folder):
    label = open_split(folder).load(0)['label']
    assert (
        (label[2:6, 3:9] == 1202).all()
        and (label[6:8, 6:12] == 0).all()
        and (label[4:6, 9:12] == 0).all()
    )
    assert (label[10:14, :5] == 180).all() and (label[12:14, 5:8] == 256).all()


def test_stuff_is_mapped_once(folder):
    """In place, one after the other, cabinet would end as window-other, blanket as desk-stuff."""
    source = open_split(folder)
    label = source.load(1)['label']  # of an image without things
    values = stuff_map(25)
    for category, name in (
        (98, 'cabinet'),
        (93, 'blanket'),
        (181, 'window-other'),
        (110, 'desk-stuff'),
        (92, 'banner'),
        (182, 'wood'),
        (109, 'curtain'),
    ):
        assert {source.class_names[i] for i in label[values == category - 1]} == {name}
    assert (label[values <= 90] == IGNORE_LABEL).all() and (
        label[values == 255] == IGNORE_LABEL
    ).all()
    assert (label[(values > 90) & (values < 255)] >= 0).all()
    assert len(np.unique(label)) == 92


def test_values_that_coco_stuff_has_not_are_refused(folder):
    path = folder / 'coco/stuffthingmaps/train2017/000000000009.png'
    official_cases.values(path, np.full((ROWS, COLUMNS), 182, np.uint8))
    with pytest.raises(
        ValueError, match=r'000000000009.png: label values \[182\] are neither a class'
    ):
        open_split(folder).load(0)


def test_records_hold_what_the_folder_holds(folder, tmp_path):
    builder = official_cases.prepare(coco_lvis.CocoLvis, folder, tmp_path / 'records')
    official_cases.assert_same(coco_lvis.CocoLvis, folder, tmp_path / 'records')
    record = builder.as_data_source('train')[0]
    assert record['labels'].dtype == np.uint16 and {1202, 256, 65535} < set(
        np.unique(record['labels']).tolist()
    )
    # Twice the same, byte by byte.
    official_cases.prepare(coco_lvis.CocoLvis, folder, tmp_path / 'again')
    for path in (tmp_path / 'records').glob('coco_lvis/1.0.0/*record*'):
        assert path.read_bytes() == (tmp_path / 'again/coco_lvis/1.0.0' / path.name).read_bytes()


def test_pixels_of_each_class_are_counted_even_if_preparing_was_interrupted(
    folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(preparation, 'SHARD', 1)
    path = folder / 'coco/stuffthingmaps/train2017/000000391895.png'
    content = path.read_bytes()
    path.write_bytes(b'')
    with pytest.raises(ValueError, match='000000391895.png'):
        official_cases.prepare(coco_lvis.CocoLvis, folder, tmp_path / 'records')
    parts = tmp_path / 'records/coco_lvis/1.0.0.parts'
    assert len(list(parts.glob('*-train.array_record-?????-of-00003'))) >= 1
    path.write_bytes(content)
    metadata = official_cases.prepare(
        coco_lvis.CocoLvis, folder, tmp_path / 'records'
    ).info.metadata
    assert (
        metadata == json.loads((tmp_path / 'records/coco_lvis/1.0.0/metadata.json').read_text())
        and not parts.exists()
    )
    for split in ('train', 'validation'):
        pixels, images = official_cases.class_pixels(open_split(folder, split))
        assert metadata['pixels'][split] == pixels and metadata['images'][split] == images
    assert metadata['pixels']['train'][1202] == 2 * 4 * 6 and metadata['images']['train'][1202] >= 2


@pytest.mark.parametrize('place', ['annotations', 'lvis'])
def test_places_of_the_json_files(folder, place):
    shutil.copytree(folder / 'coco', folder / 'other')
    (folder / f'other/{place}').mkdir()
    for name in ('train', 'val'):
        (folder / f'other/lvis_v1_{name}.json').rename(
            folder / f'other/{place}/lvis_v1_{name}.json'
        )
    official_cases.assert_same(coco_lvis.CocoLvis, folder, folder / 'other', 'validation')


def write_masks(root, source, folder):
    """The masks of a source in the layout of the RankSeg paper."""
    for index, name in enumerate(source.ids):
        label = source.load(index)
        official_cases.values(
            root / f'lvis_mask/{folder}/{name}.png', (label['label'] + 1).astype(np.uint16)
        )
        (root / f'images/{folder}').mkdir(parents=True, exist_ok=True)
        (root / f'images/{folder}/{name}.jpg').write_bytes(source.example(index)['image'])


def test_masks_that_are_there_already(folder, tmp_path):
    root = tmp_path / 'paper/lvis'
    for split, name in (('train', 'train2017'), ('validation', 'val2017')):
        write_masks(root, open_split(folder, split), name)
        assert Image.open(next((root / f'lvis_mask/{name}').iterdir())).mode == 'I;16'
        for place in (tmp_path / 'paper', root):
            official_cases.assert_same(coco_lvis.CocoLvis, folder, place, split)
    official_cases.prepare(coco_lvis.CocoLvis, tmp_path / 'paper', tmp_path / 'records')
    official_cases.assert_same(coco_lvis.CocoLvis, folder, tmp_path / 'records', 'validation')
    # Where LVIS's own file is too, that counts; images/ is not even there.
    shutil.copytree(root / 'lvis_mask', folder / 'coco/lvis_mask')
    assert (
        open_split(folder).load(0)['label'] == expected_labels(folder / 'coco', 'train', 9)
    ).all()
    path = root / 'lvis_mask/val2017/000000000285.png'
    official_cases.values(path, np.full((ROWS, COLUMNS), 1285, np.uint16))
    with pytest.raises(
        ValueError,
        match=r'000000000285.png: label values \[1285\] are neither a class of this data set '
        r'\(1284 classes',
    ):
        open_split(root, 'validation').load(1)
    path.unlink()
    with pytest.raises(
        FileNotFoundError, match='1 of 4 files are missing: .*lvis_mask/val2017/000000000285.png'
    ):
        open_split(root, 'validation')


def test_json_files_that_are_broken_or_of_another_kind_are_refused(folder, tmp_path):
    path = folder / 'coco/lvis_v1_train.json'
    whole = path.read_text()

    def refused(match):
        official_cases.assert_refused(
            coco_lvis.CocoLvis,
            folder,
            tmp_path / 'records',
            ValueError,
            f'lvis_v1_train.json is broken or not a JSON file of LVIS v1: {match}',
        )
        path.write_text(whole)

    for broken in (
        '',
        whole[: len(whole) // 2],
        '[]',
        '{}',
        whole.replace('"images"', '"pictures"'),
    ):
        path.write_text(broken)
        refused('')

    def version_0_5(content):
        content['categories'] += [{'id': i, 'name': f'more_{i}'} for i in range(1204, 1231)]

    official_cases.change(path, version_0_5)
    refused(
        r'ValueError: it lists 1230 categories, version 1 has 1203 \(version 0.5: 1230\); '
        r'they differ in 1204 more_1204, '
    )
    official_cases.change(path, lambda content: content['categories'][5].update(name='mirror'))
    refused('ValueError: it lists 1203 categories, .*; they differ in 6 mirror')
    official_cases.change(path, lambda content: content['annotations'][0].update(category_id=1204))
    refused('ValueError: an annotation of the image 9 has the category 1204')
    official_cases.change(path, lambda content: content['annotations'][0].update(image_id=10))
    refused('KeyError: 10')
    for polygons in ([], [[0, 0, 3, 3]], [rectangle(0, 1, 2, 3), [1, 2, 3, 4, 5, 6, 7]]):
        official_cases.change(
            path,
            lambda content, polygons=polygons: content['annotations'][0].update(
                segmentation=polygons
            ),
        )
        refused('ValueError: polygons need three points or more')
    for number in (float('inf'), float('nan'), -1e30):
        polygons = [[1, 2, 3, number, 5, 6]]
        official_cases.change(
            path,
            lambda content, polygons=polygons: content['annotations'][0].update(
                segmentation=polygons
            ),
        )
        refused('ValueError: polygons need points within 100,000 pixels')
    negative = {'size': [-ROWS, -COLUMNS], 'counts': [ROWS * COLUMNS]}
    official_cases.change(
        path, lambda content: content['annotations'][0].update(segmentation=negative)
    )
    refused('OverflowError')
    official_cases.change(path, lambda content: content.update(images=[], annotations=[]))
    official_cases.assert_refused(
        coco_lvis.CocoLvis, folder, tmp_path / 'records', ValueError, 'train.json lists no images'
    )
    path.write_text(whole)
    for counts, match in (
        ([3, 4], 'run lengths of a mask of 24 x 40 must'),
        ('', 'run lengths of a mask of 24 x 40 must'),
        ('no run lengths', '.*run lengths of a mask'),
    ):
        official_cases.change(
            path,
            lambda content, counts=counts: content['annotations'][0].update(
                segmentation={'size': [ROWS, COLUMNS], 'counts': counts}
            ),
        )
        refused(f'ValueError: {match}')


def test_run_lengths_of_another_size_are_refused(folder):
    wrong = copy.deepcopy(runs(0, 1, 0, 1, compressed=False))
    wrong['size'] = wrong['size'][::-1]
    official_cases.change(
        folder / 'coco/lvis_v1_train.json',
        lambda content: content['annotations'][0].update(segmentation=wrong),
    )
    with pytest.raises(
        ValueError,
        match=r'09.jpg has 24 x 40 pixels \(rows x columns\), a mask of LVIS for it \(40, 24\)',
    ):
        open_split(folder).load(0)


def test_missing_files_are_named(folder, tmp_path):
    build, records = coco_lvis.CocoLvis, tmp_path / 'records'
    (folder / 'coco/train2017/000000000025.jpg').unlink()
    (folder / 'coco/stuffthingmaps/train2017/000000000009.png').unlink()
    official_cases.assert_refused(
        build,
        folder,
        records,
        FileNotFoundError,
        '2 of 6 files are missing: .*train2017/000000000025.jpg, .*train2017/000000000009.png',
    )
    shutil.rmtree(folder / 'coco/stuffthingmaps/val2017')
    with pytest.raises(
        FileNotFoundError,
        match="split 'validation': 1 of 2 files .*stuffthingmaps/val2017/000000000139.png",
    ):
        open_split(folder, 'validation')
    (folder / 'coco/lvis_v1_train.json').unlink()
    official_cases.assert_refused(
        build, folder, records, FileNotFoundError, "'train': 1 of 1 files .*coco/lvis_v1_train.json"
    )
    (folder / 'coco/lvis_v1_val.json').unlink()
    official_cases.assert_refused(
        build,
        folder,
        records,
        FileNotFoundError,
        'does not hold coco_lvis: neither lvis_v1_train.json nor',
    )
