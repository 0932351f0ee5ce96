"""UPerNet with RankSeg: as released, and what its config may change."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import traverse_util
from ml_collections import FrozenConfigDict

from rankseg_jax import models
from rankseg_jax.frameworks.upernet import UPerNet
from rankseg_jax.tasks.semantic import pixel_loss
from tests import golden as golden_files
from tests import tiny
from tests.helpers import random_variables
from tests.released import full_logits, upernet


class Given(nn.Module):
    """A backbone whose features are given."""

    features: dict[int, Any]

    def __call__(self, images, *, train):
        return dict(self.features)


def golden_case(case):
    """One of the two cases of the file, its names as in the other files."""
    names = {'in/': '', 'out/loss/': 'other_loss/', 'out/loss_': 'loss/loss_', 'out/': ''}
    found = {}
    for key, value in golden_files.load('upernet_rankseg').items():
        if key.startswith(f'{case}/'):
            key = key.removeprefix(f'{case}/')
            old = next((old for old in names if key.startswith(old)), '')
            found[names.get(old, '') + key.removeprefix(old)] = value
    return found


def released_model(g):
    """The model of a golden case, behind its features, and its variables."""
    features = {
        stride: jnp.asarray(g[f'features_{i}'].transpose(0, 2, 3, 1))
        for i, stride in enumerate((4, 8, 16, 32))
    }
    options = golden_files.rankseg(
        g,
        head='encoder',
        pyramid=False,
        separable=True,
        share_embedding=bool(g['hparam/share_embedding']),
        hidden=int(g['hparam/hidden_dim']),
        num_heads=int(g['hparam/num_heads']),
        mlp_dim=int(g['hparam/d_ff']),
    )
    model = UPerNet(
        num_classes=int(g['hparam/num_classes']),
        backbone=Given(features),
        channels=int(g['hparam/channels']),
        auxiliary=False,
        rankseg=options,
    )
    return model, upernet(golden_files.state(g), int(g['hparam/num_heads']))


def apply(model, variables, images):
    return jax.jit(lambda variables, images: model.apply(variables, images, train=False))(
        variables, images
    )


@pytest.mark.parametrize('case', ['shared', 'separate'])
def test_golden_upernet(case):
    """The Swins' recipe shares the class embeddings, the BEiTs' does not."""
    g = golden_case(case)
    model, variables = released_model(g)
    num_classes, images = model.num_classes, np.zeros((2, 80, 96, 3), np.float32)
    output = apply(model, variables, images)
    np.testing.assert_allclose(output.presence_logits, g['class_logits'], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(output.selection.labels, g['selected'])
    for logits, name in (
        (output.logits, 'rank_logits'),
        (full_logits(output.logits, output.selection, num_classes), 'full_logits'),
    ):
        np.testing.assert_allclose(logits.transpose(0, 3, 1, 2), g[name], rtol=1e-4, atol=1e-5)
    golden_files.check_loss(g, output)


@pytest.mark.parametrize('case', ['shared', 'separate'])
def test_golden_upernet_gradients(case):
    g = golden_case(case)
    model, variables = released_model(g)
    images = np.zeros((2, 80, 96, 3), np.float32)

    def loss(params):
        output = model.apply(variables | {'params': params}, images, train=False)
        return sum(part.value for part in golden_files.loss_parts(g, output).values())

    gradients = traverse_util.flatten_dict(jax.jit(jax.grad(loss))(variables['params']), sep='/')
    names = {
        'cls_emb': 'classifier/classes/embedding',
        'cls_bias_emb': 'classifier/classes/bias',
        'norm.weight': 'classifier/rank/temperature/norm/scale',
        'norm.bias': 'classifier/rank/temperature/norm/bias',
        'fpn_bottleneck.bn.weight': 'decoder/fuse/norm/scale',
        'img_cls_head.fc.W': 'classifier/head/classify/kernel',
        'img_cls_head.proj_dec.pointwise_conv.conv.weight': (
            'classifier/head/project/pointwise/kernel'
        ),
    }
    recorded = {key.removeprefix('grad/'): x for key, x in g.items() if key.startswith('grad/')}
    assert recorded.keys() == names.keys()
    for theirs, expected in recorded.items():
        ours, expected = gradients[names[theirs]], expected.squeeze()
        expected = expected.T if theirs.endswith('pointwise_conv.conv.weight') else expected
        np.testing.assert_allclose(ours, expected, rtol=1e-3, atol=1e-5 * np.abs(expected).max())


def test_golden_upernet_depends_on_each_choice():
    """A model that differs in one of the released choices gives other presence logits."""
    g = golden_case('separate')
    model, variables = released_model(g)
    images = np.zeros((2, 80, 96, 3), np.float32)
    other = model.clone(rankseg=FrozenConfigDict(model.rankseg.to_dict() | {'pyramid': True}))
    logits = apply(other, variables, images).presence_logits
    assert np.abs(logits - g['class_logits']).max() > 0.1


def tiny_config(**overrides):
    return tiny.config('', model__framework='upernet', model__backbone='tiny_pyramid', **overrides)


def test_the_auxiliary_head_selects_or_not():
    """Over all K it learns from all labels, those of categories that were not selected too."""
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    labels = np.random.default_rng(1).integers(-1, 8, (2, 32, 32)).astype(np.int32)
    found = {}
    for selects in (True, False):
        config = tiny_config(rankseg__select_auxiliary=selects, rankseg__missed='ignore')
        model = models.build(config, 8)
        variables = random_variables(model, images)
        output = apply(model, variables, images)
        assert output.logits.shape[-1] == 3
        assert output.auxiliary_logits.shape == (2, 2, 2, 3 if selects else 8)
        found[selects] = output, pixel_loss(output, labels, config=config, num_classes=8)
    (ours, ours_loss), (released, released_loss) = found[True], found[False]
    np.testing.assert_allclose(ours_loss['loss_pixel'].value, released_loss['loss_pixel'].value)
    np.testing.assert_allclose(
        ours.auxiliary_logits,
        np.take_along_axis(
            released.auxiliary_logits, released.selection.labels[:, None, None], axis=-1
        ),
        rtol=1e-4,
        atol=1e-6,
    )
    logits = jax.image.resize(
        released.auxiliary_logits, (2, 32, 32, 8), 'bilinear', antialias=False
    )
    costs = -np.take_along_axis(
        np.asarray(jax.nn.log_softmax(logits)), np.maximum(labels, 0)[..., None], axis=-1
    )[..., 0]
    expected = 0.4 * costs[labels >= 0].mean()
    np.testing.assert_allclose(released_loss['loss_auxiliary'].value, expected, rtol=1e-4)
