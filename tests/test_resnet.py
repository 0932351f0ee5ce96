import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rankseg_jax import backbones
from rankseg_jax.backbones.resnet import VARIANTS, ResNet
from rankseg_jax.pretrained.resnet import from_timm

TIMM = ['resnet18', 'resnet34', 'resnet50', 'resnet101']


def timm_model(name):
    """timm's encoder with random weights, scales, offsets and statistics."""
    torch, timm = pytest.importorskip('torch'), pytest.importorskip('timm')
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False, features_only=True, out_indices=(1, 2, 3, 4))
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.1, 0.5)
            torch.nn.init.normal_(module.bias, std=0.2)
            torch.nn.init.normal_(module.running_mean, std=0.2)
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model


def random_images(*size, seed=0):
    return np.random.default_rng(seed).normal(size=(*size, 3)).astype(np.float32)


def relative_error(ours, expected):
    expected = np.asarray(expected)
    return np.abs(np.asarray(ours) - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize('name', TIMM)
@pytest.mark.parametrize('train', [False, True])
def test_features_and_statistics_are_timms(name, train):
    model = timm_model(name).train(train)
    torch = pytest.importorskip('torch')
    images = random_images(2, 65, 97)
    variables = from_timm(model.state_dict())
    variables = jax.tree.map(jnp.array, variables)  # torch updates its own statistics in place

    before, counts = {}, {}
    for path, module in model.named_modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            before[path] = module.running_var.clone()
            module.register_forward_pre_hook(
                lambda _, inputs, path=path: counts.update({path: inputs[0][:, 0].numel()})
            )
    with torch.no_grad():
        expected = model(torch.tensor(images).permute(0, 3, 1, 2))

    apply = jax.jit(backbones.build(name).apply, static_argnames=('train', 'mutable'))
    features, updated = apply(variables, images, train=train, mutable=('batch_stats',))
    assert list(features) == [4, 8, 16, 32]
    for ours, theirs in zip(features.values(), expected, strict=True):
        assert relative_error(ours, theirs.permute(0, 2, 3, 1)) <= 1e-4

    state = model.state_dict()
    if train:  # PyTorch keeps the unbiased variance, Flax the biased one
        for path, old in before.items():
            new = state[f'{path}.running_var']
            new.copy_(0.9 * old + (new - 0.9 * old) * (counts[path] - 1) / counts[path])
    errors = jax.tree.map(
        relative_error, updated['batch_stats'], from_timm(state)['batch_stats']
    )
    assert max(jax.tree.leaves(errors)) <= 1e-4


@pytest.mark.parametrize('name', TIMM)
def test_parameters_are_timms(name):
    timm = pytest.importorskip('timm')
    model = timm.create_model(name, pretrained=False, num_classes=0)
    variables = jax.eval_shape(
        lambda: backbones.build(name).init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False)
    )
    count = sum(leaf.size for leaf in jax.tree.leaves(variables['params']))
    assert count == sum(parameter.numel() for parameter in model.parameters())
    shapes = jax.tree.map(jnp.shape, from_timm(model.state_dict()))
    assert shapes == jax.tree.map(lambda leaf: leaf.shape, variables)


def test_torchvision_has_the_same_names():
    timm, torchvision = pytest.importorskip('timm'), pytest.importorskip('torchvision')
    ours = timm.create_model('resnet50', pretrained=False).state_dict()
    theirs = torchvision.models.resnet50(weights=None).state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}


def test_other_networks_weights_are_refused_by_name():
    with pytest.raises(ValueError, match=r"'conv1\.0\.weight'.*plain ResNet"):
        from_timm({'conv1.0.weight': np.zeros((32, 3, 3, 3))})


def test_unknown_name_lists_the_valid_ones():
    with pytest.raises(ValueError, match="'resnet19'.*resnet18, resnet34, resnet50, resnet101, narrow"):
        backbones.build('resnet19')
    assert all(isinstance(backbones.build(name), ResNet) for name in VARIANTS)
    with pytest.raises(ValueError, match="'deep'"):
        ResNet((1,), stem='deep').init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), train=False)


def narrow(size, dtype=jnp.float32):
    images = random_images(*size)
    model = backbones.build('narrow', dtype)
    return model, model.init(jax.random.key(0), images, train=False), images


@pytest.mark.parametrize('height, width', [(96, 96), (65, 97), (33, 32), (31, 1)])
def test_narrow_reaches_every_stride_at_any_size(height, width):
    model, variables, images = narrow((1, height, width))
    features = model.apply(variables, images, train=False)
    assert {stride: f.shape for stride, f in features.items()} == {
        stride: (1, -(-height // stride), -(-width // stride), 8 * stride)
        for stride in (4, 8, 16, 32)
    }


def test_narrow_is_small():
    _, variables, _ = narrow((1, 32, 32))
    assert 1e6 < sum(leaf.size for leaf in jax.tree.leaves(variables['params'])) < 3e6


def test_bfloat16_stays_near_float32():
    _, variables, images = narrow((4, 65, 64))
    for train in (False, True):
        half, full = (
            backbones.build('narrow', dtype).apply(
                variables, images, train=train, mutable=['batch_stats']
            )
            for dtype in (jnp.bfloat16, jnp.float32)
        )
        assert {leaf.dtype for leaf in jax.tree.leaves(half[1])} == {jnp.dtype('float32')}
        for stride, feature in half[0].items():
            assert feature.dtype == jnp.bfloat16
            assert relative_error(feature.astype(jnp.float32), full[0][stride]) < 0.03


def test_each_image_of_a_batch_gives_what_it_gives_alone():
    model, variables, images = narrow((3, 40, 56))
    together = model.apply(variables, images, train=False)
    for i in range(3):
        alone = model.apply(variables, images[i : i + 1], train=False)
        for stride in together:
            np.testing.assert_allclose(together[stride][i], alone[stride][0], atol=1e-5)
