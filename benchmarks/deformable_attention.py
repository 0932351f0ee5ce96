"""How to sample for deformable attention: the pixel decoder's way against others and grid_sample.

    python benchmarks/deformable_attention.py --out=benchmarks/results/deformable_attention.json

One image, 8 heads of width 32, 4 points on each of three levels, float32. The candidates take
turns. Ours are jitted; Hugging Face's runs in eager PyTorch. The backward pass computes gradients
with respect to values, points and weights. `memory` is the temporary memory that XLA reports for
the compiled program. Results and gradients must agree before anything is timed.
"""

import statistics
import sys
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import torch
from absl import app, flags

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.helpers import compile_for, ratio, save, take_turns
from rankseg_jax.decoders import pixel_decoder
from tests.helpers import mend_torchvision, relative_error

mend_torchvision()
from transformers.models.mask2former.modeling_mask2former import multi_scale_deformable_attention

_OUT = flags.DEFINE_string(
    'out', 'benchmarks/results/deformable_attention.json', 'JSON file of the results.'
)
_ROUNDS = flags.DEFINE_integer('rounds', 9, 'Timed runs per candidate.')
_SIZE = flags.DEFINE_integer('size', 512, 'Height and width of the image.')

PEER = 'grid_sample, PyTorch eager'


def random_inputs(shapes, num_heads=8, width=32, num_points=4):
    """The arguments of `pixel_decoder.sample`, and a cotangent of its result."""
    rng = np.random.default_rng(0)
    num_cells = sum(height * shape_width for height, shape_width in shapes)
    value, towards = rng.normal(size=(2, 1, num_cells, num_heads, width)).astype(np.float32)
    weights = rng.dirichlet(np.ones(len(shapes) * num_points), (1, num_cells, num_heads)).astype(
        np.float32
    )
    weights = weights.reshape(1, num_cells, num_heads, len(shapes), num_points)
    points = np.asarray(pixel_decoder.centers(shapes))[:, None, :, None] + rng.normal(
        0, 3, (*weights.shape, 2)
    )
    points = np.floor(8 * points) / 8 + 1 / 16  # off the lines between cells, where slopes jump
    return (value, points.astype(np.float32), weights), towards


def gather_then_sum(value, cells, shares):
    """`pixel_decoder.weighted_sum` with all rows gathered first, differentiated by XLA."""
    taken = jax.vmap(jax.vmap(lambda value, cells: value[cells]))(value, cells)  # [B, A, R, M, d]
    return jnp.einsum('barmd,barm->bamd', taken, shares)


def one_gather(value, points, weights, shapes):
    with mock.patch.object(pixel_decoder, 'weighted_sum', gather_then_sum):  # while it is traced
        # Not the jitted function, which may be traced already.
        return pixel_decoder.sample.__wrapped__(value, points, weights, shapes)


def by_level(value, points, weights, shapes):
    ends = np.cumsum([height * width for height, width in shapes])
    return sum(
        one_gather(
            level, points[:, :, :, i : i + 1], weights[:, :, :, i : i + 1], shapes[i : i + 1]
        )
        for i, level in enumerate(jnp.split(value, ends[:-1], 1))
    )


def products(value, points, weights, shapes):
    """Row weights × column weights × all cells of a level, for 256 queries of a head at a time."""

    def hat(places, size):  # [P] -> [P, size]
        return jnp.maximum(0, 1 - jnp.abs(places[:, None] - jnp.arange(size)))

    def sample_head(inputs):
        value, points, weights = inputs  # [L, d], [M, S, P, 2], [M, S, P]

        @jax.checkpoint
        def sample_query(inputs):
            points, weights = inputs  # [S, P, 2], [S, P]
            cells = [
                jnp.einsum(
                    'ph,pw->hw', hat(p[:, 1], height) * w[:, None], hat(p[:, 0], width)
                ).reshape(-1)
                for p, w, (height, width) in zip(points, weights, shapes, strict=True)
            ]
            return jnp.concatenate(cells) @ value  # [d]

        return jax.lax.map(sample_query, (points, weights), batch_size=256)

    heads = [x.swapaxes(1, 2) for x in (value, points, weights)]
    out = jax.lax.map(sample_head, [x.reshape(-1, *x.shape[2:]) for x in heads])  # [B · A, M, d]
    return out.reshape(*heads[0].shape[:2], *out.shape[1:]).swapaxes(1, 2)


CANDIDATES = {
    'kept: gathers summed, one scatter a head': pixel_decoder.sample,
    'one gather, then the sum': one_gather,
    'level by level': by_level,
    'products with interpolation weights': products,
}


def ours(sample, inputs, towards, shapes):
    """Functions that run the forward pass alone and with gradients, and the MB each needs."""

    def forward(*inputs):
        return sample(*inputs, shapes)

    def backward(towards, *inputs):
        out, pull = jax.vjp(forward, *inputs)
        return out, pull(towards)

    inputs, towards = jax.device_put((inputs, towards))
    (forward, forward_mb), (backward, backward_mb) = (
        compile_for(forward, *inputs),
        compile_for(backward, towards, *inputs),
    )
    return (
        lambda: jax.block_until_ready(forward(*inputs)),
        lambda: jax.block_until_ready(backward(towards, *inputs)),
        {'forward': forward_mb, 'backward': backward_mb},
    )


def hugging_faces(inputs, towards, shapes):
    inputs, towards = [torch.tensor(x, requires_grad=True) for x in inputs], torch.tensor(towards)
    sizes = torch.tensor(shapes).flip(1)[:, None]  # [L, 1, 2] (width, height)

    def forward():
        value, points, weights = inputs
        return multi_scale_deformable_attention(
            value, shapes, (points + 0.5) / sizes, weights
        ).view(value.shape)

    def alone():
        with torch.inference_mode():
            return forward()

    def backward():
        out = forward()
        return out.detach(), torch.autograd.grad(out, inputs, towards)

    return alone, backward, {}


def main(_):
    shapes = tuple(
        (_SIZE.value // stride, _SIZE.value // stride) for stride in pixel_decoder.STRIDES
    )
    arguments = *random_inputs(shapes), shapes
    made = {PEER: hugging_faces(*arguments)} | {
        name: ours(sample, *arguments) for name, sample in CANDIDATES.items()
    }
    results = {name: {'memory': memory} for name, (_, _, memory) in made.items()}
    expected = jax.tree.leaves(made[PEER][1]())
    for name, (_, backward, _) in made.items():
        differences = [
            relative_error(*pair)
            for pair in zip(jax.tree.leaves(backward()), expected, strict=True)
        ]
        results[name]['difference'] = float(max(differences))
        if max(differences) > 1e-3:
            raise ValueError(
                f'{name} differs from {PEER}: relative errors of the result and of the three '
                f'gradients are {differences}'
            )
    for i, part in enumerate(('forward', 'backward')):
        seconds = take_turns({name: runs[i] for name, runs in made.items()}, _ROUNDS.value)
        for name, row in results.items():
            row[part] = {'seconds': seconds[name], 'ratio': ratio(seconds, name, PEER)}
    print(
        f'| sampling at {_SIZE.value} x {_SIZE.value} | forward s | ratio | memory MB '
        '| forward and backward s | ratio | memory MB | difference |\n|' + '---|' * 8
    )
    for name, row in results.items():
        cells = [
            f'{statistics.median(row[part]["seconds"]):.3f} | {row[part]["ratio"]:.2f} | '
            + (f'{row["memory"][part]:.0f}' if row['memory'] else '–')
            for part in ('forward', 'backward')
        ]
        print(f'| {name} | {cells[0]} | {cells[1]} | {row["difference"]:.1e} |')
    save(results, _OUT.value)


if __name__ == '__main__':
    app.run(main)
