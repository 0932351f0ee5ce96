"""Which backbone goes with which framework."""

import re

import jax
import numpy as np
import pytest

from configs import common
from rankseg_jax import backbones, models, optimizers, tasks, train_step
from rankseg_jax.backbones import beit, efficientnet_lite, resnet, swin, vit
from tests import tiny
from tests.helpers import random_state

TINY = re.compile('tiny|tinier')  # of the tests
NAMES = {
    family: [name for name in family.VARIANTS if not TINY.search(name)]
    for family in (resnet, efficientnet_lite, swin, beit, vit)
}
SUITABLE = {
    'segmenter': [vit],
    'deeplabv3': [resnet, efficientnet_lite],  # of which the convolutions can be dilated
    'upernet': [resnet, efficientnet_lite, swin, beit],
    'mask2former': [resnet, efficientnet_lite, swin, beit],
    'maskformer': [resnet, efficientnet_lite, swin, beit],
    'eomt': [vit],
}


def config_of(framework, backbone):
    config = common.get_config()
    config.model.update(framework=framework, backbone=backbone, channels=256, decoder_heads=8)
    return config


@pytest.mark.parametrize('framework', SUITABLE)
def test_a_framework_takes_the_backbones_that_suit_it_and_names_them(framework):
    suitable = [name for family in SUITABLE[framework] for name in NAMES[family]]
    for name in (name for names in NAMES.values() for name in names):
        config = config_of(framework, name)
        if name in suitable:
            models.build(config, 60)
            continue
        with pytest.raises(ValueError) as error:
            models.build(config, 60)
        message = str(error.value)
        assert f'config.model.backbone = {name!r} does not suit' in message
        assert '\n' not in message and framework in message
        listed = message.split('use one of ')[1].split(', ')
        assert [name for name in listed if not TINY.search(name)] == suitable


def test_blocks_run_again_in_transformers_alone():
    config = config_of('upernet', 'resnet18')
    config.model.remat = True
    with pytest.raises(
        ValueError, match=r"backbone = 'resnet18' is not one; .* lower config.batch_size"
    ):
        models.build(config, 60)
    config.model.backbone = 'swin_t7'
    models.build(config, 60)


@pytest.mark.parametrize('framework', SUITABLE)
def test_an_unknown_name_is_refused_by_every_framework(framework):
    message = (
        "config.model.backbone = 'resnet19' is unknown; use one of .*resnet18.*swin_t7.*vit_b16"
    )
    with pytest.raises(ValueError, match=message):
        models.build(config_of(framework, 'resnet19'), 60)


def test_strides_are_those_of_the_features():
    images = np.zeros((1, 64, 64, 3), np.float32)
    for name in ('tiny', 'swin_tiny', 'tiny_vit'):
        backbone = backbones.build(name)
        features, _ = jax.eval_shape(
            lambda backbone=backbone: backbone.init_with_output(
                jax.random.key(0), images, train=False
            )
        )
        assert tuple(features) == backbone.strides
        for stride, feature in features.items():
            assert feature.shape[1:3] == (64 // stride, 64 // stride)


def test_options_reach_the_families_that_have_them():
    config = config_of('upernet', 'swin_t7')
    config.model.update(drop_path=0.3, remat=True, frozen_norm=True)
    remat = config.model.remat_policy
    backbone = models.build(config, 60).backbone
    assert backbone == backbones.build('swin_t7', drop_path=0.3, remat=remat)
    config.model.remat, config.model.backbone = False, 'resnet50'
    assert models.build(config, 60).backbone == backbones.build('resnet50', frozen_norm=True)
    config.model.framework = 'deeplabv3'
    expected = backbones.build('resnet50', frozen_norm=True, output_stride=8)
    assert models.build(config, 60).backbone == expected
    config = config_of('segmenter', 'vit_b16')
    config.model.drop_path, config.augment.crop_size = 0.1, (96, 64)
    expected = backbones.build('vit_b16', image_size=(96, 64), drop_path=0.1)
    assert models.build(config, 60).backbone == expected


def test_upernet_with_a_swin_has_hugging_faces_parameters():
    torch, transformers = pytest.importorskip('torch'), pytest.importorskip('transformers')
    stages = [f'stage{i}' for i in range(1, 5)]
    with torch.device('meta'):
        theirs = transformers.UperNetForSemanticSegmentation(
            transformers.UperNetConfig(
                backbone_config=transformers.SwinConfig(out_features=stages),
                auxiliary_in_channels=384,
                num_labels=150,
            )
        )
    expected = sum(
        value.numel()
        for name, value in theirs.named_parameters()
        if not name.startswith('backbone.swin.layernorm')  # unused
    )
    config = config_of('upernet', 'swin_t7')
    config.model.channels, config.rankseg = 512, None
    model = models.build(config, 150)
    shapes = jax.eval_shape(lambda: models.init(model, 150, 0, (64, 64)))
    assert sum(x.size for x in jax.tree.leaves(shapes['params'])) == expected


def test_upernet_with_a_swin_trains_a_step():
    config = tiny.config(
        '', model__framework='upernet', model__backbone='swin_tiny', model__dropout=0.0
    )
    model = models.build(config, 8)
    optimizer = optimizers.make_optimizer(config.optimizer, config.steps)
    state = random_state(
        jax.eval_shape(lambda: train_step.create_state(model, optimizer, config, 8))
    )
    rng = np.random.default_rng(0)
    batch = {
        'image': rng.normal(size=(2, 32, 32, 3)).astype(np.float32),
        'label': rng.integers(-1, 8, (2, 32, 32)).astype(np.int32),
        'mask': np.ones(2, bool),
    }
    task = tasks.build(config, 'abcdefgh')
    step = jax.jit(train_step.make_train_step(model, optimizer, config, task))
    after, metrics = step(state, batch)
    assert np.isfinite(metrics['loss'])
    before, after = (variables.model['params']['backbone'] for variables in (state, after))
    for path, moved in jax.tree_util.tree_leaves_with_path(
        jax.tree.map(lambda a, b: bool(np.any(a != np.asarray(b))), before, after)
    ):
        assert moved, jax.tree_util.keystr(path)
