"""Depthwise convolutions that are fast on CPUs, too."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def depthwise(
    x: jax.Array,
    kernel: jax.Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    *,
    rhs_dilation: Sequence[int],
    **options: Any,
) -> jax.Array:
    """A depthwise convolution, with arguments as in `jax.lax.conv_general_dilated`.

    On a CPU it is `shifted_products`: XLA's own takes 5 times as long forward and backward.

    Args:
      x: [B, H, W, C].
      kernel: [k, l, 1, C].
    """

    def by_xla(x, kernel):
        return lax.conv_general_dilated(
            x, kernel, window_strides, padding, rhs_dilation=rhs_dilation, **options
        )

    def by_products(x, kernel):
        size = [
            1 + (taps - 1) * step for taps, step in zip(kernel.shape[:2], rhs_dilation, strict=True)
        ]
        if isinstance(padding, str):
            pads = lax.padtype_to_pads(x.shape[1:3], size, window_strides, padding)
        else:
            pads = padding
        x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
        return shifted_products(x, kernel, tuple(window_strides), tuple(rhs_dilation))

    return lax.platform_dependent(x, kernel, cpu=by_products, default=by_xla)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def shifted_products(
    x: jax.Array, kernel: jax.Array, strides: tuple[int, int], dilation: tuple[int, int]
) -> jax.Array:
    """A depthwise convolution without padding: a sum over the taps of the kernel.

    The barriers keep XLA from computing it again within each operation that reads it.

    Args:
      x: [B, H, W, C].
      kernel: [k, l, 1, C].
      strides: of rows and columns.
      dilation: of the kernel's rows and columns.

    Returns:
      [B, H', W', C].
    """
    rows, columns = (
        shifts(taps, 1 + (length - 1 - (taps - 1) * step) // stride, stride=stride, step=step)
        for length, taps, stride, step in zip(
            x.shape[1:3], kernel.shape[:2], strides, dilation, strict=True
        )
    )
    return lax.optimization_barrier(
        sum(
            x[:, row, column] * kernel[i, j, 0]
            for i, row in enumerate(rows)
            for j, column in enumerate(columns)
        )
    )


def shifts(taps: int, count: int, *, stride: int, step: int) -> list[slice]:
    """For each tap of a kernel, the slice of `count` pixels that it sees along an axis."""
    return [slice(i * step, i * step + (count - 1) * stride + 1, stride) for i in range(taps)]


def shifted_products_forward(
    x: jax.Array, kernel: jax.Array, strides: tuple[int, int], dilation: tuple[int, int]
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    x = lax.optimization_barrier(x)
    return shifted_products(x, kernel, strides, dilation), (x, kernel)


def shifted_products_backward(
    strides: tuple[int, int],
    dilation: tuple[int, int],
    saved: tuple[jax.Array, jax.Array],
    gradient: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Gradients by x, the convolution's transpose, and by the kernel.

    The latter is summed over the rows of images one after another: XLA's reduction over
    [B, H', W'] for each tap takes 3 to 10 times as long.
    """
    x, kernel = saved
    gradient = lax.optimization_barrier(gradient)  # [B, H', W', C]
    spread = [
        ((taps - 1) * step, length - 1 - (count - 1) * stride, stride - 1)
        for length, count, taps, stride, step in zip(
            x.shape[1:3], gradient.shape[1:3], kernel.shape[:2], strides, dilation, strict=True
        )
    ]
    spread = lax.pad(gradient, jnp.zeros((), gradient.dtype), ((0, 0, 0), *spread, (0, 0, 0)))
    by_x = shifted_products(spread, kernel[::-1, ::-1], (1, 1), dilation)  # [B, H, W, C]

    taps, height, width = kernel.shape[0], *gradient.shape[1:3]
    columns = shifts(kernel.shape[1], width, stride=strides[1], step=dilation[1])

    def add_row(sums, index):
        image, row = index // height, index % height
        seen = lax.dynamic_slice(
            x, (image, row * strides[0], 0, 0), (1, 1 + (taps - 1) * dilation[0], *x.shape[2:])
        )[0, :: dilation[0]]  # [k, W, C]
        row = lax.dynamic_slice(gradient, (image, row, 0, 0), (1, 1, *gradient.shape[2:]))[0]
        row = row.astype(finer)
        return [each + seen[:, at] * row for each, at in zip(sums, columns, strict=True)], None

    finer = jnp.promote_types(x.dtype, 'float32')
    sums = [jnp.zeros((taps, *gradient.shape[2:]), finer) for _ in columns]  # [k, W', C]
    sums, _ = lax.scan(add_row, sums, jnp.arange(len(x) * height))
    by_kernel = jnp.stack([each.sum(1) for each in sums], axis=1)[:, :, None]  # [k, l, 1, C]
    return by_x, by_kernel.astype(kernel.dtype)


shifted_products.defvjp(shifted_products_forward, shifted_products_backward)
