"""What a run remembers, and what data fit it."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from ml_collections import ConfigDict

from rankseg_jax import checkpoint

DATA = ConfigDict({'name': 'folder', 'dir': 'photos'})


def check(trained, found, things=((), ())):
    run, data = (
        SimpleNamespace(class_names=tuple(names), things=kinds)
        for names, kinds in zip((trained, found), things, strict=True)
    )
    checkpoint.check_categories(run, data, where='runs/a/checkpoints/4', data_config=DATA)


@pytest.mark.parametrize(
    'trained, found',
    [
        (('sky', 'Traffic Light'), ('sky ', 'traffic_light')),
        (('person', 'wall-other-merged'), ('Person, individual', 'wall other merged')),
        (('windowpane; window',), ('window , glass',)),
        (('LABEL_0', 'LABEL_1'), ('sky', 'tree')),
        (('天空', 'Straße'), ('天空', 'STRASSE')),
        ((',',), (',',)),
    ],
)
def test_other_spellings_of_a_category_are_the_same(trained, found):
    check(trained, found)


@pytest.mark.parametrize(
    'trained, found, message',
    [
        ('abc', 'ab', 'K is 3 in the run, 2 in the data'),
        (('sky', 'tree'), ('tree', 'sky'), "category 0 is 'sky' in the run, 'tree' in the data"),
        (('sky', 'tree'), ('sky', 'street'), "category 1 is 'tree' in the run, 'street' in the"),
        (('-1', '+1'), ('+1', '-1'), "category 0 is '-1'"),
        (('pot', 'toilet, pot'), ('toilet, pot', 'pot'), "category 0 is 'pot'"),
        (('LABEL_0', 'sky'), ('sky', 'LABEL_0'), "category 0 is 'LABEL_0'"),
    ],
)
def test_the_first_difference_is_named(trained, found, message):
    with pytest.raises(ValueError, match=r"runs/a.*data.name = 'folder' in photos has") as error:
        check(trained, found)
    assert message in str(error.value)


def test_things_are_compared_where_both_sides_have_some():
    check('ab', 'ab', [(), (True, False)])
    check('ab', 'ab', [(1, 0), (True, False)])
    with pytest.raises(ValueError, match="category 1, 'b', is stuff in the run, a thing in the d"):
        check('ab', 'ab', [(True, False), (True, True)])


FULL_DISK = """
import errno, sys
import numpy as np
import orbax.checkpoint as ocp
from absl import app
import main
from rankseg_jax import checkpoint

async def fail(self, item, directory):
    raise OSError(errno.ENOSPC, 'No space left on device')

def run(config, workdir):
    with checkpoint.open_checkpoints(workdir, keep=1) as manager:
        for step in (1, 2):
            checkpoint.save(manager, step, {'x': np.ones(3)}, None, {'score': None})
            manager.wait_until_finished()
            ocp.JsonCheckpointHandler._save_fn = fail

main.run = run
app.run(main.main, ['main.py', f'--workdir={sys.argv[1]}'])
"""


def test_a_full_disk_is_one_line_and_loses_no_checkpoint(tmp_path):
    command = [sys.executable, '-c', FULL_DISK, tmp_path]
    root = Path(__file__).parents[1]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120)
    first, _ = result.stderr.splitlines()  # the second one tells how to see the trace
    assert first == f'error: no space left on the disk of {tmp_path}: free some and start again'
    assert checkpoint.open_checkpoints(tmp_path).all_steps() == [1]


def test_results_on_a_split_in_a_folder_lie_beside_the_others():
    run = checkpoint.SavedRun(None, step=4, config=DATA, class_names=(), things=())
    assert run.stem('val/night') == 'val_night_4'
