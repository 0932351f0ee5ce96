"""PQ, SQ and RQ against panopticapi, which also has to accept the files we write."""

import json
from multiprocessing.pool import ThreadPool

import numpy as np
import pytest

from rankseg_jax.data import coco
from rankseg_jax.metrics.panoptic import PanopticMetric

CATEGORIES = [
    {'id': 10 * i + 3, 'name': f'class {i}', 'isthing': int(i < 3), 'color': [i, 2 * i, 3 * i]}
    for i in range(6)
]
THINGS = [bool(category['isthing']) for category in CATEGORIES]


def random_truth(rng, shape=(24, 30)):
    """An id map of blocks, some void, and its segments.

    Some are crowds, some have another area than in the map, and one is missing from the map.
    """
    ids = np.kron(rng.integers(0, 9, (shape[0] // 6, shape[1] // 6)), np.ones((6, 6), int)) * 70_001
    segments = [
        {
            'id': i,
            'category_id': int(rng.integers(0, 5)),
            'iscrowd': int(rng.random() < 0.3),
            'area': int((ids == i).sum() * rng.choice([1, 1, 1, 0.8])),
        }
        for i in np.unique(ids).tolist()
        if i
    ]
    for segment in segments[:-1]:
        segment['area'] = max(segment['area'], 1)
    return ids, segments + [{'id': 5, 'category_id': 4, 'iscrowd': 0, 'area': 7}]


def random_prediction(rng, ids, segments):
    """The truth, moved a little, with some categories changed and some segments void.

    Returns ids 1..S and the category of each.
    """
    moved = np.roll(ids, rng.integers(-1, 2, 2), (0, 1))
    moved = np.where(rng.random(ids.shape) < 0.1, rng.choice(ids.ravel(), ids.shape), moved)
    if rng.random() < 0.5:
        moved = np.where(moved == 70_001, 2 * 70_001, moved)
    category = {segment['id']: segment['category_id'] for segment in segments}
    values, places = np.unique(moved, return_inverse=True)
    labels = [
        category.get(i, 0) if rng.random() < 0.8 else int(rng.integers(0, 6))
        for i in values.tolist()
    ]
    ids = places.reshape(ids.shape) + 1
    return np.where((moved == 0) & (rng.random() < 0.5), 0, ids), labels


def write_truth(path, images):
    annotations = []
    path.with_suffix('').mkdir()
    for image_id, (ids, segments) in images.items():
        infos = [
            {**segment, 'category_id': CATEGORIES[segment['category_id']]['id']}
            for segment in segments
        ]
        annotations.append(
            {'image_id': image_id, 'file_name': f'{image_id}.png', 'segments_info': infos}
        )
        coco.Image.fromarray(coco.ids_to_rgb(ids)).save(path.with_suffix('') / f'{image_id}.png')
    path.write_text(json.dumps({'annotations': annotations, 'categories': CATEGORIES}))


def panopticapi_scores(truth, predictions):
    """What panopticapi makes of two JSON files and their folders, in one process."""
    evaluation = pytest.importorskip('panopticapi.evaluation')
    contents = [json.loads(path.read_text()) for path in (truth, predictions)]
    found = {annotation['image_id']: annotation for annotation in contents[1]['annotations']}
    categories = {category['id']: category for category in contents[0]['categories']}
    pairs = [
        (annotation, found[annotation['image_id']]) for annotation in contents[0]['annotations']
    ]
    counts = evaluation.pq_compute_single_core(
        0, pairs, truth.with_suffix(''), predictions.with_suffix(''), categories
    )
    scores = {}
    for suffix, isthing in (('', None), ('_things', True), ('_stuff', False)):
        means, rows = counts.pq_average(categories, isthing)
        scores |= {name + suffix: means[name.lower()] for name in ('PQ', 'SQ', 'RQ')}
        if isthing is None:
            scores['classes'] = [rows[category['id']] for category in CATEGORIES]
    return scores


def test_after_an_error_no_file_describes_the_images(tmp_path):
    path = tmp_path / 'predictions.json'
    path.write_text('of other images')
    with pytest.raises(OSError, match='full'), coco.Writer(path, CATEGORIES) as writer:
        writer.write(0, 'a', np.ones((2, 2), int), [0])
        raise OSError('the disk is full')
    assert not path.exists()


def compare(folder, images, predictions):
    """Writes truth and predictions, and compares our scores with panopticapi's."""
    write_truth(folder / 'truth.json', images)
    metric = PanopticMetric.empty(6)
    with coco.Writer(folder / 'predictions.json', CATEGORIES) as writer:
        for image_id, (ids, segments) in images.items():
            predicted, labels = predictions[image_id]
            writer.write(image_id, f'image {image_id}', predicted, labels)
            listed = coco.segments_info(predicted, labels, range(6))
            metric = metric.merge(PanopticMetric.from_image(ids, segments, predicted, listed, 6))
    scores = metric.compute(THINGS)
    expected = panopticapi_scores(folder / 'truth.json', folder / 'predictions.json')
    for name, value in expected.items():
        if name != 'classes':
            np.testing.assert_allclose(scores[name], value, rtol=1e-12, err_msg=name)
    for ours, theirs in zip(scores['classes'], expected['classes'], strict=True):
        np.testing.assert_allclose(
            [np.nan_to_num(ours[name]) for name in ('PQ', 'SQ', 'RQ')],
            list(theirs.values()),
            rtol=1e-12,
        )
    return metric, scores


def test_random_images_equal_panopticapi(tmp_path):
    rng = np.random.default_rng(0)
    images = {i: random_truth(rng) for i in range(40)}
    metric, scores = compare(
        tmp_path, images, {i: random_prediction(rng, *truth) for i, truth in images.items()}
    )
    assert min(metric.matched.sum(), metric.wrong.sum(), metric.missed.sum()) > 10
    assert 0 < scores['PQ_things'] < scores['SQ_things'] < 1


def segment(i, label, area, crowd=0):
    return {'id': i, 'category_id': label, 'area': area, 'iscrowd': crowd}


def test_adversarial_images_equal_panopticapi(tmp_path):
    rows = np.arange(10)[:, None] * np.ones(10, int)  # ten rows of ten pixels
    full, nothing = np.ones((10, 10), int), np.zeros((10, 10), int)
    half = (rows < 5).astype(int)
    images, predictions = {}, {}

    def add(ids, segments, predicted, labels):
        images[len(images)], predictions[len(predictions)] = (ids, segments), (predicted, labels)

    add(half, [segment(1, 0, 50)], full, [0])  # the other half is void: a perfect match
    add(half, [segment(1, 1, 50)], (rows < 10).astype(int), [0])  # half void, not more: wrong
    add((rows < 4).astype(int), [segment(1, 1, 40)], full, [0])  # more than half void: no error
    add(half, [segment(1, 0, 50, 1)], half, [0])  # a crowd is no target, nor an error
    add(half, [segment(1, 0, 50, 1)], half, [1])  # but of another category it is
    ends = (rows < 3) + 2 * (rows >= 7)
    # Of two crowds of one category, the last counts.
    add(half + 1, [segment(1, 0, 50, 1), segment(2, 0, 50, 1)], ends, [0, 0])
    # Crowd and void together.
    add(ends, [segment(1, 3, 30, 1), segment(2, 2, 30)], full, [3])
    # Half of the union is not enough.
    add(half + 1, [segment(1, 0, 50), segment(2, 0, 50)], full, [0])
    add(half, [segment(1, 4, 49)], half, [4])  # area in the file below the map's
    add(half, [segment(1, 4, 98)], half, [4])  # and far above
    add(7 * half, [], full, [2])  # a segment that no file lists is not void
    add(nothing, [], full, [0])  # all is void
    add(half, [segment(1, 3, 50)], nothing, [])  # an image without any prediction
    add(nothing, [], nothing, [])
    add(half, [segment(1, 4, 50), segment(2, 4, 0)], half, [4])  # a segment that is covered
    metric, _ = compare(tmp_path, images, predictions)
    assert metric.matched.sum() and metric.wrong.sum() and metric.missed.sum()


def test_panopticapi_accepts_the_files(tmp_path, monkeypatch):
    """Its own entry point; an image without a prediction, which it refuses, is empty with us."""
    evaluation = pytest.importorskip('panopticapi.evaluation')
    # A process must not fork while JAX's threads run.
    monkeypatch.setattr(evaluation.multiprocessing, 'Pool', ThreadPool)
    rng = np.random.default_rng(1)
    images = {i: random_truth(rng) for i in range(3)}
    predictions = {i: random_prediction(rng, *truth) for i, truth in images.items()}
    _, scores = compare(tmp_path, images, predictions)
    whole = evaluation.pq_compute(str(tmp_path / 'truth.json'), str(tmp_path / 'predictions.json'))
    assert whole['All']['pq'] == pytest.approx(scores['PQ'])
    with coco.Writer(tmp_path / 'fewer.json', CATEGORIES) as writer:
        writer.write(0, 'a', *predictions[0])
    with pytest.raises(Exception, match='no prediction for the image with id: 1'):
        evaluation.pq_compute(str(tmp_path / 'truth.json'), str(tmp_path / 'fewer.json'))
    ids, segments = images[1]
    metric = PanopticMetric.from_image(ids, segments, 0 * ids, [], 6)
    assert metric.missed.sum() == sum(not s['iscrowd'] for s in segments) and not metric.wrong.any()


def test_files_hold_what_was_written(tmp_path):
    ids = np.zeros((4, 6), np.int32)
    ids[1:3, 2:5], ids[3, 0] = 1, 3
    with coco.Writer(tmp_path / 'a.json', CATEGORIES) as writer:
        writer.write(17, 'street 17', ids, [5, 4, 0])
    content = json.loads((tmp_path / 'a.json').read_text())
    assert content['images'] == [{'id': 17, 'file_name': 'street 17.png', 'height': 4, 'width': 6}]
    assert content['annotations'][0]['segments_info'] == [
        {'id': 1, 'category_id': 53, 'iscrowd': 0, 'area': 6, 'bbox': [2, 1, 3, 2]},
        {'id': 3, 'category_id': 3, 'iscrowd': 0, 'area': 1, 'bbox': [0, 3, 1, 1]},
    ]
    saved = np.asarray(coco.Image.open(tmp_path / 'a' / 'street 17.png'))
    np.testing.assert_array_equal(coco.rgb_to_ids(saved), ids)
    large = np.random.default_rng(0).integers(0, 2**24, (5, 5))
    np.testing.assert_array_equal(coco.rgb_to_ids(coco.ids_to_rgb(large)), large)


def test_errors_and_nothing_to_score():
    ids = np.ones((4, 4), int)
    segments, predicted = [segment(1, 0, 16)], [{'id': 1, 'category_id': 0}]
    for match, arguments in (
        (r'\(4, 4\).*\(2, 2\)', (ids, segments, ids[:2, :2], predicted)),
        (r'segments \[1, 2\]', (ids, segments, 2 * ids, predicted)),
        (r'segments \[3\]', (ids, segments, ids, [*predicted, {'id': 3, 'category_id': 0}])),
        (r'categories \[6\]', (ids, [segment(1, 6, 16)], ids, predicted)),
    ):
        with pytest.raises(ValueError, match=match):
            PanopticMetric.from_image(*arguments, 6)
    with pytest.raises(ValueError, match='3 and 4'):
        PanopticMetric.empty(3).merge(PanopticMetric.empty(4))
    with pytest.raises(ValueError, match='6 things and 2 class names for 6'):
        PanopticMetric.empty(6).compute(THINGS, ['a', 'b'])
    scores = PanopticMetric.from_image(ids, segments, ids, predicted, 6).compute(THINGS)
    assert scores['PQ'] == scores['PQ_things'] == 1 and np.isnan(scores['PQ_stuff'])
    assert [row['segments'] for row in scores['classes']] == [1, 0, 0, 0, 0, 0]
