"""Counts the floating point operations of matrix products and convolutions in traced functions."""

import math

import jax


def product_flops(function, *arguments) -> int:
    """FLOPs of the products in `function(*arguments)`, two for each multiplication.

    They are counted in the trace, before XLA changes it: nothing that is computed twice to save
    memory, no padding, and no elementwise operation counts. Of branches the most expensive counts,
    and of a loop that ends on a condition one round.

    Args:
      arguments: arrays, or their shapes as `jax.ShapeDtypeStruct`.
    """
    return jaxpr_flops(jax.make_jaxpr(function)(*arguments))


def jaxpr_flops(jaxpr) -> int:
    """`product_flops` of a traced function."""
    return sum(equation_flops(equation) for equation in jaxpr.eqns)


def equation_flops(equation) -> int:
    """The FLOPs of one operation, and of the functions that it calls."""
    name, params = equation.primitive.name, equation.params
    out = equation.outvars[0].aval if equation.outvars else None
    if name == 'dot_general':
        (contracted, _), _ = params['dimension_numbers']
        left = equation.invars[0].aval.shape
        return 2 * math.prod(out.shape) * math.prod(left[axis] for axis in contracted)
    if name == 'conv_general_dilated':
        kernel = equation.invars[1].aval.shape
        outputs = kernel[params['dimension_numbers'].rhs_spec[0]]
        return 2 * math.prod(out.shape) * math.prod(kernel) // outputs
    called = [jaxpr_flops(jaxpr) for jaxpr in called_functions(params)]
    if name == 'cond':
        return max(called)
    return sum(called) * (params['length'] if name == 'scan' else 1)


def called_functions(params) -> list:
    """The traced functions among the parameters of an operation."""
    values = []
    for value in params.values():
        values += value if isinstance(value, tuple | list) else [value]
    return [value for value in values if hasattr(value, 'eqns')]
