"""Does memory grow with the length of a video? Mask2Former, predicted as --mode=predict does.

    python benchmarks/video_memory.py     # skips finished cells

Predicts tracks in made-up videos, written to files: with the tiny model
(configs/mask2former_video_tiny.py) in 100 and in 1,500 frames of 96 × 128 pixels, and with Swin-T
in 10 of 360 × 640. Weights are random. Every cell runs in a process of its own, which first
predicts one clip, to compile. `before` is its resident memory then, `peak` the largest from then
on; the target is at most 1.10 times as much for 1,500 frames as for 100. `tracks` and `bytes` are
those of the JSON file.
"""

import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from absl import app, flags

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

_OUT = flags.DEFINE_string(
    'out', 'benchmarks/results/video_memory.json', 'JSON file of the results.'
)
_CELL = flags.DEFINE_list('cell', None, 'Measure one cell, model,frames, in this process.')

SIZES = {'tiny': (96, 128), 'swin_t': (360, 640)}
CELLS = ('tiny,100', 'tiny,1500', 'swin_t,10')


def make_config(model: str):
    from configs import mask2former_video, mask2former_video_tiny

    if model == 'tiny':
        config = mask2former_video_tiny.get_config('rankseg')
    else:
        config = mask2former_video.get_config('youtubevis_2019_swin_l_rankseg')
        config.model.update(backbone='swin_t7', num_queries=100)
        config.eval.update(base_size=(360, 640), clip_length=5)
    config.eval.threshold = 0.0
    return config


def make_predictor(config):
    import jax

    from rankseg_jax import models, predict, tasks
    from tests.helpers import random_like

    names = [str(label) for label in range(40)]
    model = models.build(config, len(names))
    shapes = jax.eval_shape(lambda: models.init(model, len(names), 0, (64, 64)))
    variables = jax.device_put(random_like(shapes))
    return predict.from_model(model, variables, config, task=tasks.build(config, names))


def write_video(path: Path, frames: int, size: tuple[int, int]) -> Path:
    """Smooth noise with a bright disk that moves across it."""
    from PIL import Image

    from rankseg_jax.data import video_files

    height, width = size
    coarse = np.random.default_rng(0).integers(0, 160, (8, 12, 3), np.uint8)
    scene = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    rows, columns = np.mgrid[:height, :width]
    with video_files.Writer(path, rate=25) as writer:
        for number in range(frames):
            column = number * 2 % width
            inside = (rows - height / 2) ** 2 + (columns - column) ** 2 < (height / 4) ** 2
            writer.write(np.where(inside[..., None], np.uint8(230), np.asarray(scene)))
    return path


def resident(kind: str) -> int:
    """Bytes of this process: 'VmRSS' now, 'VmHWM' at most."""
    found = re.search(rf'{kind}:\s+(\d+)', Path('/proc/self/status').read_text())
    return 1024 * int(found[1])


def cell(model: str, frames: int) -> dict:
    from rankseg_jax.prediction_files import predict_video

    config = make_config(model)
    predictor, size = make_predictor(config), SIZES[model]
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        first = write_video(folder / 'first.mp4', config.eval.clip_length, size)
        predict_video(predictor, first, folder / 'first')
        video = write_video(folder / 'video.mp4', frames, size)
        Path('/proc/self/clear_refs').write_text('5')  # the peak from here on
        before, start = resident('VmRSS'), time.perf_counter()
        predict_video(predictor, video, folder / 'video')
        seconds = time.perf_counter() - start
        written = folder / 'video.json'
        return {
            'before': before,
            'peak': resident('VmHWM'),
            'frames_per_second': frames / seconds,
            'tracks': len(json.loads(written.read_text()).get('tracks', ())),
            'bytes': written.stat().st_size,
        }


def main(_):
    if _CELL.value:
        model, frames = _CELL.value
        print(json.dumps(cell(model, int(frames))))
        return
    from benchmarks.helpers import machine, save

    out = Path(_OUT.value)
    results = json.loads(out.read_text()) if out.exists() else machine()
    print('| model, frames | peak MB | frames/s | tracks | JSON MB |\n|---|---|---|---|---|')
    for key in CELLS:
        if key not in results:
            done = subprocess.run(
                [sys.executable, __file__, f'--cell={key}'],
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            results[key] = json.loads(done.stdout.splitlines()[-1])
            save(results, out)
        row = results[key]
        print(
            f'| {key} | {row["peak"] / 1e6:.0f} | {row["frames_per_second"]:.1f} '
            f'| {row["tracks"]} | {row["bytes"] / 1e6:.2f} |',
            flush=True,
        )
    share = results['tiny,1500']['peak'] / results['tiny,100']['peak']
    print(f'{share:.2f} × the memory for 1,500 frames instead of 100')


if __name__ == '__main__':
    app.run(main)
