"""Does RankSeg help, and which part of it? Same model, steps and data; mean ± spread over seeds.

    python benchmarks/does_it_help.py

Trains one run per cell (data set × variant × seed) and scores it on every split. Each finished
cell is a line of JSON in --out; when started again, the benchmark skips these. A cell takes about
two and a half minutes on one CPU core, all of them less than four hours. Processes with other
--seeds may run at the same time. `--table` prints the finished cells and trains nothing.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from absl import app, flags, logging

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.helpers import Runs, numbers, score_table
from configs import camvid, quickstart
from rankseg_jax import checkpoint, evaluate, train

_OUT = flags.DEFINE_string(
    'out', 'benchmarks/results/does_it_help.jsonl', 'Finished cells, one per line.'
)
_DATA = flags.DEFINE_string(
    'data', '', 'Folder where emoji_scenes are generated; default: that of the config.'
)
_CAMVID = flags.DEFINE_string('camvid', '', "CamVid's folder; '': left out.")
_SEEDS = flags.DEFINE_list('seeds', ['0', '1', '2'], 'Seeds per data set and variant.')
_STEPS = flags.DEFINE_integer('steps', 600, 'Optimizer steps per cell, 8 images each.')
_CELLS = flags.DEFINE_list(
    'cells', None, 'Only these dataset/variant pairs, such as emoji60/baseline.'
)
_TABLE = flags.DEFINE_bool('table', False, 'Print the table of the finished cells and stop.')

# Differences from the paper's RankSeg with missed ground truth forced in: one τ per rank and no
# score prior.
VARIANTS = {
    'baseline': None,
    'baseline + multi-label loss': {'select': False},
    'missed ignored': {'missed': 'ignore'},
    'missed ignored + all-K warm-up': {'missed': 'ignore', 'warmup_steps': -1},
    'forced in + τ by rank': {},
    'forced in + τ by rank + all-K warm-up': {'warmup_steps': -1},
    'forced in + layer norm': {'temperature': 'layer_norm'},
    'forced in + shared τ': {'temperature': 'shared'},
    'forced in + score prior': {'temperature': 'none', 'score_prior': True},
    'forced in + τ by rank + score prior': {'score_prior': True},
    'forced in + layer norm + score prior': {'temperature': 'layer_norm', 'score_prior': True},
    'κ = K/2 + τ by rank + score prior': {'share': 1 / 2, 'score_prior': True},
    'κ = K/2 + layer norm + score prior': {
        'share': 1 / 2,
        'temperature': 'layer_norm',
        'score_prior': True,
    },
    'κ = K + τ by rank': {'share': 1},
    'κ = K + τ by rank + score prior': {'share': 1, 'score_prior': True},
    'κ = K + layer norm + score prior': {
        'share': 1,
        'temperature': 'layer_norm',
        'score_prior': True,
    },
    'oracle': {'oracle': True},
}
BEST = 'forced in + layer norm + score prior'  # on validation, among those with κ < K/2
ONLY_60 = [
    name
    for name in VARIANTS
    if ' K' in name or 'all-K' in name or 'score prior' in name and name != BEST
]
KAPPA = {60: 16, 150: 50, 847: 100}
SIDE = 64  # of the emoji scenes, in pixels; CamVid uses 90 × 120
WARMUP_SHARE = 0.2  # share of the steps, in variants with an all-K warm-up


def cells():
    """Yields (dataset, variant, seed), seed by seed, so that partial results are comparable."""
    pairs = [('emoji60', variant) for variant in VARIANTS]
    pairs += [('emoji150', variant) for variant in VARIANTS if variant not in ONLY_60]
    pairs += [
        (dataset, variant) for dataset in ('emoji847', 'camvid') for variant in ('baseline', BEST)
    ]
    for seed in map(int, _SEEDS.value):
        for dataset, variant in pairs:
            if not _CELLS.value or f'{dataset}/{variant}' in _CELLS.value:
                yield dataset, variant, seed


def make_config(dataset: str, variant: str, seed: int):
    """The config of a cell, and the splits it is scored on."""
    if dataset == 'camvid':
        config = camvid.get_config()
        config.data.dir = _CAMVID.value
        config.augment.base_size = config.eval.size = (90, 120)
        config.augment.crop_size = (80, 96)
        splits = ['validation']
    else:
        config = quickstart.get_config()
        config.data.num_classes = int(dataset.removeprefix('emoji'))
        config.data.image_size = SIDE
        config.augment.crop_size = config.eval.size = (SIDE, SIDE)
        config.data.dir = _DATA.value or config.data.dir
        config.rankseg.num_selected = KAPPA[config.data.num_classes]
        splits = ['validation', 'test', 'unseen']
    config.seed = seed
    config.steps = _STEPS.value
    config.optimizer.warmup_steps = config.steps // 12
    config.eval_every = config.steps // 4
    config.log_every = config.steps // 8
    config.checkpoint_every = config.steps
    config.num_pictures = 0
    if VARIANTS[variant] is None:
        config.rankseg = None
    else:
        changes = {'temperature': 'temperature', 'score_prior': False} | VARIANTS[variant]
        if 'share' in changes:  # κ as a share of K
            changes['num_selected'] = int(changes.pop('share') * config.data.num_classes)
        config.rankseg.update(changes)
        if config.rankseg.warmup_steps < 0:
            config.rankseg.warmup_steps = int(WARMUP_SHARE * config.steps)
    return config, splits


def run_cell(dataset: str, variant: str, seed: int) -> dict:
    """Trains one cell; returns its learning curve on validation and its scores on every split."""
    config, splits = make_config(dataset, variant, seed)
    start = time.time()
    with tempfile.TemporaryDirectory() as workdir:
        train.train(config, workdir)
        seconds = time.time() - start
        rows = [
            json.loads(line) for line in (Path(workdir) / 'metrics.jsonl').read_text().splitlines()
        ]
        curve = [(row['step'], row['eval/mIoU']) for row in rows if 'eval/mIoU' in row]
        scores = {}
        for split in splits:
            config.data.eval_split = split
            scores[split] = numbers(evaluate.run(config, workdir))
        classifier = checkpoint.read_model(workdir)['params']['classifier']
        log_tau = classifier.get('rank', {}).get('temperature', {}).get('log_tau')
    return {
        'dataset': dataset,
        'variant': variant,
        'seed': seed,
        'steps': config.steps,
        'samples': config.steps * config.batch_size,
        'seconds': round(seconds, 1),
        'curve': curve,
        'scores': scores,
        'tau': None if log_tau is None else np.exp(log_tau).round(3).tolist(),
    }


def table(rows) -> str:
    """Markdown tables per data set: scores (mean ± sample standard deviation), learning curves.

    All values are percentages.
    """
    lines = []
    for dataset, samples in sorted(
        {(row['dataset'], row['samples']) for row in rows}, key=lambda x: (len(x[0]), x)
    ):
        here = [row for row in rows if (row['dataset'], row['samples']) == (dataset, samples)]
        runs = {
            variant: [flat(row['scores']) for row in here if row['variant'] == variant]
            for variant in VARIANTS
        }
        columns = [*(f'mIoU {split}' for split in here[0]['scores']), 'category recall@κ']
        lines += [
            '',
            f'**{dataset}**, {samples} training samples',
            '',
            score_table({variant: seeds for variant, seeds in runs.items() if seeds}, columns),
        ]
        steps = [step for step, _ in here[0]['curve']]
        lines += [
            '',
            '| validation mIoU after | ' + ' | '.join(f'{step} steps' for step in steps) + ' |',
            '|---' * (len(steps) + 1) + '|',
        ]
        for variant in ('baseline', BEST):
            curves = [
                [100 * value for _, value in row['curve']]
                for row in here
                if row['variant'] == variant
            ]
            if curves:
                lines.append(
                    f'| {variant} | '
                    + ' | '.join(f'{value:.1f}' for value in np.mean(curves, 0))
                    + ' |'
                )
    return '\n'.join(lines)


def flat(scores: dict) -> dict:
    """The scores of a cell by column; categories are recalled on the first split."""
    found = {f'mIoU {split}': values['mIoU'] for split, values in scores.items()}
    for name, value in next(iter(scores.values())).items():
        if name.startswith('category_recall'):
            found['category recall@κ'] = value
    return found


def main(_):
    logging.set_verbosity(logging.WARNING)
    runs = Runs(_OUT.value)

    def finished():
        keys = ('dataset', 'variant', 'seed', 'steps')
        return {tuple(row[key] for key in keys): row for row in runs.read()}

    if not (_TABLE.value or _CAMVID.value):
        print('camvid is left out: --camvid=<folder> says where it lies')
    for cell in [] if _TABLE.value else cells():
        if cell[0] == 'camvid' and not _CAMVID.value:
            continue
        if (*cell, _STEPS.value) not in finished():
            print(f'== {" / ".join(map(str, cell))}', flush=True)
            runs.add(run_cell(*cell))
    print(table(list(finished().values())))


if __name__ == '__main__':
    app.run(main)
