"""Bipartite matching of queries to targets, against scipy.

Cases: padding, no targets, more targets than queries, ties, and costs that are not finite. The
kernel for GPUs runs in Pallas' interpreter.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from rankseg_jax import matching, matching_gpu

assign = jax.jit(matching.assign)
kernel = jax.jit(partial(matching_gpu.assign, interpret=True))
WEIGHTS = (2.0, 5.0, 5.0)
costs_of = jax.jit(matching.costs, static_argnums=4)


def random_inputs(batch, num_queries, num_targets, num_points=50, num_classes=7, seed=0):
    rng = np.random.default_rng(seed)
    return (
        rng.normal(size=(batch, num_queries, num_classes + 1)).astype(np.float32),
        rng.normal(size=(batch, num_queries, num_points)).astype(np.float32) * 3,
        rng.integers(0, num_classes, (batch, num_targets)).astype(np.int32),
        (rng.random((batch, num_targets, num_points)) < 0.3).astype(np.float32),
    )


def check_least_cost(queries, costs, valid):
    """Checks that `queries` [N] match the valid targets once each, at the least total cost."""
    rows, columns = linear_sum_assignment(costs[:, valid])
    matched = queries >= 0
    chosen = queries[matched]
    assert matched.sum() == len(rows) and not matched[~valid].any()
    assert len(set(chosen.tolist())) == len(chosen)
    np.testing.assert_allclose(
        costs[chosen, np.flatnonzero(matched)].sum(),
        costs[:, valid][rows, columns].sum(),
        rtol=1e-5,
        atol=1e-4,
    )


@pytest.mark.parametrize('solve', [assign, kernel], ids=['assign', 'kernel'])
@pytest.mark.parametrize(
    'num_queries, num_targets', [(12, 5), (8, 8), (5, 12), (1, 1), (6, 1), (1, 4)]
)
def test_least_cost_of_the_valid_targets(num_queries, num_targets, solve):
    rng = np.random.default_rng(0)
    costs = rng.normal(size=(2, 9, num_queries, num_targets)).astype(np.float32) * 10
    costs[0, 0] += 1000  # a constant offset changes no match
    costs[0, 1] -= 1000
    valid = rng.random((9, num_targets)) < 0.6
    valid[2], valid[3] = False, True
    queries = np.asarray(solve(costs, valid))
    assert queries.shape == (2, 9, num_targets)
    for layer, i in np.ndindex(2, 9):
        check_least_cost(queries[layer, i], costs[layer, i], valid[i])


@pytest.mark.parametrize('num_queries, num_targets', [(100, 20), (100, 100), (33, 70)])
def test_kernel_on_ties(num_queries, num_targets):
    rng = np.random.default_rng(0)
    costs = rng.normal(size=(8, num_queries, num_targets)) * 10
    costs[1:4] = rng.integers(0, 4, costs[1:4].shape)
    costs[4] = 7
    costs[5] = matching.WORST
    costs[6] = np.where(rng.random(costs[6].shape) < 0.5, matching.WORST, costs[6])
    costs[7] = np.add.outer(np.arange(num_queries), np.arange(num_targets))  # any match is optimal
    costs = costs.astype(np.float32)
    valid = rng.random((8, num_targets)) < 0.6
    valid[::2] = True
    queries = np.asarray(kernel(costs, valid))
    for i in range(8):
        check_least_cost(queries[i], costs[i], valid[i])


def test_kernel_ends_on_any_costs():
    costs = np.random.default_rng(0).normal(size=(6, 9, 7)).astype(np.float32)
    costs[0], costs[1], costs[2], costs[3, 4:] = np.nan, np.inf, -np.inf, np.nan
    costs[4, :, 2:] = -np.inf
    costs[5] = np.where(costs[5] < 0, np.nan, -np.inf)
    queries = np.asarray(kernel(costs, np.ones((6, 7), bool)))
    assert (queries < 9).all()


@pytest.mark.skipif(jax.__version_info__ >= (0, 11), reason='JAX lowers only where there is a GPU')
@pytest.mark.parametrize('num_queries, num_targets', [(100, 20), (5, 12), (900, 300)])
def test_kernel_lowers_for_cuda(num_queries, num_targets):
    costs = jnp.zeros((2, 3, num_queries, num_targets))
    trace = assign.trace(costs, jnp.ones((3, num_targets), bool))
    lowered = {
        platform: trace.lower(lowering_platforms=(platform,)).as_text()
        for platform in ('cpu', 'cuda')
    }
    assert 'triton' in lowered['cuda'] and 'stablehlo.while' not in lowered['cuda']
    assert 'triton' not in lowered['cpu']


def test_padding_changes_no_match():
    costs = np.random.default_rng(0).normal(size=(4, 10, 6)).astype(np.float32)
    alone = assign(costs, np.ones((4, 6), bool))
    padding = np.full((4, 10, 9), matching.WORST, np.float32)
    padding[:2] = -matching.WORST
    padded = assign(np.concatenate([padding, costs], -1), np.arange(15)[None].repeat(4, 0) >= 9)
    np.testing.assert_array_equal(padded[:, 9:], alone)
    assert (padded[:, :9] == -1).all()


def test_costs_are_those_of_each_pair_in_torch():
    torch = pytest.importorskip('torch')
    class_logits, mask_logits, labels, masks = random_inputs(2, 6, 3)
    costs = costs_of(class_logits, mask_logits, labels, masks, WEIGHTS)
    assert costs.shape == (2, 6, 3)
    for b, q, t in np.ndindex(2, 6, 3):
        logits, mask = torch.from_numpy(mask_logits[b, q]), torch.from_numpy(masks[b, t])
        probability = torch.from_numpy(class_logits[b, q]).softmax(0)[labels[b, t]]
        pixels = torch.nn.functional.binary_cross_entropy_with_logits(logits, mask)
        inside = logits.sigmoid()
        dice = 1 - (2 * (inside * mask).sum() + 1) / (inside.sum() + mask.sum() + 1)
        np.testing.assert_allclose(
            costs[b, q, t], -2 * probability + 5 * pixels + 5 * dice, rtol=1e-5
        )


def test_costs_are_finite_whatever_is_predicted():
    class_logits, mask_logits, labels, masks = random_inputs(1, 6, 3)
    mask_logits[0, 0], mask_logits[0, 1], mask_logits[0, 2] = np.nan, np.inf, -3e38
    class_logits[0, 3] = np.nan
    padded = labels - 1  # one label is padding
    costs = np.asarray(costs_of(class_logits, mask_logits, padded, masks, WEIGHTS))
    assert np.isfinite(costs).all() and (costs[0, [0, 1, 3]] == matching.WORST).all()
    assert (costs[0, 4:] < 100).all()
    queries = np.asarray(assign(costs, np.array([[True, False, True]])))
    assert set(queries[0, [0, 2]].tolist()) == {4, 5}
    everything = np.full((1, 6, 3), matching.WORST, np.float32)
    assert (np.sort(assign(everything, np.ones((1, 3), bool))) >= 0).all()


def test_bfloat16_costs():
    inputs = random_inputs(2, 6, 3)
    exact = costs_of(*inputs, WEIGHTS)
    half = costs_of(jnp.bfloat16(inputs[0]), jnp.bfloat16(inputs[1]), *inputs[2:], WEIGHTS)
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, exact, rtol=0.02)
