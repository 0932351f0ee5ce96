"""What a run remembers."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from configs import common
from rankseg_jax import checkpoint


def save(workdir, *steps):
    """Checkpoints whose arrays hold the number of their step."""
    run = {'config': common.get_config().to_dict(), 'class_names': ['a'], 'score': None}
    with checkpoint.open_checkpoints(workdir, keep=9) as manager:
        for step in steps:
            model, optimizer = ({name: np.full((40, 50), step, np.float32)} for name in 'xy')
            checkpoint.save(manager, step, model, optimizer, run)
    return workdir / 'checkpoints' / str(steps[-1])


def cut_short(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGES = {
    'arrays cut short': lambda folder: [
        cut_short(x) for x in folder.glob('model/**/d/*') if x.is_file()
    ],
    'arrays missing': lambda folder: [x.unlink() for x in folder.glob('model/**/d/*')],
    'no list of arrays': lambda folder: (folder / 'model/manifest.ocdbt').unlink(),
    'no names': lambda folder: (folder / 'model/_METADATA').unlink(),
    'names cut short': lambda folder: cut_short(folder / 'model/_METADATA'),
    'no model': lambda folder: shutil.rmtree(folder / 'model'),
    'nothing': lambda folder: [shutil.rmtree(x) for x in folder.iterdir() if x.is_dir()],
    'no run': lambda folder: shutil.rmtree(folder / 'run'),
    'run cut short': lambda folder: [cut_short(x) for x in (folder / 'run').iterdir()],
}


@pytest.mark.parametrize('damage', DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path, damage, caplog):
    folder = save(tmp_path, 2, 3)
    damage(folder)
    saved = checkpoint.open_run(tmp_path, 'last')
    assert saved.step == 2
    assert checkpoint.model_arrays(saved.manager, saved.step)['x'][0, 0] == 2
    (line,) = (record.message for record in caplog.records if record.levelname == 'ERROR')
    assert line.startswith(f'checkpoint {folder} is damaged (') and '\n' not in line
    assert line.endswith('Going on from the one after step 2')
    with pytest.raises(checkpoint.DamagedCheckpoint, match=f'{folder} is damaged') as error:
        saved = checkpoint.open_run(tmp_path, 3)  # asked for by its number
        checkpoint.restore(saved.manager, 3, model={'x': np.empty((40, 50), np.float32)})
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('damaged', [2, 3])
def test_a_score_that_cannot_be_read_costs_its_checkpoint_alone(tmp_path, damaged, caplog):
    run = {'config': common.get_config().to_dict(), 'class_names': ['a'], 'score': 0.5}
    tree = {'x': np.zeros(3)}
    with checkpoint.open_checkpoints(tmp_path, keep=3) as manager:
        for step in (1, 2, 3):
            checkpoint.save(manager, step, tree, tree, run)
    folder = tmp_path / 'checkpoints' / str(damaged)
    (folder / 'metrics' / 'metrics').write_text('')  # as after a power cut
    assert checkpoint.open_run(tmp_path).step == (2 if damaged == 3 else 3)
    with checkpoint.open_checkpoints(tmp_path, keep=3) as manager:
        assert sorted(manager.all_steps()) == [step for step in (1, 2, 3) if step != damaged]
    assert f'{folder} is damaged' in caplog.text
    assert len(list(folder.parent.glob(f'damaged_{damaged}_*'))) == 1


def test_if_no_checkpoint_is_whole_the_newest_is_named(tmp_path):
    folder = save(tmp_path, 3)
    shutil.rmtree(folder / 'model')
    with pytest.raises(checkpoint.DamagedCheckpoint, match=f'{folder} is damaged'):
        checkpoint.open_run(tmp_path)


FAILING_SAVE = """
import errno, shutil, sys
from pathlib import Path
import numpy as np
import orbax.checkpoint as ocp
from absl import app
from rankseg_jax import checkpoint, cli

async def fail(self, item, directory):
    raise OSError(errno.ENOSPC, 'No space left on device')

def break_folder(workdir):
    if sys.argv[2] == 'full':
        ocp.JsonCheckpointHandler._save_fn = fail
    else:  # nothing can be created in it
        (workdir / 'checkpoints').rename(workdir / 'before')
        (workdir / 'checkpoints').write_text('')

def run(config, workdir, overrides):
    with checkpoint.open_checkpoints(workdir, keep=1) as manager:
        for step in (1, 2):
            checkpoint.save(manager, step, {'x': np.ones(3)}, None, {'score': None})
            manager.wait_until_finished()
            break_folder(Path(workdir))

cli.run = run
app.run(cli.main, ['main.py', f'--workdir={sys.argv[1]}'])
"""


@pytest.mark.parametrize(
    'kind, message, kept',
    [
        ('full', 'no space left on the disk of {}: free some and start again', 'checkpoints'),
        ('unwritable', 'cannot write to {}/checkpoints (Not a directory): choose', 'before'),
    ],
)
def test_a_failed_save_is_one_line_and_loses_no_checkpoint(tmp_path, kind, message, kept):
    command = [sys.executable, '-c', FAILING_SAVE, tmp_path, kind]
    root = Path(__file__).parents[1]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120)
    first, _ = result.stderr.splitlines()  # the second one tells how to see the trace
    assert first.startswith(f'error: {message.format(tmp_path)}') and result.returncode == 1
    assert [path.name for path in (tmp_path / kept).iterdir() if path.name.isdigit()] == ['1']


def test_a_new_folder_of_the_same_name_is_refused(tmp_path):
    """Else a run whose disk vanished for a moment would go on beside its checkpoints."""
    run, tree = {'config': {}, 'class_names': ['a'], 'score': None}, {'x': np.zeros(3)}
    with checkpoint.open_checkpoints(tmp_path, keep=2) as manager:
        checkpoint.save(manager, 1, tree, tree, run)
        checkpoint.save(manager, 2, tree, tree, run)
        manager.wait_until_finished()
        (tmp_path / 'checkpoints').rename(tmp_path / 'away')
        (tmp_path / 'checkpoints').mkdir()
        with pytest.raises(OSError, match='checkpoints no longer holds checkpoint 2 of this run'):
            checkpoint.save(manager, 3, tree, tree, run)
    assert checkpoint.open_checkpoints(tmp_path).all_steps() == []


def test_results_on_a_split_in_a_folder_lie_beside_the_others():
    run = checkpoint.SavedRun(None, step=4, config=common.get_config(), class_names=(), things=())
    assert run.stem('val/night') == 'val_night_4'
