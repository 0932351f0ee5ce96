import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy
from ml_collections import FrozenConfigDict

from configs import common
from rankseg_jax.decoders.pixel_classifier import ClassEmbedding, PixelClassifier
from rankseg_jax.ranking import Selection
from rankseg_jax.selector import Choice, RankScale, choose
from tests.helpers import random_variables

LOGITS = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)
SCORES = np.array([[4, 2, 1, 0, -3], [0, -1, -20, -50, -90]], np.float32)
HEAD = 'log_sum_exp'
SELECTION = Selection(jnp.arange(5)[None].repeat(2, 0), jnp.asarray(SCORES))


def options(**changes):
    config = common.get_config().rankseg
    config.update({'num_selected': 5, 'train_selected': 0, 'temperature': 'none'})
    config.update({'score_prior': False} | changes)
    return FrozenConfigDict(config)


def scaled(tau=1.0, params=None, selection=SELECTION, **changes):
    module = RankScale(options(**changes), 5, tau)
    return module.apply({'params': params or {}}, LOGITS, selection)


def test_score_prior_adds_the_log_of_the_probability():
    expected = LOGITS + scipy.special.log_expit(SCORES)[:, None, None]
    np.testing.assert_allclose(scaled(score_prior=True), expected, rtol=1e-5)
    np.testing.assert_array_equal(scaled(), LOGITS)


def test_temperature_divides_by_rank_and_may_be_shared():
    tau = np.array([0.5, 1, 2, 3, 4], np.float32)
    np.testing.assert_allclose(
        scaled(temperature='temperature', params={'temperature': {'log_tau': np.log(tau)}}),
        LOGITS / tau,
        rtol=1e-5,
    )
    np.testing.assert_allclose(
        scaled(temperature='shared', params={'temperature': {'log_tau': np.log([0.5])}}),
        LOGITS / 0.5,
        rtol=1e-5,
    )
    variables = RankScale(options(temperature='temperature'), 5, 0.07).init(
        jax.random.key(0), LOGITS, SELECTION
    )
    np.testing.assert_allclose(
        np.exp(variables['params']['temperature']['log_tau']), np.full(5, 0.07), rtol=1e-6
    )


def test_oracle_shuts_absent_categories_out():
    selection = SELECTION.replace(scores=jnp.array([[1.0, 1, 0, 0, 0], [1, 0, 0, 0, 0]]))
    out = scaled(oracle=True, score_prior=True, selection=selection)
    np.testing.assert_array_equal(out[0, ..., :2], LOGITS[0, ..., :2])
    assert (out[0, ..., 2:] == -100).all() and (out[1, ..., 1:] == -100).all()


@pytest.mark.parametrize(
    'train, missed, expected',
    [(True, 'force', [3, 0]), (True, 'ignore', [0, 1]), (False, 'force', [0, 1])],
)
def test_missed_categories_are_forced_in_training_alone(train, missed, expected):
    presence_logits = jnp.array([[3.0, 2, 1, 0]])
    choice = Choice(presence=jnp.array([[True, False, False, True]]))
    chosen = options(missed=missed, num_selected=2)
    _, selection = choose(chosen, presence_logits, choice, train=train)
    assert sorted(np.asarray(selection.labels[0])) == sorted(expected)


def test_no_gradient_of_the_pixel_loss_reaches_the_multilabel_head():
    model = PixelClassifier(
        6, options(num_selected=3, score_prior=True, head='log_sum_exp', stride=8)
    )
    pixels = jnp.asarray(np.random.default_rng(0).normal(size=(1, 4, 4, 7)), jnp.float32)
    variables = random_variables(model, pixels, {8: pixels})
    grads = jax.jit(
        jax.grad(
            lambda p: jnp.square(
                model.apply({'params': p}, pixels, {8: pixels}, train=True).logits
            ).sum()
        )
    )(variables['params'])
    assert np.abs(grads['classes']['embedding']).max() > 0
    assert all(np.abs(leaf).max() == 0 for leaf in jax.tree.leaves(grads['head']))


def test_logits_in_half_precision_are_full_products():
    rng = np.random.default_rng(0)
    pixels, embedding = (
        jnp.asarray(rng.normal(size=shape), jnp.bfloat16) for shape in [(2, 3, 4, 40), (6, 40)]
    )
    bias = rng.normal(size=6).astype(np.float32)
    model = ClassEmbedding(6, 40)
    variables = {'params': {'embedding': embedding.astype(jnp.float32), 'bias': bias}}
    expected = pixels.astype(np.float32) @ embedding.astype(np.float32).T + bias
    logits = model.apply(variables, pixels, None)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)
    chosen = model.apply(
        variables, pixels, Selection(jnp.array([[4, 1], [0, 5]]), jnp.zeros((2, 2)))
    )
    for i, labels in enumerate([(4, 1), (0, 5)]):
        np.testing.assert_allclose(chosen[i], expected[i][..., labels], rtol=1e-5, atol=1e-5)


def test_a_stride_that_is_not_there_is_named():
    with pytest.raises(ValueError, match='config.rankseg.stride = 32 must be one of .8, 16.'):
        PixelClassifier(6, options(stride=32)).init(
            jax.random.key(0),
            jnp.zeros((1, 2, 2, 3)),
            {8: jnp.zeros((1, 2, 2, 3)), 16: None},
            train=False,
        )


def test_training_keeps_more_categories_and_prediction_the_first_of_them():
    """κ = 2 of the 4 that are trained: the same logits, with the scale and bias of their ranks."""
    chosen = options(num_selected=2, train_selected=4, temperature='affine', stride=8, head=HEAD)
    model = PixelClassifier(6, chosen)
    pixels = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 4, 7)), jnp.float32)
    variables = random_variables(model, pixels, {8: pixels})
    trained, predicted = (
        model.apply(variables, pixels, {8: pixels}, train=train, choice=Choice(presence=presence))
        for train, presence in ((True, jnp.zeros((2, 6), bool)), (False, None))
    )
    rank = variables['params']['rank']['temperature']
    assert rank['log_tau'].shape == rank['bias'].shape == (4,)
    assert trained.logits.shape == (2, 4, 4, 4) and predicted.logits.shape == (2, 4, 4, 2)
    np.testing.assert_array_equal(predicted.selection.labels, trained.selection.labels[:, :2])
    np.testing.assert_allclose(predicted.logits, trained.logits[..., :2], rtol=1e-5)
    everything = PixelClassifier(6, None).apply(
        {'params': {'classes': variables['params']['classes']}}, pixels, {}, train=False
    )
    expected = np.take_along_axis(
        np.asarray(everything.logits), np.asarray(predicted.selection.labels)[:, None, None], -1
    )
    expected = expected / np.exp(rank['log_tau'][:2]) + rank['bias'][:2]
    np.testing.assert_allclose(predicted.logits, expected, rtol=1e-5, atol=1e-5)


def test_cells_of_the_head_are_given_in_training_alone():
    model = PixelClassifier(6, options(num_selected=2, stride=8, head=HEAD))
    pixels = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 3, 7)), jnp.float32)
    variables = random_variables(model, pixels, {8: pixels})
    output = model.apply(variables, pixels, {8: pixels}, train=True)
    kernel, bias = (variables['params']['head']['classify'][name] for name in ('kernel', 'bias'))
    np.testing.assert_allclose(output.cell_logits, pixels @ kernel + bias, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        output.presence_logits,
        scipy.special.logsumexp(output.cell_logits, (1, 2)) - np.log(12),
        rtol=1e-5,
        atol=1e-5,
    )
    assert model.apply(variables, pixels, {8: pixels}, train=False).cell_logits is None
    encoder = PixelClassifier(6, options(stride=8, head='global_pool'))
    variables = random_variables(encoder, pixels, {8: pixels})
    assert encoder.apply(variables, pixels, {8: pixels}, train=True).cell_logits is None
