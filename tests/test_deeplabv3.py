from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from rankseg_jax import backbones, models
from rankseg_jax.decoders.aspp import ASPP
from rankseg_jax.decoders.pixel_classifier import PixelClassifier
from rankseg_jax.frameworks import deeplabv3
from rankseg_jax.layers import resize
from rankseg_jax.pretrained import torch_layers
from rankseg_jax.pretrained.resnet import from_timm
from tests import golden as golden_files
from tests import tiny
from tests.helpers import apply, numpy_state, random_batch_norms, random_variables, relative_error
from tests.released import deeplabv3_decoder, full_logits


def test_golden_deeplabv3():
    g = golden_files.load('deeplabv3_rankseg')
    num_classes, num_heads = int(g['hparam/num_classes']), int(g['hparam/num_heads'])
    dilations = tuple(g['hparam/dilations'].tolist())
    hidden, dim = g['param/img_cls_head.block.mlp.fc1.weight'].shape
    params, statistics, classifier = deeplabv3_decoder(golden_files.state(g), num_heads)
    features = jnp.asarray(g['features_nchw'].transpose(0, 2, 3, 1))
    variables = {'params': params, 'batch_stats': statistics}
    decoder = ASPP(g['param/bottleneck.bn.weight'].shape[0], dilations)
    pixels = apply(decoder, variables, features, train=False)
    options = golden_files.rankseg(
        g, head='encoder', share_embedding=True, hidden=dim, num_heads=num_heads, mlp_dim=hidden
    )
    output = apply(
        PixelClassifier(num_classes, options),
        {'params': classifier},
        pixels,
        {32: features},
        train=False,
    )
    np.testing.assert_allclose(output.presence_logits, g['class_logits'], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(output.selection.labels, g['selected'])
    np.testing.assert_allclose(
        output.logits.transpose(0, 3, 1, 2), g['rank_logits_nchw'], rtol=1e-4, atol=1e-5
    )
    full = full_logits(output.logits, output.selection, num_classes).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(full, g['full_logits_nchw'], rtol=1e-4, atol=1e-5)
    golden_files.check_loss(g, output)


def test_baseline_is_torchvisions(monkeypatch):
    """The whole model at full width; torchvision has a second convolution after the branches."""
    torch, torchvision = pytest.importorskip('torch'), pytest.importorskip('torchvision')
    theirs = random_batch_norms(
        torch,
        torchvision.models.segmentation.deeplabv3_resnet50(
            weights=None, weights_backbone=None, num_classes=21, aux_loss=True
        ),
    )
    state = numpy_state(theirs)
    # 40 rows at stride 8, for a dilation of 36.
    images = np.random.default_rng(0).normal(size=(1, 313, 25, 3)).astype(np.float32)
    monkeypatch.setattr(deeplabv3, 'ASPP', partial(ASPP, fuse_kernels=(1, 3)))
    ours = deeplabv3.DeepLabV3(21, backbones.build('resnet50', output_stride=8), channels=256)
    output = apply(ours, from_torchvision(state), images, train=False)
    with torch.no_grad():
        expected = theirs(torch.tensor(images).permute(0, 3, 1, 2))
    for logits, name in ((output.logits, 'out'), (output.auxiliary_logits, 'aux')):
        assert (
            relative_error(resize(logits, images.shape[1:3]), expected[name].permute(0, 2, 3, 1))
            <= 1e-4
        )


def from_torchvision(state):
    """Variables of DeepLabV3 from those of torchvision's."""
    head = 'classifier.0'
    names = {
        ('decoder', f'branch{i}'): (f'{head}.convs.{i}.0', f'{head}.convs.{i}.1') for i in range(4)
    } | {
        ('decoder', 'pool'): (f'{head}.convs.4.1', f'{head}.convs.4.2'),
        ('decoder', 'fuse0'): (f'{head}.project.0', f'{head}.project.1'),
        ('decoder', 'fuse1'): ('classifier.1', 'classifier.2'),
        ('auxiliary',): ('aux_classifier.0', 'aux_classifier.1'),
    }
    flat = {}
    for path, (conv, norm) in names.items():
        flat['params', *path], flat['batch_stats', *path] = torch_layers.conv_norm(
            state, conv, norm
        )
    # The pooled branch is torchvision's last and our first.
    fuse = flat['params', 'decoder', 'fuse0']['conv']
    fuse['kernel'] = np.roll(fuse['kernel'], 256, 2)
    for name, theirs in (('classes', 'classifier'), ('auxiliary_classes', 'aux_classifier')):
        flat['params', 'classifier', name] = {
            'embedding': state[f'{theirs}.4.weight'][:, :, 0, 0],
            'bias': state[f'{theirs}.4.bias'],
        }
    backbone = from_timm(
        {
            key.removeprefix('backbone.'): value
            for key, value in state.items()
            if key.startswith('backbone.')
        }
    )
    flat |= {(collection, 'backbone'): tree for collection, tree in backbone.items()}
    return traverse_util.unflatten_dict(flat)


def test_output_stride_16_is_torchvisions():
    torch, torchvision = pytest.importorskip('torch'), pytest.importorskip('torchvision')
    model = random_batch_norms(
        torch, torchvision.models.resnet50(replace_stride_with_dilation=[False, False, True])
    )
    images = np.random.default_rng(0).normal(size=(2, 65, 49, 3)).astype(np.float32)
    backbone = backbones.build('resnet50', output_stride=16)
    features = apply(backbone, from_timm(numpy_state(model)), images, train=False)
    body = torchvision.models._utils.IntermediateLayerGetter(
        model, {f'layer{i}': str(i) for i in range(1, 5)}
    )
    with torch.no_grad():
        theirs = body(torch.tensor(images).permute(0, 3, 1, 2))
    for ours, expected in zip(features.values(), theirs.values(), strict=True):
        assert relative_error(ours, expected.permute(0, 2, 3, 1)) <= 1e-4


def test_deep_stem_is_timms():
    torch, timm = pytest.importorskip('torch'), pytest.importorskip('timm')
    model = random_batch_norms(torch, timm.create_model('resnet50c', pretrained=False))
    images = np.random.default_rng(0).normal(size=(1, 65, 49, 3)).astype(np.float32)
    backbone = backbones.build('resnet50_v1c')
    ours = apply(backbone, from_timm(numpy_state(model)), images, train=False)[32]
    with torch.no_grad():
        expected = model.forward_features(torch.tensor(images).permute(0, 3, 1, 2)).permute(
            0, 2, 3, 1
        )
    assert relative_error(ours, expected) <= 1e-4


def test_model_runs_at_odd_sizes_and_hands_every_image_its_own():
    config = tiny.config(
        '',
        model__framework='deeplabv3',
        rankseg__head='encoder',
        rankseg__pool=2,
        rankseg__hidden=8,
        rankseg__share_embedding=True,
    )
    model = models.build(config, 8)
    images = np.random.default_rng(0).normal(size=(3, 37, 21, 3)).astype(np.float32)
    variables = random_variables(model, images)
    apply = jax.jit(lambda images: model.apply(variables, images, train=False))
    together = apply(images)
    assert together.logits.shape == (3, 5, 3, 3) and together.auxiliary_logits.shape == (3, 5, 3, 3)
    for i in range(3):
        alone = apply(images[i : i + 1])
        np.testing.assert_allclose(together.logits[i : i + 1], alone.logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('output_stride, dilations', [(8, (1, 12, 24, 36)), (16, (1, 6, 12, 18))])
def test_dilations_follow_the_output_stride(output_stride, dilations):
    config = tiny.config('', model__framework='deeplabv3', model__output_stride=output_stride)
    assert models.build(config, 8).dilations == dilations
