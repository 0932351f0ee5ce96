import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rankseg_jax.decoders.uper import UPerHead
from tests.helpers import random_variables

SIZES = {4: (17, 25, 8), 8: (9, 13, 16), 16: (5, 7, 24), 32: (3, 4, 32)}  # an image of 65 x 97


def random_features(batch=4):
    rng = np.random.default_rng(0)
    return {s: rng.normal(size=(batch, *size)).astype(np.float32) for s, size in SIZES.items()}


def apply(head, variables, features, train=False):
    """(pixel embeddings, pyramid)."""
    return jax.jit(lambda *inputs: head.apply(*inputs, train=train, mutable=['batch_stats'])[0])(
        variables, features
    )


def torch_uper_head(variables, features, train):
    """UPerNet's decoder, written out level by level with torch's functions alone."""
    torch = pytest.importorskip('torch')
    F = torch.nn.functional
    variables = jax.tree.map(lambda v: torch.tensor(np.asarray(v)), variables)
    params, statistics = variables['params'], variables['batch_stats']

    def conv(name, x):
        weight = params[name]['conv']['kernel'].permute(3, 2, 0, 1)
        x = F.conv2d(x, weight, padding=weight.shape[-1] // 2)
        x = F.batch_norm(
            x,
            statistics[name]['norm']['mean'],
            statistics[name]['norm']['var'],
            params[name]['norm']['scale'],
            params[name]['norm']['bias'],
            training=train,
            eps=1e-5,
        )
        return F.relu(x)

    def up(x, like):
        return F.interpolate(x, size=like.shape[2:], mode='bilinear', align_corners=False)

    c2, c3, c4, c5 = (torch.tensor(features[s]).permute(0, 3, 1, 2) for s in (4, 8, 16, 32))
    pools = [up(conv(f'pool{n}', F.adaptive_avg_pool2d(c5, n)), c5) for n in (1, 2, 3, 6)]
    p5 = conv('pool_fuse', torch.cat([c5] + pools, dim=1))
    p4 = conv('lateral16', c4)
    p4 = p4 + up(p5, p4)
    p3 = conv('lateral8', c3)
    p3 = p3 + up(p4, p3)
    p2 = conv('lateral4', c2)
    p2 = p2 + up(p3, p2)
    o2, o3, o4 = conv('pyramid4', p2), conv('pyramid8', p3), conv('pyramid16', p4)
    fused = conv('fuse', torch.cat([o2, up(o3, o2), up(o4, o2), up(p5, o2)], dim=1))
    return fused, {4: o2, 8: o3, 16: o4, 32: p5}


@pytest.mark.parametrize('train', [False, True])
def test_equals_torch(train):
    features, head = random_features(), UPerHead(channels=16)
    variables = random_variables(head, features)
    pixels, pyramid = apply(head, variables, features, train)
    expected_pixels, expected_pyramid = torch_uper_head(variables, features, train)
    assert pixels.shape == (4, 17, 25, 16) and pyramid.keys() == expected_pyramid.keys()
    for ours, expected in [
        (pixels, expected_pixels),
        *((pyramid[s], expected_pyramid[s]) for s in SIZES),
    ]:
        atol = 1e-4 * float(expected.abs().max())
        np.testing.assert_allclose(ours, expected.permute(0, 2, 3, 1), rtol=1e-4, atol=atol)


def test_each_image_of_a_batch_gives_what_it_gives_alone():
    features, head = random_features(3), UPerHead(channels=8)
    variables = random_variables(head, features)
    together = apply(head, variables, features)
    for i in range(3):
        alone = apply(head, variables, {s: f[i : i + 1] for s, f in features.items()})
        jax.tree.map(
            lambda a, b, i=i: np.testing.assert_allclose(a[i], b[0], rtol=1e-5, atol=1e-5),
            together,
            alone,
        )


def test_bfloat16_stays_near_float32():
    features, half = random_features(), UPerHead(channels=16, dtype=jnp.bfloat16)
    variables = random_variables(half, features)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype('float32')}
    outputs = apply(half, variables, features)
    expected = apply(UPerHead(channels=16), variables, features)
    for a, b in zip(jax.tree.leaves(outputs), jax.tree.leaves(expected), strict=True):
        assert a.dtype == jnp.bfloat16
        assert np.abs(a.astype(np.float32) - b).max() < 0.03 * np.abs(b).max()


def test_pool_sizes_are_a_choice():
    features = random_features(1)
    params = random_variables(UPerHead(channels=8, pool_sizes=(1, 2)), features)['params']
    assert {name for name in params if name.startswith('pool')} == {'pool1', 'pool2', 'pool_fuse'}
    assert params['pool_fuse']['conv']['kernel'].shape == (3, 3, 32 + 2 * 8, 8)
