"""Rank space against brute-force loops: any batch and κ, ties, fully ignored images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rankseg_jax import ranking
from rankseg_jax.ranking import RankTemperature, Selection
from tests import released

# Compiled as one, since there are few shapes and many examples.
select = jax.jit(ranking.select, static_argnums=1)
gather = jax.jit(ranking.gather, static_argnames=('axis', 'keep_last'))
to_ranks = jax.jit(ranking.to_ranks, static_argnames=('num_classes', 'ignore_label'))
from_ranks = jax.jit(ranking.from_ranks)
full_logits = jax.jit(released.full_logits, static_argnums=2)

settings.register_profile('quick', max_examples=40, deadline=None)
settings.load_profile('quick')

# Few different values, so that ties are common; both zeros are among them.
SCORES = st.sampled_from([-np.inf, -100.0, -1.5, -0.0, 0.0, 0.25, 7.0])


@st.composite
def selections(draw):
    """(scores [B, K], κ): zero to three images, κ = 1 to K, few shapes since each is compiled."""
    batch, num_classes, num_selected = draw(
        st.sampled_from([(0, 4, 2), (1, 1, 1), (1, 7, 7), (2, 7, 1), (3, 7, 4)])
    )
    return draw(hnp.arrays(np.float32, (batch, num_classes), elements=SCORES)), num_selected


def best_first(scores, candidates):
    return sorted(candidates, key=lambda c: (-scores[c], c))


@given(selections())
def test_select_against_a_sort(case):
    logits, num_selected = case
    selection = select(logits, num_selected)
    assert selection.labels.shape == selection.scores.shape == (len(logits), num_selected)
    assert selection.labels.dtype == jnp.int32
    for scores, labels, kept in zip(
        logits, selection.labels.tolist(), np.asarray(selection.scores), strict=True
    ):
        expected = best_first(scores, range(len(scores)))[:num_selected]
        assert labels == expected
        np.testing.assert_array_equal(kept, scores[expected])


@given(selections(), st.data())
def test_must_include_against_a_loop(case, data):
    logits, num_selected = case
    present = data.draw(hnp.arrays(bool, logits.shape))
    selection = select(logits, num_selected, must_include=present)
    for scores, mask, labels, kept in zip(
        logits, present, selection.labels.tolist(), np.asarray(selection.scores), strict=True
    ):
        chosen = best_first(scores, np.flatnonzero(mask))[:num_selected]
        absent = best_first(scores, np.flatnonzero(~mask))
        while len(chosen) < num_selected:
            chosen.append(absent.pop(0))
        expected = best_first(scores, chosen)
        assert labels == expected
        np.testing.assert_array_equal(kept, scores[expected])


def test_must_include_replaces_only_the_lowest_absent():
    logits = jnp.array([[5.0, 4.0, 3.0, 2.0, 1.0, 0.0]])
    present = jnp.array([[False, True, False, False, False, True]])
    assert select(logits, 4, must_include=present).labels.tolist() == [[0, 1, 2, 5]]


@given(selections(), st.data())
def test_to_ranks_and_back_against_a_loop(case, data):
    logits, num_selected = case
    num_classes = logits.shape[1]
    shape = (len(logits), *data.draw(st.sampled_from([(), (0,), (6,), (3, 2, 4)])))
    ignore_label = data.draw(
        st.sampled_from([-1, num_classes, max(num_classes - 1, num_selected), 255, -100])
    )
    labels = data.draw(
        hnp.arrays(
            np.int32,
            shape,
            elements=st.one_of(
                st.integers(0, num_classes - 1),
                st.just(ignore_label),
                st.integers(-3, num_classes + 3),
            ),
        )
    )
    selection = select(logits, num_selected)
    ranks = to_ranks(labels, selection, num_classes=num_classes, ignore_label=ignore_label)
    back = from_ranks(ranks, selection)
    assert ranks.shape == back.shape == shape and ranks.dtype == back.dtype == jnp.int32
    for image, chosen, rank, label in zip(
        labels, selection.labels.tolist(), np.asarray(ranks), np.asarray(back), strict=True
    ):
        for c, r, b in zip(image.ravel(), rank.ravel(), label.ravel(), strict=True):
            expected = chosen.index(c) if c in chosen and c != ignore_label else ignore_label
            assert r == expected
            assert b == (c if c in chosen and c != ignore_label else ignore_label)


@pytest.mark.parametrize('num_classes, dtype', [(300, np.uint16), (70_000, np.int32)])
def test_many_classes(num_classes, dtype):
    rng = np.random.default_rng(0)
    logits = rng.permutation(num_classes * 2).reshape(2, num_classes).astype(np.float32)
    selection = select(logits, num_classes)
    labels = rng.integers(0, num_classes, (2, 5, 7)).astype(dtype)
    ranks = np.asarray(to_ranks(labels, selection, num_classes=num_classes, ignore_label=-1))
    for image in range(2):
        order = np.argsort(-logits[image])
        np.testing.assert_array_equal(order[ranks[image]], labels[image])
    np.testing.assert_array_equal(from_ranks(ranks, selection), labels)


def test_all_ignored_images_and_unsigned_labels():
    selection = select(jnp.zeros((2, 300)), 5)
    labels = np.full((2, 4), 255, np.uint8)
    assert (to_ranks(labels, selection, num_classes=300, ignore_label=255) == 255).all()
    labels = np.full((2, 4), 3, np.uint8)
    assert (to_ranks(labels, selection, num_classes=300, ignore_label=255) == 3).all()


@pytest.mark.parametrize('num_selected', [0, -1, 6])
def test_kappa_out_of_range_is_named(num_selected):
    with pytest.raises(ValueError, match=rf'κ\) = {num_selected} .* K = 5'):
        select(jnp.zeros((1, 5)), num_selected)


def test_ambiguous_ignore_label_is_refused():
    with pytest.raises(ValueError, match='ignore_label = 3 .* κ = 4'):
        to_ranks(
            jnp.zeros((1, 2), int), select(jnp.zeros((1, 9)), 4), num_classes=9, ignore_label=3
        )


def test_mask_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r'\(1, 4\).*\(1, 5\)'):
        select(jnp.zeros((1, 5)), 2, must_include=jnp.zeros((1, 4), bool))


@given(selections(), st.integers(0, 3), st.booleans())
def test_gather_against_a_loop(case, num_axes, keep_last):
    logits, num_selected = case
    selection = select(logits, num_selected)
    batch, num_classes = logits.shape
    rng = np.random.default_rng(0)
    values = rng.normal(size=(batch, *(2, 3, 1)[:num_axes], num_classes + keep_last)).astype(
        np.float32
    )
    gathered = gather(values, selection, keep_last=keep_last)
    expected = np.zeros((*values.shape[:-1], num_selected + keep_last), np.float32)
    for b, labels in enumerate(selection.labels.tolist()):
        for rank, label in enumerate([*labels, *[num_classes] * keep_last]):
            expected[b, ..., rank] = values[b, ..., label]
    np.testing.assert_array_equal(gathered, expected)


@given(selections())
def test_gather_class_embeddings_against_a_loop(case):
    logits, num_selected = case
    selection = select(logits, num_selected)
    rng = np.random.default_rng(0)
    own, shared = rng.normal(size=(*logits.shape, 3)), rng.normal(size=(logits.shape[1], 3))
    from_own = np.asarray(gather(own, selection, axis=1))
    from_shared = np.asarray(gather(shared, selection, axis=-2))
    for b, labels in enumerate(selection.labels.tolist()):
        for rank, label in enumerate(labels):
            np.testing.assert_allclose(from_own[b, rank], own[b, label], rtol=1e-6)
            np.testing.assert_allclose(from_shared[b, rank], shared[label], rtol=1e-6)


@given(selections())
def test_full_logits_against_a_loop(case):
    logits, num_selected = case
    selection = select(logits, num_selected)
    ranks = np.random.default_rng(0).normal(size=(len(logits), 2, num_selected)).astype(np.float32)
    full = np.asarray(full_logits(ranks, selection, logits.shape[1]))
    for b, labels in enumerate(selection.labels.tolist()):
        for c in range(logits.shape[1]):
            expected = ranks[b, :, labels.index(c)] if c in labels else -100.0
            np.testing.assert_array_equal(full[b, :, c], np.broadcast_to(expected, 2))


def test_gradients_reach_only_the_gathered_values():
    logits, embedding = jnp.array([[0.1, 0.9, 0.5]]), jnp.ones((3, 2))

    def loss(logits, embedding):
        selection = select(logits, 2)
        return (
            gather(logits, selection).sum()
            + 3 * gather(embedding, selection, 0).sum()
            + 7 * selection.scores.sum()
        )

    logits_gradient, embedding_gradient = jax.grad(loss, (0, 1))(logits, embedding)
    np.testing.assert_array_equal(logits_gradient, [[0, 1, 1]])
    np.testing.assert_array_equal(embedding_gradient, [[0, 0], [3, 3], [3, 3]])


def test_temperature_divides_by_a_positive_tau():
    logits = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    module = RankTemperature(4)
    params = module.init(jax.random.key(0), logits)
    np.testing.assert_array_equal(module.apply(params, logits), logits)
    tau = np.array([0.5, 1.0, 2.0, 10.0], np.float32)
    scaled = module.apply({'params': {'log_tau': np.log(tau)}}, logits)
    np.testing.assert_allclose(scaled, logits / tau, rtol=1e-6)
    shared = RankTemperature(1).apply({'params': {'log_tau': np.log(tau[:1])}}, logits)
    np.testing.assert_allclose(shared, logits / 0.5, rtol=1e-6)
    slope = jax.grad(lambda p: module.apply(p, logits).sum())(params)['params']['log_tau']
    np.testing.assert_allclose(slope, -logits.sum((0, 1)), rtol=1e-5)


def test_layer_norm_against_torch():
    torch = pytest.importorskip('torch')
    logits, scale, bias = (
        np.random.default_rng(i).normal(size=s).astype(np.float32)
        for i, s in enumerate([(2, 3, 5), (5,), (5,)])
    )
    ours = RankTemperature(5, 'layer_norm').apply(
        {'params': {'norm': {'scale': scale, 'bias': bias}}}, logits
    )
    theirs = torch.nn.functional.layer_norm(
        *map(torch.from_numpy, (logits,)), (5,), *map(torch.from_numpy, (scale, bias))
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_none_and_unknown_kinds():
    logits = jnp.ones((1, 2))
    assert RankTemperature(2, 'none').apply({}, logits) is logits
    with pytest.raises(ValueError, match="'softmax'.*temperature.*layer_norm.*none"):
        RankTemperature(2, 'softmax').init(jax.random.key(0), logits)


def test_compiles_once_with_static_kappa():
    traces = []

    @jax.jit
    def step(logits, labels):
        traces.append(None)
        selection = select(logits, 3)
        return from_ranks(to_ranks(labels, selection, num_classes=8, ignore_label=-1), selection)

    for seed in range(3):
        logits = jax.random.normal(jax.random.key(seed), (2, 8))
        labels = select(logits, 3).labels  # selected categories, which survive the round trip
        np.testing.assert_array_equal(step(logits, labels), labels)
    assert len(traces) == 1


@pytest.mark.parametrize(
    'build',
    [
        lambda labels, selection: to_ranks(labels, selection, num_classes=1009, ignore_label=-1),
        from_ranks,
    ],
)
def test_no_comparison_tensor(build):
    """Nothing as large as pixels × κ or pixels × K is built."""
    selection = Selection(jnp.zeros((2, 31), jnp.int32), jnp.zeros((2, 31)))
    labels = jnp.zeros((2, 64, 64), jnp.int32)
    compiled = jax.jit(build).lower(labels, selection).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 10 * labels.size * 4


def test_frames_of_a_clip_share_a_selection():
    """Frames are one more axis of the labels; a clip has one selection."""
    selection = select(jnp.array([[0.0, 3.0, 2.0]]), 2)
    clip = jnp.array([[[1, 2], [0, 1]]])  # [B, t, pixels]
    assert to_ranks(clip, selection, num_classes=3, ignore_label=-1).tolist() == [[[0, 1], [-1, 0]]]
