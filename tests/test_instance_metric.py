"""AP of instances against pycocotools, and of tracks against the benchmark's own evaluation."""

import json
import pickle

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from rankseg_jax.data import rle
from rankseg_jax.metrics.instances import InstanceMetric, overlaps
from tests import golden

SIZE = (140, 150)
NAMES = ['a', 'b', 'c', 'd', 'absent']
SCORES = ('AP', 'AP50', 'AP75', 'APs', 'APm', 'APl', 'AR1', 'AR10', 'AR100')


def blob(rng, large=True):
    """A random rectangle with holes, bool [H, W]."""
    mask = np.zeros(SIZE, bool)
    top, left = rng.integers(0, 30, 2)
    height, width = rng.integers(3, 120, 2) if large else rng.integers(2, 35, 2)
    mask[top : top + height, left : left + width] = True
    return mask & (rng.random(SIZE) < 0.97)


def uncompressed(mask):
    """Run lengths as a list, as COCO's files have them for crowds."""
    values = np.concatenate([[0], mask.ravel(order='F'), [2]])
    counts = np.diff(np.concatenate([[0], np.flatnonzero(np.diff(values)), [mask.size]]))
    return {'size': list(mask.shape), 'counts': counts.tolist()}


def random_truth(rng):
    """Objects of one image: some are crowds, some have another area than their mask."""
    instances = []
    for i in range(rng.integers(0, 7)):
        mask, crowd = blob(rng, rng.random() < 0.6), int(rng.random() < 0.25)
        instances.append(
            {
                'id': i,
                'category_id': int(rng.integers(0, 4)),
                'iscrowd': crowd,
                'area': mask.sum() * float(rng.choice([1, 1, 0.9])),
                'segmentation': uncompressed(mask) if crowd else rle.encode(mask),
            }
        )
    return instances


def random_predictions(rng, instances):
    """Objects that were moved, parts of crowds, false ones and empty ones; scores often tie."""
    predictions = []

    def add(label, mask):
        score = round(float(rng.random()), 1)
        predictions.append({'category_id': label, 'score': score, 'segmentation': rle.encode(mask)})

    for instance in instances:
        compressed = rle.compress(instance['segmentation'])
        for _ in range(rng.integers(0, 4)):
            label = instance['category_id'] if rng.random() < 0.85 else int(rng.integers(0, 4))
            moved = np.roll(rle.decode(compressed), rng.integers(-6, 7, 2), (0, 1))
            if instance['iscrowd']:
                moved &= blob(rng)
            add(label, moved)
    for _ in range(rng.integers(0, 3)):
        add(int(rng.integers(0, 4)), blob(rng))
    if rng.random() < 0.2:
        add(0, np.zeros(SIZE, bool))
    return predictions


def make_images(seed=0, count=30):
    """(instances, predictions) of each image; one has more than 100 predictions of a category."""
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(count):
        instances = random_truth(rng)
        images.append((instances, random_predictions(rng, instances)))
    many = [blob(rng, large=False) for _ in range(110)]
    truth = [
        {'id': i, 'category_id': 2, 'iscrowd': 0, 'area': 9, 'segmentation': rle.encode(mask)}
        for i, mask in enumerate(many)
    ]
    scores = rng.random(110)
    found = [
        {'category_id': 2, 'score': float(score), 'segmentation': rle.encode(mask)}
        for score, mask in zip(scores, many, strict=True)
    ]
    return [*images, (truth, found), ([], []), (truth[:2], []), ([], found[:2])]


def pycocotools_scores(images):
    """The twelve statistics and AP by category of plain pycocotools."""
    nothing = {'size': list(SIZE), 'counts': [SIZE[0] * SIZE[1]]}
    annotations, results = [], []
    for image_id, (instances, predictions) in enumerate(images, 1):
        annotations += [instance | {'image_id': image_id} for instance in instances]
        results += [
            {
                'image_id': image_id,
                'category_id': prediction['category_id'],
                'score': prediction['score'],
                'segmentation': prediction['segmentation'] or rle.compress(nothing),
            }
            for prediction in predictions
        ]
    truth = COCO()
    truth.dataset = {
        'info': {},
        'images': [
            {'id': i, 'height': SIZE[0], 'width': SIZE[1]} for i in range(1, len(images) + 1)
        ],
        'annotations': [
            annotation | {'id': i, 'bbox': [0, 0, 1, 1]}
            for i, annotation in enumerate(annotations, 1)
        ],
        'categories': [{'id': label, 'name': name} for label, name in enumerate(NAMES)],
    }
    truth.createIndex()
    evaluation = COCOeval(truth, truth.loadRes(results), 'segm')
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    by_category = evaluation.eval['precision'][:, :, :, 0, 2].mean((0, 1))  # [K]; -1: no truth
    return np.where(evaluation.stats < 0, np.nan, evaluation.stats), by_category


def merged(parts):
    metric = InstanceMetric.empty()
    for part in parts:
        metric = metric.merge(part)
    return metric


def check_scores(metric, names, stats, by_category):
    """Compares with the twelve numbers in pycocotools' order, and with AP by category."""
    scores = metric.compute(names)
    assert [*scores] == [*SCORES, 'classes']
    found = [scores[name] for name in SCORES]
    np.testing.assert_allclose(found, stats[:9], rtol=0, atol=1e-9)
    _, recall = metric.curves(len(names), (100,))
    for area, expected in enumerate(stats[9:], 1):
        values = recall[:, :, area, 0]
        mean = values[values > -1].mean() if (values > -1).any() else np.nan
        assert mean == pytest.approx(expected, abs=1e-9, nan_ok=True)
    ap = [row['AP'] for row in scores['classes']]
    np.testing.assert_allclose(
        ap, np.where(by_category < 0, np.nan, by_category), rtol=0, atol=1e-9
    )
    return scores


def test_random_images_equal_pycocotools():
    images = make_images()
    stats, by_category = pycocotools_scores(images)
    metric = merged(InstanceMetric.from_image(*image) for image in images)
    scores = check_scores(metric, NAMES, stats, by_category)
    assert 0.1 < scores['AP'] < scores['AP50'] < 0.95 and min(stats[3:6]) > 0
    assert np.isnan(scores['classes'][4]['AP'])
    pixels = [0] * len(NAMES)
    for instances, _ in images:
        for instance in instances:
            mask = rle.decode(rle.compress(instance['segmentation']))
            pixels[instance['category_id']] += int(mask.sum())
    assert [row['pixels'] for row in scores['classes']] == pixels
    assert [row['name'] for row in scores['classes']] == NAMES


def golden_videos():
    """The golden file, and (tracks, predictions) of each of its videos."""
    case = golden.load('video_metrics')
    truth, results = (
        json.loads(case[f'in/ytvis_{name}_json'].item()) for name in ('ground_truth', 'results')
    )
    labels = {category['id']: label for label, category in enumerate(truth['categories'])}
    videos = [
        [
            [
                track | {'category_id': labels[track['category_id']]}
                for track in tracks
                if track['video_id'] == video['id']
            ]
            for tracks in (truth['annotations'], results)
        ]
        for video in truth['videos']
    ]
    return case, truth, results, videos


def test_tracks_golden():
    case, truth, _, videos = golden_videos()
    metric = merged(InstanceMetric.from_video(*video) for video in videos)
    names = [category['name'] for category in truth['categories']]
    stats = np.array(
        [case[f'out/metric_ytvis_{name}'].item() for name in (*SCORES, 'ARs', 'ARm', 'ARl')]
    )
    by_category = case['out/metric_ytvis_ap_by_category']
    scores = check_scores(metric, names, np.where(stats < 0, np.nan, stats), by_category)
    assert [*metric.compute(names, recall_at=(1, 10))] == [*SCORES[:8], 'classes']
    assert 0 < scores['AP'] < 1


def test_overlaps_of_tracks_golden():
    case, truth, results, _ = golden_videos()
    expected = case['out/metric_ytvis_iou']  # [results, annotations]
    pairs = ~np.isnan(expected)
    for d, g in np.argwhere(pairs):
        found = overlaps([results[d]], [truth['annotations'][g]])
        assert found[0, 0] == pytest.approx(expected[d, g], abs=1e-9)
    assert pairs.sum() > 20 and (expected[pairs] > 0).any()


def random_tracks(rng, count, length):
    """Tracks that some frames do not show, with masks bool [t, H, W] beside them."""
    tracks, masks = [], np.zeros((count, length, *SIZE), bool)
    for n in range(count):
        segmentations = []
        for t in range(length):
            if rng.random() < 0.7:
                masks[n, t] = blob(rng)
            segmentations.append(rle.encode(masks[n, t]))
        tracks.append({'category_id': 0, 'score': 0.5, 'segmentations': segmentations})
    return tracks, masks


def test_overlaps_are_those_of_all_frames_together():
    rng = np.random.default_rng(0)
    predictions, masks = random_tracks(rng, 4, 5)
    truth, others = random_tracks(rng, 3, 5)
    predictions[3]['segmentations'], masks[3] = [None] * 5, False
    truth[2]['segmentations'], others[2] = [None] * 5, False
    truth[1]['iscrowd'] = 1
    common = (masks[:, None] & others).sum((2, 3, 4))  # [D, G]
    union = (masks[:, None] | others).sum((2, 3, 4))
    expected = common / np.maximum(union, 1)
    np.testing.assert_array_equal(overlaps(predictions, truth), expected)
    expected[:3, 1] = common[:3, 1] / masks[:3].sum((1, 2, 3))
    np.testing.assert_array_equal(overlaps(predictions, truth, inside_crowds=True), expected)
    assert overlaps([], truth).shape == (0, 3) and overlaps(truth, []).shape == (3, 0)


def square(side, crowd=0):
    mask = np.zeros(SIZE, bool)
    mask[:side, :side] = True
    return {'category_id': 0, 'iscrowd': crowd, 'score': 0.5, 'segmentation': rle.encode(mask)}


def as_track(instance, frames=3):
    return instance | {'segmentations': [None, *[instance['segmentation']] * (frames - 1)]}


def test_crowds_of_images_and_of_videos():
    """Both absorb any number of predictions; a small part of it matches that of an image alone."""
    target, crowd, part = square(9), square(100, crowd=1), square(20)
    for metric, ap in (
        (InstanceMetric.from_image([target, crowd], [crowd, crowd, part, target]), 1),
        (
            InstanceMetric.from_video(
                *(
                    [as_track(x) for x in group]
                    for group in ([target, crowd], [crowd, crowd, target])
                )
            ),
            1,
        ),
        (
            InstanceMetric.from_video(
                *([as_track(x) for x in group] for group in ([target, crowd], [part, target]))
            ),
            0.5,
        ),
    ):
        assert metric.compute(['a'])['AP'] == pytest.approx(ap, abs=1e-9)


@pytest.mark.parametrize(
    'side, areas, score',
    [(127, None, 'APs'), (128, [None, 128**2 + 1, 128**2 + 1], 'APm'), (20, [0, 0, 3e5], 'APl')],
)
def test_areas_of_tracks_are_means_over_the_frames_that_show_them(side, areas, score):
    track = as_track(square(side)) | ({} if areas is None else {'areas': areas})
    scores = InstanceMetric.from_video([track], [track]).compute(['a'])
    assert [name for name in ('APs', 'APm', 'APl') if scores[name] > 0.99] == [score]


def test_nothing_to_score():
    target = square(9)
    for metric in (
        InstanceMetric.empty(),
        InstanceMetric.from_image([], []),
        InstanceMetric.from_video([], []),
        InstanceMetric.from_image([], [target]),
        InstanceMetric.from_image([square(9, crowd=1)], [target]),
    ):
        scores = metric.compute(['a', 'b'])
        assert np.isnan([scores[name] for name in SCORES]).all()
        assert np.isnan([row['AP'] for row in scores['classes']]).all()
    for metric in (
        InstanceMetric.from_image([target], []),
        InstanceMetric.from_video([as_track(target)], []),
    ):
        scores = metric.compute(['a', 'b'])
        assert scores['AP'] == scores['APs'] == scores['AR10'] == 0 and np.isnan(scores['APl'])
        assert np.isnan(scores['classes'][1]['AP'])


def test_any_grouping_is_the_whole(capsys):
    images = make_images(seed=1, count=9)

    def parts(chosen=slice(None)):
        # As hosts exchange them.
        return [
            pickle.loads(pickle.dumps(InstanceMetric.from_image(*image)))
            for image in images[chosen]
        ]

    whole = merged(parts()).compute(NAMES)
    halves = merged([merged(parts(slice(5))), merged(parts(slice(5, None)))])
    first, *others = parts()
    from_the_right = others.pop()
    while others:
        from_the_right = others.pop().merge(from_the_right)
    for metric in (halves, first.merge(from_the_right)):
        np.testing.assert_equal(metric.compute(NAMES), whole)
    assert capsys.readouterr().out == ''


def test_merging_does_not_copy():
    metric = InstanceMetric.from_image([square(9)], [])
    assert metric.merge(InstanceMetric.empty()) is metric and len(metric.matches) == 1


def test_what_cannot_be_compared():
    target, other = square(9), square(9)
    other['segmentation'] = rle.encode(np.ones((9, 9), bool))
    with pytest.raises(
        ValueError, match=r'sizes \(9, 9\) and \(140, 150\); resize the predictions'
    ):
        InstanceMetric.from_image([target], [other])
    with pytest.raises(ValueError, match='masks for 2 and 3 frames'):
        InstanceMetric.from_video([as_track(target)], [as_track(target, frames=2)])
    with pytest.raises(ValueError, match=r'the category 1 is not in 0\.\.0'):
        InstanceMetric.from_image([target | {'category_id': 1}], []).compute(['a'])
    with pytest.raises(ValueError, match=r'recall_at = \(1, 101\) must be numbers in 1\.\.100'):
        InstanceMetric.empty().compute(['a'], recall_at=(1, 101))
    # pycocotools would read beyond its memory.
    broken = target | {'segmentation': {'size': [4, 4], 'counts': [3, 900]}}
    with pytest.raises(ValueError, match='run lengths of a mask of 4 x 4'):
        InstanceMetric.from_image([], [broken])


def test_masks_of_pycocotools_are_taken():
    """Whose counts are bytes."""
    target = square(9)
    mask = np.asfortranarray(rle.decode(target['segmentation']), np.uint8)
    prediction = target | {'segmentation': coco_mask.encode(mask)}
    assert InstanceMetric.from_image([target], [prediction]).compute(['a'])['AP'] > 0.99
