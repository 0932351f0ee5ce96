import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rankseg_jax import backbones, pretrained
from rankseg_jax.backbones import swin
from rankseg_jax.pretrained.swin import from_torch, neighbors_first
from tests.helpers import numpy_state, random_parameters, random_variables, relative_error


def random_images(*shape):
    return np.random.default_rng(0).normal(size=(*shape, 3)).astype(np.float32)


def tiny(**fields):
    return swin.Swin(8, (1, 2, 1, 1), (1, 2, 2, 4), **{'window': 3} | fields)


def apply(model, params, images):
    return jax.jit(lambda params, images: model.apply({'params': params}, images, train=False))(
        params, images
    )


def hf_backbone(window=3, **options):
    """Hugging Face's backbone of the size of `tiny`, with random weights, scales and offsets."""
    torch, transformers = pytest.importorskip('torch'), pytest.importorskip('transformers')
    config = transformers.SwinConfig(
        embed_dim=8,
        depths=[1, 2, 1, 1],
        num_heads=[1, 2, 2, 4],
        window_size=window,
        out_features=[f'stage{i}' for i in range(1, 5)],
        **options,
    )
    return random_parameters(torch, transformers.SwinBackbone(config))


@pytest.mark.parametrize(
    'window, size, absolute', [(4, (65, 97), False), (7, (33, 130), False), (3, (64, 64), True)]
)
def test_features_are_hugging_faces(window, size, absolute):
    torch = pytest.importorskip('torch')
    theirs = hf_backbone(window, use_absolute_embeddings=absolute, image_size=size[0])
    images = random_images(2, *size)
    model = tiny(window=window, position_shape=(16, 16) if absolute else None)
    features = apply(model, from_torch(numpy_state(theirs)), images)
    with torch.no_grad():
        expected = theirs(torch.tensor(images).permute(0, 3, 1, 2)).feature_maps
    assert list(features) == [4, 8, 16, 32]
    for ours, feature in zip(features.values(), expected, strict=True):
        assert relative_error(ours, feature.permute(0, 2, 3, 1)) <= 1e-4


def test_older_names_are_read_alike(tmp_path):
    """The names of published files, which Hugging Face still writes."""
    theirs = hf_backbone()
    theirs.save_pretrained(tmp_path)
    file = pretrained.read(tmp_path / 'model.safetensors')
    assert 'encoder.layers.0.blocks.0.attention.self.query.weight' in ' '.join(file)
    jax.tree.map(np.testing.assert_array_equal, from_torch(file), from_torch(numpy_state(theirs)))


def test_mmsegs_names_and_order_of_neighbors():
    """Its patch merging is nn.Unfold, a norm and a Linear layer."""
    torch, timm = pytest.importorskip('torch'), pytest.importorskip('timm')
    torch.manual_seed(0)
    merging = timm.models.swin_transformer.PatchMerging(6)
    norm, linear = torch.nn.LayerNorm(24), torch.nn.Linear(24, 12, bias=False)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    images = torch.randn(1, 4, 6, 6)
    with torch.no_grad():
        for ours, theirs in (
            (merging.norm.weight, norm.weight),
            (merging.norm.bias, norm.bias),
            (merging.reduction.weight, linear.weight),
        ):
            ours.copy_(torch.tensor(neighbors_first(theirs.numpy())))
        unfolded = torch.nn.Unfold(2, stride=2)(images.permute(0, 3, 1, 2))  # [1, 24, 6]
        expected = linear(norm(unfolded.transpose(1, 2)))
        np.testing.assert_allclose(merging(images).reshape(1, 6, 12), expected, atol=1e-5)

    theirs = timm.models.swin_transformer.SwinTransformer(
        96, embed_dim=8, depths=(1, 1, 1, 1), num_heads=(1, 2, 2, 4), window_size=3, num_classes=0
    )
    state = {key: x for key, x in numpy_state(theirs).items() if not key.startswith('norm.')}
    norm = {leaf: np.random.default_rng(0).normal(size=16) for leaf in ('weight', 'bias')}
    renamed = {f'norm1.{leaf}': x for leaf, x in norm.items()}
    for key, value in state.items():
        if '.downsample.' in key:
            value = value[..., np.argsort(neighbors_first(np.arange(value.shape[-1])))]
        for pattern, replacement in (
            (r'^layers\.(\d)\.downsample', lambda m: f'layers.{int(m[1]) - 1}.downsample'),
            (r'^layers', 'stages'),
            (r'\.attn\.', '.attn.w_msa.'),
            (r'\.mlp\.fc1', '.ffn.layers.0.0'),
            (r'\.mlp\.fc2', '.ffn.layers.1'),
            (r'^patch_embed\.proj', 'patch_embed.projection'),
        ):
            key = re.sub(pattern, replacement, key)
        renamed[key] = value
    assert 'stages.0.downsample.reduction.weight' in renamed
    state |= {f'hidden_states_norms.stage2.{leaf}': x for leaf, x in norm.items()}
    jax.tree.map(np.testing.assert_array_equal, from_torch(renamed), from_torch(state))


def test_features_are_timms():
    """On whole windows: elsewhere timm rolls before it pads, unlike Mask2Former."""
    torch, timm = pytest.importorskip('torch'), pytest.importorskip('timm')
    theirs = random_parameters(
        torch,
        timm.models.swin_transformer.SwinTransformer(
            96,
            embed_dim=8,
            depths=(1, 2, 1, 1),
            num_heads=(1, 2, 2, 4),
            window_size=3,
            num_classes=5,
            strict_img_size=False,
            always_partition=True,
        ),
    )
    images = random_images(1, 96, 192)
    features = apply(tiny(), from_torch(numpy_state(theirs)), images)
    with torch.no_grad():
        expected = theirs.forward_intermediates(
            torch.tensor(images).permute(0, 3, 1, 2), intermediates_only=True
        )
    for ours, feature in zip(features.values(), expected, strict=True):
        feature = feature.permute(0, 2, 3, 1)
        assert (
            relative_error(ours, torch.nn.functional.layer_norm(feature, feature.shape[-1:]))
            <= 1e-4
        )


@pytest.mark.parametrize(
    'size, theirs',
    [
        ('t7', 'tiny_patch4_window7_224'),
        ('s7', 'small_patch4_window7_224'),
        ('b12', 'base_patch4_window12_384'),
        ('l12', 'large_patch4_window12_384'),
    ],
)
def test_parameters_are_timms(size, theirs):
    torch, timm = pytest.importorskip('torch'), pytest.importorskip('timm')
    with torch.device('meta'):
        model = timm.create_model(f'swin_{theirs}', num_classes=0)
    state = {
        name: np.broadcast_to(np.float32(0), value.shape)
        for name, value in model.state_dict().items()
    }
    ours = jax.eval_shape(
        lambda: backbones.build(f'swin_{size}').init(
            jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False
        )
    )
    assert jax.tree.map(jnp.shape, from_torch(state)) == jax.tree.map(jnp.shape, ours['params'])


@pytest.mark.parametrize('size', [(96, 96), (65, 97), (31, 1)])
def test_any_input_size(size):
    features = jax.eval_shape(
        lambda: tiny().init_with_output(jax.random.key(0), jnp.zeros((1, *size, 3)), train=False)[0]
    )
    for stride, feature in features.items():
        assert feature.shape == (1, -(-size[0] // stride), -(-size[1] // stride), 2 * stride)


def two_stages(**fields):
    return swin.Swin(8, (1, 2), (1, 2), 3, **fields)


def test_drop_path_and_remat():
    images = np.repeat(random_images(1, 32, 32), 8, 0)
    params = random_variables(two_stages(), images)['params']

    def gradient(**fields):
        def loss(params):
            model = two_stages(drop_path=0.9, **fields)
            feature = model.apply(
                {'params': params}, images, train=True, rngs={'dropout': jax.random.key(1)}
            )[8]
            return jnp.square(feature - 1).mean(), feature

        return jax.jit(jax.grad(loss, has_aux=True))(params)

    (kept, dropped), (again, _) = gradient(), gradient(remat='dots_with_no_batch_dims_saveable')
    # Each image of a batch draws on its own.
    assert len(np.unique(np.asarray(dropped).round(4), axis=0)) > 1
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), again, kept)


def test_bfloat16_stays_near_float32():
    images = random_images(1, 65, 64)
    params = random_variables(two_stages(), images)['params']
    half, full = (
        apply(two_stages(dtype=dtype), params, images) for dtype in (jnp.bfloat16, jnp.float32)
    )
    for stride, feature in half.items():
        assert feature.dtype == jnp.bfloat16
        assert relative_error(feature.astype(jnp.float32), full[stride]) < 0.05


def test_strange_names_are_named():
    with pytest.raises(ValueError, match="not the weights of a Swin: unknown names .'layer1'"):
        from_torch({'layer1': np.zeros(2)})
