import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rankseg_jax import multilabel
from rankseg_jax.pretrained import released
from tests import golden as golden_files
from tests.helpers import apply, random_variables
from tests.released import encoder_head

HEADS = {
    'encoder': lambda: multilabel.EncoderHead(11, hidden=16, num_heads=2, mlp_dim=32),
    'decoder': lambda: multilabel.DecoderHead(11, hidden=16, num_heads=2, mlp_dim=32),
    'global_pool': lambda: multilabel.GlobalPoolHead(11),
    'log_sum_exp': lambda: multilabel.LogSumExpHead(11),
}


@pytest.mark.parametrize(
    'name', ['multilabel_encoder_mask2former', 'multilabel_encoder_shared_embedding']
)
def test_golden_encoder_head(name):
    g = golden_files.load(name)
    num_heads = int(g['hparam/num_heads'])
    params = encoder_head(golden_files.state(g), '', num_heads)
    shared = 'param/cls_emb' not in g
    hidden = g['param/proj_dec.weight'].shape[0]
    head = multilabel.EncoderHead(
        num_classes=int(g['hparam/num_classes']),
        hidden=hidden,
        num_heads=num_heads,
        mlp_dim=g['param/block.mlp.fc1.weight'].shape[0],
        pool=int(g.get('hparam/pool', 0)),
    )
    tokens = g['query_features_bcn'].transpose(0, 2, 1)
    embedding = g['class_embedding'] if shared else None
    logits = apply(head, {'params': params}, tokens, embedding, train=False)
    np.testing.assert_allclose(logits, g['class_logits'], rtol=1e-4, atol=1e-5)


def test_golden_decoder_head():
    g = golden_files.load('multilabel_decoder')
    num_heads, num_layers = int(g['hparam/num_heads']), int(g['hparam/num_layers'])
    params = released.decoder_head(golden_files.state(g), '', num_heads)
    head = multilabel.DecoderHead(
        num_classes=int(g['hparam/num_classes']),
        hidden=g['param/query_embed.weight'].shape[1],
        num_heads=num_heads,
        num_layers=num_layers,
        mlp_dim=g['param/transformer.decoder.layers.0.linear1.weight'].shape[0],
    )
    features = g['features_nchw'].transpose(0, 2, 3, 1)
    logits = apply(head, {'params': params}, features, train=False)
    np.testing.assert_allclose(logits, g['class_logits'], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('name', HEADS)
def test_each_image_gives_what_it_gives_alone(name):
    head = HEADS[name]()
    features = jax.random.normal(jax.random.key(0), (3, 5, 7, 12))
    variables = random_variables(head, features)
    forward = jax.jit(lambda features: head.apply(variables, features, train=False))
    together = forward(features)
    assert together.shape == (3, 11) and together.dtype == jnp.float32
    for i in range(3):
        np.testing.assert_allclose(together[i : i + 1], forward(features[i : i + 1]), atol=1e-5)


@pytest.mark.parametrize('name', HEADS)
def test_bfloat16_heads_give_float32_logits(name):
    head = HEADS[name]()
    # Flax warns of values [B, L, D] with L = D, which it mistakes for a mask.
    features = jax.random.normal(jax.random.key(0), (2, 4, 5, 12))
    variables = random_variables(head, features)
    logits = apply(head.clone(dtype=jnp.bfloat16), variables, features, train=False)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, apply(head, variables, features, train=False), atol=0.1)


def test_log_sum_exp_against_numpy():
    rng = np.random.default_rng(0)
    features, kernel, bias = (
        rng.normal(size=(2, 3, 4, 5)),
        rng.normal(size=(5, 6)),
        rng.normal(size=6),
    )
    logits = apply(
        multilabel.LogSumExpHead(6),
        {'params': {'classify': {'kernel': kernel, 'bias': bias}}},
        jnp.asarray(features, jnp.float32),
        train=False,
    )
    expected = np.log(np.mean(np.exp(features.reshape(2, 12, 5) @ kernel + bias), axis=1))
    np.testing.assert_allclose(logits, expected, rtol=1e-5)


@pytest.mark.parametrize('name', ['global_pool', 'log_sum_exp'])
def test_logits_in_half_precision_are_full_products(name):
    """Of a single cell, whose logits are those of the image."""
    rng = np.random.default_rng(0)
    features, kernel, bias = (
        jnp.asarray(np.abs(rng.normal(size=shape)), jnp.bfloat16).astype(jnp.float32)
        for shape in [(2, 1, 1, 40), (40, 11), (11,)]
    )
    params = {
        'hidden': {'kernel': jnp.eye(40), 'bias': jnp.zeros(40)},
        'classify': {'kernel': kernel, 'bias': bias},
    }
    head = HEADS[name]().clone(dtype=jnp.bfloat16)
    logits = apply(head, {'params': params}, features, train=False)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, features[:, 0, 0] @ kernel + bias, rtol=1e-5)


def test_dropout_only_in_training():
    head = HEADS['encoder']()
    features = jax.random.normal(jax.random.key(0), (1, 4, 4, 12))
    variables = random_variables(head, features)
    draw = jax.jit(lambda key: head.apply(variables, features, train=True, rngs={'dropout': key}))
    draws = [draw(jax.random.key(i)) for i in range(2)]
    assert np.abs(draws[0] - draws[1]).max() > 1e-4


def test_shared_embedding_of_another_width_is_refused():
    with pytest.raises(ValueError, match='width 8.*width 16'):
        HEADS['encoder']().init(
            jax.random.key(0), jnp.zeros((1, 2, 2, 4)), jnp.zeros((11, 8)), train=False
        )


@pytest.mark.parametrize('num_classes', [1, 7, 300])
def test_pixel_counts_against_bincount(num_classes):
    labels = np.random.default_rng(0).integers(-1, num_classes + 3, (3, 9, 5))
    counts = multilabel.pixel_counts(jnp.asarray(labels), num_classes)
    expected = [np.bincount(x[(x >= 0) & (x < num_classes)], minlength=num_classes) for x in labels]
    np.testing.assert_array_equal(counts, expected)


def test_pixel_counts_makes_no_one_hot():
    labels = jnp.zeros((2, 64, 64), jnp.int32)
    jaxpr = str(jax.make_jaxpr(lambda x: multilabel.pixel_counts(x, 1000))(labels))
    assert (
        '1000,64' not in jaxpr
        and '64,1000' not in jaxpr
        and '4096,1000' not in jaxpr
        and '4096,1001' not in jaxpr
    )
