"""Does the input pipeline keep up? Images per second of pipeline and train step, each alone.

    python benchmarks/input_pipeline.py --out=benchmarks/results/input_pipeline.json

The pipeline should deliver at least twice what the train step consumes. *Ready* is the share of a
run's batches that are there before the step before them has ended: no device waits. Pipeline
and step share the cores there. Rows that are already in the JSON file are not measured again.
`folder` stands in for ADE20K: generated JPEG images of 512 x 683, trained on at 512 x 512 with
ResNet-50.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from absl import app, flags
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from configs import camvid, common, quickstart
from rankseg_jax import data, models, optimizers, tasks, train_step
from rankseg_jax.data import pipeline

_OUT = flags.DEFINE_string(
    'out', 'benchmarks/results/input_pipeline.json', 'JSON file of the finished rows.'
)
_DATA = flags.DEFINE_string('data', '', "Folder of the emoji_scenes; '': the default.")
_CAMVID = flags.DEFINE_string('camvid', '', "CamVid's folder; '': left out.")
_SECONDS = flags.DEFINE_float(
    'seconds', 10, 'Seconds measured per row, after a warm-up of a fifth.'
)


def pipeline_rate(config, seconds):
    """Images per second that this host's `train_batches` delivers on an idle CPU."""
    source = data.get_source(config.data, config.data.train_split)
    task = tasks.from_source(config, source)
    batches = pipeline.train_batches(source, config, task, start_step=0)
    next(batches)  # traces the pipeline
    count_images(batches, seconds / 5)  # fills buffers and lets tf.data tune its parallelism
    images, elapsed = count_images(batches, seconds)
    batches.close()
    return images / elapsed


def step_rate(config, seconds):
    """Images per second of the jitted train step on one batch that is loaded already."""
    source = data.get_source(config.data, config.data.train_split)
    task = tasks.from_source(config, source)
    state, step = compiled_step(config, task)
    rng, shape = np.random.default_rng(0), (config.batch_size, *config.augment.crop_size)
    batch = {
        'image': rng.normal(size=(*shape, 3)).astype(np.float32),
        'label': rng.integers(-1, task.num_classes, shape).astype(np.int32),
        'mask': np.ones(shape[0], bool),
    }
    state, _ = jax.block_until_ready(step(state, batch))  # compiles
    start = time.perf_counter()
    steps = 0
    while (elapsed := time.perf_counter() - start) < seconds:
        state, _ = jax.block_until_ready(step(state, batch))
        steps += 1
    return steps * config.batch_size / elapsed


def ready_share(config, seconds):
    """The share of a run's batches that are there before the step before them has ended.

    None if there were fewer than 20.
    """
    source = data.get_source(config.data, config.data.train_split)
    task = tasks.from_source(config, source)
    state, step = compiled_step(config, task)
    batches = pipeline.train_batches(source, config, task, start_step=0)
    state, _ = jax.block_until_ready(step(state, next(batches)))  # compiles
    batch, ready, start = next(batches), [], time.perf_counter()
    while time.perf_counter() - start < seconds:
        state, metrics = step(state, batch)  # in the background, as in a run
        batch = next(batches)
        ready.append(not metrics['loss'].is_ready())
        jax.block_until_ready(state)
    batches.close()
    return float(np.mean(ready)) if len(ready) >= 20 else None


def compiled_step(config, task):
    """The first state of a run and its jitted train step."""
    model = models.build(config, task.num_classes)
    optimizer = optimizers.make_optimizer(config.optimizer, config.steps)
    state = jax.jit(lambda: train_step.create_state(model, optimizer, config, task.num_classes))()
    step = jax.jit(train_step.make_train_step(model, optimizer, config, task), donate_argnums=0)
    return state, step


def count_images(batches, seconds):
    start = time.perf_counter()
    images = 0
    while (elapsed := time.perf_counter() - start) < seconds:
        images += len(next(batches)['mask'])
    return images, elapsed


def emoji_scenes(config, augmented):
    config.data.dir = _DATA.value
    if augmented:
        config.augment.update(common.get_config().augment)
        config.augment.crop_size = (config.data.image_size,) * 2
    return config


def write_folder(root, num_images=48, size=(512, 683)):
    """Writes a folder data set of smooth random images with JPEG files about as large as photos."""
    rng = np.random.default_rng(0)
    for kind in ('images', 'labels'):
        (root / kind / 'train').mkdir(parents=True)
    (root / 'classes.txt').write_text('\n'.join(f'class {index}' for index in range(150)))
    for index in range(num_images):
        coarse = Image.fromarray(rng.integers(0, 256, (96, 128, 3), np.uint8))
        image = coarse.resize(size[::-1], Image.Resampling.BICUBIC)
        image.save(root / f'images/train/{index}.jpg', quality=90)
        regions = Image.fromarray(rng.integers(0, 150, (4, 5), np.uint8))
        label = regions.resize(size[::-1], Image.Resampling.NEAREST)
        label.save(root / f'labels/train/{index}.png')


def make_configs(folder_root):
    """Row name -> config."""
    rows = {
        'emoji_scenes 96, as in quickstart': emoji_scenes(quickstart.get_config(), False),
        'emoji_scenes 96, all augmentations': emoji_scenes(quickstart.get_config(), True),
        'folder 512, all augmentations': common.get_config(),
    }
    rows['folder 512, all augmentations'].data.update({'name': 'folder', 'dir': str(folder_root)})
    rows['folder 512, all augmentations'].augment.base_size = (512, 2048)
    if _CAMVID.value:
        rows['camvid, as in configs/camvid.py'] = camvid.get_config()
        rows['camvid, as in configs/camvid.py'].data.dir = _CAMVID.value
    else:
        print('camvid is not measured: --camvid=<folder> says where it lies')
    return rows


def main(_):
    out = Path(_OUT.value)
    results = json.loads(out.read_text()) if out.exists() else {}
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder_root:
        write_folder(Path(folder_root))
        for name, config in make_configs(folder_root).items():
            row = results.setdefault(name, {})
            if 'pipeline' not in row:
                row['pipeline'] = pipeline_rate(config, _SECONDS.value)
            # A CPU takes minutes for more at 512².
            config.batch_size = min(config.batch_size, 2 if 'folder' in name else 8)
            if 'step' not in row:
                row['step'] = step_rate(config, _SECONDS.value)
            if 'ready' not in row:
                row['ready'] = ready_share(config, 3 * _SECONDS.value)
            out.write_text(json.dumps(results, indent=2))
    print('| images/s | pipeline alone | train step alone | ratio | ready |\n|---|---|---|---|---|')
    for name, row in results.items():
        cells = f'{row["pipeline"]:.0f} | {row["step"]:.3g} | {row["pipeline"] / row["step"]:.3g}'
        ready = '–' if row['ready'] is None else f'{100 * row["ready"]:.1f} %'
        print(f'| {name} | {cells} | {ready} |')


if __name__ == '__main__':
    app.run(main)
