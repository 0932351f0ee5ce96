"""Video consistency and VSPW's mIoU, against what the benchmark's scripts computed."""

import pickle
from functools import partial

import jax
import numpy as np
import pytest

from rankseg_jax.data import IGNORE_LABEL
from rankseg_jax.metrics.semantic import SemanticMetric
from rankseg_jax.metrics.video import ConsistencyMetric, ConsistencyStream
from tests import golden


def consistency(codes, labels, lengths=(8, 16)):
    """The metric of one video [T, H, W], and the scores of its windows by length."""
    stream, metric = ConsistencyStream(lengths), ConsistencyMetric.empty(lengths)
    scores = {n: [] for n in lengths}
    for frame in zip(codes, labels, strict=True):
        added = stream.add(*frame)
        metric = metric.merge(added)
        for n, score, windows in zip(lengths, added.scores, added.windows, strict=True):
            scores[n] += [score] * int(windows)
    return metric, scores


def videos(case):
    """(codes, labels) of each video of the golden file."""
    count = sum(key.startswith('in/vspw_gt_') for key in case)
    return [(case[f'in/vspw_gt_{v}'], case[f'in/vspw_pred_{v}']) for v in range(count)]


def test_consistency_golden():
    case, total = golden.load('video_metrics'), ConsistencyMetric.empty()
    for v, (codes, labels) in enumerate(videos(case)):
        metric, scores = consistency(codes, labels)
        for n in (8, 16):
            expected = case.get(f'out/metric_vc{n}_clips_{v}', np.zeros(0))
            assert (len(codes) > n) == (len(expected) > 0)
            np.testing.assert_allclose(scores[n], expected[~np.isnan(expected)], rtol=0, atol=1e-9)
        total = total.merge(metric)
    found = total.compute()
    assert found == pytest.approx(
        {f'VC{n}': case[f'out/metric_vc{n}'].item() for n in (8, 16)}, abs=1e-9
    )
    assert 0 < found['VC16'] < found['VC8'] < 1


def test_vspw_miou_golden():
    """Per video and then merged; values as the README of the data set has them."""
    case, metric = golden.load('video_metrics'), SemanticMetric.empty(124)
    of_video = jax.jit(partial(SemanticMetric.from_batch, num_classes=124))
    for codes, labels in videos(case):
        truth = codes.astype(np.int32) - 1
        truth[(codes == 0) | (codes == 255)] = IGNORE_LABEL
        metric = metric.merge(of_video(truth, labels.astype(np.int32)))
    scores = metric.compute()
    for name, theirs in (
        ('mIoU_labeled', 'miou'),
        ('fwIoU', 'fwiou'),
        ('aAcc', 'acc'),
        ('mAcc', 'acc_class'),
    ):
        assert scores[name] == pytest.approx(case[f'out/metric_{theirs}'].item(), abs=1e-9)


def brute_force(codes, labels, n):
    """Scores of the windows from the definition, pixel by pixel."""
    scores = []
    for start in range(len(codes) - n):
        window = range(start, start + n)
        constant = [
            pixel
            for pixel in np.ndindex(codes.shape[1:])
            if len({codes[t][pixel] for t in window}) == 1
        ]
        if constant:
            same = [len({labels[t][pixel] for t in window}) == 1 for pixel in constant]
            scores.append(sum(same) / len(same))
    return scores


@pytest.mark.parametrize('length', [1, 2, 3, 4, 9])
def test_random_videos_equal_the_definition(length):
    rng = np.random.default_rng(length)
    codes = rng.choice([0, 255, 3], (length, 4, 5), p=[0.1, 0.1, 0.8])
    labels = rng.choice([2, 7], (length, 4, 5), p=[0.2, 0.8])
    codes[2:3] = rng.integers(4, 6, codes[2:3].shape)  # windows over it have no constant pixel
    metric, scores = consistency(codes, labels, (1, 2, 3))
    for place, n in enumerate((1, 2, 3)):
        expected = brute_force(codes, labels, n)
        np.testing.assert_allclose(scores[n], expected, rtol=1e-12)
        assert metric.windows[place] == len(expected)
        mean = np.mean(expected) if expected else np.nan
        assert metric.compute()[f'VC{n}'] == pytest.approx(mean, nan_ok=True)


def test_others_and_void_are_different_values():
    codes = np.zeros((4, 1, 2), int)
    codes[:, 0, 1] = 0, 255, 0, 255
    labels = np.zeros((4, 1, 2), int)
    labels[2:, 0, 1] = 1
    assert consistency(codes, labels, (3,))[1][3] == [1]  # that pixel does not count
    assert consistency(0 * codes, labels, (3,))[1][3] == [0.5]


def test_metrics_merge_and_pickle():
    rng = np.random.default_rng(0)
    parts = [
        consistency(*rng.integers(0, 2, (2, length, 3, 4)), (2, 4))[0] for length in (7, 3, 1, 12)
    ]
    a, b, c, d = (pickle.loads(pickle.dumps(part)) for part in parts)
    whole = a.merge(b).merge(c).merge(d).compute()
    assert whole == pytest.approx(a.merge(b.merge(c.merge(d))).compute(), rel=1e-12)
    empty = ConsistencyMetric.empty((2, 4))
    assert whole == pytest.approx(empty.merge(a.merge(b)).merge(c.merge(d)).compute(), rel=1e-12)
    assert np.isnan(list(ConsistencyMetric.empty().compute().values())).all()
    with pytest.raises(ValueError, match=r'\(2, 4\) and of \(8, 16\) frames'):
        a.merge(ConsistencyMetric.empty())


def test_sizes_that_differ_are_refused():
    stream = ConsistencyStream()
    with pytest.raises(ValueError, match=r'truth is \(2, 3\), but the prediction is \(4, 6\)'):
        stream.add(np.zeros((2, 3)), np.zeros((4, 6)))
    stream.add(np.zeros((2, 3)), np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r'a frame of \(3, 2\) follows one of \(2, 3\)'):
        stream.add(np.zeros((3, 2)), np.zeros((3, 2)))
