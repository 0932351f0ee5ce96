"""Every config builds at full size under eval_shape, has its exact number of parameters, and steps once at reduced size."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from configs import common
from rankseg_jax import models, optimizers, train

ROOT = Path(__file__).parents[1]

# (config, its argument, K, parameters)
CONFIGS = [
    ('quickstart', None, 60, 3_441_432),
    ('emoji_scenes', '150', 150, 3_453_141),
    ('emoji_scenes', '1284', 1284, 3_600_586),
    ('camvid', None, 11, 3_435_055),
    ('folder', '', 150, 66_573_876),
    ('folder', 'baseline', 150, 66_496_876),
]


def load(name, argument):
    module = importlib.import_module(f'configs.{name}')
    return module.get_config() if argument is None else module.get_config(argument)


def test_every_config_is_listed():
    files = {path.stem for path in (ROOT / 'configs').glob('[!_]*.py')}
    assert files == {'common'} | {name for name, *_ in CONFIGS}


@pytest.mark.parametrize('name, argument, num_classes, num_parameters', CONFIGS)
def test_config_builds_and_steps(name, argument, num_classes, num_parameters):
    config = load(name, argument)
    common.check(config)
    model = models.build(config, num_classes)
    shapes = jax.eval_shape(lambda: models.init(model, num_classes, 0, config.augment.crop_size))
    assert sum(x.size for x in jax.tree.leaves(shapes['params'])) == num_parameters

    config.batch_size, config.augment.crop_size = 2, (64, 64)
    config.model.channels = 16
    config.model.backbone = 'narrow' if config.model.backbone == 'narrow' else 'resnet18'
    config.steps = config.optimizer.warmup_steps + 1
    model = models.build(config, num_classes)
    optimizer = optimizers.make_optimizer(config.optimizer, config.steps)
    state = jax.jit(lambda: train.create_state(model, optimizer, config, num_classes))()
    step = jax.jit(train.make_train_step(model, optimizer, config, num_classes))
    rng = np.random.default_rng(0)
    batch = {'image': rng.normal(size=(2, 64, 64, 3)).astype(np.float32),
             'label': rng.integers(-1, num_classes, (2, 64, 64)).astype(np.int32), 'mask': np.ones(2, bool)}
    after, metrics = step(state, batch, jax.random.key(0))
    assert np.isfinite(metrics['loss']) and jax.tree.structure(after) == jax.tree.structure(state)


def test_every_key_of_common_is_read_somewhere():
    code = '\n'.join(path.read_text() for path in [ROOT / 'main.py', *(ROOT / 'rankseg_jax').rglob('*.py')])

    def leaves(config):
        for key, value in config.items():
            yield from leaves(value) if hasattr(value, 'items') else [key]

    for key in leaves(common.get_config()):
        assert re.search(rf'\.{key}\b', code), f'{key} is read nowhere'


def test_unknown_keys_and_types_are_refused():
    config = common.get_config()
    config.unlock()
    config.rankseg.num_select = 3
    with pytest.raises(ValueError, match='config.rankseg.num_select .* config.rankseg.num_selected'):
        common.check(config)
    config = common.get_config()
    config.unlock()
    with config.ignore_type():
        config.optimizer.learning_rate = 'high'
    with pytest.raises(ValueError, match="learning_rate = 'high' must be of type float"):
        common.check(config)
    config = common.get_config()
    config.rankseg = None
    config.optimizer.learning_rate = 1
    common.check(config)


@pytest.mark.parametrize('group, key, value, message', [
    ('eval', 'size', (32,), r'eval.size = \(32,\) must hold 2 numbers'),
    ('eval', 'size', ('a', 'b'), 'must hold 2 numbers'),
    ('augment', 'crop_size', (0, 32), 'augment.crop_size'),
    ('augment', 'scale_range', (2.0, 0.5), 'scale_range'),
    ('data', 'std', (0.0, 1.0, 1.0), 'data.std'),
    ('data', 'num_workers', -1, 'num_workers'),
])
def test_values_out_of_range_are_refused(group, key, value, message):
    config = common.get_config()
    config[group][key] = value
    with pytest.raises(ValueError, match=message):
        common.check(config)


@pytest.mark.parametrize('arguments, message', [
    (['--config=configs/quickstart.py', '--workdir=/tmp/never', '--config.rankseg.num_select=3'], 'num_selected'),
    (['--config=configs/quickstart.py', '--workdir=/tmp/never', '--config.steps=many'], 'many'),
    (['--config=configs/nothing.py', '--workdir=/tmp/never'], 'configs/nothing.py'),
    (['--config=configs/folder.py:best', '--workdir=/tmp/never'], 'folder.py:best is unknown'),
    (['--config=configs/quickstart.py'], 'workdir'),
])
def test_command_line_errors_are_one_line(arguments, message):
    result = subprocess.run([sys.executable, 'main.py', *arguments], cwd=ROOT, capture_output=True, text=True,
                            env=os.environ | {'XLA_FLAGS': ''}, timeout=120)
    assert result.returncode != 0
    assert message in result.stderr + result.stdout
    assert 'Traceback' not in result.stderr
