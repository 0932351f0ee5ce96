"""What do more categories cost? Segmenter and EoMT, ViT-B, an image of 512 x 512, K to 20,000.

    python benchmarks/flat_in_k.py            # an hour on 2 CPU cores; skips finished cells
    python benchmarks/flat_in_k.py --only=EoMT
    python benchmarks/flat_in_k.py --table    # prints benchmarks/results/flat_in_k.json and
                                              # draws docs/flat_in_k.png

Times are medians of 5: from the normalized image to its label map at full size (predict), or a
whole optimizer step (train), with κ = 50. EoMT is finished, without masks, and predicts only.
`memory` is the temporary memory that XLA reports for the compiled program; `peak` is the peak
memory of the process, parameters included. Every cell runs in a process of its own. A cell that
needs more memory than the machine has free stays empty.
"""

import functools
import gc
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from absl import app, flags

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

_TABLE = flags.DEFINE_bool('table', False, 'Print and draw the finished cells and stop.')
_ONLY = flags.DEFINE_string('only', '', 'Part of the names of cells to measure, such as EoMT.')
_CELL = flags.DEFINE_list('cell', None, 'Measure one cell, mode,variant,K, in this process.')

RESULTS = ROOT / 'benchmarks/results/flat_in_k.json'
PICTURE = ROOT / 'docs/flat_in_k.png'
CATEGORIES = (150, 847, 1284, 5000, 20_000)
SEGMENTERS = ('RankSeg', 'RankSeg, head as released', 'baseline', 'baseline, PyTorch eager')
EOMTS = ('EoMT with RankSeg', 'EoMT')
TABLES = (('predict', SEGMENTERS), ('train', SEGMENTERS), ('predict', EOMTS))
SIDE, RUNS = 512, 5


def make_config(variant: str):
    """Segmenters have two decoder blocks; the released head adds one over all K categories."""
    from configs import common, eomt, segmenter

    if variant in EOMTS:
        config = eomt.get_config('ade20k_l' + '_rankseg' * (variant == 'EoMT with RankSeg'))
        config.model.update(
            backbone='dinov2_reg_b16', joint_blocks=3, anneal_start=(), anneal_end=()
        )
        return config
    if variant == 'baseline':
        return segmenter.get_config('ade20k_b16')
    config = segmenter.get_config('ade20k_b16_rankseg')
    if variant == 'RankSeg':
        config.rankseg.update(common.get_config().rankseg, num_selected=50, train_selected=0)
        config.model.decoder_layers = 2
    return config


def jax_cell(mode: str, variant: str, num_classes: int) -> dict:
    import jax
    import jax.numpy as jnp

    from rankseg_jax import inference, models, optimizers, tasks, train_step

    config = make_config(variant)
    task = tasks.build(config, [str(label) for label in range(num_classes)])
    model = models.build(config, num_classes)
    optimizer = optimizers.make_optimizer(config.optimizer, config.steps)
    image = jnp.asarray(np.random.default_rng(0).normal(size=(1, SIDE, SIDE, 3)), jnp.float32)
    if mode == 'predict':
        size = jnp.full((1, 2), SIDE)

        def run(state, image):
            views = ({'image': image, 'content': size},)
            prediction = inference.segment(
                model, state.model, views, size, config, task, canvas=(SIDE, SIDE)
            )
            return prediction.maps['labels']

        donated = ()
    else:
        step = train_step.make_train_step(model, optimizer, config, task)

        def run(state, image):
            label = jnp.arange(SIDE)[:, None] // 64 * 8 + jnp.arange(SIDE) // 64  # 64 categories
            batch = {'image': image, 'label': label[None], 'mask': jnp.ones(1, bool)}
            return step(state, batch)[0]

        donated = (0,)

    state = jax.jit(lambda: train_step.create_state(model, optimizer, config, num_classes))()
    if mode == 'predict':
        # ViTs have no batch norms; this is the probability of EoMT's masks.
        finished = jax.tree.map(jnp.zeros_like, state.model['batch_stats'])
        state = state.replace(optimizer=None, model=state.model | {'batch_stats': finished})
    compiled = jax.jit(run, donate_argnums=donated).lower(state, image).compile()
    row = {'memory': compiled.memory_analysis().temp_size_in_bytes}
    if row['memory'] > available():
        return row
    gc.collect()

    def once():
        nonlocal state
        result = jax.block_until_ready(compiled(state, image))
        state = result if donated else state

    return row | measure(once)


def torch_cell(mode: str, num_classes: int) -> dict:
    """The same baseline in PyTorch without dropout: timm's ViT and a mask transformer."""
    import torch

    from tests.helpers import mend_torchvision

    mend_torchvision()
    from benchmarks.torch_segmenter import Segmenter

    if 3 * 4 * (SIDE**2 * num_classes + 12 * (SIDE**2 // 256 + num_classes) ** 2) > available():
        return {}
    model = Segmenter(SIDE, num_classes).train(mode == 'train')
    image = torch.randn(1, 3, SIDE, SIDE)
    if mode == 'predict':
        with torch.inference_mode():
            return measure(lambda: model(image).argmax(1))
    label = torch.arange(SIDE).div(64, rounding_mode='floor')
    label = (label[:, None] * 8 + label)[None]
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def step():
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(image), label).backward()
        optimizer.step()

    return measure(step)


def available() -> int:
    """Free memory of this machine, in bytes."""
    return 1024 * int(re.search(r'MemAvailable:\s+(\d+)', Path('/proc/meminfo').read_text())[1])


def measure(once) -> dict:
    """Median seconds of `once()`, and the peak memory of the process in bytes while it runs."""
    once()
    Path('/proc/self/clear_refs').write_text('5')  # the peak from here on
    seconds = []
    for _ in range(RUNS):
        start = time.perf_counter()
        once()
        seconds.append(time.perf_counter() - start)
    peak = 1024 * int(re.search(r'VmHWM:\s+(\d+)', Path('/proc/self/status').read_text())[1])
    return {
        'seconds': float(np.median(seconds)),
        'spread': max(seconds) - min(seconds),
        'peak': peak,
    }


def table(mode: str, variants, results: dict) -> str:
    """A Markdown table with a row per K and a column per variant."""
    lines = ['| K | ' + ' | '.join(variants) + ' |', '|---|' + '---|' * len(variants)]

    def cell(row):
        if 'seconds' not in row:
            return f'needs {row["memory"] / 1e9:.0f} GB' if 'memory' in row else '–'
        memory = f', {row["memory"] / 1e6:.0f} MB' if 'memory' in row else ''
        return f'{row["seconds"]:.2f} s{memory}, peak {row["peak"] / 1e9:.1f} GB'

    for num_classes in CATEGORIES:
        rows = [results.get(f'{mode},{variant},{num_classes}', {}) for variant in variants]
        lines.append(f'| {num_classes:,} | ' + ' | '.join(map(cell, rows)) + ' |')
    return '\n'.join(lines)


def bars(mode: str, variants, results: dict) -> str:
    """A line with the ratios that should stay small."""
    own_name, baseline_name = EOMTS if variants == EOMTS else ('RankSeg', 'baseline')

    def get(variant, num_classes, key):
        return results.get(f'{mode},{variant},{num_classes}', {}).get(key, float('nan'))

    own, baseline = functools.partial(get, own_name), functools.partial(get, baseline_name)
    times = own(1284, 'seconds') / own(150, 'seconds')
    memory = own(1284, 'memory') / own(150, 'memory')
    return (
        f'{mode}: {own_name} at K = 1,284 takes {times:.2f} x the time and {memory:.2f} x '
        f'the memory of K = 150, and {own(1284, "seconds") / baseline(1284, "seconds"):.2f} x the '
        'time of the baseline'
    )


def draw(results: dict):
    """Draws time over K, one curve per Segmenter."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), layout='constrained')
    for ax, mode, title in zip(
        axes, ('predict', 'train'), ('Prediction', 'Train step'), strict=True
    ):
        for variant, style in zip(SEGMENTERS, ('o-', 'o:', 's-', 's--'), strict=True):
            rows = [
                (k, results[f'{mode},{variant},{k}']['seconds'])
                for k in CATEGORIES
                if 'seconds' in results.get(f'{mode},{variant},{k}', {})
            ]
            ax.plot(*zip(*rows, strict=True), style, label=variant)
        ax.set(
            xscale='log',
            xlabel='categories K',
            ylabel='seconds per image',
            title=title,
            ylim=(0, None),
        )
        ax.set_xticks(CATEGORIES, [f'{k:,}' for k in CATEGORIES], rotation=35)
        ax.minorticks_off()
        ax.spines[['top', 'right']].set_visible(False)
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc='outside lower center', ncols=4, frameon=False
    )
    figure.savefig(PICTURE, dpi=110)


def main(_):
    if _CELL.value:
        mode, *variant, num_classes = _CELL.value
        variant = ','.join(variant)
        row = (
            torch_cell(mode, int(num_classes))
            if 'PyTorch' in variant
            else jax_cell(mode, variant, int(num_classes))
        )
        print(json.dumps(row))
        return
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    keys = [
        f'{mode},{variant},{k}'
        for mode, variants in TABLES
        for k in CATEGORIES
        for variant in variants
    ]
    for key in [] if _TABLE.value else keys:
        if key not in results and _ONLY.value in key:
            done = subprocess.run(
                [sys.executable, __file__, f'--cell={key}'], capture_output=True, text=True
            )
            if done.returncode:
                print(key, 'failed:', done.stderr[-500:], flush=True)
                continue
            results[key] = json.loads(done.stdout.splitlines()[-1])
            print(key, results[key], flush=True)
            RESULTS.write_text(json.dumps(results, indent=1))
    for mode, variants in TABLES:
        print(f'\n{table(mode, variants, results)}\n\n{bars(mode, variants, results)}')
    draw(results)


if __name__ == '__main__':
    app.run(main)
