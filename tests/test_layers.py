import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from configs import common
from rankseg_jax import layers, models
from rankseg_jax.backbones import swin
from rankseg_jax.decoders import query_decoder
from rankseg_jax.depthwise import depthwise
from rankseg_jax.layers import Block, ConvNorm, SelfAttention, adaptive_average_pool, attend, resize
from rankseg_jax.pretrained import torch_layers
from rankseg_jax.selector import Choice
from tests import tiny  # noqa: F401  (adds the backbones 'tiny' and so on)
from tests.helpers import (
    apply,
    numpy_state,
    random_like,
    random_parameters,
    random_variables,
    relative_error,
)

SIZES = [
    ((3, 4), (5, 7)),
    ((3, 4), (24, 31)),
    ((17, 25), (17, 25)),
    ((17, 25), (33, 49)),
    ((33, 49), (16, 10)),
    ((31, 9), (3, 40)),
    ((1, 1), (6, 5)),
    ((8, 13), (1, 1)),
]


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize('size, shape', SIZES)
def test_resize_is_torch_interpolate(size, shape):
    torch = pytest.importorskip('torch')
    x = random(2, *size, 3)
    expected = torch.nn.functional.interpolate(
        torch.tensor(x).permute(0, 3, 1, 2), shape, mode='bilinear', align_corners=False
    )
    resized = resize(jnp.asarray(x), shape)
    np.testing.assert_allclose(resized, expected.permute(0, 2, 3, 1), atol=2e-5)
    np.testing.assert_allclose(resize(jnp.asarray(x[0]), shape), resized[0], atol=1e-5)


@pytest.mark.parametrize('size, shape', SIZES + [((3, 3), (6, 6)), ((7, 10), (3, 6))])
def test_adaptive_average_pool_is_torch(size, shape):
    torch = pytest.importorskip('torch')
    x = random(2, *size, 3)
    expected = torch.nn.functional.adaptive_avg_pool2d(torch.tensor(x).permute(0, 3, 1, 2), shape)
    pooled = adaptive_average_pool(jnp.asarray(x), shape)
    np.testing.assert_allclose(pooled, expected.permute(0, 2, 3, 1), atol=1e-5)


def test_resize_and_pool_keep_bfloat16_and_do_not_lose_positions():
    x = jnp.asarray(np.linspace(0, 1, 600, dtype=np.float32)[None, :, None, None])  # [1, 600, 1, 1]
    for function, shape in [(resize, (900, 1)), (adaptive_average_pool, (7, 1))]:
        half = function(x.astype(jnp.bfloat16), shape)
        assert half.dtype == jnp.bfloat16
        np.testing.assert_allclose(half.astype(jnp.float32), function(x, shape), atol=8e-3)


@pytest.mark.parametrize('kernel, stride', [(1, 1), (1, 2), (3, 1), (3, 2), (7, 2)])
@pytest.mark.parametrize('train', [False, True])
def test_conv_norm_is_torch(kernel, stride, train):
    torch = pytest.importorskip('torch')
    x, layer = random(2, 9, 14, 3), ConvNorm(5, kernel, stride)
    variables = random_variables(layer, x)
    y, updated = apply(layer, variables, x, train=train, mutable=['batch_stats'])

    norm = torch.nn.BatchNorm2d(5).train(train)
    with torch.no_grad():
        for ours, theirs in [
            (variables['params']['norm']['scale'], norm.weight),
            (variables['params']['norm']['bias'], norm.bias),
            (variables['batch_stats']['norm']['mean'], norm.running_mean),
            (variables['batch_stats']['norm']['var'], norm.running_var),
        ]:
            theirs.copy_(torch.tensor(np.asarray(ours)))
        weight = torch.tensor(np.asarray(variables['params']['conv']['kernel'])).permute(3, 2, 0, 1)
        expected = torch.nn.functional.conv2d(
            torch.tensor(x).permute(0, 3, 1, 2), weight, stride=stride, padding=kernel // 2
        )
        count = expected.numel() // 5
        before = norm.running_var.clone()
        expected = torch.relu(norm(expected))
    np.testing.assert_allclose(y, expected.permute(0, 2, 3, 1), atol=2e-5)
    statistics = updated['batch_stats']['norm']
    np.testing.assert_allclose(statistics['mean'], norm.running_mean, atol=1e-6)
    biased = 0.9 * before + (norm.running_var - 0.9 * before) * (count - 1) / count
    np.testing.assert_allclose(statistics['var'], biased if train else before, rtol=1e-5)


def test_conv_norm_bfloat16_keeps_float32_parameters_and_statistics():
    x = jnp.asarray(random(4, 9, 9, 3))
    half, full = ConvNorm(8, dtype=jnp.bfloat16), ConvNorm(8)
    variables = random_variables(half, x)
    y, updated = apply(half, variables, x, train=True, mutable=['batch_stats'])
    assert y.dtype == jnp.bfloat16
    assert {v.dtype for v in jax.tree.leaves((variables, updated))} == {jnp.dtype('float32')}
    expected, statistics = apply(full, variables, x, train=True, mutable=['batch_stats'])
    np.testing.assert_allclose(y.astype(jnp.float32), expected, atol=0.05)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=0.01), updated, statistics)


def test_statistics_and_gradients_are_of_the_global_batch_on_eight_devices():
    x = random(16, 6, 7, 3) * np.arange(1, 17, dtype=np.float32)[:, None, None, None]
    layer = ConvNorm(4)
    variables = random_variables(layer, x)

    @jax.jit
    def step(variables, x):
        def loss(params):
            y, updated = layer.apply(
                {**variables, 'params': params}, x, train=True, mutable=['batch_stats']
            )
            return jnp.sum(y**3), (y, updated)

        return jax.value_and_grad(loss, has_aux=True)(variables['params'])

    mesh = Mesh(np.array(jax.devices()[:8]), ('data',))
    sharded = jax.device_put(x, NamedSharding(mesh, PartitionSpec('data')))
    assert len(sharded.addressable_shards) == 8 and sharded.addressable_data(0).shape[0] == 2
    replicated = jax.device_put(variables, NamedSharding(mesh, PartitionSpec()))
    ours, expected = step(replicated, sharded), step(variables, x)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3), ours, expected
    )


@pytest.fixture(params=['cpu', 'default'])
def platform(request, monkeypatch):
    """Makes `attend.__wrapped__` take the program of a CPU, or that of other devices."""
    monkeypatch.setattr(
        jax.lax, 'platform_dependent', lambda *args, **branches: branches[request.param](*args)
    )


def test_attention_is_flaxs_for_any_lengths(platform):
    query, key, value = (
        np.random.default_rng(i).normal(size=(2, n, 3, 8)).astype(np.float32)
        for i, n in enumerate((5, 9, 9))
    )
    ours = attend.__wrapped__(query, key, value)
    np.testing.assert_allclose(
        ours, nn.dot_product_attention(query, key, value), rtol=1e-5, atol=1e-6
    )


def test_half_precision_attention_has_a_full_softmax():
    """Scores of 72 ± 4, which bfloat16 would round to multiples of 0.5."""
    query, key, value = jnp.asarray(
        np.random.default_rng(0).normal(size=(3, 1, 100, 2, 64)), jnp.bfloat16
    )
    query, key = query + 3, key + 3
    exact = nn.dot_product_attention(*(x.astype(jnp.float32) for x in (query, key, value)))
    ours = attend(query, key, value)
    assert ours.dtype == jnp.bfloat16
    np.testing.assert_allclose(ours.astype(jnp.float32), exact, atol=0.02)


def test_self_attention_is_flaxs_with_a_bias_and_a_mask_given_at_each_call():
    x = random(2, 7, 24)
    ours, flaxs = SelfAttention(3), nn.MultiHeadDotProductAttention(3)
    variables = random_like(jax.eval_shape(lambda: flaxs.init(jax.random.key(0), x)))
    bias, mask = random(3, 7, 7, seed=1), random(2, 7, 7, seed=2) > -0.5
    theirs = nn.MultiHeadDotProductAttention(
        3, attention_fn=lambda q, k, v, mask: nn.dot_product_attention(q, k, v, bias, mask)
    )
    expected = theirs.apply(variables, x, mask=mask[:, None])
    y = ours.apply(variables, x, train=True, bias=bias, mask=mask)
    assert relative_error(y, expected) < 1e-6
    assert relative_error(ours.apply(variables, x, train=True), expected) > 0.1


def attention_inputs(targets, sources):
    """Queries, keys and values of three images and two heads, of which each has 8 channels."""
    return [random(3, n, 2, 8, seed=i) for i, n in enumerate((targets, sources, sources))]


def attention_weights(query, key, **dropout):
    """[B, heads, targets, sources]: what `attend` returns for one-hot values."""
    one_hot = np.broadcast_to(np.eye(key.shape[1])[:, None], (*key.shape[:3], key.shape[1]))
    return np.moveaxis(attend.__wrapped__(query, key, one_hot, **dropout), 1, 2)


def torch_attention(torch, channels, num_heads, rate):
    """MultiheadAttention without its projections."""
    module = torch.nn.MultiheadAttention(
        channels, num_heads, dropout=rate, bias=False, batch_first=True
    )
    with torch.no_grad():
        module.in_proj_weight.copy_(torch.eye(channels).repeat(3, 1))
        module.out_proj.weight.copy_(torch.eye(channels))
    return module


def test_attention_weights_are_dropped_as_in_torch(platform):
    """Each on its own, in every image, head and row, at the rate; the others are divided."""
    torch = pytest.importorskip('torch')
    query, key, value = attention_inputs(targets=5, sources=800)
    module = torch_attention(torch, 16, 2, rate=0.3)
    tensors = [torch.tensor(x).flatten(2) for x in (query, key, value)]
    theirs = [
        module.train(train)(*tensors, average_attn_weights=False)[1].detach().numpy()
        for train in (True, False)
    ]
    dropout = {'dropout_rng': jax.random.key(0), 'dropout_rate': 0.3}
    ours = attention_weights(query, key, **dropout), attention_weights(query, key)
    for dropped, exact in (theirs, ours):
        kept = dropped != 0
        np.testing.assert_allclose(dropped[kept], exact[kept] / 0.7, rtol=1e-5)
        rows = kept.reshape(-1, 800)  # [B · heads · targets, sources]
        assert abs(rows.mean() - 0.7) < 5 * (0.3 * 0.7 / rows.size) ** 0.5
        np.testing.assert_allclose(np.corrcoef(rows), np.eye(len(rows)), atol=5 / 800**0.5)


def test_the_backward_pass_drops_the_same_attention_weights(platform, monkeypatch):
    """PyTorch's attention, given our mask in place of its own, has our output and gradients."""
    torch = pytest.importorskip('torch')
    inputs = attention_inputs(targets=9, sources=13)
    dropout = {'dropout_rng': jax.random.key(0), 'dropout_rate': 0.3}
    kept = torch.tensor(attention_weights(*inputs[:2], **dropout) != 0).flatten(0, 1)
    monkeypatch.setattr(torch.nn.functional, 'dropout', lambda x, p: x * kept / (1 - p))
    tensors = [torch.tensor(x, requires_grad=True) for x in inputs]
    expected, _ = torch_attention(torch, 16, 2, rate=0.3)(*(x.flatten(2) for x in tensors))
    towards = random(*expected.shape)
    (expected * torch.tensor(towards)).sum().backward()

    ours, pull = jax.vjp(lambda *x: attend.__wrapped__(*x, **dropout), *inputs)
    np.testing.assert_allclose(ours.reshape(expected.shape), expected.detach(), atol=1e-5)
    for gradient, tensor in zip(pull(towards.reshape(ours.shape)), tensors, strict=True):
        np.testing.assert_allclose(gradient, tensor.grad, atol=1e-5)
    # Neither scores nor masks, which have 3 · 2 · 9 · 13 elements, wait for the backward pass.
    assert max(np.size(leaf) for leaf in jax.tree.leaves(pull)) <= inputs[1].size


def test_self_attention_in_training_is_on_average_that_of_evaluation():
    x, attention = random(2, 7, 24), SelfAttention(3, dropout=0.1)
    variables = random_like(
        jax.eval_shape(lambda: attention.init(jax.random.key(0), x, train=False))
    )
    exact = attention.apply(variables, x, train=False)

    def train(key):
        return attention.apply(variables, x, train=True, rngs={'dropout': key})

    draws = np.asarray(jax.jit(jax.vmap(train))(jax.random.split(jax.random.key(1), 4000)))
    error = (draws.mean(0) - exact) / (draws.std(0) / len(draws) ** 0.5)
    assert draws.std(0).min() > 0 and np.abs(error).max() < 5

    def program(module, train):
        def run(x):
            return module.apply(variables, x, train=train, rngs={'dropout': jax.random.key(0)})

        return jax.jit(run).lower(x).as_text()

    undropped = program(SelfAttention(3), train=True)
    assert undropped == program(SelfAttention(3), train=False) == program(attention, train=False)
    assert undropped != program(attention, train=True)


@pytest.mark.parametrize(
    'framework, backbone, head, with_dropout, without',
    [
        ('segmenter', 'tiny_vit', 'first_block', 3, 2),  # 3 layers of the decoder; the backbone
        ('upernet', 'swin_tinier', 'encoder', 1, 4),
        ('upernet', 'tiny_pyramid', 'decoder', 2, 0),
        ('maskformer', 'tiny', 'encoder', 2 * 3 + 1, 0),  # queries attend twice in each layer
        ('mask2former', 'tiny', 'encoder', 1, 2 * 3),
        ('eomt', 'tiny_vit', 'encoder', 1, 2),
    ],
)
def test_the_layers_that_drop_attention_weights_are_those_of_the_released_code(
    framework, backbone, head, with_dropout, without, monkeypatch
):
    rates = []

    @functools.wraps(attend)
    def spy(*args, dropout_rng=None, dropout_rate, **options):
        rates.append(dropout_rate if dropout_rng is not None else 0)
        return attend(*args, dropout_rng=dropout_rng, dropout_rate=dropout_rate, **options)

    for module in (layers, swin, query_decoder):
        monkeypatch.setattr(module, 'attend', spy)
    config = common.get_config()
    config.model.update(framework=framework, backbone=backbone, channels=32)
    config.model.update(decoder_heads=2, decoder_layers=3, joint_blocks=1, num_queries=5)
    config.rankseg.update(num_selected=5, head=head, hidden=16, num_heads=2, layer=0, stride=8)
    model = models.build(config, num_classes=20)
    variables = jax.eval_shape(lambda: models.init(model, 20, 0, (64, 64)))
    rates.clear()

    def train(variables):
        choice = Choice(presence=np.zeros((2, 20), bool))
        rngs = {'dropout': jax.random.key(0)}
        return models.apply(
            model, variables, np.zeros((2, 64, 64, 3)), choice=choice, train=True, rngs=rngs
        )

    jax.eval_shape(train, variables)
    assert sorted(rates) == without * [0] + with_dropout * [0.1]


@pytest.mark.parametrize('gated', [False, True])
def test_block_is_dinov3s(gated):
    """Rotated patches, layer scales, no bias of keys; large values show each."""
    torch, transformers = pytest.importorskip('torch'), pytest.importorskip('transformers')
    from transformers.models.dinov3_vit.modeling_dinov3_vit import DINOv3ViTLayer

    config = transformers.DINOv3ViTConfig(
        hidden_size=24,
        num_attention_heads=3,
        intermediate_size=40,
        use_gated_mlp=gated,
        hidden_act='silu' if gated else 'gelu',
        attn_implementation='eager',
    )
    layer = random_parameters(torch, DINOv3ViTLayer(config), scale=0.5)
    state = numpy_state(layer)
    x, angles = random(2, 9, 24), 3 * random(6, 4)
    cos, sin = (f(torch.tensor(np.tile(angles, 2))) for f in (torch.cos, torch.sin))
    with torch.no_grad():
        expected = layer(torch.tensor(x), position_embeddings=(cos, sin)).numpy()

    def dense(name, *shape):
        kernel = state[f'{name}.weight'].T
        found = {'kernel': kernel.reshape(-1, *shape) if shape else kernel}
        if f'{name}.bias' in state:
            found['bias'] = state[f'{name}.bias'].reshape(shape or -1)
        return found

    attention = {
        name: dense(f'attention.{name[0]}_proj', 3, 8) for name in ('query', 'key', 'value')
    }
    out = dense('attention.o_proj')
    names = {'gate': 'gate', 'up': 'up', 'down': 'down'}
    names = names if gated else {'Dense_0': 'up', 'Dense_1': 'down'}
    params = {
        'LayerNorm_0': torch_layers.norm(state, 'norm1'),
        'LayerNorm_1': torch_layers.norm(state, 'norm2'),
        'MultiHeadDotProductAttention_0': attention
        | {'out': out | {'kernel': out['kernel'].reshape(3, 8, 24)}},
        'layer_scale1': state['layer_scale1.lambda1'],
        'layer_scale2': state['layer_scale2.lambda1'],
        'GatedMlp_0' if gated else 'Mlp_0': {
            ours: dense(f'mlp.{theirs}_proj') for ours, theirs in names.items()
        },
    }
    block = Block(3, 40, layer_scale=1.0, gated=gated, unbiased=('key',))
    shapes = jax.eval_shape(lambda: block.init(jax.random.key(0), x, train=False))['params']
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, shapes)
    ours = block.apply({'params': params}, x, train=False, rotation=angles)
    assert relative_error(ours, expected) < 1e-5


@pytest.mark.parametrize(
    'shape, taps, stride, dilation',
    [
        ((2, 9, 12, 4), 3, 1, 1),
        ((3, 8, 7, 6), 5, 2, 1),
        ((1, 12, 10, 3), 3, 1, 2),
        ((2, 6, 11, 2), 3, 2, 1),
        ((1, 1, 1, 2), 5, 1, 1),
    ],
)
@pytest.mark.parametrize('padding', ['SAME', ((2, 2), (4, 4))])
def test_depthwise_convolution_and_its_gradients_are_xlas(shape, taps, stride, dilation, padding):
    x, kernel = random(*shape), random(taps, taps, 1, shape[-1], seed=1)
    options = {
        'window_strides': (stride, stride),
        'padding': padding,
        'rhs_dilation': (dilation, dilation),
        'dimension_numbers': ('NHWC', 'HWIO', 'NHWC'),
        'feature_group_count': shape[-1],
    }
    ours, our_gradients = jax.vjp(lambda *given: depthwise(*given, **options), x, kernel)
    theirs, their_gradients = jax.vjp(
        lambda *given: jax.lax.conv_general_dilated(*given, **options), x, kernel
    )
    gradient = random(*theirs.shape, seed=2)
    for found, expected in zip(
        (ours, *our_gradients(gradient)), (theirs, *their_gradients(gradient)), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_the_kernels_gradient_in_half_precision_is_summed_in_full():
    """Each of 2 × 96 × 96 terms is 1, and a sum in bfloat16 ends at 256."""
    x, kernel = jnp.ones((2, 96, 96, 1), jnp.bfloat16), jnp.ones((3, 3, 1, 1), jnp.bfloat16)
    options = {'window_strides': (1, 1), 'padding': 'SAME', 'rhs_dilation': (1, 1)}
    out, back = jax.vjp(lambda kernel: depthwise(x, kernel, **options), kernel)
    assert back(jnp.ones_like(out))[0][1, 1, 0, 0] == 2 * 96 * 96
