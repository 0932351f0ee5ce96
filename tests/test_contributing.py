"""Applies the examples of CONTRIBUTING.md to a copy of the repository and uses them."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r'(?:`([\w/]+\.py)`:\n\n)?```(python|diff)\n(.*?)```', re.S)
TINY = {
    'batch_size': 2,
    'steps': 2,
    'mesh.data': 1,
    'num_pictures': 1,
    'augment.crop_size': '(32,32)',
    'eval.size': '(32,32)',
    'eval.batch_size': 2,
    'model.channels': 8,
}


def apply_diff(path: Path, diff: str):
    """Replaces what a diff without line numbers removes by what it adds."""
    lines = diff.splitlines()
    old, new = ('\n'.join(x[1:] for x in lines if x[0] in kept) for kept in (' -', ' +'))
    text = path.read_text()
    assert text.count(old) == 1, f'{path.name} has {text.count(old)} times:\n{old}'
    path.write_text(text.replace(old, new))


@pytest.fixture(scope='module')
def repository(tmp_path_factory):
    """A copy of the repository with all examples applied, and the files that they add."""
    copy, added = tmp_path_factory.mktemp('repository'), []
    for name in ('rankseg_jax', 'configs'):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns('__pycache__'))
    for name in ('main.py', 'pyproject.toml'):
        shutil.copy(ROOT / name, copy)
    (copy / 'tests').mkdir()
    path = None
    for name, kind, block in BLOCK.findall((ROOT / 'CONTRIBUTING.md').read_text()):
        path = copy / name if name else path
        if kind == 'diff':
            apply_diff(path, block)
        else:
            assert not path.exists(), path
            path.write_text(block)
            added.append(path)
    return copy, added


def run(folder, *command):
    """Runs a Python module or file and returns its output."""
    done = subprocess.run(
        [sys.executable, *map(str, command)], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_examples_are_formatted(repository):
    pytest.importorskip('ruff')
    copy, added = repository
    run(copy, '-m', 'ruff', 'check', *added)
    run(copy, '-m', 'ruff', 'format', '--check', *added)


def test_tests_of_the_examples_pass(repository):
    copy, added = repository
    tests = [path for path in added if path.parent.name == 'tests']
    assert len(tests) == 4
    run(copy, '-m', 'pytest', '-n', 0, *tests)


def test_examples_train_together(repository):
    copy, _ = repository
    rng = np.random.default_rng(0)
    for split in ('train', 'validation'):
        (copy / 'data' / split).mkdir(parents=True)
        for i in range(2):
            label = np.zeros((32, 40), np.uint8)
            label[8:24, 8:20], label[12:20, 28:36], label[0] = 1, 2, 255
            image = 80 * label[..., None] + rng.integers(0, 40, (32, 40, 3), np.uint8)
            np.savez(copy / 'data' / split / f'{i}.npz', image=image, label=label)
    overrides = [f'--config.{key}={value}' for key, value in TINY.items()]
    command = ['main.py', '--config=configs/arrays.py', '--workdir=run', '--config.data.dir=data']
    assert 'trimap_mIoU' in run(copy, *command, *overrides)
    rows = [json.loads(row) for row in (copy / 'run/metrics.jsonl').read_text().splitlines()]
    assert 0 <= rows[-1]['eval/trimap_mIoU'] <= 1
    assert (copy / 'run/predictions/0.npz.png').exists() or list(
        copy.glob('run/predictions/0*.png')
    )
