"""The FLOPs that benchmarks/device.py counts."""

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from benchmarks.flops import product_flops
from rankseg_jax.layers import attend


def shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def forward(module, x):
    variables = jax.eval_shape(module.init, jax.random.key(0), x)
    return product_flops(module.apply, variables, x)


def test_products_and_convolutions():
    assert forward(nn.Dense(7), shape(2, 5, 3)) == 2 * 2 * 5 * 3 * 7
    conv = nn.Conv(8, (3, 3), strides=2, feature_group_count=2)
    assert forward(conv, shape(1, 8, 8, 4)) == 2 * (4 * 4 * 8) * (3 * 3 * 2)


def test_what_is_called_counts():
    def product(x, y):
        return x @ y

    def looped(x, y):
        return jax.lax.scan(lambda x, _: (jax.checkpoint(product)(x, y), None), x, length=6)

    def branched(x, y):
        return jax.lax.cond(x[0, 0] > 0, product, lambda x, y: product(product(x, y), y), x, y)

    matrices = shape(4, 4), shape(4, 4)
    assert product_flops(jax.jit(looped), *matrices) == 6 * 2 * 4**3
    assert product_flops(branched, *matrices) == 2 * 2 * 4**3


def test_attention_counts_alike_whatever_the_platform():
    tokens = shape(2, 10, 3, 8)
    assert product_flops(attend, tokens, tokens, tokens) == 2 * 2 * 2 * 3 * 10 * 10 * 8


def test_agrees_with_xla():
    def function(x, y, z):
        return x @ y @ z

    matrices = shape(8, 16), shape(16, 32), shape(32, 4)
    analysis = jax.jit(function).lower(*matrices).compile().cost_analysis()
    assert product_flops(function, *matrices) == pytest.approx(analysis['flops'], rel=0.01)
