import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy
from flax import linen as nn
from ml_collections import FrozenConfigDict

from configs import common
from rankseg_jax import models
from rankseg_jax.decoders.mask_transformer import MaskTransformer
from rankseg_jax.pretrained import released
from rankseg_jax.selector import Choice
from tests import golden as golden_files
from tests import tiny
from tests.helpers import apply, random_variables
from tests.released import full_logits


def golden_decoder(g):
    """MaskTransformer and its parameters from segmenter_rankseg.npz."""
    num_heads, num_layers = int(g['hparam/num_heads']), int(g['hparam/num_layers'])
    hidden, dim = g['param/blocks.0.mlp.fc1.weight'].shape
    params = released.mask_transformer(golden_files.state(g), num_heads)
    return MaskTransformer(
        int(g['hparam/num_classes']),
        dim,
        num_layers,
        num_heads,
        hidden,
        rankseg=golden_files.rankseg(g, head='first_block'),
    ), {'params': params}


def test_golden_segmenter():
    g = golden_files.load('segmenter_rankseg')
    decoder, variables = golden_decoder(g)
    features = jnp.asarray(g['features_nchw'].transpose(0, 2, 3, 1))
    output = apply(decoder, variables, features, train=False)
    np.testing.assert_allclose(output.presence_logits, g['class_logits'], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(output.selection.labels, g['selected'])
    np.testing.assert_allclose(
        output.logits.transpose(0, 3, 1, 2), g['rank_logits_nchw'], rtol=1e-4, atol=1e-5
    )
    full = full_logits(output.logits, output.selection, int(g['hparam/num_classes'])).transpose(
        0, 3, 1, 2
    )
    np.testing.assert_allclose(full, g['full_logits_nchw'], rtol=1e-4, atol=1e-5)
    golden_files.check_loss(g, output)


def test_golden_segmenter_gives_each_image_of_a_batch_what_it_gives_alone():
    g = golden_files.load('segmenter_rankseg')
    decoder, variables = golden_decoder(g)
    first = jnp.asarray(g['features_nchw'].transpose(0, 2, 3, 1))
    features = jnp.concatenate([jnp.roll(first, 3, -1), first, -first])
    forward = jax.jit(lambda features: decoder.apply(variables, features, train=False))
    together = forward(features)
    for i in range(3):
        alone = forward(features[i : i + 1])
        np.testing.assert_array_equal(together.selection.labels[i : i + 1], alone.selection.labels)
        np.testing.assert_allclose(together.logits[i : i + 1], alone.logits, rtol=1e-4, atol=1e-5)


def numpy_block(x, p):
    """A pre-norm transformer block, written out."""

    def norm(x, p):
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * p[
            'scale'
        ] + p['bias']

    y, attention = norm(x, p['LayerNorm_0']), p['MultiHeadDotProductAttention_0']
    out = attention['out']['bias']
    for head in range(attention['query']['kernel'].shape[1]):
        q, k, v = (
            y @ attention[n]['kernel'][:, head] + attention[n]['bias'][head]
            for n in ('query', 'key', 'value')
        )
        scores = np.exp(q @ k.T / np.sqrt(q.shape[-1]))
        out = out + scores / scores.sum(-1, keepdims=True) @ v @ attention['out']['kernel'][head]
    x = x + out
    y = norm(x, p['LayerNorm_1']) @ p['Mlp_0']['Dense_0']['kernel'] + p['Mlp_0']['Dense_0']['bias']
    y = y * (1 + scipy.special.erf(y / np.sqrt(2))) / 2
    return x + y @ p['Mlp_0']['Dense_1']['kernel'] + p['Mlp_0']['Dense_1']['bias'], norm


def numpy_decoder(features, p, num_selected=None, pooled=False):
    """One image through the decoder: [N, C] -> [N, K], or with RankSeg in rank order [N, κ]."""

    def project(x):
        return x @ p['project']['kernel'] + p['project']['bias']

    patches, classes, blocks = (
        project(features),
        p['class_embedding'],
        sorted(name for name in p if name.startswith('block')),
    )
    _, norm = numpy_block(classes, p['block0'])
    if num_selected:
        coarse = project(features.mean(0, keepdims=True)) if pooled else patches
        x, _ = numpy_block(np.concatenate([coarse, classes]), p[blocks.pop(0)])
        patches = patches if pooled else x[: len(patches)]
        classes = norm(x[len(coarse) :], p['class_norm'])
        class_logits = (classes * p['classify']['kernel']).sum(-1) + p['classify']['bias']
        classes = classes[np.argsort(-class_logits)[:num_selected]]
    x = np.concatenate([patches, classes])
    for name in blocks:
        x, _ = numpy_block(x, p[name])
    x = norm(x, p['norm'])
    patches, classes = (
        x[: len(features)] @ p['project_patches']['kernel'],
        x[len(features) :] @ p['project_classes']['kernel'],
    )
    cosines = (patches / np.linalg.norm(patches, axis=-1, keepdims=True)) @ (
        classes / np.linalg.norm(classes, axis=-1, keepdims=True)
    ).T
    return norm(cosines, p['rank']['temperature']['norm'] if num_selected else p['classes']['norm'])


@pytest.mark.parametrize('rankseg', [None, {'pool': 0}, {'pool': 1}])
def test_decoder_against_numpy(rankseg):
    features = np.random.default_rng(0).normal(size=(2, 3, 4, 12)).astype(np.float32)
    options = common.get_config().rankseg
    options.update(
        num_selected=5,
        train_selected=0,
        head='first_block',
        temperature='layer_norm',
        score_prior=False,
        **rankseg or {},
    )
    decoder = MaskTransformer(9, 16, 2, 2, 32, rankseg=rankseg and FrozenConfigDict(options))
    variables = random_variables(decoder, features)
    logits = apply(decoder, variables, features, train=False).logits
    params = jax.tree.map(np.float64, variables['params'])
    for ours, image in zip(logits, features, strict=True):
        expected = numpy_decoder(
            image.reshape(12, 12).astype(float),
            params,
            rankseg and 5,
            bool(rankseg and rankseg['pool']),
        )
        np.testing.assert_allclose(ours.reshape(12, -1), expected, rtol=1e-4, atol=1e-4)


def segmenter(**overrides):
    return tiny.config(
        '',
        **{
            'model__framework': 'segmenter',
            'model__backbone': 'tiny_vit',
            'model__channels': 16,
            'model__decoder_heads': 2,
            'rankseg__head': 'first_block',
        }
        | overrides,
    )


@pytest.mark.parametrize(
    'overrides',
    [
        {},
        {'rankseg__pool': 2},
        {'rankseg__head': 'decoder', 'rankseg__hidden': 16, 'rankseg__share_embedding': True},
        {'rankseg__head': 'log_sum_exp'},
        {'rankseg__num_selected': 1},
        {'rankseg__num_selected': 8},
        {'rankseg__oracle': True},
        {'rankseg__select': False},
        {'rankseg': None},
        {'model__late_classes': True, 'model__decoder_layers': 1},
        {'model__decoder': 'linear', 'rankseg__head': 'encoder', 'rankseg__stride': 8},
    ],
)
def test_every_variant_runs_at_odd_sizes(overrides):
    config = segmenter(**overrides)
    model = models.build(config, 8)
    images = np.random.default_rng(0).normal(size=(2, 37, 21, 3)).astype(np.float32)
    presence = np.arange(8) < np.array([[3], [1]])
    variables = random_variables(Fixed(model, presence), images)
    output = apply(
        model,
        {'params': variables['params']['model']},
        images,
        train=False,
        choice=Choice(presence=presence),
    )
    num_ranks = config.rankseg.num_selected if config.rankseg and config.rankseg.select else 8
    assert output.logits.shape == (2, 5, 3, num_ranks) and np.isfinite(output.logits).all()
    if config.rankseg and config.rankseg.oracle:
        assert (output.selection.labels[0, :3] < 3).all()


class Fixed(nn.Module):
    """A model with its `presence`."""

    model: nn.Module
    presence: np.ndarray

    def __call__(self, images, *, train):
        return self.model(images, train=train, choice=Choice(presence=self.presence))


def test_gradients_reach_class_embeddings_of_selected_categories_alone():
    model = models.build(segmenter(rankseg__head='log_sum_exp'), 8)
    images = np.random.default_rng(0).normal(size=(1, 32, 32, 3)).astype(np.float32)
    variables = random_variables(model, images)

    def total(params):
        output = model.apply({'params': params}, images, train=False)
        return jnp.square(output.logits).sum(), output.selection.labels

    grads, labels = jax.jit(jax.grad(total, has_aux=True))(variables['params'])
    touched = np.abs(grads['decoder']['class_embedding']).sum(-1) > 0
    assert set(np.flatnonzero(touched)) == set(np.asarray(labels[0]))


def test_embeddings_of_length_zero_give_finite_gradients():
    decoder = MaskTransformer(5, 8, 1, 2, 16)
    features = np.zeros((1, 2, 2, 4), np.float32)
    params = jax.tree.map(np.zeros_like, random_variables(decoder, features)['params'])
    grads = jax.jit(
        jax.grad(lambda p: decoder.apply({'params': p}, features, train=False).logits.sum())
    )(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


@pytest.mark.parametrize(
    'overrides, message',
    [
        (
            {'model__backbone': 'resnet50'},
            "'resnet50' does not suit .* 'segmenter', which needs one feature map; use .* vit_ti8",
        ),
        ({'model__decoder': 'fcn'}, "'fcn' must be 'mask_transformer'"),
        ({'model__decoder_heads': 5}, 'config.model.channels = 16 must be a multiple of .* = 5'),
        ({'model__late_classes': True, 'model__channels': 32}, 'config.model.channels = 16'),
    ],
)
def test_bad_configs_are_refused(overrides, message):
    with pytest.raises(ValueError, match=message):
        models.build(segmenter(**overrides), 8)
