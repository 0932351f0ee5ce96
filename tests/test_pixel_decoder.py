import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rankseg_jax.decoders.pixel_decoder import DeformableAttention, PixelDecoder, centers, sample
from tests.helpers import random_variables

SHAPES = (2, 3), (4, 5), (7, 9)


def random_inputs(scale=2.0):
    """Values, points (some outside) and weights of SHAPES: two images, two heads, three points."""
    rng = np.random.default_rng(0)
    num_cells = sum(height * width for height, width in SHAPES)
    value = rng.normal(size=(2, num_cells, 2, 5))
    points = (
        np.asarray(centers(SHAPES))[:, None, :, None]
        + rng.normal(size=(2, num_cells, 2, 3, 3, 2)) * scale
    )
    return [np.float32(x) for x in (value, points, rng.normal(size=points.shape[:-1]))]


def torch_sample(torch, value, points, weights):
    """`sample` by PyTorch's grid_sample, level by level."""
    ends = np.cumsum([height * width for height, width in SHAPES])[:-1]
    levels, total = value.tensor_split(torch.tensor(ends), 1), 0
    for i, (level, (height, width)) in enumerate(zip(levels, SHAPES, strict=True)):
        # [B · A, d, h, w]
        level = level.permute(0, 2, 3, 1).reshape(-1, value.shape[-1], height, width)
        grid = (points[:, :, :, i] + 0.5) / torch.tensor([width, height]) * 2 - 1  # [B, M, A, P, 2]
        sampled = torch.nn.functional.grid_sample(
            level, grid.transpose(1, 2).flatten(0, 1), align_corners=False
        )  # [B · A, d, M, P]
        weight = weights[:, :, :, i].transpose(1, 2).flatten(0, 1)[:, None]  # [B · A, 1, M, P]
        total = total + (sampled * weight).sum(-1)  # [B · A, d, M]
    return total.reshape(value.shape[0], -1, *total.shape[1:]).permute(0, 3, 1, 2)


def test_sample_and_its_gradients_are_torchs():
    torch = pytest.importorskip('torch')
    inputs = random_inputs()
    tensors = [torch.tensor(x, requires_grad=True) for x in inputs]
    expected = torch_sample(torch, *tensors)
    towards = np.random.default_rng(1).normal(size=expected.shape).astype(np.float32)
    (expected * torch.tensor(towards)).sum().backward()
    ours, pull = jax.vjp(jax.jit(lambda *x: sample(*x, SHAPES)), *inputs)
    np.testing.assert_allclose(ours, expected.detach(), rtol=1e-4, atol=1e-5)
    for gradient, tensor in zip(pull(jnp.asarray(towards)), tensors, strict=True):
        np.testing.assert_allclose(gradient, tensor.grad, rtol=1e-4, atol=1e-4)


def test_points_in_the_middle_of_cells():
    """Initial points are there. The slope is the one towards the next cell, as in PyTorch."""
    value = jnp.arange(6.0).reshape(1, 6, 1, 1) ** 2  # rows 0, 1, 4 and 9, 16, 25

    def at(point):
        return sample(
            value, point.reshape(1, 1, 1, 1, 1, 2), jnp.ones((1, 1, 1, 1, 1)), ((2, 3),)
        ).sum()

    taken, slope = jax.value_and_grad(at)(jnp.array([1.0, 0.0]))
    assert taken == 1
    np.testing.assert_allclose(slope, [4 - 1, 16 - 1])


def test_bfloat16_values_are_summed_in_float32():
    """The 36 terms of a sum are rounded once, at the end: by at most 2⁻⁹ of it."""
    value, points, weights = random_inputs()
    value = jnp.bfloat16(value)
    half, pull = jax.vjp(lambda value: sample(value, points, weights, SHAPES), value)
    assert half.dtype == pull(half)[0].dtype == jnp.bfloat16
    full = sample(value.astype(np.float32), points, weights, SHAPES)
    np.testing.assert_allclose(half.astype(np.float32), full, rtol=0.004, atol=1e-6)


def test_attention_starts_as_published():
    """Eight heads attend in eight directions, one to four cells away, from every token alike."""
    x = jnp.ones((1, 6, 16))
    params = DeformableAttention(8).init(jax.random.key(0), x, jnp.zeros((6, 16)), ((2, 3),))[
        'params'
    ]
    offsets = params['offsets']['bias']  # [A, S, P, 2]
    np.testing.assert_allclose(offsets[1, 0], [(1, 1), (2, 2), (3, 3), (4, 4)], atol=1e-5)
    np.testing.assert_allclose(offsets[4, 0], [(-1, 0), (-2, 0), (-3, 0), (-4, 0)], atol=1e-5)
    for name in ('offsets', 'weights'):
        assert not params[name]['kernel'].any()


def test_images_are_independent_at_odd_sizes_and_gradients_reach_all_parameters():
    rng = np.random.default_rng(0)
    features = {
        stride: np.float32(rng.normal(size=(2, -(-37 // stride), -(-70 // stride), 3)))
        for stride in (4, 8, 16, 32)
    }
    model = PixelDecoder(channels=32, num_layers=1, num_heads=4, mlp_dim=8)
    variables = random_variables(model, features)

    @jax.jit
    def run(params, features):
        def total(params):
            maps, pixels = model.apply({'params': params}, features, train=False)
            return jnp.square(pixels - 1).mean(), (maps, pixels)

        return jax.grad(total, has_aux=True)(params)

    gradient, (maps, pixels) = run(variables['params'], features)
    _, (alone, _) = run(variables['params'], {stride: x[::-1] for stride, x in features.items()})
    assert {stride: x.shape for stride, x in maps.items()} == {
        32: (2, 2, 3, 32),
        16: (2, 3, 5, 32),
        8: (2, 5, 9, 32),
    }
    assert pixels.shape == (2, 10, 18, 32)
    for stride, x in maps.items():
        np.testing.assert_allclose(x[::-1], alone[stride], rtol=1e-4, atol=1e-4)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient))
