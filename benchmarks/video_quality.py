"""Does RankSeg help on videos? AP, mIoU and VC of baseline, RankSeg and oracle, over several seeds.

    python benchmarks/video_quality.py --workdir=runs/video_quality

First trains configs/mask2former_tiny.py on objects of emoji_scenes, K = 39, with and without
RankSeg, once per seed. From these image runs starts configs/mask2former_video_tiny.py on
emoji_videos, once per task, variant and seed, for --steps steps, and is scored on validation. κ is
12. A finished run is a line of JSON in --out and is not repeated. Processes with other --seeds may
run at the same time. `--table` prints the finished runs and trains nothing.
"""

import sys
from pathlib import Path

import jax
from absl import app, flags, logging

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.helpers import Runs, score_table, train_and_score
from configs import mask2former_tiny, mask2former_video_tiny

_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the image runs.', required=True)
_RUNS = flags.DEFINE_string(
    'out', 'benchmarks/results/video_quality.jsonl', 'Finished runs, one per line.'
)
_SEEDS = flags.DEFINE_list('seeds', ['0', '1', '2'], 'Seeds per variant.')
_STEPS = flags.DEFINE_integer('steps', 600, 'Of a run on videos, 4 clips of 2 frames each.')
_IMAGE_STEPS = flags.DEFINE_integer('image_steps', 4000, 'Of an image run, 8 images each.')
_CELLS = flags.DEFINE_list(
    'cells', None, 'Only these task/variant pairs, such as video_instance/rankseg.'
)
_TABLE = flags.DEFINE_bool('table', False, 'Print the tables of the finished runs and stop.')

# The image run that each variant starts from. Categories have the same names in all of them; label
# maps have one more, the background.
IMAGE_RUNS = {
    'baseline': 'baseline',
    'rankseg': 'rankseg',
    'rankseg with a new head': 'baseline',
    'oracle': 'rankseg',
}
VARIANTS = {
    'instance': ('baseline', 'rankseg'),
    'video_instance': tuple(IMAGE_RUNS),
    'video_semantic': tuple(IMAGE_RUNS),
}
COLUMNS = {
    'instance': ('AP', 'AP50', 'AP75', 'AR10', 'category_recall@12'),
    'video_instance': ('AP', 'AP50', 'AP75', 'AR10', 'category_recall@12'),
    'video_semantic': ('mIoU', 'VC8', 'VC16', 'category_recall@12'),
}


def image_config(variant: str, seed: int):
    config = mask2former_tiny.get_config(variant)
    config.task, config.data.num_classes = 'instance', 40
    config.augment.max_category_ratio = 1.0
    config.steps = config.eval_every = _IMAGE_STEPS.value
    config.seed, config.num_pictures = seed, 0
    if config.rankseg:
        config.rankseg.num_selected = 12
    return config


def video_config(task: str, variant: str, seed: int):
    prefix = 'semantic_' if task == 'video_semantic' else ''
    config = mask2former_video_tiny.get_config(prefix + variant.split()[0])
    config.steps = config.eval_every = _STEPS.value
    config.seed, config.num_pictures = seed, 0
    config.model.pretrained = str(image_folder(IMAGE_RUNS[variant], seed))
    return config


def image_folder(variant: str, seed: int) -> Path:
    return Path(_WORKDIR.value) / f'image_{variant}_{seed}_{_IMAGE_STEPS.value}'


def cells():
    """Yields (task, variant, seed), seed by seed, so that partial results are comparable."""
    for seed in map(int, _SEEDS.value):
        for task in COLUMNS:
            for variant in VARIANTS[task]:
                if not _CELLS.value or f'{task}/{variant}' in _CELLS.value:
                    yield task, variant, seed


def run(task: str, variant: str, seed: int) -> dict:
    start = IMAGE_RUNS[variant]
    folder, found = image_folder(start, seed), {}
    if task == 'instance' or not (folder / 'checkpoints' / str(_IMAGE_STEPS.value)).is_dir():
        found = train_and_score(image_config(start, seed), folder)
    if task != 'instance':
        found = train_and_score(video_config(task, variant, seed))
    return {
        'task': task,
        'variant': variant,
        'seed': seed,
        'steps': _IMAGE_STEPS.value if task == 'instance' else _STEPS.value,
        'image_steps': _IMAGE_STEPS.value,
        'image_seed': seed,
        'device': jax.devices()[0].device_kind,
    } | found


def table(rows, task: str) -> str:
    scores = {}
    for row in rows:
        if row['task'] == task:
            scores.setdefault(row['variant'], []).append(row['scores'])
    return score_table(scores, COLUMNS[task])


def main(_):
    logging.set_verbosity(logging.WARNING)
    runs = Runs(_RUNS.value)
    if not _TABLE.value:
        for cell in cells():
            if cell not in {(row['task'], row['variant'], row['seed']) for row in runs.read()}:
                print(f'== {" / ".join(map(str, cell))}', flush=True)
                runs.add(run(*cell))
    for task in COLUMNS:
        print(f'\n{task}\n\n{table(runs.read(), task)}')


if __name__ == '__main__':
    app.run(main)
