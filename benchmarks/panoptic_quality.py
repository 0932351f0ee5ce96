"""Does RankSeg help Mask2Former? PQ and mIoU of baseline, RankSeg and oracle, over several seeds.

    python benchmarks/panoptic_quality.py

Trains configs/mask2former_tiny.py once per variant and seed and scores the result on validation. A
run takes eight minutes when two processes, with different --seeds, share two CPU cores. A finished
run is a line of JSON in --out and is not repeated. `--table` prints the finished runs and trains
nothing.
"""

import sys
from pathlib import Path

from absl import app, flags, logging

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.helpers import Runs, score_table, train_and_score
from configs import mask2former_tiny

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
    found = {'variant': variant, 'seed': seed, 'samples': config.steps * config.batch_size}
    return found | train_and_score(config)


def table(rows) -> str:
    scores = {name: [row['scores'] for row in rows if row['variant'] == name] for name in VARIANTS}
    return score_table({name: seeds for name, seeds in scores.items() if seeds}, COLUMNS)


def main(_):
    logging.set_verbosity(logging.WARNING)
    runs = Runs(_RUNS.value)
    for seed in [] if _TABLE.value else map(int, _SEEDS.value):
        for variant in VARIANTS:
            if (variant, seed) not in {(row['variant'], row['seed']) for row in runs.read()}:
                print(f'== {variant} / {seed}', flush=True)
                runs.add(run(variant, seed))
    print(table(runs.read()))


if __name__ == '__main__':
    app.run(main)
