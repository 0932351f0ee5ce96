"""Per-query losses, against HF transformers at the same points, and in degenerate cases."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rankseg_jax import losses, sharding
from rankseg_jax.ranking import RankTemperature, Selection, gather, to_ranks
from tests import golden as golden_files
from tests.helpers import apply
from tests.released import full_logits

POINTS = 100


@jax.jit
def query_losses(key, outputs, labels, segments, **kwargs):
    """The values of the parts, by name."""

    def sample(points):
        return losses.sample_segments(segments, labels.shape[1], points)

    parts = losses.query_losses(key, outputs, labels, sample, num_points=POINTS, **kwargs)
    return {name: part.value for name, part in parts.items()}


@jax.jit
def losses_and_slopes(key, outputs, labels, segments):
    """The parts, and the gradient of their sum with respect to the outputs."""

    def total(outputs):
        parts = query_losses(key, outputs, labels, segments)
        return sum(parts.values()), parts

    slopes, parts = jax.grad(total, has_aux=True)(outputs)
    return parts, slopes


def random_case(batch=2, num_queries=9, num_targets=5, num_classes=6, layers=2, seed=0):
    """Outputs of some layers, labels with padding, and a map of segments at four times the size."""
    rng = np.random.default_rng(seed)
    outputs = tuple(
        (
            rng.normal(size=(batch, num_queries, num_classes + 1)).astype(np.float32),
            3 * rng.normal(size=(batch, num_queries, 8, 10)).astype(np.float32),
        )
        for _ in range(layers)
    )
    labels = rng.integers(0, num_classes, (batch, num_targets)).astype(np.int32)
    labels[0, -2:] = -1
    segments = np.kron(rng.integers(-1, num_targets, (batch, 8, 10)), np.ones((4, 4), int))
    return outputs, labels, segments


def hf_losses(outputs, labels, segments, points):
    """The same from `Mask2FormerLoss`, which gets our points instead of drawing its own."""
    torch = pytest.importorskip('torch')
    modeling = pytest.importorskip('transformers.models.mask2former.modeling_mask2former')
    config = modeling.Mask2FormerConfig(
        num_labels=outputs[0][0].shape[-1] - 1, train_num_points=POINTS
    )
    criterion = modeling.Mask2FormerLoss(config, {})
    points = torch.from_numpy(np.array(points))
    parts = {
        POINTS: points[:POINTS],
        3 * POINTS: points[: 3 * POINTS],
        POINTS // 4: points[3 * POINTS :],
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, 'rand', lambda n, count, _, **__: parts[count][None].repeat(n, 1, 1))
        predictions = [
            {
                'class_queries_logits': torch.from_numpy(c).requires_grad_(),
                'masks_queries_logits': torch.from_numpy(m).requires_grad_(),
            }
            for c, m in outputs
        ]
        losses = criterion(
            **predictions[-1],
            auxiliary_predictions=predictions[:-1],
            mask_labels=[
                torch.from_numpy(s == np.flatnonzero(i >= 0)[:, None, None]).float()
                for s, i in zip(segments, labels, strict=True)
            ],
            class_labels=[torch.from_numpy(i[i >= 0]).long() for i in labels],
        )
    names = {
        'loss_class': ('loss_cross_entropy', 2),
        'loss_mask': ('loss_mask', 5),
        'loss_dice': ('loss_dice', 5),
    }
    parts = {
        ours: weight * sum(value for name, value in losses.items() if name.startswith(theirs))
        for ours, (theirs, weight) in names.items()
    }
    sum(parts.values()).backward()
    slopes = [
        (p['class_queries_logits'].grad.numpy(), p['masks_queries_logits'].grad.numpy())
        for p in predictions
    ]
    return {name: float(value.detach()) for name, value in parts.items()}, slopes


@pytest.mark.parametrize('case', [{}, {'num_targets': 12, 'layers': 3, 'seed': 2}])
def test_losses_and_gradients_equal_transformers(case):
    outputs, labels, segments = random_case(**case)
    key = jax.random.key(3)
    points = jax.random.uniform(key, (3 * POINTS + POINTS // 4, 2))
    expected, slopes = hf_losses(outputs, labels, segments, points)
    parts, ours = losses_and_slopes(key, outputs, labels, segments)
    assert parts.keys() == expected.keys()
    for name, value in parts.items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-4, err_msg=name)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), list(ours), slopes
    )


def test_golden_ranks_and_cross_entropy():
    g = golden_files.load('mask2former_rank_labels')
    num_classes, num_selected = int(g['hparam/num_classes']), int(g['hparam/num_selected'])
    selection = Selection(
        jnp.asarray(g['selected_with_no_object'][:, :num_selected]), jnp.zeros((3, num_selected))
    )
    norm = {
        'params': {'norm': {'scale': g['param/ml_norm.weight'], 'bias': g['param/ml_norm.bias']}}
    }
    temperature = RankTemperature(num_selected + 1, 'layer_norm')
    logits = jax.jit(partial(gather, keep_last=True))(g['query_logits'], selection)
    logits = apply(temperature, norm, logits)  # [B, Q, κ + 1]
    np.testing.assert_allclose(logits, g['rank_logits'], rtol=1e-4, atol=1e-5)
    with_no_object = selection.replace(labels=jnp.asarray(g['selected_with_no_object']))
    full = jax.jit(partial(full_logits, num_classes=num_classes + 1))(logits, with_no_object)
    np.testing.assert_allclose(full, g['full_logits'], rtol=1e-4, atol=1e-5)

    to_labels = jax.jit(partial(to_ranks, num_classes=num_classes, ignore_label=-1))
    labels = to_labels(g['target_labels'], selection)
    assert (np.asarray(labels)[g['target_labels'] >= 0] < 0).any()
    survivors = np.cumsum(np.asarray(labels) >= 0, -1) - 1
    queries = jnp.where(labels >= 0, (7 * survivors + 3) % logits.shape[1], -1)
    weight = float(g['hparam/no_object_weight'])
    loss = jax.jit(partial(losses.query_cross_entropy, no_object_weight=weight))(
        logits, labels, queries
    )
    np.testing.assert_allclose(loss, g['loss/loss_ce'], rtol=1e-4)


def test_a_category_that_is_not_selected_is_not_a_target():
    outputs, labels, segments = random_case()
    dropped, without, others = labels.copy(), labels.copy(), segments.copy()
    dropped[1, 1:3] = -1
    without[1], others[1] = (
        np.roll(dropped[1], 2),
        np.where(segments[1] < 0, -1, (segments[1] + 2) % 5),
    )
    others[1][(segments[1] == 1) | (segments[1] == 2)] = -1
    parts = query_losses(jax.random.key(0), outputs, dropped, segments)
    expected = query_losses(jax.random.key(0), outputs, without, others)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), parts, expected)


@pytest.mark.parametrize('case', ['no target', 'empty masks', 'bfloat16', 'huge', 'constant'])
def test_losses_and_gradients_stay_finite(case):
    outputs, labels, segments = random_case()
    if case == 'no target':
        labels = np.full_like(labels, -1)
    elif case == 'empty masks':
        segments = np.full_like(segments, -1)
    else:
        changes = {'bfloat16': jnp.bfloat16, 'huge': lambda x: 1e30 * x, 'constant': jnp.zeros_like}
        outputs = jax.tree.map(changes[case], outputs)
    parts, slopes = losses_and_slopes(jax.random.key(0), outputs, labels, segments)
    assert np.isfinite(jax.tree.leaves(parts)).all()
    assert all(np.isfinite(np.asarray(x, np.float32)).all() for x in jax.tree.leaves(slopes))
    if case == 'no target':
        assert parts['loss_mask'] == parts['loss_dice'] == 0 < parts['loss_class']
    if case == 'bfloat16':
        exact = query_losses(jax.random.key(0), random_case()[0], labels, segments)
        assert float(sum(parts.values())) == pytest.approx(float(sum(exact.values())), rel=0.05)


def test_masked_images_are_excluded():
    outputs, labels, segments = random_case(batch=3)
    expected = query_losses(
        jax.random.key(0), jax.tree.map(lambda x: x[:2], outputs), labels[:2], segments[:2]
    )
    parts = query_losses(
        jax.random.key(0), outputs, labels, segments, mask=np.array([True, True, False])
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), parts, expected)
    nothing = query_losses(jax.random.key(0), outputs, labels, segments, mask=np.zeros(3, bool))
    assert max(nothing.values()) == 0


def test_targets_are_counted_over_all_devices():
    """One image holds all targets, so the mean of each device's mean would be another number."""
    outputs, labels, segments = random_case(batch=8, layers=1)
    labels[:7] = -1
    mesh = sharding.make_mesh(8)
    arguments = sharding.shard_batch((outputs, labels, segments), mesh)
    parts, alone = (
        query_losses(jax.random.key(0), *arguments),
        query_losses(jax.random.key(0), outputs, labels, segments),
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), parts, alone)
    assert alone['loss_mask'] > 0


def test_masks_of_segments_are_never_built():
    def build(segments):
        return losses.sample_segments(segments, 50, jnp.ones((100, 2)) / 3)

    memory = (
        jax.jit(build)
        .lower(jax.ShapeDtypeStruct((1, 256, 256), jnp.int32))
        .compile()
        .memory_analysis()
    )
    # The bytes of the map: 50 masks of one byte per pixel would take 12 times as many.
    assert memory.temp_size_in_bytes < 4 * 256 * 256
    segments, points = (
        np.random.default_rng(0).integers(-1, 4, (2, 5, 7)),
        jax.random.uniform(jax.random.key(0), (30, 2)),
    )
    masks = segments[:, None] == np.arange(4)[:, None, None]
    np.testing.assert_allclose(
        losses.sample_segments(segments, 4, points),
        losses.sample(masks, points),
        rtol=1e-5,
        atol=1e-6,
    )


def test_samples_equal_grid_sample():
    torch = pytest.importorskip('torch')
    rng = np.random.default_rng(0)
    maps, points = (
        rng.normal(size=(2, 3, 5, 7)).astype(np.float32),
        rng.random((40, 2)).astype(np.float32),
    )
    points[:5] = [(0, 0), (1, 1), (0.5, 1), (0, 0.3), (1 / 14, 1 / 10)]
    grid = torch.from_numpy(2 * points - 1)[None, None].repeat(2, 1, 1, 1)
    expected = torch.nn.functional.grid_sample(torch.from_numpy(maps), grid, align_corners=False)[
        :, :, 0
    ]
    np.testing.assert_allclose(losses.sample(maps, points), expected, rtol=1e-4, atol=1e-6)


def test_least_certain_points_share_the_weight_of_ties():
    logits = np.random.default_rng(0).normal(size=(4, 200)).astype(np.float32)
    weights = np.asarray(losses.least_certain(logits, 30))
    np.testing.assert_array_equal(weights == 1, np.abs(logits).argsort(-1).argsort(-1) < 30)
    assert weights.sum() == 4 * 30
    weights = losses.least_certain(jnp.array([0.0, -2.0, 1.0, 2.0, -0.0, 2.0, 9.0]), 4)
    np.testing.assert_allclose(weights, [1, 1 / 3, 1, 1 / 3, 1, 1 / 3, 0], rtol=1e-6)


def test_no_object_may_weigh_nothing_where_nothing_is_a_target():
    logits = jnp.ones([2, 5, 4])
    none = jnp.full([2, 3], -1)
    assert losses.query_cross_entropy(logits, none, none, no_object_weight=0.0) == 0
