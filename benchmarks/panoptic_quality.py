"""Does RankSeg help Mask2Former? PQ and mIoU of baseline, RankSeg and oracle, over several seeds.

    python benchmarks/panoptic_quality.py

Trains configs/mask2former_tiny.py once per variant and seed and scores the result on validation. A
run takes eight minutes when two processes, with different --seeds, share two CPU cores. A finished
run is a line of JSON in --out and is not repeated. `--table` prints the finished runs and trains
nothing.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from absl import app, flags, logging

sys.path.insert(0, str(Path(__file__).parents[1]))

from configs import mask2former_tiny
from rankseg_jax import train

_RUNS = flags.DEFINE_string(
    'out', 'benchmarks/results/panoptic_quality.jsonl', 'Finished runs, one per line.'
)
_SEEDS = flags.DEFINE_list('seeds', ['0', '1', '2'], 'Seeds per variant.')
_TABLE = flags.DEFINE_bool('table', False, 'Print the table of the finished runs and stop.')

VARIANTS = ('baseline', 'rankseg', 'oracle')
COLUMNS = ('PQ', 'PQ_things', 'PQ_stuff', 'SQ', 'RQ', 'mIoU', 'category_recall@16')


def run(variant: str, seed: int) -> dict:
    config = mask2former_tiny.get_config(variant)
    config.seed, config.eval_every, config.num_pictures = seed, config.steps, 0
    start = time.time()
    with tempfile.TemporaryDirectory() as workdir:
        scores = train.train(config, workdir)
    if not scores:
        sys.exit('Stopped; the same command starts this run again.')
    return {
        'variant': variant,
        'seed': seed,
        'samples': config.steps * config.batch_size,
        'seconds': round(time.time() - start, 1),
        'scores': {name: value for name, value in scores.items() if np.isscalar(value)},
    }


def table(rows) -> str:
    lines = ['| variant | seeds | ' + ' | '.join(COLUMNS) + ' |', '|---' * (len(COLUMNS) + 2) + '|']
    for variant in VARIANTS:
        seeds = [row['scores'] for row in rows if row['variant'] == variant]
        if seeds:
            columns = {
                name: 100 * np.array([scores[name] for scores in seeds])
                for name in COLUMNS
                if name in seeds[0]
            }
            spread = {
                name: f' ± {x.std(ddof=1):.1f}' if len(x) > 1 else '' for name, x in columns.items()
            }
            values = [
                f'{columns[name].mean():.1f}{spread[name]}' if name in columns else ''
                for name in COLUMNS
            ]
            lines.append(f'| {variant} | {len(seeds)} | ' + ' | '.join(values) + ' |')
    return '\n'.join(lines)


def main(_):
    logging.set_verbosity(logging.WARNING)
    out = Path(_RUNS.value)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.touch()

    def finished():
        return [json.loads(line) for line in out.read_text().splitlines()]

    for seed in [] if _TABLE.value else map(int, _SEEDS.value):
        for variant in VARIANTS:
            if (variant, seed) not in {(row['variant'], row['seed']) for row in finished()}:
                print(f'== {variant} / {seed}', flush=True)
                row = run(variant, seed)
                with out.open('a') as file:
                    file.write(json.dumps(row) + '\n')
    print(table(finished()))


if __name__ == '__main__':
    app.run(main)
