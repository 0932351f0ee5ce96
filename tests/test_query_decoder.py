import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import FrozenConfigDict

from configs import common
from rankseg_jax.decoders.query_decoder import QueryDecoder
from rankseg_jax.layers import attend
from rankseg_jax.ranking import Selection, gather, select
from rankseg_jax.selector import Choice, RankScale
from tests import golden as golden_files
from tests.helpers import random_variables

K, D = 7, 16


def rankseg(**options):
    config = common.get_config().rankseg
    config.update(
        dict(num_selected=3, train_selected=0, hidden=8, num_heads=2, mlp_dim=8, layer=1) | options
    )
    return FrozenConfigDict(config)


def decoder(options=None, **fields):
    return QueryDecoder(
        num_classes=K,
        num_queries=4,
        channels=D,
        num_layers=2,
        num_heads=2,
        mlp_dim=24,
        rankseg=options,
        **fields,
    )


def random_inputs(batch=2):
    """Maps of strides 32, 16 and 8, and pixel embeddings."""
    rng = np.random.default_rng(0)
    maps = {
        stride: rng.normal(size=(batch, 48 // stride + 1, 72 // stride + 1, D)).astype(np.float32)
        for stride in (32, 16, 8)
    }
    return maps, rng.normal(size=(batch, 13, 19, D)).astype(np.float32)


def apply(model, variables, inputs, *, train=False, **choice):
    return jax.jit(
        lambda variables, inputs, choice: model.apply(
            variables, *inputs, train=train, rngs={'dropout': jax.random.key(0)}, choice=choice
        )
    )(variables, inputs, Choice(**choice))


def test_golden_rank_logits():
    g = golden_files.load('mask2former_rank_labels')
    num_selected = int(g['hparam/num_selected'])
    selection = select(g['class_logits'], num_selected)
    np.testing.assert_array_equal(selection.labels, g['selected_with_no_object'][:, :-1])
    scale = RankScale(
        rankseg(num_selected=num_selected, temperature='layer_norm', score_prior=False),
        num_classes=g['class_logits'].shape[-1],
        no_object=True,
    )
    norm = {'scale': g['param/ml_norm.weight'], 'bias': g['param/ml_norm.bias']}
    logits = gather(g['query_logits'], selection, keep_last=True)
    logits = scale.apply({'params': {'temperature': {'norm': norm}}}, logits, selection)
    np.testing.assert_allclose(logits, g['rank_logits'], rtol=1e-4, atol=1e-5)


def test_a_query_with_an_empty_mask_attends_everywhere():
    """An empty mask acts like none at all; a mask of one cell gives that cell's value."""
    inputs, model = random_inputs(), decoder()
    params = random_variables(model, *inputs)['params']
    last = params['mask']['Dense_2']
    nowhere = params | {
        'mask': params['mask'] | {'Dense_2': {'kernel': 0 * last['kernel'], 'bias': last['bias']}}
    }
    maps, pixels = inputs
    empty, full = (
        apply(model, {'params': nowhere}, (maps, sign * np.abs(pixels))) for sign in (-1, 1)
    )
    assert (np.asarray(empty.mask_logits) < 0).all() and (np.asarray(full.mask_logits) > 0).all()
    np.testing.assert_allclose(empty.class_logits, full.class_logits, rtol=1e-5, atol=1e-5)

    rng = np.random.default_rng(0)
    query, key, value = (rng.normal(size=(1, n, 2, 4)).astype(np.float32) for n in (1, 5, 5))
    np.testing.assert_allclose(
        attend(query, key, value, None, np.arange(5)[None, None] == 3)[:, 0], value[:, 3], rtol=1e-5
    )


@pytest.mark.parametrize(
    'options, cosine',
    [
        (dict(temperature='layer_norm', head='encoder'), True),
        (dict(temperature='temperature', score_prior=False), False),
        (dict(temperature='affine', score_prior=False, train_selected=5), False),
    ],
)
def test_rank_space_agrees_with_all_classes(options, cosine):
    """In every prediction, selected categories get their logits among all K, scaled by rank."""
    inputs, model = random_inputs(), decoder(rankseg(**options), cosine=cosine)
    params = random_variables(model, *inputs)['params']
    output = apply(model, {'params': params}, inputs)
    full = apply(decoder(cosine=cosine), {'params': params}, inputs)
    labels, scores = output.selection.labels, output.selection.scores
    np.testing.assert_array_equal(labels, np.argsort(-np.asarray(output.presence_logits))[:, :3])
    assert len(output.auxiliary) == 2 and len(full.auxiliary) == 2
    tau = 0.07 if cosine else 1.0
    for (ours, masks), (theirs, same) in zip(
        [*output.auxiliary, (output.class_logits, output.mask_logits)],
        [*full.auxiliary, (full.class_logits, full.mask_logits)],
        strict=True,
    ):
        chosen = (
            np.take_along_axis(
                np.asarray(theirs), np.pad(labels, ((0, 0), (0, 1)), constant_values=K)[:, None], -1
            )
            * tau
        )
        if options['temperature'] == 'layer_norm':
            norm = params['rank']['temperature']['norm']
            chosen = (chosen - chosen.mean(-1, keepdims=True)) / np.sqrt(
                chosen.var(-1, keepdims=True) + 1e-5
            )
            chosen = chosen * norm['scale'] + norm['bias']
            chosen[..., :-1] -= np.log1p(np.exp(-np.asarray(scores)))[:, None]
        else:
            learned = params['rank']['temperature']
            kept = [0, 1, 2, -1]  # of the ranks that training has, and no-object
            chosen = chosen * np.exp(-learned['log_tau'][np.array(kept)])
            if 'bias' in learned:
                chosen = chosen + learned['bias'][np.array(kept)]
        assert ours.shape == (2, 4, 4)
        np.testing.assert_allclose(ours, chosen, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(masks, same, rtol=1e-4, atol=1e-4)


def test_forced_given_oracle_and_all_classes():
    inputs, model = random_inputs(), decoder(rankseg())
    variables = random_variables(model, *inputs)
    presence = np.arange(K) == np.array([[1], [5]])
    output = apply(model, variables, inputs, train=True, presence=presence)
    assert (np.asarray(output.selection.labels) == [[1], [5]]).any(-1).all()
    chosen = Selection(np.array([[0, 1, 2], [4, 5, 6]]), np.zeros((2, 3), np.float32))
    np.testing.assert_array_equal(
        apply(model, variables, inputs, selection=chosen).selection.labels, chosen.labels
    )
    everything = apply(model, variables, inputs, all_classes=True)
    assert everything.class_logits.shape == (2, 4, K + 1)
    oracle = apply(decoder(rankseg(oracle=True)), variables, inputs, presence=presence)
    np.testing.assert_array_equal(oracle.selection.labels[:, 0], [1, 5])
    np.testing.assert_array_equal(
        (np.asarray(oracle.class_logits) == -100).all(1), [[False, True, True, False]] * 2
    )


def test_gradients_reach_masks_and_selected_classes_and_are_finite():
    inputs, model = (
        random_inputs(),
        decoder(rankseg(head='encoder', share_embedding=True, hidden=D), cosine=True),
    )
    params = random_variables(model, *inputs)['params']
    params['queries'] = 0 * params['queries']

    @jax.jit
    def gradient(params):
        def loss(params):
            output = model.apply({'params': params}, *inputs, train=False)
            predictions = [*output.auxiliary, (output.class_logits, output.mask_logits)]
            return sum(
                jnp.square(classes).mean() + jnp.square(masks).mean()
                for classes, masks in predictions
            )

        return jax.grad(loss)(params)

    leaves = jax.tree.leaves_with_path(gradient(params))
    assert all(np.isfinite(leaf).all() for _, leaf in leaves)
    silent = {jax.tree_util.keystr(path[:1]) for path, leaf in leaves if not np.abs(leaf).max() > 0}
    assert silent <= {"['head']"}  # no gradient goes through the selection


def test_bfloat16_gives_float32_logits():
    inputs = random_inputs()
    variables = random_variables(decoder(), *inputs)
    output = apply(decoder(dtype=jnp.bfloat16), variables, jax.tree.map(jnp.bfloat16, inputs))
    assert output.class_logits.dtype == output.mask_logits.dtype == jnp.float32
    assert np.isfinite(output.class_logits).all()


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(layer=3), 'rankseg.layer = 3 must be 0 or one of the 2'),
        (dict(head='decoder'), 'needs a map'),
        (dict(layer=0, stride=4), r'stride = 4 must be one of \[8, 16, 32\]'),
        (dict(num_selected=8), 'at most the number of categories'),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(
            lambda: decoder(rankseg(**options)).init(
                jax.random.key(0), *random_inputs(), train=False
            )
        )
