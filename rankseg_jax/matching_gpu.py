"""Bipartite matching on a GPU: one program solves one problem, where XLA's loops would launch many.

Successive shortest paths with prices (Jonker and Volgenant, Computing 1987), exact. A vector of
lanes holds the queries; the targets join one after the other.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton


def kernel(valid_ref: Any, costs_ref: Any, targets_ref: Any) -> None:
    """The target of each query, or -1.

    All loops end, even where costs are not finite: each step of a search settles another query or
    finds a free one.

    Args:
      valid_ref: [N] int32, 0: padding.
      costs_ref: [N, L], a power of two of queries and no fewer than targets.
      targets_ref: the result, [L] int32.
    """
    num_targets, num_lanes = costs_ref.shape
    lane = lax.iota(jnp.int32, num_lanes)

    def at(x, index):  # x[index]; 0 at no lane
        return jnp.sum(jnp.where(lane == index, x, 0))

    def join(n, state):
        prices, targets = state  # [L] each

        def step(search):
            """Relaxes the edges of `target`, then settles the nearest query, a free one first."""
            query, target, nearest, distances, previous, settled = search
            settled |= lane == query
            edges = costs_ref[target, :] - prices
            edges += nearest - at(edges, query)  # the edge that led here has length 0
            closer = (edges < distances) & ~settled
            distances = jnp.where(closer, edges, distances)
            previous = jnp.where(closer, target, previous)
            ahead = jnp.where(settled, jnp.inf, distances)
            nearest = jnp.min(ahead)
            keys = jnp.where(ahead == nearest, targets * num_lanes + lane, 2**31 - 1)
            key = jnp.min(keys)
            query, target = key & (num_lanes - 1), key >> (num_lanes.bit_length() - 1)
            return query, target, nearest, distances, previous, settled

        start = (
            jnp.int32(-1),
            n,
            jnp.float32(0),
            jnp.full(num_lanes, jnp.inf, jnp.float32),
            jnp.full(num_lanes, n),
            jnp.full(num_lanes, False),
        )
        search = lax.while_loop(lambda search: search[1] >= 0, step, step(start))
        query, _, nearest, distances, previous, settled = search

        def hand_over(path):
            """Gives `query` to the target that led to it, whose own query comes next."""
            query, _, targets = path
            target = at(previous, query)
            left = jnp.sum(jnp.where(targets == target, lane, 0))
            return left, target, jnp.where(lane == query, target, targets)

        path = (query, jnp.int32(-1), targets)
        _, _, targets = lax.while_loop(lambda path: path[1] != n, hand_over, path)
        return jnp.where(settled, prices + distances - nearest, prices), targets

    def skip_padding(n, state):
        return lax.cond(valid_ref[n] != 0, join, lambda n, state: state, n, state)

    state = jnp.zeros(num_lanes, jnp.float32), jnp.full(num_lanes, -1, jnp.int32)
    _, targets_ref[:] = lax.fori_loop(0, num_targets, skip_padding, state)


def assign(costs: jax.Array, valid: jax.Array, *, interpret: bool = False) -> jax.Array:
    """As `matching.assign`.

    On a mesh every device solves all problems: XLA cannot partition the kernel and gathers the
    costs. They are small, and problems run side by side.
    """
    num_queries, num_targets = costs.shape[-2:]
    num_lanes = pl.next_power_of_2(max(num_queries, num_targets))
    valid = jnp.broadcast_to(valid, (*costs.shape[:-2], num_targets))
    costs = costs.astype(jnp.float32).reshape(-1, num_queries, num_targets)
    # Targets that are left over take lanes of no query, which cost more than any query.
    fill = jnp.inf if num_targets <= num_queries else costs.max((1, 2), keepdims=True) + 1
    lanes = jnp.arange(num_lanes)[:, None]
    costs = jnp.pad(costs, ((0, 0), (0, num_lanes - num_queries), (0, 0)))
    costs = jnp.where(lanes < num_queries, costs, fill).swapaxes(1, 2)  # [problems, N, L]
    targets = pl.pallas_call(
        kernel,
        grid=(len(costs),),
        in_specs=[
            pl.BlockSpec((None, num_targets), lambda i: (i, 0)),
            pl.BlockSpec((None, num_targets, num_lanes), lambda i: (i, 0, 0)),
        ],
        out_specs=pl.BlockSpec((None, num_lanes), lambda i: (i, 0)),
        out_shape=jax.ShapeDtypeStruct((len(costs), num_lanes), jnp.int32),
        # One warp reduces its lanes without a barrier.
        compiler_params=triton.CompilerParams(num_warps=max(1, num_lanes // 256), num_stages=1),
        interpret=interpret,
    )(valid.reshape(-1, num_targets).astype(jnp.int32), costs)
    matched = targets[:, :num_queries, None] == jnp.arange(num_targets)  # [problems, Q, N]
    queries = jnp.where(matched, jnp.arange(num_queries)[:, None], -1).max(1)
    return queries.reshape(valid.shape)
