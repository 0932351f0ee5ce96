"""Prediction and evaluation of a folder of photos. Mask2Former, Swin-T, 512 × 512, random weights.

    python benchmarks/folder.py --out=benchmarks/results/folder.json

- Predicts photos of as many sizes, and as many photos of one size, files written; both after a
  first photo.
- Evaluates photos for the semantic and the panoptic task, beside the network alone on batches that
  are ready in memory.
- Predicts one photo from the command line: the first start, which compiles, and the second.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from absl import app, flags
from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.helpers import machine, save
from configs import mask2former
from rankseg_jax import checkpoint, evaluate, models, predict, sharding, tasks
from rankseg_jax.data import PanopticSource, batching, images
from rankseg_jax.prediction_files import predict_files
from rankseg_jax.selector import Choice
from tests.helpers import random_like

_OUT = flags.DEFINE_string('out', 'benchmarks/results/folder.json', 'JSON file of the results.')
_PHOTOS = flags.DEFINE_integer('photos', 64, 'Photos of each kind.')
_BATCH = flags.DEFINE_integer('batch', 8, 'Images in a batch of evaluation.')
_ONLY = flags.DEFINE_enum('only', 'all', ['all', 'predict', 'evaluate', 'start'], 'What to run.')

SEGMENTS = 12  # in the ground truth of a photo


class Photos(PanopticSource):
    """Photos on disk, with squares for segments."""

    def __init__(self, folder: Path, num_classes: int):
        self.class_names = tuple(map(str, range(num_classes)))
        self.things = [True] * (num_classes // 2) + [False] * (num_classes - num_classes // 2)
        self.paths = sorted(folder.iterdir())
        self.ids = [path.name for path in self.paths]

    def segments(self, index):
        rows, columns = images.read_size(self.paths[index])
        ids = np.arange(rows)[:, None] * 3 // rows * 4 + np.arange(columns) * 4 // columns
        return ids.astype(np.int32), [{'id': i, 'category_id': i} for i in range(SEGMENTS)]

    def load(self, index):
        return {'image': images.read_image(self.paths[index]), 'label': self.segments(index)[0]}


def write_photos(folder: Path, sizes) -> Path:
    """JPEGs of smooth noise of these (rows, columns)."""
    folder.mkdir(parents=True)
    for i, (rows, columns) in enumerate(sizes):
        coarse = np.random.default_rng(i).integers(0, 256, (12, 12, 3), np.uint8)
        photo = Image.fromarray(coarse).resize((columns, rows), Image.Resampling.BICUBIC)
        photo.save(folder / f'{i:03}.jpg')
    return folder


def swin_t():
    """(config, model, variables) of the recipe, at 512 × 512."""
    config = mask2former.get_config('ade20k_swin_t')
    config.eval.base_size, config.eval.size = (0, 0), (512, 512)
    config.eval.batch_size, config.mesh.data = _BATCH.value, 1
    model = models.build(config, 150)
    shapes = jax.eval_shape(lambda: models.init(model, 150, 0, (512, 512)))
    return config, model, jax.device_put(random_like(shapes))


def seconds_of(function) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def predictions(config, model, variables, folder: Path) -> dict:
    """Seconds to predict photos of one size and of many."""
    task = tasks.build(config, [str(i) for i in range(150)])
    predictor = predict.from_model(model, variables, config, task=task)
    rng = np.random.default_rng(0)
    many = [(384 + 4 * i, int(rng.integers(384, 640))) for i in range(_PHOTOS.value)]
    one = write_photos(folder / 'one', [(512, 512)] * _PHOTOS.value)
    many = write_photos(folder / 'many', many)
    predict_files(predictor, sorted(one.iterdir())[: _BATCH.value], folder / 'first')
    found = {
        name: seconds_of(
            lambda photos=photos: predict_files(predictor, [photos], folder / f'{photos.name}_out')
        )
        for name, photos in (('one size', one), ('many sizes', many))
    }
    return {'seconds': found, 'ratio': found['many sizes'] / found['one size']}


def evaluations(config, model, variables, folder: Path) -> dict:
    """Images/s of evaluation and of the network alone."""
    source = Photos(folder / 'one', 150)
    mesh, found = sharding.make_mesh(1), {}
    batch = next(batching.eval_batches(source, config, 1))
    forward = jax.jit(lambda v, x: models.forward(model, v, x, Choice()))

    def network():
        jax.block_until_ready(forward(variables, batch['views'][0]['image']))

    network()
    for name in ('semantic', 'panoptic'):
        config.task = name
        task = tasks.from_source(config, source)
        step = evaluate.make_eval_step(model, config, task, mesh)
        jax.block_until_ready(step(variables, batch))
        alone = [seconds_of(network)]
        whole = seconds_of(
            lambda task=task, step=step: evaluate.evaluate(
                step, variables, source, config=config, task=task, mesh=mesh
            )
        )
        alone += [seconds_of(network) for _ in range(2)]
        rates = {'evaluation': len(source) / whole, 'network': _BATCH.value / np.median(alone)}
        found[name] = rates | {'ratio': rates['evaluation'] / rates['network']}
    return found


def starts(config, model, variables, folder: Path) -> dict:
    """Seconds of whole processes that predict one photo."""
    config.task, config.num_pictures = 'semantic', 0
    run = {
        'config': config.to_dict(),
        'class_names': [str(i) for i in range(150)],
        'things': [],
        'next_step': 0,
        'score': None,
    }
    with checkpoint.open_checkpoints(folder / 'run', keep=1) as manager:
        checkpoint.save(manager, 0, variables, None, run)
    photo = write_photos(folder / 'photo', [(480, 640)])
    command = [sys.executable, 'main.py', f'--workdir={folder / "run"}', '--mode=predict']
    environment = os.environ | {'JAX_COMPILATION_CACHE_DIR': str(folder / 'programs')}
    environment['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'

    def start():
        subprocess.run(
            [*command, f'--input={photo}'],
            cwd=ROOT,
            env=environment,
            check=True,
            capture_output=True,
        )

    return {name: seconds_of(start) for name in ('first', 'second')}


def main(_):
    results = machine()
    with tempfile.TemporaryDirectory() as folder:
        setup = (*swin_t(), Path(folder))
        for name, measure in (
            ('predict', predictions),
            ('evaluate', evaluations),
            ('start', starts),
        ):
            if name in (_ONLY.value, 'predict') or _ONLY.value == 'all':
                results[name] = measure(*setup)
                print(name, results[name], flush=True)
    save(results, _OUT.value)


if __name__ == '__main__':
    app.run(main)
