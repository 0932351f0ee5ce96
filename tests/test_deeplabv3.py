import jax.numpy as jnp
import numpy as np
import pytest

from rankseg_jax import backbones, models
from rankseg_jax.decoders.aspp import ASPP
from rankseg_jax.decoders.pixel_classifier import PixelClassifier
from rankseg_jax.pretrained import released, torch_layers
from rankseg_jax.pretrained.resnet import from_timm
from rankseg_jax.ranking import full_logits
from tests import golden as golden_files
from tests import tiny
from tests.helpers import numpy_state, random_batch_norms, random_variables


def test_golden_deeplabv3():
    g = golden_files.load('deeplabv3_rankseg')
    num_classes, num_heads = int(g['hparam/num_classes']), int(g['hparam/num_heads'])
    dilations = tuple(g['hparam/dilations'].tolist())
    hidden, dim = g['param/img_cls_head.block.mlp.fc1.weight'].shape
    params, statistics, classifier = released.deeplabv3_decoder(golden_files.state(g), num_heads)
    features = jnp.asarray(g['features_nchw'].transpose(0, 2, 3, 1))
    pixels = ASPP(g['param/bottleneck.bn.weight'].shape[0], dilations).apply(
        {'params': params, 'batch_stats': statistics}, features, train=False)
    options = golden_files.rankseg(
        g, head='encoder', share_embedding=True, hidden=dim, num_heads=num_heads, mlp_dim=hidden)
    output = PixelClassifier(num_classes, options).apply({'params': classifier}, pixels, {32: features}, train=False)
    np.testing.assert_allclose(output.class_logits, g['class_logits'], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(output.selection.labels, g['selected'])
    np.testing.assert_allclose(output.logits.transpose(0, 3, 1, 2), g['rank_logits_nchw'], rtol=1e-4, atol=1e-5)
    full = full_logits(output.logits, output.selection, num_classes).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(full, g['full_logits_nchw'], rtol=1e-4, atol=1e-5)
    golden_files.check_loss(g, output)


@pytest.mark.parametrize('output_stride', [8, 16])
def test_dilated_backbone_is_torchvisions(output_stride):
    torch, torchvision = pytest.importorskip('torch'), pytest.importorskip('torchvision')
    model = random_batch_norms(torch, torchvision.models.resnet50(replace_stride_with_dilation=[False, output_stride == 8, True]))
    variables = from_timm(numpy_state(model))
    images = np.random.default_rng(0).normal(size=(2, 65, 49, 3)).astype(np.float32)
    features = backbones.build('resnet50', output_stride=output_stride).apply(variables, images, train=False)
    body = torchvision.models._utils.IntermediateLayerGetter(model, {f'layer{i}': str(i) for i in range(1, 5)})
    with torch.no_grad():
        theirs = body(torch.tensor(images).permute(0, 3, 1, 2))
    for ours, expected in zip(features.values(), theirs.values(), strict=True):
        close(ours, expected.permute(0, 2, 3, 1).numpy())


def test_deep_stem_is_timms():
    torch, timm = pytest.importorskip('torch'), pytest.importorskip('timm')
    model = random_batch_norms(torch, timm.create_model('resnet50c', pretrained=False))
    images = np.random.default_rng(0).normal(size=(1, 65, 49, 3)).astype(np.float32)
    ours = backbones.build('resnet50_v1c').apply(from_timm(numpy_state(model)), images, train=False)[32]
    with torch.no_grad():
        close(ours, model.forward_features(torch.tensor(images).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy())


def test_decoder_is_torchvisions():
    torch, torchvision = pytest.importorskip('torch'), pytest.importorskip('torchvision')
    head = random_batch_norms(torch, torchvision.models.segmentation.deeplabv3.DeepLabHead(24, 21))
    state = numpy_state(head)
    names = {'branch0': '0.convs.0.{}', 'branch1': '0.convs.1.{}', 'branch2': '0.convs.2.{}', 'branch3': '0.convs.3.{}',
             'pool': '0.convs.4.{}', 'fuse0': '0.project.{}', 'fuse1': '{}'}
    layers = {}
    for name, theirs in names.items():
        first = {'pool': 1, 'fuse1': 1}.get(name, 0)
        layers[name] = torch_layers.conv_norm(state, theirs.format(first), theirs.format(first + 1))
    kernel = layers['fuse0'][0]['conv']['kernel']  # over the branches, the pooled one last: ours has it first
    layers['fuse0'][0]['conv']['kernel'] = np.concatenate([kernel[:, :, 4 * 256:], kernel[:, :, :4 * 256]], 2)
    variables = {'params': {k: v[0] for k, v in layers.items()}, 'batch_stats': {k: v[1] for k, v in layers.items()}}
    features = np.random.default_rng(0).normal(size=(2, 9, 14, 24)).astype(np.float32)
    pixels = ASPP(256, fuse_kernels=(1, 3)).apply(variables, features, train=False)
    logits = pixels @ state['4.weight'][:, :, 0, 0].T + state['4.bias']
    with torch.no_grad():
        close(logits, head(torch.tensor(features).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy())


def test_model_runs_at_odd_sizes_and_hands_every_image_its_own():
    config = tiny.config('', model__framework='deeplabv3', rankseg__head='encoder', rankseg__pool=2, rankseg__hidden=8,
                         rankseg__share_embedding=True)
    model = models.build(config, 8)
    images = np.random.default_rng(0).normal(size=(3, 37, 21, 3)).astype(np.float32)
    variables = random_variables(model, images)
    together = model.apply(variables, images, train=False)
    assert together.logits.shape == (3, 5, 3, 3) and together.auxiliary_logits.shape == (3, 5, 3, 3)
    for i in range(3):
        alone = model.apply(variables, images[i:i + 1], train=False)
        np.testing.assert_allclose(together.logits[i:i + 1], alone.logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('output_stride, dilations', [(8, (1, 12, 24, 36)), (16, (1, 6, 12, 18))])
def test_dilations_follow_the_output_stride(output_stride, dilations):
    config = tiny.config('', model__framework='deeplabv3', model__output_stride=output_stride)
    assert models.build(config, 8).dilations == dilations


def close(ours, theirs):
    assert ours.shape == theirs.shape and np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max()
