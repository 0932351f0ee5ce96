"""What a training step sends between devices, from the compiled program: no array is made.

    python benchmarks/collectives.py

Compiles the train step of a Segmenter ViT-L/16 (float32, an image a device) for eight simulated
devices as data × fsdp 8 × 1 and 1 × 8, and adds up the sizes of its collectives. A ring of n
devices sends 2 (n - 1) / n times the size of an all-reduce and (n - 1) / n times that of an
all-gather, reduce-scatter or all-to-all, so that other n follow. Prints the bytes a device sends in
a step and the steps a second that links allow at most, if nothing hides behind computation, and
writes results/collectives.json.

XLA for CPU leaves the sum of gradients an all-reduce where XLA for GPU and TPU makes it a
reduce-scatter, half as much: `fsdp` is an upper bound. What a loop sends counts once.
"""

import json
import math
import os
import re
import sys
from collections import Counter
from pathlib import Path

os.environ['XLA_FLAGS'] = (
    '--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 '
    '--xla_llvm_disable_expensive_passes=true'
)
ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import jax
import numpy as np
from absl import app

from configs import segmenter
from rankseg_jax import models, optimizers, sharding, tasks, train_step

RESULTS = ROOT / 'benchmarks/results/collectives.json'
MESHES = {'data': (8, 1, 1), 'fsdp': (1, 8, 1)}
CHIPS = (8, 64, 256, 1024)
# Bytes a second that a chip can send. The first two are half of what makers give for both
# directions: 1,600 Gbit/s over the links of a TPU v5e, 900 GB/s over the NVLink of an H100.
LINKS = {'TPU v5e': 100e9, 'H100, NVLink': 450e9, '400 Gbit/s a GPU': 50e9}
SENT = {'all-reduce': 2, 'all-gather': 1, 'reduce-scatter': 1, 'all-to-all': 1}
BYTES = {'f32': 4, 's32': 4, 'u32': 4, 'bf16': 2, 'pred': 1, 'f64': 8, 's64': 8, 'u8': 1}


def collective_bytes(text: str) -> dict[str, int]:
    """The bytes of the collectives in an HLO module, by kind: whole arrays, not a device's part."""
    found = Counter()
    kinds = '|'.join([*SENT, 'collective-permute'])
    for shapes, kind in re.findall(rf'= (.*?) ({kinds})(?:-start)?\(', text):
        for dtype, sides in re.findall(r'(\w+)\[([\d,]*)\]', shapes):
            found[kind] += BYTES[dtype] * math.prod(map(int, filter(None, sides.split(','))))
    return dict(found)


def compiled_step(config, mesh, num_classes: int) -> str:
    """The HLO of the train step of a semantic task."""
    model = models.build(config, num_classes)
    task = tasks.build(config, [f'class {i}' for i in range(num_classes)])
    optimizer = optimizers.make_optimizer(config.optimizer, config.steps)
    shapes = jax.eval_shape(lambda: train_step.create_state(model, optimizer, config, num_classes))
    shardings = sharding.state_shardings(mesh, shapes, shapes.model['params'])
    size = (config.batch_size, *config.augment.crop_size)
    batch = {
        'image': jax.ShapeDtypeStruct((*size, 3), np.float32),
        'label': jax.ShapeDtypeStruct(size, np.int32),
        'mask': jax.ShapeDtypeStruct(size[:1], bool),
    }
    step = jax.jit(
        train_step.make_train_step(model, optimizer, config, task),
        donate_argnums=0,
        in_shardings=(shardings, sharding.split(mesh)),
        out_shardings=(shardings, sharding.copied(mesh)),
    )
    return step.lower(shapes, batch).compile().as_text()


def sent(sizes: dict[str, int], count: int) -> float:
    """The bytes that each of `count` devices in a ring sends."""
    return sum(SENT.get(kind, 1) * size * (count - 1) / count for kind, size in sizes.items())


def table(rows: dict) -> str:
    """What each chip sends in a step, and the steps a second that links allow, in Markdown."""
    speeds = ' | '.join(f'{name}: steps/s' for name in LINKS)
    lines = [f'| mesh | sent by a chip | {speeds} |', '|---|---|' + '---|' * len(LINKS)]
    for name, sizes in rows.items():
        for count in CHIPS:
            size = sent(sizes, count)
            bounds = ' | '.join(f'{speed / size:.1f}' for speed in LINKS.values())
            lines.append(f'| {name} = {count:,} | {size / 1e9:.2f} GB | {bounds} |')
    return '\n'.join(lines)


def main(_) -> None:
    config = segmenter.get_config('ade20k_l16_rankseg')
    rows = {}
    for name, axes in MESHES.items():
        rows[name] = collective_bytes(compiled_step(config, sharding.make_mesh(*axes), 150))
    RESULTS.write_text(json.dumps(rows, indent=1) + '\n')
    print(table(rows))


if __name__ == '__main__':
    app.run(main)
