"""Bytes of the training state on each device, from shapes alone: no array is made.

    python benchmarks/state_memory.py

The state is parameters, both moments of AdamW and averaged parameters, all float32, split over
`fsdp` as training splits them. Prints a Markdown table and writes results/state_memory.json.
"""

import json
import math
import sys
from pathlib import Path

import jax
from absl import app
from jax.sharding import AbstractMesh

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from configs import mask2former, segmenter
from rankseg_jax import models, optimizers, sharding, train_step

RESULTS = ROOT / 'benchmarks/results/state_memory.json'
MODELS = {
    'Segmenter ViT-L/16': segmenter.get_config('ade20k_l16_rankseg'),
    'Mask2Former Swin-L': mask2former.get_config('ade20k_swin_l_rankseg'),
}
DEVICES = (1, 8, 64, 256)


def state_shapes(config, num_classes: int) -> train_step.TrainState:
    """The shapes of the state before the first step, with AdamW and averages."""
    config.optimizer.name, config.ema = 'adamw', 0.999
    model = models.build(config, num_classes)
    optimizer = optimizers.make_optimizer(config.optimizer, config.steps)
    return jax.eval_shape(lambda: train_step.create_state(model, optimizer, config, num_classes))


def device_bytes(shapes: train_step.TrainState, mesh: AbstractMesh) -> int:
    """The bytes that a device of the mesh holds of a state."""
    shardings = sharding.state_shardings(mesh, shapes, shapes.model['params'])
    parts = jax.tree.map(
        lambda x, placed: math.prod(placed.shard_shape(x.shape)) * x.dtype.itemsize,
        shapes,
        shardings,
    )
    return sum(jax.tree.leaves(parts))


def main(_) -> None:
    rows = []
    for name, config in MODELS.items():
        for num_classes in (150, 20_000):
            shapes = state_shapes(config, num_classes)
            size = sum(x.size for x in jax.tree.leaves(shapes.model['params']))
            found = {
                devices: device_bytes(shapes, AbstractMesh((1, devices, 1), sharding.AXES))
                for devices in DEVICES
            }
            rows.append(
                {'model': name, 'num_classes': num_classes, 'parameters': size, 'bytes': found}
            )
    RESULTS.write_text(json.dumps(rows, indent=1) + '\n')
    print('| model | K | parameters |', ' | '.join(f'fsdp = {n}' for n in DEVICES), '|')
    print('|---|---|---|' + '---|' * len(DEVICES))
    for row in rows:
        cells = ' | '.join(f'{size / 1e6:,.0f} MB' for size in row['bytes'].values())
        size = f'{row["parameters"] / 1e6:.0f} M'
        print(f'| {row["model"]} | {row["num_classes"]:,} | {size} | {cells} |')


if __name__ == '__main__':
    app.run(main)
