"""The installed command `rankseg`, configs by name, and their list."""

import json
import os
import re
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from absl import flags
from absl.testing import flagsaver

from configs import common
from rankseg_jax import checkpoint, cli, recipes

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope='module')
def installed(tmp_path_factory):
    """The folder that a copy of this project is installed into."""
    source, target = tmp_path_factory.mktemp('source'), tmp_path_factory.mktemp('target')
    for name in ('rankseg_jax', 'configs'):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns('__pycache__'))
    for name in ('pyproject.toml', 'README.md', 'LICENSE', 'requirements.txt'):
        shutil.copy(ROOT / name, source)
    command = '-m pip install --quiet --no-deps --no-build-isolation --target'.split()
    subprocess.run([sys.executable, *command, target, source], check=True)
    return target


def test_installed_command_lists_the_configs(installed, tmp_path):
    environment = os.environ | {'PYTHONPATH': str(installed)}
    command = [sys.executable, installed / 'bin' / 'rankseg', '--mode=list']
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    lines = [re.split(r'\s{2,}', line) for line in done.stdout.splitlines()]
    assert ['quickstart', 'semantic', 'emoji_scenes', '60', '16', '3.4 M'] in [x[:6] for x in lines]
    assert lines[0][0] == 'config' and len({x[0] for x in lines}) == len(lines)
    assert (installed / 'rankseg_jax' / 'report' / 'page' / 'report.html.j2').is_file()


def test_scores_are_those_of_the_config_files(capsys):
    lines = recipes.table().splitlines()
    for name, score in {  # as published in the papers' tables
        'segmenter:ade20k_b16_rankseg': 'mIoU 49.7 published',
        'mask2former:coco_panoptic_swin_l': 'PQ 57.8 published',
        'videomt:vspw_l': 'mIoU 64.9 published',
    }.items():
        assert any(re.match(rf'{name} .*  {score}$', line) for line in lines), name
    measured = [line.split() for line in lines if line.endswith(' measured')]
    assert len(measured) > 5
    for name, *_, score, _ in measured:
        module = import_module(f'configs.{name.partition(":")[0]}')
        assert re.search(rf'\b{re.escape(score)}\b', module.__doc__), name


@pytest.mark.parametrize(
    'flag, file',
    [
        ('--config=quickstart', 'quickstart.py'),
        ('-config=segmenter:ade20k_b16', 'segmenter.py:ade20k_b16'),
        ('--config=configs/eomt.py', None),
    ],
)
def test_configs_by_name(flag, file, monkeypatch):
    seen = []
    monkeypatch.setattr(cli.flags, 'FLAGS', lambda argv: seen.extend(argv) or [])
    cli.parse_flags(['rankseg', flag])
    assert seen == ['rankseg', f'--config={ROOT}/configs/{file}' if file else flag]


@pytest.mark.parametrize(
    'flag, message',
    [
        ('--config=segmentor:ade20k', '--config=segmentor is no file.*mean segmenter'),
        ('--config=eomt.py', '--config=eomt.py is no file.*mean eomt'),
        ('--config', '--config needs =, as in --config=quickstart'),
        ('--config.stepps=3', 'config.stepps is not a key.*mean config.steps'),
        ('--noconfig.eval.flop', 'config.eval.flop is not a key.*mean config.eval.flip'),
        ('--config.eval.size[0]=5', r'--config.eval.size\[0\]=5 sets one item: set all, .*512'),
        ('--config.eval.checkpoint best', '.* needs =: write --config.eval.checkpoint=best$'),
        ('--config=camvid:foo', 'configs/camvid.py:foo is unknown; use one of'),
        (
            '--workdir=a --config=quickstart:baseline --config.rankseg.num_selected=3',
            'config.rankseg.num_selected cannot be set: this is a baseline',
        ),
    ],
)
@pytest.mark.filterwarnings('ignore:the load_module')  # ml_collections loads a config with it
def test_a_wrong_config_is_one_line(flag, message, monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['rankseg', *flag.split()])
    with pytest.raises(SystemExit, match=f'^error: {message}'):
        cli.parse_flags(sys.argv)


@pytest.mark.parametrize('mode', ['train', 'convert', 'prepare'])
def test_changes_of_no_config_are_refused(mode, tmp_path):
    flags.FLAGS(['main.py', f'--workdir={tmp_path}'])
    with flagsaver.flagsaver(mode=mode):
        with pytest.raises(ValueError, match='--config.steps=3 needs --config=<the config'):
            cli.run(None, tmp_path, ['--config.steps=3'])


def test_a_saved_config_takes_changes_as_a_file_does():
    original = common.get_config()
    saved = checkpoint.current_config(json.loads(original.to_json()))
    assert saved.to_dict() == original.to_dict()

    changes = ['--config.eval.scales=(0.5,1.0)', '--config.eval.flip', '--config.data.name=folder']
    changed = cli.override(saved, changes)
    assert changed.eval.scales == (0.5, 1.0) and changed.eval.flip
    assert changed.data.name == 'folder' and saved.to_dict() == original.to_dict()
    assert cli.parse_flags(['main.py', '--workdir=a', '--noconfig.eval.flip'])[1:] == [
        '--noconfig.eval.flip'
    ]
    assert not cli.override(changed, ['--noconfig.eval.flip']).eval.flip

    with pytest.raises(ValueError, match='^flag --config.steps=many: invalid literal'):
        cli.override(saved, ['--config.steps=many'])
    for change in ('--config.data.long_side=128', '--config.rankseg.num_selected=0'):
        with pytest.raises(ValueError, match='long_side > 0 .* set config.eval.size or κ'):
            cli.override(saved, [change])
    saved.rankseg = None
    with pytest.raises(ValueError, match='^config.rankseg.layer cannot be set: .* baseline'):
        cli.override(saved, ['--config.rankseg.layer=2'])
    with pytest.raises(ValueError, match='cannot change an exported model'):
        cli.override(None, changes)
