"""Things of a panoptic source as instances: a map written by hand, and two real images."""

import numpy as np
import pytest

from rankseg_jax.data import IGNORE_LABEL, CorruptExample, PanopticSource, rle
from rankseg_jax.data.instances import ThingSource, ThingTracks
from rankseg_jax.data.published import coco_panoptic
from rankseg_jax.data.published.label_maps import read_classes
from rankseg_jax.metrics.instances import InstanceMetric
from tests import official_cases

IDS = np.array([[0, 7, 7, 9], [4, 4, 7, 9], [4, 4, 5, 5]])
SEGMENTS = [
    {'id': 4, 'category_id': 1, 'iscrowd': 0, 'area': 5},
    {'id': 5, 'category_id': 3, 'iscrowd': 1},
    {'id': 7, 'category_id': 0, 'iscrowd': 0},
    {'id': 9, 'category_id': 3},
    {'id': 2, 'category_id': 1, 'iscrowd': 0, 'area': 6},  # which no pixel shows
]


class Panoptic(PanopticSource):
    class_names = ('sky', 'dog', 'grass', 'cat')
    things = (False, True, False, True)
    ids = ('a',)
    image_ids = (17,)
    label_values = (1, 2, 3, 4)
    published = 5

    def load(self, index):
        table = {0: IGNORE_LABEL} | {s['id']: s['category_id'] for s in SEGMENTS}
        label = np.array([[table[i] for i in row] for row in IDS.tolist()], np.int32)
        return {'image': np.zeros((3, 4, 3), np.uint8), 'label': label}

    def segments(self, index):
        return IDS, SEGMENTS


def test_things_are_instances():
    source = ThingSource(Panoptic())
    assert source.class_names == ('dog', 'cat') and source.category_ids == (1, 3)
    assert source.label_values == source.prediction_values == (2, 4) and source.things == ()
    assert len(source) == 1 and source.image_ids == (17,) and source.published == 5
    example = source.load(0)
    np.testing.assert_array_equal(example['label'], [[-1, -1, -1, 1], [0, 0, -1, 1], [0, 0, 1, 1]])
    assert example['label'].dtype == np.int32 and example['image'].shape == (3, 4, 3)
    instances = source.instances(0)
    assert [(i['id'], i['category_id'], i['iscrowd'], i['area']) for i in instances] == [
        (4, 0, 0, 5),
        (5, 1, 1, 2),
        (9, 1, 0, 2),
        (2, 0, 0, 6),
    ]
    for instance in instances:
        mask = rle.decode(instance['segmentation'])
        np.testing.assert_array_equal(mask, IDS == instance['id'])
    assert not source.check().problems


def test_the_size_of_tracks_needs_no_frame():
    class Broken(Panoptic):
        videos, published_videos = [('v', range(1))], None

        def size(self, video):
            return 3, 4

        def load(self, index):
            raise CorruptExample('a')

    assert ThingTracks(Broken()).size(0) == (3, 4)


def test_without_things_there_are_no_instances():
    source = Panoptic()
    source.things = (False,) * 4
    with pytest.raises(ValueError, match='none of the categories of this data set is a thing'):
        ThingSource(source)


def test_real_annotations(tmp_path):
    """The things of COCO panoptic have the classes of COCO instances, and are perfect matches."""
    official_cases.real_panoptic(tmp_path)
    panoptic = official_cases.open_split(coco_panoptic.CocoPanoptic, tmp_path, 'validation')
    source, metric, crowds = ThingSource(panoptic), InstanceMetric.empty(), 0
    assert source.category_ids == tuple(read_classes('coco_instance')['ids'])
    assert list(source.class_names) == read_classes('coco_instance')['names']
    for index in range(len(source)):
        ids, segments = panoptic.segments(index)
        things = [segment for segment in segments if panoptic.things[segment['category_id']]]
        instances = source.instances(index)
        assert [instance['area'] for instance in instances] == [s['area'] for s in things]
        for instance, segment in zip(instances, things, strict=True):
            assert rle.decode(instance['segmentation']).sum() == segment['area']
            assert (ids[rle.decode(instance['segmentation'])] == segment['id']).all()
            crowds += instance['iscrowd']
        label, whole = source.load(index)['label'], panoptic.load(index)['label']
        np.testing.assert_array_equal(label, np.where(whole < 80, whole, IGNORE_LABEL))
        found = [instance | {'score': 0.5} for instance in instances]
        metric = metric.merge(InstanceMetric.from_image(instances, found))
    assert crowds and metric.compute(source.class_names)['AP'] == pytest.approx(1)
