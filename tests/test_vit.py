from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rankseg_jax import backbones, pretrained
from rankseg_jax.backbones import vit
from rankseg_jax.pretrained import read, read_variables
from rankseg_jax.pretrained.vit import from_augreg, from_torch, resize_kernel
from tests.helpers import (
    apply,
    mend_torchvision,
    numpy_state,
    random_parameters,
    random_variables,
    relative_error,
)

IMAGES = np.random.default_rng(0).normal(size=(2, 48, 80, 3)).astype(np.float32)


def tiny(**fields):
    return vit.ViT(16, 128, 3, 2, image_size=(48, 80), **fields)


@pytest.mark.parametrize(
    'name, timms, size',
    [('vit_b16', 'vit_base_patch16_224', 96), ('vit_ti8', 'vit_base_patch8_224', 48)],
)
def test_features_are_timms(name, timms, size):
    """ViT-B/16 in full, on small images; with patches of 8 a narrow one."""
    torch, timm = pytest.importorskip('torch'), pytest.importorskip('timm')
    ours = backbones.build(name, image_size=(size, size))
    theirs = random_parameters(
        torch,
        timm.create_model(
            timms, img_size=size, embed_dim=ours.width, num_heads=ours.num_heads, num_classes=0
        ),
        0.04,
    )
    images = np.random.default_rng(0).normal(size=(1, size, size, 3)).astype(np.float32)
    (features,) = apply(
        ours, {'params': from_torch(numpy_state(theirs))}, images, train=False
    ).values()  # [1, h, w, D]
    with torch.no_grad():
        expected = theirs.forward_features(torch.tensor(images).permute(0, 3, 1, 2))[:, 1:]
    assert relative_error(features.reshape(expected.shape), expected) <= 1e-4


def test_torchvision_and_timm_weights_are_read_alike():
    torch = pytest.importorskip('torch')
    torchvision = pytest.importorskip('torchvision')
    model = random_parameters(
        torch, torchvision.models.VisionTransformer(48, 16, 3, 2, 128, 512, num_classes=5)
    )
    params = from_torch(numpy_state(model))
    ours = vit.ViT(16, 128, 3, 2, image_size=(48, 48))
    features = apply(ours, {'params': params}, IMAGES[:, :, :48], train=False)[16]
    with torch.no_grad():
        x = model._process_input(torch.tensor(IMAGES[:, :, :48]).permute(0, 3, 1, 2))
        theirs = model.encoder(torch.cat([model.class_token.expand(2, -1, -1), x], 1)).numpy()
    np.testing.assert_allclose(features.reshape(2, -1, 128), theirs[:, 1:], rtol=1e-4, atol=1e-4)


def test_augreg_files_are_read_as_timm_reads_them(tmp_path):
    torch, timm = pytest.importorskip('torch'), pytest.importorskip('timm')
    model = timm.models.vision_transformer.VisionTransformer(
        img_size=48, patch_size=16, embed_dim=128, depth=2, num_heads=2, num_classes=5
    )
    rng = np.random.default_rng(0)
    shapes = {
        'cls': (1, 1, 128),
        'embedding/kernel': (16, 16, 3, 128),
        'embedding/bias': (128,),
        'head/kernel': (128, 5),
        'head/bias': (5,),
        'Transformer/posembed_input/pos_embedding': (1, 10, 128),
        'Transformer/encoder_norm/scale': (128,),
        'Transformer/encoder_norm/bias': (128,),
    }
    for i in range(2):
        block = f'Transformer/encoderblock_{i}'
        for norm in ('LayerNorm_0', 'LayerNorm_2'):
            shapes |= {f'{block}/{norm}/scale': (128,), f'{block}/{norm}/bias': (128,)}
        attention = f'{block}/MultiHeadDotProductAttention_1'
        for name in ('query', 'key', 'value'):
            shapes |= {
                f'{attention}/{name}/kernel': (128, 2, 64),
                f'{attention}/{name}/bias': (2, 64),
            }
        shapes |= {f'{attention}/out/kernel': (2, 64, 128), f'{attention}/out/bias': (128,)}
        shapes |= {
            f'{block}/MlpBlock_3/Dense_0/kernel': (128, 512),
            f'{block}/MlpBlock_3/Dense_0/bias': (512,),
            f'{block}/MlpBlock_3/Dense_1/kernel': (512, 128),
            f'{block}/MlpBlock_3/Dense_1/bias': (128,),
        }
    arrays = {
        name: rng.normal(scale=0.1, size=shape).astype(np.float32) for name, shape in shapes.items()
    }
    np.savez(tmp_path / 'vit.npz', **arrays)
    model.eval().load_pretrained(str(tmp_path / 'vit.npz'))
    with torch.no_grad():
        theirs = model.forward_features(torch.tensor(IMAGES[:, :, :48]).permute(0, 3, 1, 2)).numpy()
    model = vit.ViT(16, 128, 2, 2, image_size=(48, 48))
    ours = apply(
        model, {'params': from_augreg(read(tmp_path / 'vit.npz'))}, IMAGES[:, :, :48], train=False
    )[16]
    np.testing.assert_allclose(ours.reshape(2, -1, 128), theirs[:, 1:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('shape, new_shape', [((3, 5), (7, 4)), ((4, 4), (4, 9)), ((1, 6), (3, 2))])
def test_bicubic_is_torchs(shape, new_shape):
    torch = pytest.importorskip('torch')
    x = np.random.default_rng(0).normal(size=(*shape, 2)).astype(np.float32)
    theirs = torch.nn.functional.interpolate(
        torch.tensor(x).permute(2, 0, 1)[None], new_shape, mode='bicubic', align_corners=False
    )[0].permute(1, 2, 0)
    np.testing.assert_allclose(vit.resize_bicubic(x, new_shape), theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('size', [(48, 80), (50, 33), (8, 8)])
def test_any_input_size(size):
    features = jax.eval_shape(
        lambda: tiny().init_with_output(jax.random.key(0), jnp.zeros((2, *size, 3)), train=False)[0]
    )
    assert features[16].shape == (2, -(-size[0] // 16), -(-size[1] // 16), 128)


def test_late_classes_change_the_last_block_alone():
    model = tiny(num_classes=7)
    variables = random_variables(model, IMAGES)
    features, with_classes = model.apply(variables, IMAGES, train=False, capture_intermediates=True)
    assert features['classes'].shape == (2, 7, 128)
    _, without = tiny().apply(variables, IMAGES, train=False, capture_intermediates=True)
    blocks, plain = with_classes['intermediates'], without['intermediates']
    for name in ('block0', 'block1'):
        np.testing.assert_array_equal(blocks[name]['__call__'][0], plain[name]['__call__'][0])
    assert blocks['block2']['__call__'][0].shape == (2, 1 + 15 + 7, 128)
    assert not np.allclose(blocks['block2']['__call__'][0][:, 7:], plain['block2']['__call__'][0])


def test_drop_path_leaves_whole_branches_out():
    model = tiny(drop_path=0.9)
    images = np.repeat(IMAGES[:1], 16, 0)
    variables = random_variables(model, images)
    rngs = {'dropout': jax.random.key(1)}
    out = apply(model, variables, images, train=True, rngs=rngs)[16]
    assert len(np.unique(np.asarray(out).round(4), axis=0)) > 1  # the images of a batch draw apart
    forward = jax.jit(lambda: model.apply(variables, images, train=False)[16])
    np.testing.assert_allclose(forward(), forward())


def test_strange_names_are_named():
    with pytest.raises(ValueError, match="unknown names .'layer1'"):
        from_torch({'layer1': np.zeros(2), 'cls_token': np.zeros((1, 1, 64))})


SMALL = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
OURS = dict(patch=4, width=32, num_layers=2, num_heads=2, layer_scale=1.0)


def hugging_face(name, **options):
    """A model of transformers with random weights, large enough that each part shows."""
    torch, transformers = pytest.importorskip('torch'), pytest.importorskip('transformers')
    mend_torchvision()
    config = getattr(transformers, f'{name}Config')(**SMALL | dict(patch_size=4) | options)
    model = random_parameters(torch, getattr(transformers, f'{name}Model')(config), 0.3)
    return model


def features_of(model, images, num_registers):
    """The patches of a model of transformers, [B, h, w, D]."""
    torch = pytest.importorskip('torch')
    with torch.no_grad():
        x = model(torch.tensor(images).permute(0, 3, 1, 2)).last_hidden_state.numpy()
    height, width = images.shape[1] // 4, images.shape[2] // 4
    return x[:, 1 + num_registers :].reshape(len(x), height, width, -1)


DINOS = [
    ('Dinov2', dict(image_size=20), dict(codes='all')),
    ('Dinov2', dict(image_size=20, use_swiglu_ffn=True), dict(gated=True, mlp_dim=88)),
    ('Dinov2WithRegisters', dict(image_size=20), dict(codes='patches', num_registers=4)),
    (
        'DINOv3ViT',
        dict(num_register_tokens=4, intermediate_size=48),
        dict(codes='rotary', num_registers=4, epsilon=1e-5, mlp_dim=48, unbiased=('key',)),
    ),
    (
        'DINOv3ViT',  # as the 7B
        dict(
            num_register_tokens=4,
            intermediate_size=48,
            query_bias=False,
            value_bias=False,
            use_gated_mlp=True,
            hidden_act='silu',
        ),
        dict(
            codes='rotary',
            num_registers=4,
            epsilon=1e-5,
            mlp_dim=48,
            gated=True,
            unbiased=('query', 'key', 'value'),
        ),
    ),
]


@pytest.mark.parametrize('name, theirs, fields', DINOS)
def test_dinos_are_hugging_faces_at_any_size(tmp_path, name, theirs, fields):
    """At their own grid, at an odd one and at one with fewer cells; read from their folder."""
    model = hugging_face(name, **theirs)
    model.save_pretrained(tmp_path)
    variables = read_variables(tmp_path)
    params = {'params': variables['params']['backbone']}
    ours = vit.ViT(image_size=(20, 20), **OURS | fields)
    shapes = jax.eval_shape(lambda: ours.init(jax.random.key(0), IMAGES, train=False))
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, shapes)
    for height, width in [(20, 20), (12, 28), (8, 16)]:
        images = IMAGES[:, :height, :width]
        expected = features_of(model, images, fields.get('num_registers', 0))
        found = jax.jit(partial(ours.apply, train=False))(params, images)[4]
        assert relative_error(found, expected) < 1e-5, (height, width)


@pytest.mark.parametrize(
    'name, fields',
    [
        ('vit_small_patch14_dinov2', dict()),
        (
            'vit_giant_patch14_reg4_dinov2',
            dict(codes='patches', num_registers=4, gated=True, mlp_dim=256),
        ),
        (
            'vit_small_patch16_dinov3_qkvb',
            dict(codes='rotary', num_registers=4, epsilon=1e-5, unbiased=('key',)),
        ),
        (
            'vit_small_plus_patch16_dinov3',
            dict(codes='rotary', num_registers=4, epsilon=1e-5, gated=True, unbiased=('key',)),
        ),
    ],
)
def test_dinos_are_timms(name, fields):
    torch = pytest.importorskip('torch')
    mend_torchvision()
    timm = pytest.importorskip('timm')
    size = dict(embed_dim=96, depth=2, num_heads=1, patch_size=4, num_classes=0)
    theirs = random_parameters(torch, timm.create_model(name, img_size=20, **size), 0.3)
    params = from_torch(numpy_state(theirs), num_heads=1)
    ours = vit.ViT(image_size=(20, 20), **OURS | dict(width=96, num_heads=1) | fields)
    images = IMAGES[:, :20, :20]
    shapes = jax.eval_shape(lambda: ours.init(jax.random.key(0), images, train=False))
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, shapes['params'])
    with torch.no_grad():
        expected = theirs.forward_features(torch.tensor(images).permute(0, 3, 1, 2))
    expected = expected[:, 1 + fields.get('num_registers', 0) :].reshape(2, 5, 5, 96)
    found = jax.jit(partial(ours.apply, train=False))({'params': params}, images)[4]
    assert relative_error(found, expected) < 1e-5


def test_kernels_of_patches_are_resized_as_timms():
    torch = pytest.importorskip('torch')
    mend_torchvision()
    embed = pytest.importorskip('timm.layers.patch_embed')
    kernel = np.random.default_rng(0).normal(size=(14, 14, 3, 5)).astype(np.float32)
    theirs = embed.resample_patch_embed(torch.tensor(kernel.transpose(3, 2, 0, 1)), [16, 16])
    ours = resize_kernel(kernel, 16)
    assert relative_error(ours, theirs.numpy().transpose(2, 3, 1, 0)) < 1e-4


@pytest.mark.parametrize('shape', [(7, 4), (4, 9), (2, 3)])
def test_antialiased_codes_are_torchs(shape):
    torch = pytest.importorskip('torch')
    x = np.random.default_rng(0).normal(size=(5, 6, 2)).astype(np.float32)
    theirs = torch.nn.functional.interpolate(
        torch.tensor(x).permute(2, 0, 1)[None], shape, mode='bicubic', antialias=True
    )[0].permute(1, 2, 0)
    np.testing.assert_allclose(vit.resize_codes(x, shape, True), theirs, rtol=1e-5, atol=1e-6)


def test_weights_of_larger_patches_and_another_grid_are_resampled(tmp_path):
    """As EoMT takes DINOv2: kernels of 14 pixels to 16, codes to its grid."""
    model = hugging_face('Dinov2WithRegisters', image_size=20)
    model.save_pretrained(tmp_path)
    fields = dict(codes='patches', num_registers=4, image_size=(24, 30))
    params = random_variables(vit.ViT(**OURS | dict(patch=6) | fields), IMAGES)['params']
    loaded = pretrained.load(tmp_path, {'params': {'backbone': params}, 'batch_stats': {}})
    found = loaded['params']['backbone']
    state = numpy_state(model)
    kernel = state['embeddings.patch_embeddings.projection.weight'].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(found['patches']['kernel'], resize_kernel(kernel, 6))
    codes = state['embeddings.position_embeddings'][0, 1:].reshape(5, 5, 32)
    np.testing.assert_array_equal(found['position'], vit.resize_codes(codes, (4, 5), True))


def test_coordinates_of_rotary_codes_are_rescaled_in_training_alone():
    model = vit.ViT(**OURS, codes='rotary')
    variables = random_variables(model, IMAGES)

    def out(train, key=0):
        rngs = {'dropout': jax.random.key(key)}
        return np.asarray(model.apply(variables, IMAGES, train=train, rngs=rngs)[4])

    np.testing.assert_array_equal(out(False), out(False, 1))
    assert np.abs(out(True) - out(True, 1)).max() > 1e-3
    np.testing.assert_array_equal(
        model.clone(rescale=1.0).apply(variables, IMAGES, train=True)[4], out(False)
    )
