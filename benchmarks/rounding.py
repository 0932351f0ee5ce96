"""How far does rounding alone carry a run? UPerNet, batch 8, on several meshes and on one device.

    python benchmarks/rounding.py

Thirty steps of the quick start at 48 × 48 pixels on 1, 2 and 8 simulated devices, and on one device
from parameters that differ in their last bit. Prints, after 1, 12 and 30 steps, how far parameters,
batch statistics and the loss lie from the run on one device, and writes results/rounding.json.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

os.environ['XLA_FLAGS'] = '--xla_force_host_platform_device_count=8'
ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import jax
import numpy as np
from absl import app

from configs import quickstart
from rankseg_jax import sharding, train
from rankseg_jax.data import pipeline

RESULTS = ROOT / 'benchmarks/results/rounding.json'
REPORTED = (1, 12, 30)


def relative_distance(found, expected) -> float:
    """The norm of the difference over the norm of the expected, all leaves together."""
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    squares = np.array([[np.square(a - b).sum(), np.square(b).sum()] for a, b in pairs])
    return float(np.sqrt(squares[:, 0].sum() / squares[:, 1].sum()))


def farthest(found, expected) -> tuple[str, float]:
    """The leaf that lies farthest, by name, and how far."""
    pairs = zip(sharding.named_leaves(found), jax.tree.leaves(expected), strict=True)
    distances = {name: relative_distance(a, b) for (name, a), b in pairs}
    name = max(distances, key=lambda name: distances[name])
    return name, distances[name]


def states(config, perturbed: bool = False) -> dict:
    """Step → (loss, variables) of a run."""
    setup = train.set_up(config)
    state, step = train.fresh_state(setup), train.jit_step(setup)
    if perturbed:
        away = jax.tree.map(lambda x: np.nextafter(x, np.float32(np.inf)), state.model['params'])
        state = state.replace(model=state.model | {'params': away})
    state, found = jax.device_put(state, setup.shardings), {}
    batches = pipeline.train_batches(setup.source, config, setup.task, start_step=0)
    for done in range(1, max(REPORTED) + 1):
        state, metrics = step(state, sharding.shard_batch(next(batches), setup.mesh))
        if done in REPORTED:
            found[done] = float(metrics['loss']), sharding.host_copy(state.model, setup.mesh)
    batches.close()
    return found


def main(_) -> None:
    with tempfile.TemporaryDirectory() as folder:
        config = quickstart.get_config()
        config.data.dir, config.data.num_train, config.data.image_size = folder, 240, 48
        config.augment.crop_size = config.eval.size = (48, 48)
        config.mesh.data = 1
        expected = states(config)
        runs = {'1 device, last bit': states(config, perturbed=True)}
        for devices in (2, 8):
            config.mesh.data = devices
            runs[f'{devices} devices'] = states(config)
    rows = []
    for name, found in runs.items():
        for step, (loss, variables) in found.items():
            loss_before, before = expected[step]
            leaf, distance = farthest(variables, before)
            row = {'run': name, 'step': step, 'loss': abs(loss / loss_before - 1)}
            for part in ('params', 'batch_stats'):
                row[part] = relative_distance(variables[part], before[part])
            rows.append(row | {'farthest': leaf, 'distance': distance})
    RESULTS.write_text(json.dumps(rows, indent=1) + '\n')
    print('| run | step | loss | parameters | batch statistics | farthest leaf |')
    print('|---|---|---|---|---|---|')
    for row in rows:
        cells = ' | '.join(f'{row[part]:.1e}' for part in ('loss', 'params', 'batch_stats'))
        last = f'`{row["farthest"]}` {row["distance"]:.1e}'
        print(f'| {row["run"]} | {row["step"]} | {cells} | {last} |')


if __name__ == '__main__':
    app.run(main)
