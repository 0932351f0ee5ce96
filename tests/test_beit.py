"""BEiT equals Hugging Face's and timm's, for sizes that they take and beyond."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rankseg_jax import backbones, pretrained
from rankseg_jax.backbones.beit import BEiT, PositionBias
from rankseg_jax.pretrained.beit import from_torch
from tests.helpers import (
    numpy_state,
    random_batch_norms,
    random_like,
    random_parameters,
    random_variables,
    relative_error,
)


@pytest.fixture(scope='module')
def torch():
    return pytest.importorskip('torch')


@pytest.fixture(scope='module')
def transformers(torch):
    return pytest.importorskip('transformers')


@pytest.fixture(scope='module')
def timm(torch):
    return pytest.importorskip('timm')


def tiny(feature_blocks=(1, 2, 3, 4), **fields):
    return BEiT(
        width=16,
        num_layers=4,
        num_heads=2,
        feature_blocks=feature_blocks,
        **{'image_size': (64, 64)} | fields,
    )


def images(*size, batch=2):
    return np.random.default_rng(0).normal(size=(batch, *size, 3)).astype(np.float32)


def apply(model, variables, x, train=False):
    return jax.jit(partial(model.apply, train=train))(variables, x)


OPTIONS = dict(
    hidden_size=16,
    num_hidden_layers=4,
    num_attention_heads=2,
    intermediate_size=64,
    image_size=64,
    out_indices=[1, 2, 3, 4],
)
BIASES = {
    'layer': {'use_relative_position_bias': True},
    'shared': {'use_shared_relative_position_bias': True},
    'both': {'use_relative_position_bias': True, 'use_shared_relative_position_bias': True},
}


def random_beit(torch, transformers, name, **options):
    model = getattr(transformers, name)(transformers.BeitConfig(**OPTIONS | options))
    random_parameters(torch, model, scale=0.3)
    return random_batch_norms(torch, model)


def torch_features(torch, model, x):
    with torch.no_grad():
        return [
            y.permute(0, 2, 3, 1) for y in model(torch.tensor(x).permute(0, 3, 1, 2)).feature_maps
        ]


@pytest.mark.parametrize('biases', BIASES)
@pytest.mark.parametrize('size', [(64, 64), (96, 32), (32, 160)])
def test_features_are_hugging_faces(torch, transformers, tmp_path, biases, size):
    """At the trained size and, with resized biases, at others that are not square."""
    theirs = random_beit(
        torch, transformers, 'BeitBackbone', add_fpn=True, layer_norm_eps=1e-12, **BIASES[biases]
    )
    expected = torch_features(torch, theirs, images(*size))
    theirs.save_pretrained(tmp_path)
    found = pretrained.convert(pretrained.read(tmp_path / 'model.safetensors'))
    variables = {key: tree['backbone'] for key, tree in found.items()}
    jax.tree.map(np.testing.assert_array_equal, from_torch(numpy_state(theirs)), variables)
    ours = apply(tiny(epsilon=1e-12), variables, images(*size))
    assert list(ours) == [4, 8, 16, 32]
    for feature, their_feature in zip(ours.values(), expected, strict=True):
        assert relative_error(feature, their_feature) <= 1e-5


def test_which_blocks_hugging_face_takes(torch, transformers):
    """BeitForSemanticSegmentation one less than its backbone does, of the same numbers."""
    indices = [1, 2, 3, 4]
    theirs = random_beit(
        torch, transformers, 'BeitForSemanticSegmentation', out_indices=indices, **BIASES['layer']
    )
    x = images(64, 64)
    seen = []
    theirs.fpn.register_forward_pre_hook(lambda _, args: seen.extend(args[0]))
    with torch.no_grad():
        states = theirs(torch.tensor(x).permute(0, 3, 1, 2), output_hidden_states=True)
    for i, feature in zip(indices, seen, strict=True):
        # Hidden state 0 is that before the first block.
        tokens = states.hidden_states[i - 1][:, 1:].transpose(1, 2).reshape(feature.shape)
        torch.testing.assert_close(feature, tokens)
    for added in (0, 1):  # the paper counts blocks from 0
        variables = from_torch(numpy_state(theirs.beit))
        model = tiny((1, 2, 3, 3) if not added else (2, 3, 4, 4), epsilon=1e-12)
        variables = variables | random_neck(model, x, variables)
        ours = apply(model, variables, x)[16]
        expected = states.hidden_states[3 + added][:, 1:].reshape(2, 4, 4, 16)
        assert relative_error(ours, expected) <= 1e-5


def random_neck(model, x, variables):
    """The variables with those of a neck, which a classifier's file lacks."""
    whole = random_variables(model, x)
    return {'params': whole['params'] | variables['params'], 'batch_stats': whole['batch_stats']}


def random_timm(torch, timm, **options):
    model = timm.models.beit.Beit(
        img_size=64,
        embed_dim=16,
        depth=4,
        num_heads=2,
        use_abs_pos_emb=False,
        num_classes=3,
        **options,
    )
    return random_parameters(torch, model, scale=0.3)


@pytest.mark.parametrize(
    'options',
    [
        {'use_rel_pos_bias': True, 'init_values': 0.1},
        {'use_rel_pos_bias': True},
        {'use_shared_rel_pos_bias': True, 'init_values': 0.1},
    ],
)
def test_tokens_are_timms(torch, timm, options):
    theirs = random_timm(torch, timm, **options)
    x = images(64, 64)
    with torch.no_grad():
        expected = theirs.forward_intermediates(
            torch.tensor(x).permute(0, 3, 1, 2), indices=[1], intermediates_only=True
        )[0].permute(0, 2, 3, 1)
    found = pretrained.convert(numpy_state(theirs))
    assert found.keys() == {'params'}
    model = tiny((2, 2, 2, 2))
    variables = random_neck(model, x, {'params': found['params']['backbone']})
    assert relative_error(apply(model, variables, x)[16], expected) <= 1e-5


MMSEG = [  # timm's names, as patterns, to those of mmseg 1.x
    (r'^blocks\.', 'backbone.layers.'),
    (r'\.norm([12])\.', r'.ln\1.'),
    (r'\.mlp\.fc1\.', '.ffn.layers.0.0.'),
    (r'\.mlp\.fc2\.', '.ffn.layers.1.'),
    (r'^patch_embed\.proj\.', 'backbone.patch_embed.projection.'),
    (r'^cls_token', 'backbone.cls_token'),
    (r'^fpn1\.', 'neck.upsample_4x.'),
    (r'^fpn2\.', 'neck.upsample_2x.'),
]


def test_mmsegs_names_are_read_alike(torch, timm):
    state = numpy_state(random_timm(torch, timm, use_rel_pos_bias=True, init_values=0.1))
    rng = np.random.default_rng(0)
    state |= {
        f'{name}.{leaf}': rng.normal(size=shape).astype(np.float32)
        for name, shapes in {
            'fpn1.0': {'weight': (16, 16, 2, 2), 'bias': 16},
            'fpn1.1': {'weight': 16, 'bias': 16, 'running_mean': 16, 'running_var': 16},
            'fpn1.3': {'weight': (16, 16, 2, 2), 'bias': 16},
            'fpn2.0': {'weight': (16, 16, 2, 2), 'bias': 16},
        }.items()
        for leaf, shape in shapes.items()
    }
    expected = pretrained.convert(state)
    assert expected['batch_stats']['backbone'].keys() == {'neck4_norm'}
    for pattern, replacement in MMSEG:
        state = {re.sub(pattern, replacement, key): value for key, value in state.items()}
    state['decode_head.conv_seg.weight'] = np.zeros((3, 2, 1, 1), np.float32)
    jax.tree.map(np.testing.assert_array_equal, pretrained.convert(state), expected)


def test_unknown_names_are_refused(torch, timm):
    with pytest.raises(
        ValueError, match=r"not the weights of a BEiT: unknown names \['pos_embed'\]"
    ):
        pretrained.convert(
            numpy_state(random_timm(torch, timm, use_rel_pos_bias=True)) | {'pos_embed': np.ones(3)}
        )


def test_a_bias_belongs_to_a_pair_of_positions():
    """Written out pair by pair, on a grid that is not square: from a query to a key."""
    model = PositionBias((2, 3), 2)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), (2, 3)))
    variables = random_like(shapes)['params']
    bias = model.apply({'params': variables}, (2, 3))
    places = [(i, j) for i in range(2) for j in range(3)]
    for q, (row, column) in enumerate(places, start=1):
        for k, (other_row, other_column) in enumerate(places, start=1):
            expected = variables['table'][row - other_row + 1, column - other_column + 2]
            np.testing.assert_allclose(bias[:, q, k], expected)
        np.testing.assert_allclose(bias[:, 0, q], variables['class'][0])
        np.testing.assert_allclose(bias[:, q, 0], variables['class'][1])
    np.testing.assert_allclose(bias[:, 0, 0], variables['class'][2])


@pytest.mark.parametrize('size', [(97, 131), (33, 64), (16, 17)])
def test_sizes_are_rounded_up(size):
    model = tiny()
    features = jax.eval_shape(
        lambda: model.init_with_output(jax.random.key(0), images(*size), train=False)
    )[0]
    for stride, feature in features.items():
        assert feature.shape == (2, -(-size[0] // stride), -(-size[1] // stride), 16)


def test_padding_is_zeros_below_and_to_the_right():
    """And a pooled cell of an odd grid is the greatest of those that there are."""
    x = images(35, 70)
    model = tiny()
    variables = random_variables(model, x)
    ours = apply(model, variables, x)
    padded = apply(model, variables, np.pad(x, ((0, 0), (0, 13), (0, 10), (0, 0))))
    for stride, feature in ours.items():
        rows, columns = feature.shape[1:3]
        np.testing.assert_allclose(feature, padded[stride][:, :rows, :columns], atol=1e-5)
    last = apply(tiny((1, 2, 4, 4)), variables, x)
    np.testing.assert_allclose(last[32][:, 1, 2], last[16][:, 2, 4], atol=1e-6)


def test_blocks_are_computed_again_alike():
    x = images(32, 32)
    model = tiny()
    variables = random_variables(model, x)

    def gradient(model):
        def total(params):
            features = model.apply(variables | {'params': params}, x, train=False)
            return sum(jnp.square(feature).mean() for feature in features.values())

        return jax.jit(jax.grad(total))(variables['params'])

    ours, expected = gradient(tiny(remat='nothing_saveable')), gradient(model)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), ours, expected)
    assert all(np.abs(x).max() > 0 for x in jax.tree.leaves(ours['position_bias1']))


def test_bfloat16_stays_near_float32():
    x = images(32, 32)
    variables = random_variables(tiny(), x)
    half = apply(tiny(dtype=jnp.bfloat16), variables, x)
    for stride, expected in apply(tiny(), variables, x).items():
        assert half[stride].dtype == jnp.bfloat16
        error = np.abs(np.asarray(half[stride], np.float32) - expected).max()
        assert error < 0.05 * np.abs(expected).max()


def test_biases_are_resized_to_another_crop_and_the_neck_stays(torch, timm, tmp_path):
    state = numpy_state(random_timm(torch, timm, use_rel_pos_bias=True, init_values=0.1))
    np.savez(tmp_path / 'beit.npz', **state)
    x = images(96, 96, batch=1)
    model = tiny(image_size=(96, 96))
    backbone = random_variables(model, x)
    variables = {key: {'backbone': tree} for key, tree in backbone.items()}
    loaded = pretrained.load(tmp_path / 'beit.npz', variables)
    assert jax.tree.structure(loaded) == jax.tree.structure(variables)
    np.testing.assert_array_equal(
        loaded['params']['backbone']['neck8']['kernel'], backbone['params']['neck8']['kernel']
    )
    # The model with the table of 64 × 64 resizes it while it runs.
    own = {'params': pretrained.convert(state)['params']['backbone']}
    own = backbone['params'] | own['params']
    expected = apply(tiny(), backbone | {'params': own}, x)
    ours = apply(model, {key: tree['backbone'] for key, tree in loaded.items()}, x)
    for stride in expected:
        np.testing.assert_allclose(ours[stride], expected[stride], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('blocks', [(0, 1, 2, 3), (2, 3, 4, 5), (1, 2, 3)])
def test_blocks_that_there_are_not_are_refused(blocks):
    with pytest.raises(ValueError, match=r'feature_blocks .* 1 to 4'):
        tiny(blocks).init(jax.random.key(0), images(32, 32), train=False)


@pytest.mark.parametrize('name', ['beit_b16', 'beit_l16'])
def test_published_sizes(timm, torch, name):
    """timm's parameters, and those of the neck; features from a third, a half, … of the blocks."""
    model = backbones.build(name, image_size=(224, 224))
    assert [model.num_layers * n // 12 for n in (4, 6, 8, 12)] == list(model.feature_blocks)
    params = jax.eval_shape(
        lambda: model.init(jax.random.key(0), images(32, 32, batch=1), train=False)
    )['params']
    neck = sum(x.size for key in params if 'neck' in key for x in jax.tree.leaves(params[key]))
    total = sum(x.size for x in jax.tree.leaves(params))
    published = {'beit_b16': 'beit_base_patch16_224', 'beit_l16': 'beit_large_patch16_224'}
    with torch.device('meta'):
        theirs = timm.create_model(published[name], num_classes=0, global_pool='token')
    expected = sum(
        x.numel() for key, x in theirs.named_parameters() if not key.startswith(('norm', 'fc_norm'))
    )
    assert total - neck == expected
    width = model.width
    assert neck == 3 * (4 * width * width + width) + 2 * width
