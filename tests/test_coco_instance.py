"""COCO instances: official files made here, and two real images, as pycocotools reads them."""

import itertools
import json
import shutil
from functools import partial

import numpy as np
import pytest
from pycocotools.coco import COCO

from rankseg_jax.data import IGNORE_LABEL, CorruptExample, InstanceSource, rle
from rankseg_jax.data.published import coco_instance
from rankseg_jax.data.published.label_maps import read_classes
from rankseg_jax.metrics.instances import InstanceMetric
from tests import official_cases

SAMPLE = official_cases.SAMPLES / 'coco_panoptic'
CLASSES = read_classes('coco_instance')
CATEGORIES = [
    {'supercategory': 'any', 'id': i, 'name': name}
    for i, name in zip(CLASSES['ids'], CLASSES['names'], strict=True)
]
SIZE = (20, 30)
LABELS = {1: 0, 13: 11, 90: 79}


def crowd_runs():
    """A mask of two columns of pixels as run lengths, down the columns."""
    return {'size': list(SIZE), 'counts': [45, 5, 15, 5, 530]}


# Of each image: id, category, crowd, area, segmentation.
OBJECTS = {
    9: [
        (1768, 90, 0, 702.1057499999998, [[2.5, 3.0, 22.25, 3.0, 22.25, 17.5, 2.5, 17.5]]),
        (1773, 1, 0, 27.7, [[5.0, 5.0, 9.0, 5.0, 9.0, 9.0], [15, 10, 19, 10, 19, 14, 15, 14]]),
        (900100000009, 1, 1, 10, crowd_runs()),
    ],
    25: [(31, 13, 0, 9.5, [[1, 1, 5, 1, 5, 5, 1, 5]])],
    581921: [],
    139: [(1, 1, 0, 500.25, [[0, 0, 30, 0, 30, 20, 0, 20]]), (2, 1, 1, 10, crowd_runs())],
    285: [(3, 90, 0, 4, [[3, 3, 5, 3, 5, 5, 3, 5]])],
}
IMAGES = {'train2017': (9, 25, 581921), 'val2017': (139, 285)}


def fill(root):
    root = root / 'coco'
    (root / 'annotations').mkdir(parents=True)
    for name, image_ids in IMAGES.items():
        images, annotations = [], []
        for image_id in reversed(image_ids):
            file_name = f'{image_id:012}.jpg'
            official_cases.picture(root / name / file_name, *SIZE, seed=image_id)
            images.append(
                {'id': image_id, 'file_name': file_name, 'height': SIZE[0], 'width': SIZE[1]}
            )
            annotations += [
                {
                    'id': i,
                    'image_id': image_id,
                    'category_id': category,
                    'iscrowd': crowd,
                    'area': area,
                    'bbox': [0.5, 1, 2, 3],
                    'segmentation': segmentation,
                }
                for i, category, crowd, area, segmentation in OBJECTS[image_id]
            ]
        content = {
            'info': {'year': 2017},
            'images': images,
            'annotations': annotations,
            'categories': CATEGORIES,
        }
        (root / f'annotations/instances_{name}.json').write_text(json.dumps(content))


class CocoInstanceTest(official_cases.Case):
    DATASET_CLASS = coco_instance.CocoInstance
    SPLITS = {'train': 3, 'validation': 2}
    fill = staticmethod(fill)


folder = official_cases.folder_fixture(fill)
open_split = partial(official_cases.open_split, coco_instance.CocoInstance)


def check_with_pycocotools(source, path):
    """The objects of a split are those of the JSON file as pycocotools reads it."""
    coco = COCO(path)
    for index, image_id in enumerate(source.image_ids):
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=[image_id]))
        instances = source.instances(index)
        assert len(annotations) == len(instances)
        label = source.load(index)['label']
        expected = np.full(label.shape, IGNORE_LABEL)
        for annotation, instance in zip(annotations, instances, strict=True):
            assert [instance[key] for key in ('id', 'iscrowd', 'area')] == [
                annotation[key] for key in ('id', 'iscrowd', 'area')
            ]
            assert source.category_ids[instance['category_id']] == annotation['category_id']
            mask = coco.annToMask(annotation).astype(bool)
            np.testing.assert_array_equal(rle.decode(instance['segmentation']), mask)
        for instance in sorted(instances, key=lambda i: -rle.decode(i['segmentation']).sum()):
            expected[rle.decode(instance['segmentation'])] = instance['category_id']
        np.testing.assert_array_equal(label, expected)


def test_classes_are_the_things_of_coco_panoptic():
    panoptic = read_classes('coco_panoptic')
    for key in ('ids', 'names'):
        things = [x for x, thing in zip(panoptic[key], panoptic['isthing'], strict=True) if thing]
        assert CLASSES[key] == things
    assert CLASSES['ids'] == sorted(CLASSES['ids']) and len(CLASSES['ids']) == 80


def test_objects_and_labels(folder):
    for split, name in (('train', 'train2017'), ('validation', 'val2017')):
        source = open_split(folder, split)
        assert isinstance(source, InstanceSource)
        assert source.image_ids == sorted(IMAGES[name])
        check_with_pycocotools(source, folder / f'coco/annotations/instances_{name}.json')
    assert source.published == 5_000 and source.category_ids == tuple(CLASSES['ids'])
    source = open_split(folder)
    assert source.ids == ['000000000009', '000000000025', '000000581921']
    assert [instance['category_id'] for instance in source.instances(0)] == [79, 0, 0]
    label = source.load(0)['label']
    assert label[10, 5] == 79 and label[6, 8] == 0 and label[0, 0] == IGNORE_LABEL
    assert (label[5:10, 2] == 0).all()  # the crowd, in the file's order of pixels
    assert source.instances(2) == [] and (source.load(2)['label'] == IGNORE_LABEL).all()


def test_records_hold_what_the_folder_holds(folder, tmp_path):
    builder = official_cases.prepare(coco_instance.CocoInstance, folder, tmp_path / 'records')
    official_cases.assert_same(coco_instance.CocoInstance, folder, tmp_path / 'records')
    for split in ('train', 'validation'):
        source = open_split(tmp_path / 'records', split)
        assert source.image_ids == open_split(folder, split).image_ids
        pixels, images = official_cases.class_pixels(source)
        assert builder.info.metadata['pixels'][split] == pixels
        assert builder.info.metadata['images'][split] == images
    assert open_split(tmp_path / 'records').instances(0)[0]['area'] == 702.1057499999998
    assert open_split(tmp_path / 'records').instances(0)[2]['id'] == 900100000009


def test_the_truth_is_perfect(folder):
    source, metric = open_split(folder), InstanceMetric.empty()
    for index in range(len(source)):
        truth = source.instances(index)
        found = [instance | {'score': 0.5} for instance in truth]
        metric = metric.merge(InstanceMetric.from_image(truth, found))
    scores = metric.compute(source.class_names)
    assert scores['AP'] == pytest.approx(1) and np.isnan(scores['APl'])
    seen = [row['name'] for row in scores['classes'] if row['AP'] > 0]
    assert seen == ['person', 'stop sign', 'toothbrush']


def test_polygons_of_too_few_points_are_left_out_and_counted(folder, caplog):
    path = folder / 'coco/annotations/instances_train2017.json'

    def shorten(content):
        content['annotations'][-3]['segmentation'] = [[1, 2, 3, 4]]
        content['annotations'][-2]['segmentation'][0] = [5.0, 5.0, 9.0, 5.0, 9.0, 9.0, 1.0]

    before = open_split(folder).instances(0)
    official_cases.change(path, shorten)
    with caplog.at_level('WARNING', logger='absl'):
        instances = open_split(folder).instances(0)
    assert 'instances_train2017.json: 2 polygons that are not three points' in caplog.text
    assert not rle.decode(instances[0]['segmentation']).any() and instances[0]['area'] > 702
    mask = rle.decode(instances[1]['segmentation'])
    assert mask[12, 17] and not mask[6, 8] and instances[2] == before[2]


def test_json_files_that_are_broken_or_of_another_kind_are_refused(folder, tmp_path):
    path = folder / 'coco/annotations/instances_train2017.json'
    whole = path.read_text()

    def refused(match):
        official_cases.assert_refused(
            coco_instance.CocoInstance,
            folder,
            tmp_path / 'records',
            ValueError,
            f'instances_train2017.json is broken or not a JSON file of COCO instances: {match}',
        )
        path.write_text(whole)

    for broken in ('', whole[:-100], '[1, 2]', '{}', whole.replace('annotations', 'notes')):
        path.write_text(broken)
        refused('')
    path.write_text((SAMPLE / 'panoptic_coco_detection_format.json').read_text())
    refused(r'ValueError: it lists 133 categories, not the 80 of COCO; they differ in \[\(92, ')
    for change, match in (
        (lambda c: c['images'].clear(), 'ValueError: it lists no images'),
        (
            lambda c: c['annotations'][0].update(image_id=77),
            'ValueError: the annotation 31 has the image 77 and the category 13, one of which',
        ),
        (
            lambda c: c['annotations'][0].update(category_id=12),
            'ValueError: the annotation 31 has the image 25 and the category 12, one of which',
        ),
        (lambda c: c['annotations'][0].pop('area'), "KeyError: 'area'"),
        (lambda c: c['annotations'][0].update(segmentation={}), "KeyError: 'counts'"),
        (
            lambda c: c['annotations'][-1]['segmentation'].update(counts=[600, 1]),
            'ValueError: run lengths of a mask of 20 x 30',
        ),
        (
            lambda c: c['annotations'][0].update(segmentation=[[1, 1, 5, 1, 1e9, 5]]),
            'ValueError: polygons need points within 100,000 pixels',
        ),
        (
            lambda c: c['images'][0].update(file_name='000000000004.jpg'),
            'ValueError: the image 581921 has the file 000000000004.jpg',
        ),
    ):
        official_cases.change(path, change)
        refused(match)


def test_a_mask_of_another_size_is_named(folder):
    path = folder / 'coco/annotations/instances_train2017.json'
    official_cases.change(
        path, lambda content: content['annotations'][-1]['segmentation'].update(size=[30, 20])
    )
    with pytest.raises(
        ValueError,
        match=r'annotation 900100000009 has a mask of \[30, 20\] pixels .* 0+9 has \[20, 30',
    ):
        open_split(folder).instances(0)


def test_missing_and_unreadable_files_are_named(folder, tmp_path):
    build, records = coco_instance.CocoInstance, tmp_path / 'records'
    image = folder / 'coco/train2017/000000000025.jpg'
    image.write_bytes(b'')
    with pytest.raises(CorruptExample, match='000000000025.jpg: the file has 0 bytes'):
        open_split(folder).load(1)
    image.unlink()
    official_cases.assert_refused(
        build,
        folder,
        records,
        FileNotFoundError,
        '1 of 3 files are missing: .*train2017/000000000025.jpg',
    )
    (folder / 'coco/annotations/instances_train2017.json').unlink()
    official_cases.assert_refused(
        build,
        folder,
        records,
        FileNotFoundError,
        '1 of 1 files are missing: .*instances_train2017.json',
    )
    open_split(folder, 'validation')
    shutil.rmtree(folder / 'coco/annotations')
    official_cases.assert_refused(
        build,
        folder,
        records,
        FileNotFoundError,
        'does not hold coco_instance: neither annotations/instances',
    )


def test_real_annotations(tmp_path):
    """The things among the real annotations of two images, as a file of instances has them."""
    content = json.loads((SAMPLE / 'panoptic_coco_detection_format.json').read_text())
    content['categories'] = CATEGORIES
    content['annotations'] = [
        annotation | {'id': i}
        for i, annotation in zip(itertools.count(1), content['annotations'], strict=False)
        if annotation['category_id'] in CLASSES['ids']
    ]
    for image in content['images']:
        official_cases.blank_image(
            tmp_path / 'coco/val2017' / image['file_name'], image['height'], image['width']
        )
    path = tmp_path / 'coco/annotations/instances_val2017.json'
    path.parent.mkdir()
    path.write_text(json.dumps(content))
    source = open_split(tmp_path, 'validation')
    assert source.image_ids == [142238, 439180]
    check_with_pycocotools(source, path)
    assert sum(len(source.instances(index)) for index in range(2)) > 5
