"""ViT-B/16 on one image of 512 x 512, compared with timm's in PyTorch. CPU, float32, same weights.

    python benchmarks/vit_forward.py --out=benchmarks/results/vit_forward.json

The two take turns. Ours is jitted; timm's runs eagerly in inference mode. Both use all cores, their
default. Beside each time: the share of the peak, that of a large float32 matrix product in JAX
measured in the same run, that the matrix products of the network reach (flops.py). The product of
the same matrices in PyTorch is measured too. Parts of ours are timed alone, times their number.
"""

import statistics
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
from absl import app, flags

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.flops import product_flops
from benchmarks.helpers import machine, peak_shares, run, save, take_turns
from rankseg_jax import backbones, layers
from rankseg_jax.pretrained.vit import from_torch
from tests.helpers import mend_torchvision, numpy_state

mend_torchvision()
import timm

_OUT = flags.DEFINE_string(
    'out', 'benchmarks/results/vit_forward.json', 'JSON file of the results.'
)
_ROUNDS = flags.DEFINE_integer('rounds', 15, 'Timed runs per model.')
SIZE = (512, 512)


def make_forwards():
    """{name: function without arguments that returns features [1, N, D]}, and their FLOPs."""
    torch.manual_seed(0)
    theirs = timm.create_model('vit_base_patch16_224', img_size=SIZE, num_classes=0).eval()
    params = jax.device_put({'params': from_torch(numpy_state(theirs))})
    images = np.random.default_rng(0).normal(size=(1, *SIZE, 3)).astype(np.float32)
    tensor = torch.tensor(images).permute(0, 3, 1, 2).contiguous()
    model = backbones.build('vit_b16', image_size=SIZE)
    forward = jax.jit(
        lambda params, images: model.apply(params, images, train=False)[16].reshape(
            1, -1, model.width
        )
    )

    def timms():
        with torch.inference_mode():
            return theirs.forward_features(tensor)[:, 1:].numpy()

    forwards = {
        'timm, PyTorch eager': timms,
        'RankSeg-JAX, jitted': lambda: np.asarray(forward(params, images)),
    }
    return forwards, product_flops(forward, params, images)


def torch_gflops() -> float:
    """The GFLOP/s of the product by which `machine` measures JAX, in PyTorch."""
    x = torch.ones(2048, 2048)
    seconds = take_turns({'matmul': lambda: x @ x}, 9)['matmul']
    return 2 * 2048**3 / statistics.median(seconds) / 1e9


def parts() -> dict[str, float]:
    """Seconds that all parts of a kind take in a forward pass, each timed alone."""
    blocks, heads, tokens, width = 12, 12, 1 + SIZE[0] * SIZE[1] // 256, 768
    x, square = jnp.ones((1, tokens, width)), jnp.ones((width, width))
    mlp = layers.Mlp(4 * width)
    params = mlp.init(jax.random.key(0), x, train=False)
    qkv = [x.reshape(1, tokens, heads, -1)] * 3
    runs = {
        'MLPs': run(jax.jit(lambda params, x: mlp.apply(params, x, train=False)), params, x),
        'projections to and from heads': run(jax.jit(jnp.matmul), x, square),
        'attention of all heads': run(layers.attend, *qkv),
    }
    number = {'projections to and from heads': 4 * blocks}
    return {
        name: number.get(name, blocks) * statistics.median(seconds)
        for name, seconds in take_turns(runs, _ROUNDS.value).items()
    }


def main(_):
    computer = machine() | {'torch_matmul_gflops': torch_gflops()}
    forwards, flops = make_forwards()
    theirs, ours = (forward() for forward in forwards.values())
    seconds = take_turns(forwards, _ROUNDS.value)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    shares = peak_shares(medians, flops, computer)
    results = {
        'machine': computer,
        'gflop': flops / 1e9,
        'share_of_peak': shares,
        'parts': parts(),
        'seconds': seconds,
        'median': medians,
        'ratio': medians['RankSeg-JAX, jitted'] / medians['timm, PyTorch eager'],
        'difference': float(np.abs(ours - theirs).max() / np.abs(theirs).max()),
    }
    save(results, _OUT.value)
    print(f'{computer}\n\n| ViT-B/16, 512 x 512 | median seconds | share of peak |\n|---|---|---|')
    for name, median in medians.items():
        print(f'| {name} | {median:.3f} | {shares[name]:.0%} |')
    for name, value in results['parts'].items():
        print(f'| … {name} | {value:.3f} | |')
    print(
        f'\nratio {results["ratio"]:.2f}, largest difference {results["difference"]:.1e} of the '
        'largest feature'
    )


if __name__ == '__main__':
    app.run(main)
