"""--mode=demo: what the page shows, in a real browser, and what it does with bad files."""

import base64
import importlib.util
import io
import re
import signal
import types
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from rankseg_jax import checkpoint, demo, export, models, predict
from rankseg_jax.data import CorruptExample, coco, video_files
from rankseg_jax.tasks.semantic import Result
from tests import browser, tiny
from tests.helpers import start_processes

ROOT = Path(__file__).parents[1]
K = 8
NAMES = ('<b>a</b>', *'bcdefgh')


def smooth(size=(60, 90), seed=0):
    """A photo of few colors, uint8 [*size, 3]."""
    colors = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), np.uint8)
    return np.asarray(Image.fromarray(colors).resize(size[::-1], Image.Resampling.BICUBIC))


def save_semantic(workdir, **options):
    """A run of a Segmenter with random weights, whose ranks are far from alike."""
    config = tiny.config('', **options)
    model = models.build(config, K)
    rng = np.random.default_rng(3)
    variables = jax.tree.map(
        lambda x: rng.normal(0, 0.5, x.shape).astype(x.dtype),
        jax.eval_shape(lambda: models.init(model, K, 0, (32, 32))),
    )
    run = {'config': config.to_dict(), 'class_names': NAMES, 'next_step': 5, 'score': None}
    with checkpoint.open_checkpoints(workdir, keep=1) as manager:
        checkpoint.save(manager, 5, variables, None, run)
    return config


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
    path = tmp_path_factory.mktemp('demo') / 'run'
    save_semantic(path)
    return path


@pytest.fixture(scope='module')
def predictor(workdir):
    return predict.load(workdir)


def pixels(url):
    """uint8 [h, w, 3] of a data URL."""
    file = io.BytesIO(base64.b64decode(url.partition(',')[2]))
    return np.asarray(Image.open(file).convert('RGB'))


def shown_names(frame):
    """[h, w], what the viewer says under the pointer."""
    names = np.array([region['name'] for region in frame['regions']])
    return names[coco.rgb_to_ids(pixels(frame['map']))]


# Ranks


@pytest.mark.parametrize('task', ['semantic', 'panoptic', 'video_instance'])
def test_the_first_ranks_are_what_a_smaller_kappa_predicts(task, tmp_path):
    run, path = tmp_path / 'run', tmp_path / 'a.png'
    Image.fromarray(smooth()).save(path)
    options = {'rankseg__train_selected': 3}
    if task == 'semantic':
        config = save_semantic(run, **options)
    else:
        config = tiny.queries_config('', task=task, **options)
        tiny.save_run(config, run)
    shown = demo.Demo(predict.load(run), tmp_path)
    (whole,) = shown.results(path, 3, [])
    config.rankseg.num_selected = 2
    expected = predict.load(run, config=config)(path)
    (found,) = shown.results(path, 2, [])
    np.testing.assert_array_equal(found.labels, expected.labels)
    if task != 'semantic':
        np.testing.assert_array_equal(found.segment_ids, expected.segment_ids)
    assert (found.labels != whole.labels).any()
    assert found.categories == whole.categories and len(found.categories) == 3
