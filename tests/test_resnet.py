import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rankseg_jax import backbones
from rankseg_jax.backbones.resnet import VARIANTS, ResNet
from rankseg_jax.pretrained.resnet import from_timm
from tests.helpers import random_batch_norms, random_variables, relative_error

TIMM = ['resnet18', 'resnet34', 'resnet50', 'resnet101']


def timm_model(name):
    """timm's encoder with random weights, scales, offsets and statistics."""
    torch, timm = pytest.importorskip('torch'), pytest.importorskip('timm')
    torch.manual_seed(0)
    return random_batch_norms(
        torch,
        timm.create_model(name, pretrained=False, features_only=True, out_indices=(1, 2, 3, 4)),
    )


def random_images(*size, seed=0):
    return np.random.default_rng(seed).normal(size=(*size, 3)).astype(np.float32)


def forward(model, images):
    """timm's features of every stride, channels last."""
    torch = pytest.importorskip('torch')
    with torch.no_grad():
        return [f.permute(0, 2, 3, 1) for f in model(torch.tensor(images).permute(0, 3, 1, 2))]


def apply(model, variables, images, train=False):
    """(features, updated statistics)."""
    return jax.jit(lambda *inputs: model.apply(*inputs, train=train, mutable=['batch_stats']))(
        variables, images
    )


@pytest.mark.parametrize('name', TIMM)
def test_features_are_timms(name):
    model, images = timm_model(name).eval(), random_images(2, 65, 97)
    variables = from_timm(model.state_dict())
    features, updated = apply(backbones.build(name), variables, images)
    assert list(features) == [4, 8, 16, 32]
    for ours, theirs in zip(features.values(), forward(model, images), strict=True):
        assert relative_error(ours, theirs) <= 1e-4
    jax.tree.map(np.testing.assert_array_equal, updated['batch_stats'], variables['batch_stats'])


@pytest.mark.parametrize('name', TIMM)
def test_training_features_and_statistics_are_timms(name):
    """In float64: a hundred layers of batch statistics multiply float32's rounding to over 1e-4."""
    torch = pytest.importorskip('torch')
    model, images = timm_model(name).train().double(), random_images(2, 65, 97).astype(np.float64)
    norms = {k: m for k, m in model.named_modules() if isinstance(m, torch.nn.BatchNorm2d)}
    before, counts = {k: norm.running_var.clone() for k, norm in norms.items()}, {}
    for key, norm in norms.items():
        norm.register_forward_pre_hook(
            lambda _, inputs, key=key: counts.update({key: inputs[0][:, 0].numel()})
        )
    with jax.enable_x64(True):
        variables = jax.tree.map(jnp.array, from_timm(model.state_dict()))
        features, updated = apply(backbones.build(name, jnp.float64), variables, images, train=True)
    for ours, theirs in zip(features.values(), forward(model, images), strict=True):
        assert relative_error(ours, theirs) <= 1e-9

    for key, norm in norms.items():  # PyTorch keeps the unbiased variance, Flax the biased one
        change = norm.running_var - 0.9 * before[key]
        norm.running_var.copy_(0.9 * before[key] + change * (counts[key] - 1) / counts[key])
    expected = from_timm(model.state_dict())['batch_stats']
    errors = jax.tree.map(relative_error, updated['batch_stats'], expected)
    assert max(jax.tree.leaves(errors)) <= 1e-9


@pytest.mark.parametrize('name', TIMM)
def test_parameters_are_timms(name):
    timm = pytest.importorskip('timm')
    model = timm.create_model(name, pretrained=False, num_classes=0)
    images = jnp.zeros((1, 32, 32, 3))
    variables = jax.eval_shape(
        lambda: backbones.build(name).init(jax.random.key(0), images, train=False)
    )
    count = sum(leaf.size for leaf in jax.tree.leaves(variables['params']))
    assert count == sum(parameter.numel() for parameter in model.parameters())
    shapes = jax.tree.map(jnp.shape, from_timm(model.state_dict()))
    assert shapes == jax.tree.map(lambda leaf: leaf.shape, variables)


def test_frozen_norms_are_torchvisions():
    """In training: features, gradients of kernels, none of scales and biases, fixed statistics."""
    torch, torchvision = pytest.importorskip('torch'), pytest.importorskip('torchvision')
    torch.manual_seed(0)
    theirs = torchvision.models.resnet18(
        weights=None, norm_layer=torchvision.ops.FrozenBatchNorm2d
    ).train()
    theirs.fc = torch.nn.Identity()
    with torch.no_grad():
        for name, value in theirs.named_buffers():
            value.uniform_(0.5, 1.5) if name.endswith(('weight', 'var')) else value.normal_(std=0.2)
    kept = {}
    for i in range(1, 5):
        theirs.get_submodule(f'layer{i}').register_forward_hook(
            lambda *x, i=i: kept.update({2 * 2**i: x[-1].permute(0, 2, 3, 1)})
        )
    images = random_images(2, 65, 97)
    theirs(torch.tensor(images).permute(0, 3, 1, 2))
    sum(feature.square().mean() for feature in kept.values()).backward()
    state = theirs.state_dict()
    gradients = {name: value.grad for name, value in theirs.named_parameters()}
    expected = from_timm(
        {name: gradients.get(name, torch.zeros_like(value)) for name, value in state.items()}
    )['params']

    variables = from_timm(state)

    def loss(params):
        features, updated = backbones.build('resnet18', frozen_norm=True).apply(
            variables | {'params': params}, images, train=True, mutable=['batch_stats']
        )
        return sum(jnp.square(feature).mean() for feature in features.values()), (features, updated)

    gradients, (features, updated) = jax.jit(jax.grad(loss, has_aux=True))(variables['params'])
    for stride, feature in kept.items():
        assert relative_error(features[stride], feature.detach()) <= 1e-4
    jax.tree.map(np.testing.assert_array_equal, updated['batch_stats'], variables['batch_stats'])
    for (path, ours), gradient in zip(
        jax.tree_util.tree_leaves_with_path(gradients), jax.tree.leaves(expected), strict=True
    ):
        if path[-1].key == 'kernel':
            assert np.abs(gradient).max() > 0 and relative_error(ours, gradient) <= 1e-4
        else:
            assert not np.any(ours)


def test_freezing_norms_changes_neither_parameters_nor_prediction():
    model, variables, images = narrow((1, 32, 32))
    frozen = backbones.build('narrow', frozen_norm=True)
    shapes = jax.eval_shape(lambda: frozen.init(jax.random.key(0), images, train=True))
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, variables)
    expected, _ = apply(model, variables, images)
    for train in (False, True):
        jax.tree.map(
            np.testing.assert_array_equal, apply(frozen, variables, images, train)[0], expected
        )


def test_torchvision_has_the_same_names():
    timm, torchvision = pytest.importorskip('timm'), pytest.importorskip('torchvision')
    ours = timm.create_model('resnet50', pretrained=False).state_dict()
    theirs = torchvision.models.resnet50(weights=None).state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}


def test_other_networks_weights_are_refused_by_name():
    with pytest.raises(ValueError, match=r"'layer1\.0\.se\.fc1\.weight'.*not a weight of a ResNet"):
        from_timm({'layer1.0.se.fc1.weight': np.zeros((32, 3, 1, 1))})


def test_unknown_name_lists_the_valid_ones():
    with pytest.raises(ValueError, match="'resnet19'.* resnet18, .*resnet101, .*narrow"):
        backbones.build('resnet19')
    assert all(isinstance(backbones.build(name), ResNet) for name in VARIANTS if 'resnet' in name)
    with pytest.raises(ValueError, match="'wide'"):
        ResNet((1,), stem='wide').init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), train=False)


def narrow(size, dtype=jnp.float32):
    images = random_images(*size)
    model = backbones.build('narrow', dtype)
    return model, random_variables(model, images), images


@pytest.mark.parametrize('height, width', [(96, 96), (65, 97), (33, 32), (31, 1)])
def test_narrow_reaches_every_stride_at_any_size(height, width):
    model, variables, images = narrow((1, height, width))
    features, _ = apply(model, variables, images)
    assert {stride: f.shape for stride, f in features.items()} == {
        stride: (1, -(-height // stride), -(-width // stride), 8 * stride)
        for stride in (4, 8, 16, 32)
    }


def test_narrow_is_small():
    _, variables, _ = narrow((1, 32, 32))
    assert 1e6 < sum(leaf.size for leaf in jax.tree.leaves(variables['params'])) < 3e6


def test_bfloat16_stays_near_float32():
    _, variables, images = narrow((4, 33, 64))
    for train in (False, True):
        half, full = (
            apply(backbones.build('narrow', dtype), variables, images, train)
            for dtype in (jnp.bfloat16, jnp.float32)
        )
        assert {leaf.dtype for leaf in jax.tree.leaves(half[1])} == {jnp.dtype('float32')}
        for stride, feature in half[0].items():
            assert feature.dtype == jnp.bfloat16
            assert relative_error(feature.astype(jnp.float32), full[0][stride]) < 0.03


def test_each_image_of_a_batch_gives_what_it_gives_alone():
    model, variables, images = narrow((3, 40, 56))
    together, _ = apply(model, variables, images)
    for i in range(3):
        alone, _ = apply(model, variables, images[i : i + 1])
        for stride in together:
            np.testing.assert_allclose(together[stride][i], alone[stride][0], atol=1e-5)
