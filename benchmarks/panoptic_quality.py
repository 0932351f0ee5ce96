"""Does RankSeg help queries? PQ and mIoU of baseline, RankSeg and oracle, over several seeds.

    python benchmarks/panoptic_quality.py
    python benchmarks/panoptic_quality.py --config=eomt_tiny --seeds=0
    python benchmarks/panoptic_quality.py --config=eomt_tiny --seeds=0 --steps=600 \\
        --variants='rankseg,class token,queries after 1,queries after 2'

Trains configs/mask2former_tiny.py or another once per variant and seed and scores the result on
validation. The last command compares what EoMT's multi-label head sees. A run of Mask2Former takes
about a quarter of an hour when two processes, with different --seeds, share two CPU cores; one of
EoMT twice as long. A finished run is a line of JSON in --out and is not repeated. `--table` prints
the finished runs and trains nothing.
"""

import importlib
import sys
from pathlib import Path

from absl import app, flags, logging

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.helpers import Runs, score_table, train_and_score

_RUNS = flags.DEFINE_string(
    'out', 'benchmarks/results/panoptic_quality.jsonl', 'Finished runs, one per line.'
)
_CONFIG = flags.DEFINE_enum(
    'config', 'mask2former_tiny', ['mask2former_tiny', 'eomt_tiny'], 'A file of configs/.'
)
_STEPS = flags.DEFINE_integer('steps', 2000, 'Steps of 8 images.')
_VARIANTS = flags.DEFINE_list('variants', ['baseline', 'rankseg', 'oracle'], 'Variants to train.')
_SEEDS = flags.DEFINE_list('seeds', ['0', '1', '2'], 'Seeds per variant.')
_TABLE = flags.DEFINE_bool('table', False, 'Print the table of the finished runs and stop.')

# Differences from `rankseg`, whose head sees patches (EoMT) or the pixel decoder's map.
HEADS = {
    'class token': {'tokens': 'class'},
    'queries after 1': {'layer': 1},  # joint blocks
    'queries after 2': {'layer': 2},
}
COLUMNS = ('PQ', 'PQ_things', 'PQ_stuff', 'SQ', 'RQ', 'mIoU', 'category_recall@16')


def describe(variant: str, seed: int) -> dict:
    return {'config': _CONFIG.value, 'steps': _STEPS.value, 'variant': variant, 'seed': seed}


def run(variant: str, seed: int) -> dict:
    module = importlib.import_module(f'configs.{_CONFIG.value}')
    config = module.get_config('rankseg' if variant in HEADS else variant)
    if variant in HEADS:
        config.rankseg.update(HEADS[variant])
    share = _STEPS.value / config.steps
    for name in ('anneal_start', 'anneal_end'):
        config.model[name] = tuple(int(share * step) for step in config.model[name])
    config.seed, config.num_pictures = seed, 0
    config.steps = config.eval_every = _STEPS.value
    return describe(variant, seed) | train_and_score(config)


def table(rows) -> str:
    """The runs of --config of --steps steps."""
    same = {'config': _CONFIG.value, 'steps': _STEPS.value}
    scores = {}
    for row in rows:
        if same.items() <= row.items():
            scores.setdefault(row['variant'], []).append(row['scores'])
    return score_table(scores, COLUMNS)


def main(_):
    logging.set_verbosity(logging.WARNING)
    runs = Runs(_RUNS.value)
    for seed in [] if _TABLE.value else map(int, _SEEDS.value):
        for variant in _VARIANTS.value:
            if not any(describe(variant, seed).items() <= row.items() for row in runs.read()):
                print(f'== {variant} / {seed}', flush=True)
                runs.add(run(variant, seed))
    print(table(runs.read()))


if __name__ == '__main__':
    app.run(main)
