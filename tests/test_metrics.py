import functools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rankseg_jax.metrics.multilabel import MultilabelMetric
from rankseg_jax.metrics.semantic import SemanticMetric
from tests import golden

semantic = functools.partial(jax.jit, static_argnums=2)(SemanticMetric.from_batch)
multilabel = functools.partial(jax.jit, static_argnums=2)(MultilabelMetric.from_batch)


def random_maps(num_classes, shape=(3, 20, 30), seed=0):
    """Labels with ignored pixels and absent classes, predictions that are often right."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(-1, max(1, num_classes - 2), shape)
    predictions = np.where(rng.random(shape) < 0.5, labels, rng.integers(0, num_classes, shape))
    return labels.astype(np.int32), np.maximum(predictions, 0).astype(np.int32)


@pytest.mark.parametrize('num_classes', [2, 7, 300])
def test_semantic_scores_match_sklearn_confusion_matrix(num_classes):
    confusion_matrix = pytest.importorskip('sklearn.metrics').confusion_matrix
    labels, predictions = random_maps(num_classes)
    valid = labels >= 0
    confusion = confusion_matrix(
        labels[valid], predictions[valid], labels=range(num_classes)
    ).astype(float)
    right, labeled, predicted = np.diag(confusion), confusion.sum(1), confusion.sum(0)
    with np.errstate(invalid='ignore'):
        iou, accuracy = right / (labeled + predicted - right), right / labeled
    assert (labeled == 0).any()

    scores = semantic(labels, predictions, num_classes).compute()
    np.testing.assert_allclose(scores['mIoU'], np.nanmean(iou))
    np.testing.assert_allclose(scores['mAcc'], np.nanmean(accuracy))
    np.testing.assert_allclose(scores['aAcc'], right.sum() / confusion.sum())
    np.testing.assert_allclose([row['IoU'] for row in scores['classes']], iou)
    np.testing.assert_allclose([row['Acc'] for row in scores['classes']], accuracy)
    np.testing.assert_array_equal([row['pixels'] for row in scores['classes']], labeled)


@pytest.mark.parametrize('num_classes', [7, 300])
def test_miou_matches_torchmetrics(num_classes):
    torch, classification = (
        pytest.importorskip(name) for name in ('torch', 'torchmetrics.classification')
    )
    labels, predictions = random_maps(num_classes, seed=1)
    peer = classification.MulticlassJaccardIndex(num_classes, average='macro', ignore_index=-1)
    expected = peer(torch.tensor(predictions), torch.tensor(labels)).item()
    assert semantic(labels, predictions, num_classes).compute()['mIoU'] == pytest.approx(expected)


def test_absent_classes():
    labels = np.array([[[0, 0, 1, -1]]])
    predictions = np.array([[[0, 2, 1, 3]]])  # 2 is predicted only, 3 where ignored, 4 nowhere
    scores = semantic(labels, predictions, 5).compute(['a', 'b', 'c', 'd', 'e'])
    assert scores['mIoU'] == pytest.approx((0.5 + 1 + 0) / 3)
    assert scores['mIoU_labeled'] == pytest.approx((0.5 + 1) / 2)
    assert scores['fwIoU'] == pytest.approx((2 * 0.5 + 1 * 1) / 3)
    assert scores['mAcc'] == pytest.approx(0.75)
    assert scores['aAcc'] == pytest.approx(2 / 3)
    assert [row['name'] for row in scores['classes']] == ['a', 'b', 'c', 'd', 'e']
    assert scores['classes'][0] == {'name': 'a', 'IoU': 0.5, 'Acc': 0.5, 'pixels': 2}
    assert scores['classes'][2]['IoU'] == 0 and np.isnan(scores['classes'][2]['Acc'])
    assert np.isnan(scores['classes'][3]['IoU']) and np.isnan(scores['classes'][4]['IoU'])


def test_nothing_labeled_gives_nan():
    labels = np.full((1, 2, 2), -1)
    for metric in (semantic(labels, labels * 0, 3), SemanticMetric.empty(3)):
        scores = metric.compute()
        assert np.isnan([value for key, value in scores.items() if key != 'classes']).all()


@settings(max_examples=40, deadline=None)
@given(
    hnp.arrays(np.int32, (2, 3, 4), elements=st.integers(-2, 6)),
    hnp.arrays(np.int32, (2, 3, 4), elements=st.integers(-2, 6)),
)
def test_counts_match_loop(labels, predictions):
    expected = np.zeros((3, 5), int)
    for label, prediction in zip(labels.flat, predictions.flat, strict=True):
        if label not in range(5):
            continue
        expected[2, label] += 1
        if prediction in range(5):
            expected[1, prediction] += 1
            expected[0, label] += label == prediction
    metric = semantic(labels, predictions, 5)
    np.testing.assert_array_equal([metric.intersection, metric.predicted, metric.labeled], expected)


def test_merged_batches_are_the_whole():
    labels, predictions = random_maps(7, (7, 9, 8))
    metric = SemanticMetric.empty(7)
    for part in (slice(0, 3), slice(3, 4), slice(4, 7)):
        metric = metric.merge(semantic(labels[part], predictions[part], 7))
    whole = semantic(labels, predictions, 7)
    jax.tree.map(np.testing.assert_array_equal, metric, whole)
    np.testing.assert_equal(metric.compute(), whole.compute())


def test_counts_beyond_int32():
    batch = SemanticMetric(*(np.array([n, 0], np.int32) for n in (2**31 - 1, 2**31 - 1, 2**31 - 1)))
    metric = SemanticMetric.empty(2)
    for _ in range(3):
        metric = metric.merge(batch)
    assert metric.labeled.tolist() == [3 * (2**31 - 1), 0]
    assert metric.compute()['aAcc'] == 1
    assert batch.merge(batch).labeled[0] == 2**32 - 2


def test_20000_classes_need_no_tensor_larger_than_the_batch():
    shape = jax.ShapeDtypeStruct((2, 64, 64), np.int32)
    jaxpr = jax.make_jaxpr(lambda a, b: SemanticMetric.from_batch(a, b, 20_000))(shape, shape)
    sizes = [v.aval.size for equation in jaxpr.eqns for v in equation.outvars]
    assert max(sizes) <= 20_000

    labels, predictions = random_maps(20_000)
    metric = semantic(labels, predictions, 20_000)
    np.testing.assert_array_equal(
        metric.labeled, np.bincount(labels[labels >= 0], minlength=20_000)
    )


def test_semantic_errors():
    with pytest.raises(ValueError, match=r'\(1, 4, 4\).*\(1, 2, 2\)'):
        semantic(np.zeros((1, 4, 4), int), np.zeros((1, 2, 2), int), 3)
    with pytest.raises(ValueError, match='3 and 4'):
        SemanticMetric.empty(3).merge(SemanticMetric.empty(4))
    with pytest.raises(ValueError, match='2 class names for 3'):
        SemanticMetric.empty(3).compute(['a', 'b'])


def random_multilabel(batch, num_classes, seed=0):
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 500, (batch, num_classes)) * (rng.random((batch, num_classes)) < 0.2)
    counts[0] = 0
    logits = rng.permutation(batch * num_classes).reshape(batch, num_classes) / 7 - 20
    return logits.astype(np.float32), counts.astype(np.int32), np.ones(batch, bool)


def loop_scores(logits, counts, ks):
    """The definitions, image by image; stable sort: ties rank the lower class id first."""
    sums = {}
    for row, areas in zip(logits.tolist(), counts.tolist(), strict=True):
        order = sorted(range(len(row)), key=lambda c: -row[c])
        present = {c for c in order if areas[c] > 0}
        for k in ks:
            best = order[:k]
            sums.setdefault(f'precision@{k}', []).append(len(present & set(best)) / k)
            if present:
                sums.setdefault(f'category_recall@{k}', []).append(
                    len(present & set(best)) / len(present)
                )
                sums.setdefault(f'pixel_recall@{k}', []).append(
                    sum(areas[c] for c in best) / sum(areas)
                )
        if present:
            ranks = sorted(order.index(c) + 1 for c in present)
            sums.setdefault('ranking_ap', []).append(
                sum(i / rank for i, rank in enumerate(ranks, 1)) / len(ranks)
            )
    return {key: sum(values) / len(values) for key, values in sums.items()}


@pytest.mark.parametrize('num_classes', [12, 300])
def test_ranking_ap_matches_sklearn(num_classes):
    metrics = pytest.importorskip('sklearn.metrics')
    logits, counts, mask = random_multilabel(6, num_classes)
    labeled = (counts > 0).any(1)
    expected = metrics.label_ranking_average_precision_score(counts[labeled] > 0, logits[labeled])
    assert not labeled.all()
    ap = multilabel(logits, counts, (1,), mask).compute()['ranking_ap']
    assert ap == pytest.approx(expected, rel=1e-5)


def test_multilabel_golden():
    case = golden.load('losses_metrics')
    ks = tuple(sorted(int(key.split('/')[1]) for key in case if key.startswith('precision/')))
    logits = case['logits']
    scores = multilabel(
        logits, case['pixel_counts'].astype(np.int32), ks, np.ones(len(logits), bool)
    ).compute()
    assert ks
    for k in ks:
        for name in ('category_recall', 'pixel_recall', 'precision'):
            np.testing.assert_allclose(
                scores[f'{name}@{k}'], case[f'{name}/{k}'], rtol=1e-4, atol=1e-5
            )
    np.testing.assert_allclose(scores['ranking_ap'], case['ranking_ap'], rtol=1e-4, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(np.float32, (4, 6), elements=st.sampled_from([-3.5, -0.0, 0.0, 0.5, 1.25])),
    hnp.arrays(np.int32, (4, 6), elements=st.sampled_from([0, 0, 1, 5, 70_000_000])),
    hnp.arrays(bool, 4),
)
def test_multilabel_scores_match_loop(logits, counts, mask):
    ks = (1, 3, 6)
    scores = multilabel(logits, counts, ks, mask).compute()
    expected = loop_scores(logits[mask], counts[mask], ks)
    assert len(scores) == 10
    for key, value in scores.items():
        assert value == pytest.approx(expected.get(key, np.nan), abs=1e-5, nan_ok=True)


def test_multilabel_merged_batches_are_the_whole():
    logits, counts, mask = random_multilabel(7, 20)
    mask[3] = False
    metric = MultilabelMetric.empty((2, 5))
    for part in (slice(0, 3), slice(3, 4), slice(4, 7)):
        metric = metric.merge(multilabel(logits[part], counts[part], (2, 5), mask[part]))
    whole = multilabel(logits, counts, (2, 5), mask)
    assert metric.compute() == pytest.approx(whole.compute(), rel=1e-5)
    assert metric.compute() == pytest.approx(loop_scores(logits[mask], counts[mask], (2, 5)), 1e-5)
    assert metric.images.dtype == np.int64 and metric.precision.dtype == np.float64


def test_nothing_to_recall_gives_nan():
    logits, counts, mask = random_multilabel(3, 8)
    scores = multilabel(logits, counts * 0, (2,), mask).compute()
    assert scores.pop('precision@2') == 0
    assert len(scores) == 3 and np.isnan(list(scores.values())).all()
    scores = multilabel(logits, counts, (2,), np.zeros(3, bool)).compute()
    assert np.isnan(list(scores.values())).all()
    assert np.isnan(list(MultilabelMetric.empty((2,)).compute().values())).all()


def test_multilabel_errors():
    logits, counts, mask = random_multilabel(3, 8)
    for ks in ((0,), (2, 9)):
        with pytest.raises(ValueError, match='= 8'):
            multilabel(logits, counts, ks, mask)
    with pytest.raises(ValueError, match=r'\(3, 7\).*\(3, 8\)'):
        multilabel(logits, counts[:, 1:], (2,), mask)
    with pytest.raises(ValueError, match=r'\(2,\).*\(3,\)'):
        MultilabelMetric.empty((2,)).merge(MultilabelMetric.empty((3,)))
