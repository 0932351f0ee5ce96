"""What the backward pass keeps and computes again, by `config.model.remat_policy`.

    python benchmarks/remat.py

Traces the gradient of models (bfloat16, one image at the recipe's crop) and adds up the results of
the forward pass that the backward pass is given besides the parameters, and the floating-point
operations of both before XLA optimizes them; no array is made. Prints a table and writes
results/remat.json.
"""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import jax
import jax.numpy as jnp
import numpy as np
from absl import app

from configs import eomt, segmenter, upernet
from rankseg_jax import models
from rankseg_jax.layers import REMAT_POLICIES

RESULTS = ROOT / 'benchmarks/results/remat.json'
MODELS = {
    'Segmenter, ViT-L/16': segmenter.get_config('ade20k_l16'),
    'EoMT, DINOv2-L': eomt.get_config('coco_panoptic_l'),
    'UPerNet, Swin-B': upernet.get_config('ade20k_swin_b'),
    'UPerNet, BEiT-L': upernet.get_config('ade20k_beit_l'),
}


def cost(config, policy: str | None) -> dict[str, float]:
    """GB that are kept for one image, and the gradient's TFLOPs."""
    config.model.update(dtype='bfloat16', remat=policy is not None)
    config.model.remat_policy = policy or REMAT_POLICIES[0]
    model = models.build(config, 150)
    images = jax.ShapeDtypeStruct((1, *config.augment.crop_size, 3), np.float32)
    variables = jax.eval_shape(lambda: models.init(model, 150, 0, config.augment.crop_size))
    params = variables['params']

    def total(params, images):
        output, _ = model.apply(
            variables_of(params),
            images,
            train=True,
            mutable=['batch_stats'],
            rngs={'dropout': jax.random.key(0)},
        )
        return sum(jnp.square(x.astype(jnp.float32)).mean() for x in floats(output))

    def variables_of(params):
        rest = {name: x for name, x in variables.items() if name != 'params'}
        return {'params': params} | jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), rest)

    def size(tree):
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))

    kept = jax.eval_shape(lambda *args: jax.vjp(total, *args)[1], params, images)
    operations = jax.jit(jax.grad(total)).lower(params, images).cost_analysis()['flops']
    return {'kept': (size(kept) - size(params)) / 1e9, 'operations': operations / 1e12}


def floats(tree):
    return [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]


def table(rows: dict) -> str:
    """GB kept for an image, and how many times the operations without remat, in Markdown."""
    lines = [
        '| model | ' + ' | '.join(f'`{policy or "remat = False"}`' for policy in POLICIES) + ' |',
        '|---|' + '---|' * len(POLICIES),
    ]
    for name, found in rows.items():
        least = found['None']['operations']
        cells = [
            f'{found[str(policy)]["kept"]:.2f} GB, {found[str(policy)]["operations"] / least:.2f} ×'
            for policy in POLICIES
        ]
        lines.append(f'| {name} | {" | ".join(cells)} |')
    return '\n'.join(lines)


POLICIES = (None, *reversed(REMAT_POLICIES))


def main(_) -> None:
    rows = {}
    for name, config in MODELS.items():
        rows[name] = {str(policy): cost(config, policy) for policy in POLICIES}
        print(name, rows[name], flush=True)
    RESULTS.write_text(json.dumps(rows, indent=1) + '\n')
    print(table(rows))


if __name__ == '__main__':
    app.run(main)
