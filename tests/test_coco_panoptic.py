"""COCO panoptic: official files made here, TFDS's own records of them, and two real images."""

import json
import shutil
from functools import partial
from unittest import mock

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from rankseg_jax import data, evaluate, sharding, tasks
from rankseg_jax.data import IGNORE_LABEL, CorruptExample, coco
from rankseg_jax.data.published import coco_panoptic
from rankseg_jax.data.published.label_maps import read_classes
from rankseg_jax.data.published.source import PublishedPanopticSource
from rankseg_jax.metrics.semantic import SemanticMetric
from tests import official_cases, tiny

SAMPLE = official_cases.SAMPLES / 'coco_panoptic'
CLASSES = read_classes('coco_panoptic')
CATEGORIES = [
    {'supercategory': 'any', 'color': [1, 2, 3], 'isthing': isthing, 'id': i, 'name': name}
    for i, name, isthing in zip(CLASSES['ids'], CLASSES['names'], CLASSES['isthing'], strict=True)
]
# Segments of the images: id, category, crowd, and a rectangle (top, bottom, left, right), each
# pasted over those before.
BANDS = [
    (3937500, 1, 0, (0, 20, 0, 15)),
    (200, 200, 0, (0, 20, 15, 30)),
    (256, 90, 0, (2, 8, 3, 9)),
    (16777215, 1, 1, (10, 18, 5, 25)),
    (65536, 92, 0, (0, 3, 26, 30)),
    (1, 13, 0, (19, 20, 0, 1)),
]
VOID = (9, 10, 0, 30)
IMAGES = {
    'train2017': {9: BANDS, 25: BANDS[:2], 581921: []},
    'val2017': {139: BANDS[::-1], 285: BANDS[1:4]},
}
LABELS = {1: 0, 13: 11, 90: 79, 92: 80, 200: 132}


def paste(bands):
    """The ids [20, 30] and segments of an image as in the JSON file, counted pixel by pixel."""
    ids = np.zeros((20, 30), int)
    for i, _, _, (top, bottom, left, right) in bands:
        ids[top:bottom, left:right] = i
    top, bottom, left, right = VOID
    ids[top:bottom, left:right] = 0
    segments = []
    for i, category, crowd, _ in bands:
        pixels = [(y, x) for y in range(20) for x in range(30) if ids[y, x] == i]
        if pixels:
            rows, columns = zip(*pixels, strict=True)
            segments.append(
                {
                    'id': i,
                    'category_id': category,
                    'iscrowd': crowd,
                    'area': len(pixels),
                    'bbox': [
                        min(columns),
                        min(rows),
                        max(columns) - min(columns) + 1,
                        max(rows) - min(rows) + 1,
                    ],
                }
            )
    return ids, segments


def save_ids(path, ids):
    """A PNG whose red, green and blue are the digits of the ids to the base 256."""
    official_cases.values(
        path, np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)
    )


def fill(root):
    """Three training and two validation images, with crowds, void, and one without any segment."""
    root = root / 'coco'
    (root / 'annotations').mkdir(parents=True)
    for folder, images in IMAGES.items():
        annotations, listed = [], []
        for image_id, bands in reversed(images.items()):
            name = f'{image_id:012}'
            official_cases.picture(root / f'{folder}/{name}.jpg', 20, 30, seed=image_id)
            ids, segments = paste(bands)
            save_ids(root / f'panoptic_{folder}/{name}.png', ids)
            annotations.append(
                {'image_id': image_id, 'file_name': f'{name}.png', 'segments_info': segments}
            )
            listed.append({'id': image_id, 'file_name': f'{name}.jpg', 'height': 20, 'width': 30})
        write_json(root / f'annotations/panoptic_{folder}.json', annotations, listed)


def write_json(path, annotations, images, categories=CATEGORIES):
    path.write_text(
        json.dumps(
            {
                'info': {'year': 2018},
                'images': images,
                'annotations': annotations,
                'categories': categories,
            }
        )
    )


class CocoPanopticTest(official_cases.Case):
    DATASET_CLASS = coco_panoptic.CocoPanoptic
    SPLITS = {'train': 3, 'validation': 2}
    fill = staticmethod(fill)


folder = official_cases.folder_fixture(fill)
open_split = partial(official_cases.open_split, coco_panoptic.CocoPanoptic)


def assert_same_by_name(source, other):
    """Two sources hold the same examples, in whatever order."""
    assert sorted(source.ids) == sorted(other.ids) and sorted(source.image_ids) == sorted(
        other.image_ids
    )
    places = {name: index for index, name in enumerate(other.ids)}
    for index, name in enumerate(source.ids):
        for key, value in source.load(index).items():
            np.testing.assert_array_equal(value, other.load(places[name])[key])
        (ids, segments), (other_ids, other_segments) = (
            source.segments(index),
            other.segments(places[name]),
        )
        np.testing.assert_array_equal(ids, other_ids)
        assert segments == other_segments


def test_segments_and_labels(folder):
    for split, images in zip(('train', 'validation'), IMAGES.values(), strict=True):
        source = open_split(folder, split)
        assert source.image_ids == sorted(images) and source.ids == [
            f'{i:012}' for i in sorted(images)
        ]
        for index, image_id in enumerate(source.image_ids):
            expected, official_segments = paste(images[image_id])
            ids, segments = source.segments(index)
            np.testing.assert_array_equal(ids, expected)
            assert segments == [
                segment | {'category_id': LABELS[segment['category_id']]}
                for segment in official_segments
            ]
            label_of = {0: IGNORE_LABEL} | {
                segment['id']: LABELS[segment['category_id']] for segment in official_segments
            }
            np.testing.assert_array_equal(
                source.load(index)['label'],
                [[label_of[i] for i in row] for row in expected.tolist()],
            )
    assert (
        source.published == 5_000
        and source.category_ids == tuple(CLASSES['ids'])
        and sum(source.things) == 80
    )
    assert (
        source.class_names[79] == 'toothbrush'
        and source.class_names[80] == 'banner'
        and source.things[79:81] == (True, False)
    )
    ids, segments = source.segments(1)
    assert (
        [segment['iscrowd'] for segment in segments] == [0, 0, 1]
        and ids[15, 15] == 16777215
        and ids[9, 15] == 0
    )


def test_records_hold_what_the_folder_holds(folder, tmp_path):
    builder = official_cases.prepare(coco_panoptic.CocoPanoptic, folder, tmp_path / 'records')
    official_cases.assert_same(coco_panoptic.CocoPanoptic, folder, tmp_path / 'records')
    for split in ('train', 'validation'):
        source = open_split(tmp_path / 'records', split)
        assert (
            source.image_ids == open_split(folder, split).image_ids
            and source.things == open_split(folder, split).things
        )
        pixels, images = official_cases.class_pixels(source)
        assert (
            builder.info.metadata['pixels'][split] == pixels
            and builder.info.metadata['images'][split] == images
        )
    record = builder.as_data_source('validation')[0]
    red, green, blue = np.array(
        Image.open(folder / 'coco/panoptic_val2017/000000000139.png')
    ).transpose(2, 0, 1)
    np.testing.assert_array_equal(record['panoptic_ids'], np.stack([red, green, blue], -1))


def test_pngs_beside_the_json_files(folder):
    shutil.copytree(folder / 'coco', folder / 'beside')
    for name in IMAGES:
        (folder / f'beside/panoptic_{name}').rename(folder / f'beside/annotations/panoptic_{name}')
    assert_same_by_name(open_split(folder / 'beside'), open_split(folder))


def test_ids_in_the_picture_alone_or_in_the_json_file_alone_are_named(folder):
    path = folder / 'coco/annotations/panoptic_train2017.json'

    whole = path.read_text()
    for place, i in ((1, 200), (3, 16777215)):
        official_cases.change(
            path,
            lambda content, place=place: content['annotations'][-1]['segments_info'][place].update(
                id=77
            ),
        )
        with pytest.raises(
            ValueError,
            match=rf'000000000009.png: ids \[{i}\] are in the image but not among its segments in',
        ):
            open_split(folder).load(0)
        path.write_text(whole)
    official_cases.change(
        path,
        lambda content: content['annotations'][-1]['segments_info'].append(
            {'id': 78, 'category_id': 1, 'iscrowd': 0, 'area': 3, 'bbox': [0, 0, 1, 3]}
        ),
    )
    with pytest.raises(
        ValueError,
        match=r'000000000009.png: ids \[78\] are among its segments in the JSON file but not in',
    ):
        open_split(folder).segments(0)


def test_ids_that_two_segments_share_are_named(folder):
    official_cases.change(
        folder / 'coco/annotations/panoptic_train2017.json',
        lambda content: content['annotations'][-1]['segments_info'].append(
            content['annotations'][-1]['segments_info'][0]
        ),
    )
    with pytest.raises(
        ValueError, match='000000000009.png: two of its segments in the JSON file have the same id'
    ):
        open_split(folder).load(0)


def test_a_json_file_changed_after_a_kill_is_read_anew(folder, tmp_path):
    png = folder / 'coco/panoptic_val2017/000000000285.png'
    content = png.read_bytes()
    png.write_bytes(b'')
    with pytest.raises(CorruptExample):
        official_cases.prepare(coco_panoptic.CocoPanoptic, folder, tmp_path / 'records')
    assert list((tmp_path / 'records').rglob('*-train.*'))  # to go on with
    png.write_bytes(content)
    official_cases.change(
        folder / 'coco/annotations/panoptic_train2017.json',
        lambda content: content['annotations'][-1]['segments_info'][0].update(category_id=200),
    )
    official_cases.prepare(coco_panoptic.CocoPanoptic, folder, tmp_path / 'records')
    assert open_split(tmp_path / 'records').segments(0)[1][0]['category_id'] == LABELS[200]
    official_cases.assert_same(coco_panoptic.CocoPanoptic, folder, tmp_path / 'records', 'train')


def test_json_files_that_are_broken_or_of_another_kind_are_refused(folder, tmp_path):
    path = folder / 'coco/annotations/panoptic_train2017.json'
    whole = path.read_text()

    def refused(match):
        official_cases.assert_refused(
            coco_panoptic.CocoPanoptic,
            folder,
            tmp_path / 'records',
            ValueError,
            f'panoptic_train2017.json is broken or not a JSON file of COCO panoptic: {match}',
        )
        path.write_text(whole)

    for broken in ('', whole[:-100], '[1, 2]', '{}', whole.replace('annotations', 'notes')):
        path.write_text(broken)
        refused('')
    path.write_bytes(b'\xff\xfe' + whole.encode())
    refused('UnicodeDecodeError')
    official_cases.change(
        path, lambda content: content['annotations'][-1]['segments_info'][0].update(id=2**40)
    )
    refused('OverflowError')
    write_json(
        path,
        [
            {
                'id': 1,
                'image_id': 9,
                'category_id': 1,
                'iscrowd': 0,
                'area': 1.5,
                'bbox': [0.0, 1, 2, 3],
                'segmentation': [[0, 1, 2, 3, 4, 5]],
            }
        ],
        [],
        CATEGORIES[:80],
    )
    refused(
        r'ValueError: it lists 80 categories, not the 133 of COCO panoptic; they differ in \[\(92, '
    )
    official_cases.change(
        path,
        lambda content: content['annotations'].append(
            {
                'id': 1,
                'category_id': 1,
                'iscrowd': 0,
                'area': 1,
                'bbox': [0, 0, 1, 1],
                'segmentation': {},
            }
        ),
    )
    refused('TypeError')
    official_cases.change(path, lambda content: content['categories'][100].update(name='sky'))
    refused('ValueError: it lists 133 categories')
    official_cases.change(
        path,
        lambda content: content['annotations'][0]['segments_info'].extend(
            [{'id': 5, 'category_id': 12, 'iscrowd': 0, 'area': 1, 'bbox': [0, 0, 1, 1]}]
        ),
    )
    refused('KeyError: 12')
    official_cases.change(path, lambda content: content['annotations'][0].update(image_id=4))
    refused('ValueError: the image 4 has the file 000000581921')


def test_missing_files_are_named(folder, tmp_path):
    build, records = coco_panoptic.CocoPanoptic, tmp_path / 'records'
    (folder / 'coco/train2017/000000000025.jpg').unlink()
    (folder / 'coco/panoptic_train2017/000000000009.png').unlink()
    official_cases.assert_refused(
        build,
        folder,
        records,
        FileNotFoundError,
        '2 of 6 files are missing: '
        '.*train2017/000000000025.jpg, .*panoptic_train2017/000000000009.png',
    )
    (folder / 'coco/annotations/panoptic_train2017.json').unlink()
    official_cases.assert_refused(
        build,
        folder,
        records,
        FileNotFoundError,
        '1 of 1 files are missing: .*panoptic_train2017.json',
    )
    open_split(folder, 'validation')
    shutil.rmtree(folder / 'coco/annotations')
    official_cases.assert_refused(
        build,
        folder,
        records,
        FileNotFoundError,
        'does not hold coco_panoptic: neither annotations/panoptic',
    )


def prepare_by_tfds(folder, data_dir, **options):
    """TFDS's own builder, which gets paths of a folder for what it would download."""
    extracted = {
        f'{split}_{kind}': str(folder / 'coco')
        for split in ('train', 'validation')
        for kind in ('images', 'annotations')
    }
    builder = tfds.builder(coco_panoptic.TFDS_NAME, data_dir=data_dir, **options)
    manager = tfds.download.DownloadManager
    with (
        mock.patch.object(
            manager,
            'download_and_extract',
            lambda self, urls: {key: extracted[key] for key in urls},
        ),
        mock.patch.object(manager, 'extract', lambda self, path: str(folder / 'coco')),
    ):
        builder.download_and_prepare()
    return builder


def test_records_of_tfds(folder, tmp_path):
    prepare_by_tfds(folder, tmp_path / 'tfds', file_format='array_record')
    for split in ('train', 'validation'):
        source = open_split(tmp_path / 'tfds', split)
        assert type(source) is coco_panoptic.TfdsSource and len(source) == len(
            list(source.ids)
        ) == len(open_split(folder, split))
        assert_same_by_name(source, open_split(folder, split))
        assert (
            source.published == open_split(folder, split).published
            and source.things == open_split(folder, split).things
        )
        assert all(
            name == f'{image_id:012}'
            for name, image_id in zip(source.ids, source.image_ids, strict=True)
        )
    with pytest.raises(ValueError, match='config.data.num_classes = 80'):
        open_split(tmp_path / 'tfds', num_classes=80)
    # Our own records count first.
    official_cases.prepare(coco_panoptic.CocoPanoptic, folder, tmp_path / 'tfds')
    assert type(open_split(tmp_path / 'tfds')) is PublishedPanopticSource


def test_a_record_of_tfds_is_read_once(folder, tmp_path):
    prepare_by_tfds(folder, tmp_path / 'tfds', file_format='array_record')
    source = open_split(tmp_path / 'tfds')
    records = source._examples._elements
    with mock.patch.object(
        type(records), '__getitem__', autospec=True, side_effect=type(records).__getitem__
    ) as read:
        source.load(1)
    assert read.call_count == 1


def test_records_of_tfds_that_do_not_do(folder, tmp_path):
    prepare_by_tfds(folder, tmp_path / 'tfds', file_format='tfrecord')
    with pytest.raises(
        ValueError,
        match=r'records in the format tfrecord, which '
        r".*file_format='array_record'\).*convert_format ",
    ):
        open_split(tmp_path / 'tfds')
    for path in (folder / 'coco/annotations').iterdir():
        official_cases.change(path, lambda content: content['categories'].reverse())
    prepare_by_tfds(folder, tmp_path / 'others', file_format='array_record')
    with pytest.raises(ValueError, match='other categories than COCO panoptic: rug-merged, '):
        open_split(tmp_path / 'others')
    (tmp_path / 'unfinished/coco/2017_panoptic/incomplete.ABC_1.1.0').mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match='does not hold coco_panoptic'):
        open_split(tmp_path / 'unfinished')


def panopticapi_scores(truth, predictions):
    """panopticapi's pq_compute of two JSON files and their folders, with threads for processes."""
    evaluation = pytest.importorskip('panopticapi.evaluation')
    from multiprocessing import dummy

    with mock.patch.object(evaluation.multiprocessing, 'Pool', dummy.Pool):
        return evaluation.pq_compute(str(truth), str(predictions))


def write_predictions(source, path):
    """The segments of a source as predictions, with the data set's own ids."""
    with coco.Writer(path, coco.categories(source)) as writer:
        for index, (image_id, name) in enumerate(zip(source.image_ids, source.ids, strict=True)):
            ids, segments = source.segments(index)
            places = np.searchsorted([0, *sorted(segment['id'] for segment in segments)], ids)
            labels = [
                segment['category_id']
                for segment in sorted(segments, key=lambda segment: segment['id'])
            ]
            writer.write(image_id, name, places, labels)


@pytest.mark.parametrize(
    'split, name, classes', [('train', 'train2017', 5), ('validation', 'val2017', 3)]
)
def test_the_truth_as_prediction_scores_1_with_the_official_files(
    folder, tmp_path, split, name, classes
):
    write_predictions(open_split(folder, split), tmp_path / 'predictions.json')
    (folder / f'coco/panoptic_{name}').rename(folder / f'coco/annotations/panoptic_{name}')
    scores = panopticapi_scores(
        folder / f'coco/annotations/panoptic_{name}.json', tmp_path / 'predictions.json'
    )
    assert scores['All'] == {'pq': 1, 'sq': 1, 'rq': 1, 'n': classes}


def test_evaluation_writes_the_official_ids(folder, tmp_path):
    """With a model that finds what the truth has."""
    config = tiny.config(
        folder, task='panoptic', rankseg=None, data__name='coco_panoptic', data__num_classes=133
    )
    source, mesh = data.get_source(config.data, 'validation'), sharding.make_mesh(1)

    def eval_step(variables, batch):
        labels = np.asarray(batch['label'])
        places, classes = np.zeros(labels.shape, np.int32), np.full((len(labels), 10), -1, np.int32)
        for i, index in enumerate(np.asarray(batch['index']).tolist()):
            if index >= 0:
                ids, segments = source.segments(index)
                for place, segment in enumerate(segments):
                    places[i, :20, :30][ids == segment['id']] = place + 1
                    classes[i, place] = segment['category_id']
        maps = {'labels': labels, 'segment_ids': places, 'segment_labels': classes}
        pixels = SemanticMetric.from_batch(labels, labels, 133)
        yield {'pixels': pixels}, sharding.shard_batch(maps, mesh)

    task = tasks.from_source(config, source)
    with task.writer(tmp_path, source) as writer:
        scores = evaluate.evaluate(
            eval_step, None, source, config=config, task=task, mesh=mesh, writer=writer
        )
    assert scores['PQ'] == scores['PQ_stuff'] == scores['mIoU'] == 1
    predictions = json.loads((tmp_path / 'predictions.json').read_text())
    assert [annotation['image_id'] for annotation in predictions['annotations']] == [139, 285]
    assert [annotation['file_name'] for annotation in predictions['annotations']] == [
        '000000000139.png',
        '000000000285.png',
    ]
    assert {
        segment['category_id'] for segment in predictions['annotations'][1]['segments_info']
    } == {1, 90, 200}
    (folder / 'coco/panoptic_val2017').rename(folder / 'coco/annotations/panoptic_val2017')
    found = panopticapi_scores(
        folder / 'coco/annotations/panoptic_val2017.json', tmp_path / 'predictions.json'
    )
    assert found['All'] == {'pq': 1, 'sq': 1, 'rq': 1, 'n': 3}


@pytest.fixture
def real(tmp_path):
    return official_cases.real_panoptic(tmp_path)


def test_real_annotations(real, tmp_path):
    listed = json.loads((SAMPLE / 'panoptic_coco_categories.json').read_text())
    assert [(c['id'], c['name'], c['isthing']) for c in listed] == list(
        zip(CLASSES['ids'], CLASSES['names'], CLASSES['isthing'], strict=True)
    )
    label_of = {category['id']: label for label, category in enumerate(listed)}
    annotations = json.loads((SAMPLE / 'panoptic_examples.json').read_text())['annotations']
    source = open_split(real, 'validation')
    assert (
        source.image_ids
        == [annotation['image_id'] for annotation in annotations]
        == [142238, 439180]
    )
    crowds = 0
    for index, annotation in enumerate(annotations):
        ids, segments = source.segments(index)
        label = source.load(index)['label']
        assert annotation['segments_info'] == [
            segment | {'category_id': CLASSES['ids'][segment['category_id']]}
            for segment in segments
        ]
        for segment in annotation['segments_info']:
            inside = ids == segment['id']
            left, top, width, height = segment['bbox']
            assert (
                inside.sum() == segment['area']
                and inside[top : top + height, left : left + width].sum() == segment['area']
            )
            assert (label[inside] == label_of[segment['category_id']]).all()
            crowds += segment['iscrowd']
        # Red is the category there, 0 for void.
        two_channels = np.array(
            Image.open(SAMPLE / f'panoptic_examples_2ch_format/{annotation["file_name"]}')
        )
        np.testing.assert_array_equal(np.array([*CLASSES['ids'], 0])[label], two_channels[..., 0])
    write_predictions(source, tmp_path / 'predictions.json')
    truth = tmp_path / 'truth.json'
    truth.write_text((SAMPLE / 'panoptic_examples.json').read_text())
    truth.with_suffix('').symlink_to(SAMPLE / 'panoptic_examples')
    scores = panopticapi_scores(truth, tmp_path / 'predictions.json')
    assert (
        scores['All']['pq'] == scores['All']['sq'] == scores['All']['rq'] == 1
        and scores['All']['n'] > 5
    )


def test_detections_in_coco_format_are_refused(real):
    path = real / 'annotations/panoptic_val2017.json'
    path.unlink()
    path.symlink_to(SAMPLE / 'panoptic_coco_detection_format.json')
    with pytest.raises(ValueError, match='broken or not a JSON file of COCO panoptic: '):
        open_split(real, 'validation')
