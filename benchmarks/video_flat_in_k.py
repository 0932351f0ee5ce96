"""What do more categories cost in a video? Mask2Former on a clip, K = 40 to 1,284, κ = 10.

    python benchmarks/video_flat_in_k.py --out=benchmarks/results/video_flat_in_k.json

From the normalized clip, 2 frames of 360 × 640 that Swin-T sees at 180 × 320, to what is found in
it: its tracks (video_instance) or the label maps of its frames (video_semantic), at full size.
Weights are random. The rows take turns and are measured in CPU seconds of the process, which other
programs change less than seconds. `memory` is the temporary memory that XLA reports for the
compiled program.
"""

import statistics
import sys
import time
from pathlib import Path

import jax
import numpy as np
from absl import app, flags

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.helpers import compile_for, machine, ratio, save, take_turns
from configs import mask2former_video
from rankseg_jax import inference, models, tasks
from rankseg_jax.data import videos
from tests.helpers import random_like

_OUT = flags.DEFINE_string(
    'out', 'benchmarks/results/video_flat_in_k.json', 'JSON file of the results.'
)
_TASKS = flags.DEFINE_multi_enum(
    'tasks',
    ['video_instance', 'video_semantic'],
    ['video_instance', 'video_semantic'],
    'Tasks to measure.',
)
_CATEGORIES = flags.DEFINE_multi_integer('categories', [40, 1284], 'Values of K.')
_ROUNDS = flags.DEFINE_integer('rounds', 5, 'Timed runs per row.')

FRAMES, SIZE, CANVAS = 2, (360, 640), (512, 1024)
SEEN, PADDED = (180, 320), (192, 320)
HEADS = {'RankSeg': {'head': 'log_sum_exp'}, 'RankSeg, head as released': {}, 'baseline': None}


def make_config(variant: str, task: str):
    config = mask2former_video.get_config('youtubevis_2019_swin_l_rankseg')
    config.task = task
    config.model.update(backbone='swin_t7', num_queries=100)
    if variant == 'baseline':
        config.rankseg, config.model.cosine = None, False
    else:
        config.rankseg.update(num_selected=10, **HEADS[variant])
    return config


def make_prediction(variant: str, task_name: str, num_classes: int):
    """A function that predicts a clip, and the temporary memory of its program in MB."""
    config = make_config(variant, task_name)
    task = tasks.build(config, [str(label) for label in range(num_classes)])
    model = models.build(config, num_classes)
    shapes = jax.eval_shape(lambda: models.init(model, num_classes, 0, (64, 64)))
    variables = jax.device_put(random_like(shapes))
    clip = np.random.default_rng(0).normal(size=(1, FRAMES, *PADDED, 3)).astype(np.float32)
    view = {'image': clip, 'content': np.array([SEEN], np.int32)}
    size = np.array([SIZE], np.int32)

    def on_device(variables, view, size):
        prediction = inference.segment(model, variables, (view,), size, config, task, canvas=CANVAS)
        return inference.served(prediction, config)

    program, memory = compile_for(on_device, variables, view, size)

    def predict():
        found = jax.device_get(program(variables, view, size))
        follower, frames = task.follower(), range(FRAMES)
        shared = {'categories', 'confidences'} & found.keys()  # by the whole clip
        arrays = [
            {name: x[0] if name in shared else x[0, number] for name, x in found.items()}
            for number in frames
        ]
        encoded = [follower.encode(task.cut(x, SIZE)) for x in arrays]
        return list(follower.add(videos.Window(0, frames, 0), encoded))

    return predict, memory


def measure(task: str) -> dict:
    """CPU seconds and memory of each variant and K, and the ratios that should stay small."""
    runs, memory = {}, {}
    for variant in HEADS:
        for num_classes in _CATEGORIES.value:
            name = f'{variant}, {num_classes}'
            runs[name], memory[name] = make_prediction(variant, task, num_classes)
    seconds = take_turns(runs, _ROUNDS.value, time.process_time)
    print(f'\n| {task} | ' + ' | '.join(f'K = {k:,}' for k in _CATEGORIES.value) + ' | ratio |')
    print('|---' * (len(_CATEGORIES.value) + 2) + '|')
    least, most = min(_CATEGORIES.value), max(_CATEGORIES.value)
    ratios = {}
    for variant in HEADS:
        ratios[variant] = {
            'seconds': ratio(seconds, f'{variant}, {most}', f'{variant}, {least}'),
            'memory': memory[f'{variant}, {most}'] / memory[f'{variant}, {least}'],
        }
        cells = [
            f'{statistics.median(seconds[name]):.2f} s, {memory[name]:.0f} MB'
            for name in (f'{variant}, {k}' for k in _CATEGORIES.value)
        ]
        shares = f'{ratios[variant]["seconds"]:.2f}, {ratios[variant]["memory"]:.2f}'
        print(f'| {variant} | {" | ".join(cells)} | {shares} |', flush=True)
    return {'seconds': seconds, 'memory': memory, 'ratios': ratios}


def main(_):
    results = machine()
    for task in _TASKS.value:
        results[task] = measure(task)
        save(results, _OUT.value)


if __name__ == '__main__':
    app.run(main)
