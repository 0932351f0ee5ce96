"""What linking costs: AP of a run on videos seen whole and in overlapping clips.

    python benchmarks/video_linking.py --workdir=runs/video_tiny

Scores a run of configs/mask2former_video_tiny.py on the validation split of emoji_videos, whose
videos have 24 frames.
"""

import sys
from pathlib import Path

from absl import app, flags, logging

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.helpers import save
from rankseg_jax import checkpoint, evaluate, models, sharding, tasks

_WORKDIR = flags.DEFINE_string('workdir', None, 'The run.', required=True)
_OUT = flags.DEFINE_string(
    'out', 'benchmarks/results/video_linking.json', 'JSON file of the results.'
)

WINDOWS = ((24, 0), (12, 6), (12, 4), (12, 0), (6, 3), (6, 2), (6, 0), (2, 1))  # length, overlap


def main(_):
    logging.set_verbosity(logging.ERROR)
    saved = checkpoint.open_run(_WORKDIR.value)
    config, mesh = saved.config, sharding.make_mesh(1)
    source = tasks.open_source(config, config.data.eval_split)
    task = tasks.from_source(config, source)
    model = models.build(config, task.num_classes)
    variables = models.restore(saved, model, config, mesh)
    rows = []
    for length, overlap in WINDOWS:
        config.eval.clip_length, config.eval.clip_overlap = length, overlap
        step = evaluate.make_eval_step(model, config, task, mesh)
        scores = evaluate.evaluate(step, variables, source, config=config, task=task, mesh=mesh)
        rows.append({'length': length, 'overlap': overlap} | evaluate.totals(scores))
        print(f'{length} frames, {overlap} shared: {evaluate.one_line(scores)}', flush=True)
    save({'steps': saved.step, 'windows': evaluate.without_nan(rows)}, _OUT.value)


if __name__ == '__main__':
    app.run(main)
