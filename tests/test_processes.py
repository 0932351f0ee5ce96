"""Several processes on this machine: they find each other, and give what one process gives."""

import json
import random
import shutil
import signal
import sys
from collections import Counter

import jax
import numpy as np
import pytest
from PIL import Image

import rankseg_jax
from rankseg_jax import analysis, checkpoint, evaluate, processes, sharding, train
from tests import tiny
from tests.helpers import finish_processes, free_address, start_processes

STEPS = 10
OPTIONS = dict(steps=STEPS, mesh__data=2, log_every=1, eval_every=STEPS, checkpoint_every=2)


def config_file(folder, data_dir, **options):
    """A config file for main.py that also counts what is read, see `process_runs.watch`."""
    path = folder / 'run.py'
    path.write_text(
        'from tests import process_runs, tiny\n'
        'process_runs.watch()\n'
        f'def get_config(): return tiny.config({str(data_dir)!r}, **{OPTIONS | options})\n'
    )
    return path


def run(count, *command, **environment):
    """The (returncode, stdout, stderr) of each process."""
    return finish_processes(start_processes(count, *command, **environment))


def assert_succeeded(results):
    for code, _, stderr in results:
        assert code == 0, stderr


def reads(folder):
    """The names that each process read, sorted."""
    return [sorted((folder / place).read_text().split()) for place in ('0', '1')]


def variables(workdir, step=STEPS):
    return checkpoint.model_arrays(checkpoint.open_checkpoints(workdir), step)


def read_rows(workdir):
    return [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]


def assert_close(workdir, other):
    """Sums over devices and hosts are rounded in other orders."""
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-3),
        variables(workdir),
        variables(other),
    )


@pytest.fixture(scope='module')
def one(data_dir, tmp_path_factory):
    """(config, workdir, scores) of a run of one process with two devices."""
    config, workdir = tiny.config(data_dir, **OPTIONS), tmp_path_factory.mktemp('one')
    return config, workdir, train.train(config, workdir)


@pytest.fixture(scope='module')
def two(data_dir, tmp_path_factory):
    """(workdir, reads, [(returncode, stdout, stderr)]) of a run of two processes."""
    folder = tmp_path_factory.mktemp('two')
    (folder / 'reads').mkdir()
    file = config_file(folder, data_dir)
    command = 'main.py', f'--config={file}', f'--workdir={folder / "run"}'
    return folder / 'run', folder / 'reads', run(2, *command, READS=folder / 'reads')


def test_training_ends_with_the_figures_of_one_process(one, two):
    config, alone, scores = one
    workdir, _, results = two
    assert_succeeded(results)
    first, second = (out for _, out, _ in results)
    assert '2 processes joined, with 2 devices' in first
    # All tables and paths are printed once, by the first process.
    assert first.count('mIoU_labeled') == 2 and 'Drawings:' in first
    assert all(line.startswith('[Gloo]') for line in filter(None, second.splitlines()))
    assert (workdir / 'predictions/grid.png').is_file()
    rows, expected = read_rows(workdir), read_rows(alone)
    assert [row['step'] for row in rows] == [row['step'] for row in expected]
    for row, other in zip(rows, expected, strict=True):
        if 'train/loss' in row:
            assert row['train/loss'] == pytest.approx(other['train/loss'], rel=1e-3)
    assert rows[-1]['eval/mIoU'] == pytest.approx(scores['mIoU'], abs=0.01)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-3),
        variables(workdir),
        variables(alone),
    )


def test_each_process_trains_and_evaluates_on_its_share(one, two):
    """Besides, the first one reads what it draws."""
    config, source = one[0], train.open_sources(one[0])[0]
    _, folder, _ = two
    train_ids, eval_ids = (x.ids for x in source)
    found = reads(folder)
    for place in (0, 1):
        evaluated = [name for name in found[place] if name in eval_ids]
        drawn = eval_ids[: config.num_pictures] if place == 0 else []
        assert evaluated == sorted([*eval_ids[place::2], *drawn])
    trained = [[name for name in part if name in train_ids] for part in found]
    # Threads read ahead, a little further on one than on the other.
    assert all(STEPS * config.batch_size // 2 <= len(part) for part in trained)


def test_other_modes_give_what_one_process_gives(two, tmp_path):
    workdir = shutil.copytree(two[0], tmp_path / 'run')
    photos, folder = tmp_path / 'photos', tmp_path / 'reads'
    for path in (photos, folder):
        path.mkdir()
    for i in range(5):
        image = np.random.default_rng(i).integers(0, 256, (30 + i, 40, 3), np.uint8)
        Image.fromarray(image).save(photos / f'{i}.png')
    modes = [
        {'mode': 'evaluate'},
        {'mode': 'predict', 'input': [str(photos)]},
        {'mode': 'analyze', 'output': str(tmp_path / 'analysis')},
        {'mode': 'export'},
    ]
    results = run(2, '-m', 'tests.process_runs', workdir, json.dumps(modes), READS=folder)
    assert_succeeded(results)
    saved = checkpoint.open_run(workdir)
    found = reads(folder)

    scores = json.loads((workdir / f'scores_validation_{STEPS}.json').read_text())
    expected = evaluate.run(saved.config, workdir, tmp_path / 'alone')
    for name, value in evaluate.totals(expected).items():
        assert scores[name] == pytest.approx(value, abs=1e-4), name
    ids = train.open_sources(saved.config)[0][1].ids
    # All of them are analyzed by the first process, which also draws some for the reports.
    assert Counter(x for x in found[0] if x in ids) >= Counter([*ids[::2], *ids])
    figures, alone = (
        json.loads((folder / 'report.json').read_text()) for folder in (workdir, tmp_path / 'alone')
    )
    assert figures['images'] == len(ids)
    assert sorted(figures['image_scores']['ids']) == sorted(alone['image_scores']['ids'])
    mean, expected = (np.mean(x['image_scores']['scores']) for x in (figures, alone))
    assert mean == pytest.approx(expected, abs=1e-3)
    assert [x for x in found[1] if x in ids] == sorted(ids[1::2])

    paths = sorted(map(str, photos.iterdir()))
    assert [[x for x in part if x in paths] for part in found] == [paths[::2], paths[1::2]]
    predictor = rankseg_jax.predict.load(workdir)
    for i, path in enumerate(paths):
        labels = np.array(Image.open(workdir / f'predictions/{i}.png'))
        np.testing.assert_array_equal(labels, predictor(path).labels)

    report = json.loads((tmp_path / 'analysis/analysis.json').read_text())
    alone = evaluate.without_nan(analysis.run(saved.config, workdir, tmp_path / 'again'))
    for name in ('images', 'categories_per_image', 'categories', 'errors', 'recall', 'by_rank'):
        assert report[name] == alone[name], name
    exported = rankseg_jax.predict.load(workdir / 'export')
    assert exported(paths[0]).categories[0][0] == predictor(paths[0]).categories[0][0]


def test_a_killed_and_a_terminated_process_end_the_others_and_the_run_goes_on(
    data_dir, two, tmp_path
):
    """The parameters at the end are those of an undisturbed run, bit for bit."""
    file = config_file(tmp_path, data_dir, num_pictures=0)
    workdir = tmp_path / 'run'
    command = 'main.py', f'--config={file}', f'--workdir={workdir}'
    (code, _, stderr), (killed, _, _) = run(2, *command, SIGNAL=signal.SIGKILL, AT=3)
    assert killed == -signal.SIGKILL and code and stderr.splitlines() == [processes.LOST]

    (first, out, _), (second, _, _) = run(2, *command, SIGNAL=signal.SIGTERM, AT=4)
    assert first == second == 0 and 'Asked to stop: saved after step' in out
    step = int(out.split('saved after step ')[1].split(';')[0])
    assert checkpoint.open_run(workdir).step == step

    results = run(2, *command)
    assert_succeeded(results)
    assert f'after step {step}' in results[0][1]
    jax.tree.map(np.testing.assert_array_equal, variables(workdir), variables(two[0]))
    rows = [
        json.loads(line)['step'] for line in (workdir / 'metrics.jsonl').read_text().splitlines()
    ]
    assert rows == [*range(1, STEPS + 1), STEPS]


def test_four_processes_of_slurm(one, data_dir, tmp_path):
    file = config_file(tmp_path, data_dir, mesh__data=4, num_pictures=0, checkpoint_every=STEPS)
    slurm = {
        'SLURM_JOB_ID': str(random.randrange(4096)),  # the port follows from it
        'SLURM_STEP_NODELIST': 'localhost',
        'SLURM_NTASKS': '4',
    }
    command = 'main.py', f'--config={file}', f'--workdir={tmp_path / "run"}'
    results = finish_processes(
        [
            start_processes(1, *command, SLURM_PROCID=i, SLURM_LOCALID=i, **slurm)[0]
            for i in range(4)
        ]
    )
    assert_succeeded(results)
    assert '4 processes joined, with 4 devices' in results[0][1]
    assert_close(tmp_path / 'run', one[1])


def test_a_process_whose_others_never_start_ends_with_one_line():
    program = (
        'import functools, jax; from rankseg_jax import processes;'
        'jax.distributed.initialize = functools.partial('
        '    jax.distributed.initialize, initialization_timeout=2);'
        'processes.start(coordinator=None, num_processes=2, process_id=0)'
    )
    [(code, out, stderr)] = run(1, '-c', program, JAX_COORDINATOR_ADDRESS=free_address())
    assert code and not out and stderr.splitlines() == [processes.LOST]


GIVEN = {'coordinator': 'localhost:1234', 'num_processes': 2, 'process_id': 1}


def test_flags_go_before_the_environment(monkeypatch):
    none = dict.fromkeys(GIVEN)
    assert processes.coordinates(none) == ()
    assert processes.coordinates(GIVEN) == ('localhost:1234', 2, 1)
    monkeypatch.setenv('JAX_COORDINATOR_ADDRESS', 'node0:99')
    monkeypatch.setenv('JAX_NUM_PROCESSES', '8')
    monkeypatch.setenv('JAX_PROCESS_ID', '7')
    assert processes.coordinates(none) == ('node0:99', 8, 7)
    assert processes.coordinates(none | {'process_id': 0}) == ('node0:99', 8, 0)


@pytest.mark.parametrize(
    'flags, message',
    [
        ({'coordinator': None}, '--num_processes, --process_id without --coordinator: give all'),
        ({'process_id': None}, '--coordinator, --num_processes without --process_id: give all'),
        ({'coordinator': 'node0'}, '--coordinator=node0 must be host:port'),
        ({'num_processes': 0}, '--process_id=1 must be less than --num_processes=0'),
        ({'process_id': 2}, '--process_id=2 must be less than --num_processes=2'),
        ({'process_id': -1}, '--process_id=-1 must be a whole number'),
    ],
)
def test_bad_combinations_are_refused(flags, message):
    with pytest.raises(ValueError, match=message):
        processes.start(**GIVEN | flags)


def test_bad_variables_are_named(monkeypatch):
    monkeypatch.setenv('JAX_NUM_PROCESSES', 'two')
    with pytest.raises(ValueError, match='JAX_NUM_PROCESSES=two must be a whole number'):
        processes.start(**GIVEN | {'num_processes': None})


def test_pods_of_kubernetes(monkeypatch):
    """JAX asks the cluster, which it can in an indexed job alone."""
    asked = []
    monkeypatch.setattr(jax.distributed, 'initialize', lambda *args, **_: asked.append(args))
    monkeypatch.setattr(processes, 'filter_runtime', lambda: None)
    monkeypatch.setenv('KUBERNETES_SERVICE_HOST', '10.0.0.1')
    processes.start(**dict.fromkeys(GIVEN))
    assert not asked  # a pod by itself
    monkeypatch.setenv('JOB_COMPLETION_INDEX', '0')
    monkeypatch.setitem(sys.modules, 'kubernetes', None)
    with pytest.raises(ImportError, match=r'pip install "jax\[k8s\]", or give --coordinator'):
        processes.start(**dict.fromkeys(GIVEN))
    monkeypatch.setattr(processes.importlib.util, 'find_spec', lambda name: object())
    processes.start(**dict.fromkeys(GIVEN))
    assert asked == [()]


def test_the_mesh_must_reach_all_processes(monkeypatch):
    monkeypatch.setattr(jax, 'process_count', lambda: 2)
    with pytest.raises(ValueError, match='config.mesh = 1 × 1 × 1 .* must take all 8 devices'):
        sharding.make_mesh(1)
