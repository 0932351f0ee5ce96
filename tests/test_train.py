import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax._src.array import ArrayImpl
from ml_collections import FrozenConfigDict

from rankseg_jax import (
    checkpoint,
    data,
    evaluate,
    models,
    optimizers,
    reporting,
    sharding,
    tasks,
    train,
    train_step,
)
from rankseg_jax.data import reading
from rankseg_jax.decoders.pixel_classifier import PixelClassifier
from rankseg_jax.decoders.query_classifier import QueryClassifier
from rankseg_jax.decoders.query_decoder import mask_products
from tests import tiny
from tests.helpers import random_state, random_variables

ROOT = Path(__file__).parents[1]


def read_rows(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def read_variables(workdir, step, **overrides):
    saved = checkpoint.open_run(workdir, step)
    assert checkpoint.read_run(saved.manager, step)['next_step'] == step
    config = tiny.config('', **overrides)
    return models.restore(saved, models.build(config, 8), config, sharding.make_mesh(1))


@pytest.fixture(scope='module')
def finished(data_dir, tmp_path_factory):
    """(config, workdir, scores) of a run that reached its last step."""
    config = tiny.config(data_dir, steps=7, keep_checkpoints=1)
    workdir = tmp_path_factory.mktemp('run')
    return config, workdir, train.train(config, workdir)


def test_the_best_checkpoint_is_found_beside_a_damaged_one(monkeypatch):
    def read_run(manager, step):
        if step == 5:
            raise checkpoint.DamagedCheckpoint('damaged')
        return {'score': {3: 0.2, 7: 0.1}[step]}

    manager = mock.Mock(all_steps=lambda: [3, 5, 7])
    monkeypatch.setattr(checkpoint, 'read_run', read_run)
    assert checkpoint.find(manager, 'best') == 3


class TestLoop:
    def test_it_logs_evaluates_and_keeps_checkpoints(self, finished):
        config, workdir, scores = finished
        rows = read_rows(workdir / 'metrics.jsonl')
        assert [row['step'] for row in rows if 'train/loss' in row] == [1, 2, 4, 6, 7]
        assert [row['step'] for row in rows if 'eval/mIoU' in row] == [3, 6, 7]
        parts = {
            'train/loss_pixel',
            'train/loss_cells',
            'train/loss_multilabel',
            'train/grad_norm',
            'learning_rate',
            'steps/s',
            'img/s',
            'img/s/device',
        }
        assert parts <= rows[0].keys()
        for row in rows:
            if 'train/loss' in row:
                parts = ('pixel', 'cells', 'multilabel')
                total = sum(row[f'train/loss_{name}'] for name in parts)
                assert row['train/loss'] == pytest.approx(total, rel=1e-5)
        assert scores['mIoU'] == rows[-1]['eval/mIoU'] and 0 <= scores['mIoU'] <= 1
        assert list(workdir.glob('events.out.tfevents.*'))
        best = max((row for row in rows if 'eval/mIoU' in row), key=lambda row: row['eval/mIoU'])[
            'step'
        ]
        manager = checkpoint.open_checkpoints(workdir)
        assert set(manager.all_steps()) == {7, best}
        assert checkpoint.find(manager, 'best') == best and checkpoint.find(manager, 'last') == 7
        again = train.train(config, workdir)  # all steps are done
        assert again['mIoU'] == scores['mIoU']

    def test_the_host_reads_nothing_that_a_device_still_computes(
        self, data_dir, tmp_path, monkeypatch
    ):
        """Steps get all they need explicitly; between reports only older metrics are read."""
        ages, arrays, jit_step, value = [], [], train.jit_step, ArrayImpl._value.fget

        def guarded(*args, **options):
            step = jit_step(*args, **options)

            def run(state, batch):
                with jax.transfer_guard('disallow'):
                    state, metrics = step(state, batch)
                arrays.append(jax.tree.leaves((state, metrics)))
                return state, metrics

            return run

        def read(array):
            made = [i for i, leaves in enumerate(arrays) if any(x is array for x in leaves)]
            if 1 < len(arrays) < 8:  # the first and the last are reported
                ages.extend(len(arrays) - 1 - i for i in made)
            return value(array)

        monkeypatch.setattr(train, 'jit_step', guarded)
        monkeypatch.setattr(ArrayImpl, '_value', property(read))
        every = dict(log_every=8, eval_every=8, checkpoint_every=8)
        train.train(tiny.config(data_dir, steps=8, **every), tmp_path)
        assert set(ages) == {reporting.AHEAD}

    def test_resuming_with_another_schedule_says_so(self, data_dir, finished, tmp_path, capsys):
        workdir = shutil.copytree(finished[1], tmp_path / 'run')
        train.train(tiny.config(data_dir, steps=8, keep_checkpoints=1), workdir)
        assert 'follows the new schedule' in capsys.readouterr().out
        train.train(tiny.config(data_dir, steps=8, keep_checkpoints=1), workdir)
        assert 'schedule' not in capsys.readouterr().out

    def test_a_damaged_checkpoint_is_set_aside(self, finished, tmp_path, capsys):
        config, workdir, _ = finished
        workdir = shutil.copytree(workdir, tmp_path / 'run')
        folder = workdir / 'checkpoints'
        shutil.copytree(folder / '7', folder / '4')
        (folder / '7/optimizer/manifest.ocdbt').unlink()
        train.train(config, workdir)
        assert 'after step 4' in capsys.readouterr().out
        assert checkpoint.open_run(workdir).step == 7
        (aside,) = folder.glob('damaged_7_*')
        rows = [row['step'] for row in read_rows(workdir / 'metrics.jsonl')]
        assert rows == sorted(rows)
        # With no other one, training does not start anew.
        for path in set(folder.iterdir()) - {aside}:
            shutil.rmtree(path)
        aside.rename(folder / '7')
        with pytest.raises(checkpoint.DamagedCheckpoint, match='checkpoints/7 is damaged'):
            train.train(config, workdir)

    def test_resuming_for_another_task_is_refused(self, finished):
        config, workdir, _ = finished
        config = config.copy_and_resolve_references()
        config.task = 'panoptic'
        with pytest.raises(ValueError, match="was trained with config.task = 'semantic', not"):
            train.train(config, workdir)

    def test_resuming_with_another_model_lists_both_sides(self, data_dir, finished):
        config = tiny.config(data_dir, rankseg__num_selected=4)
        with pytest.raises(
            ValueError, match=r'decoder/rank/temperature/bias: checkpoint \(3,\), model \(4,\)'
        ):
            train.train(config, finished[1])


def wait_for_step(workdir, step, process):
    """Waits until metrics.jsonl has reached `step`."""
    for _ in range(15_000):
        file = workdir / 'metrics.jsonl'
        lines = file.read_text().splitlines() if file.exists() else []
        if lines and json.loads(lines[-1])['step'] >= step:
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    raise TimeoutError(f'no step {step} in {workdir}')


def test_a_killed_run_and_a_terminated_run_end_with_the_same_parameters(
    data_dir, tmp_path, monkeypatch, capsys
):
    """SIGKILL at a random step, SIGTERM, then to the end: bit-exact with an undisturbed run."""
    model = dict(model__backbone='tiny_vit', model__drop_path=0.5)  # steps draw random numbers
    options = dict(steps=100, batch_size=4, log_every=2, eval_every=1000, checkpoint_every=10)
    overrides = model | options | dict(num_pictures=0)
    file = tmp_path / 'run.py'
    file.write_text(
        'from tests import tiny\n'
        f'def get_config(): return tiny.config({str(data_dir)!r}, **{overrides})\n'
    )
    straight, broken = tmp_path / 'straight', tmp_path / 'broken'
    process = subprocess.Popen(
        [sys.executable, 'main.py', f'--config={file}', f'--workdir={broken}'],
        cwd=ROOT,
        env=os.environ | {'PYTHONPATH': str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for_step(broken, 10, process)
    while not [path for path in (broken / 'checkpoints').iterdir() if path.name.isdigit()]:
        time.sleep(0.01)
    time.sleep(random.uniform(0, 0.2))
    process.send_signal(signal.SIGKILL)
    process.communicate()

    # The rest in this process, since each start costs many seconds.
    config, report = tiny.config(data_dir, **overrides), reporting.Progress.report

    def terminate(progress, step):
        report(progress, step)
        if step >= 30:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(reporting.Progress, 'report', terminate)
        assert train.train(config, broken) is None
    out = capsys.readouterr().out
    assert 'Resuming' in out and 'saved after step' in out
    config.checkpoint_every = 1000
    for workdir in (broken, straight):
        train.train(config, workdir)
    assert capsys.readouterr().out.count('Resuming') == 1
    jax.tree.map(
        np.testing.assert_array_equal,
        *(read_variables(workdir, 100, **model) for workdir in (straight, broken)),
    )
    expected, found = (
        [row['step'] for row in read_rows(run / 'metrics.jsonl') if 'train/loss' in row]
        for run in (straight, broken)
    )
    assert found == sorted(set(found)) and set(expected) <= set(found)


def test_without_annotations_to_score_against(data_dir, tmp_path, monkeypatch, capsys):
    open_source = tasks.open_source

    def opened(config, split):
        source = open_source(config, split)
        source.annotated = split == 'train'
        return source

    monkeypatch.setattr(tasks, 'open_source', opened)
    config = tiny.config(data_dir)  # which evaluates after steps 3 and 6
    for _ in range(2):  # trained, and done already
        assert train.train(config, tmp_path) == {}
    assert "The split 'validation' has no annotations to score" in capsys.readouterr().out
    assert not any('eval/' in key for row in read_rows(tmp_path / 'metrics.jsonl') for key in row)
    assert checkpoint.open_run(tmp_path).step == 6


def test_rows_after_the_checkpoint_are_dropped(tmp_path):
    file = tmp_path / 'metrics.jsonl'
    rows = [{'step': step, 'x': None} for step in (1, 2, 4, 4, 5, 3, 6)]
    file.write_text('\n'.join(map(json.dumps, rows)) + '\n{"step": 4, "x"')
    reporting.drop_rows(file, 4)
    assert [row['step'] for row in read_rows(file)] == [1, 2, 4, 4, 3]
    assert file.read_text().endswith('\n') and list(tmp_path.iterdir()) == [file]


def test_a_videomt_learns_images(data_dir, tmp_path):
    config = tiny.config(
        data_dir,
        steps=1,
        model__framework='videomt',
        model__backbone='tinier_dino',
        model__joint_blocks=1,
        model__num_queries=5,
        data__max_targets=4,
        rankseg__layer=0,
        rankseg__stride=8,
    )
    assert train.train(config, tmp_path)['mIoU'] >= 0


def test_a_termination_cuts_an_evaluation_short(data_dir, tmp_path, monkeypatch):
    config = tiny.config(data_dir, steps=4, eval_every=2, checkpoint_every=4, eval__batch_size=8)
    merge = evaluate.merge

    def terminate(*metrics):  # after the first of five batches
        signal.raise_signal(signal.SIGTERM)
        return merge(*metrics)

    with monkeypatch.context() as patch:
        patch.setattr(evaluate, 'merge', terminate)
        assert train.train(config, tmp_path) is None
    saved = checkpoint.open_run(tmp_path)
    assert saved.step == 2 and checkpoint.score(checkpoint.read_run(saved.manager, 2)) is None
    assert train.train(config, tmp_path)['mIoU'] >= 0


def test_a_non_finite_loss_names_step_and_examples(data_dir, tmp_path):
    config = tiny.config(
        data_dir,
        steps=9,
        optimizer__learning_rate=1e30,
        optimizer__groups=(),
        checkpoint_every=1,
        eval_every=100,
    )
    with pytest.raises(FloatingPointError, match='at step') as error:
        train.train(config, tmp_path)
    step = int(str(error.value).split('at step ')[1].split(';')[0])
    source = data.get_source(config.data, 'train')
    for index in reading.example_indices(len(source), config.seed, step, config.batch_size):
        assert source.ids[index] in str(error.value)
    for saved in checkpoint.open_checkpoints(tmp_path).all_steps():
        assert saved <= step
        assert all(np.abs(x).max() < 1e6 for x in jax.tree.leaves(read_variables(tmp_path, saved)))


def setup(config, model=None, **kwargs):
    """A state before the first step, and the step."""
    model = model or models.build(config, 8)
    optimizer = optimizers.make_optimizer(config.optimizer, config.steps)
    state = random_state(
        jax.eval_shape(lambda: train_step.create_state(model, optimizer, config, 8))
    )
    task = tasks.build(config, 'abcdefgh')
    return state, train_step.make_train_step(model, optimizer, config, task, **kwargs)


def random_batch(seed=0, batch=8):
    rng = np.random.default_rng(seed)
    return {
        'image': rng.normal(size=(batch, 32, 32, 3)).astype(np.float32),
        'label': rng.integers(-1, 8, (batch, 32, 32)).astype(np.int32),
        'mask': np.ones(batch, bool),
    }


def test_eight_devices_agree_with_one():
    """With batch norms, whose statistics are those of the whole batch, and an auxiliary loss."""
    config = tiny.config(
        '', model__framework='upernet', model__backbone='tiny_pyramid', model__dropout=0.0
    )
    first, step = setup(config)
    results = []
    for devices in (1, 8):
        mesh = sharding.make_mesh(devices)
        copied = sharding.copied(mesh)
        jitted = jax.jit(step, in_shardings=(copied, sharding.split(mesh)), out_shardings=copied)
        state = jax.device_put(first, copied)
        for i in range(3):
            state, metrics = jitted(state, sharding.shard_batch(random_batch(i), mesh))
        results.append((state.model, metrics))
    # AdamW's first steps divide by the gradient's size, which magnifies rounding near zero.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-3), *results)
    metrics = results[1][1]
    assert metrics['loss'].sharding.num_devices == 8
    parts = [metrics[f'loss_{name}'] for name in ('pixel', 'auxiliary', 'cells', 'multilabel')]
    np.testing.assert_allclose(metrics['loss'], sum(map(float, parts)), rtol=1e-5)


class Pixels(nn.Module):
    """Classifies single cells, with an auxiliary head of another size."""

    config: FrozenConfigDict

    @nn.compact
    def __call__(self, images, *, train, choice):
        x = nn.Conv(8, (4, 4), strides=4)(images)
        classifier = PixelClassifier(8, self.config.rankseg)
        return classifier(x, {4: x}, x[:, ::2, ::2], train=train, choice=choice)


class Queries(nn.Module):
    """Two predictions of fewer queries than an image may have targets."""

    config: FrozenConfigDict

    @nn.compact
    def __call__(self, images, *, train, choice):
        x = nn.Conv(8, (4, 4), strides=4)(images)
        queries = nn.Dense(5 * 8)(x.mean((1, 2))).reshape(-1, 5, 8)
        states = [queries, jnp.sin(3 * queries)]
        classifier = QueryClassifier(8, dim=8, rankseg=self.config.rankseg)
        masks = [mask_products(queries, x) for queries in states]
        return classifier(x, states, masks, train=train, choice=choice)


@pytest.mark.parametrize(
    'build, options',
    [
        (Pixels, {}),
        (Pixels, {'rankseg': None, 'loss__upsample': False}),
        (Queries, {'rankseg__missed': 'ignore', 'rankseg__num_selected': 6}),
    ],
)
def test_micro_batches_give_the_gradient_of_the_whole_batch(build, options, monkeypatch):
    """Images carry unequal numbers of labeled pixels and targets; all share the random points."""
    monkeypatch.setattr(jax.random, 'fold_in', lambda key, data: key)
    options = dict(
        optimizer__name='sgd',
        optimizer__momentum=0.0,
        optimizer__weight_decay=0.0,
        optimizer__schedule='poly',
        optimizer__learning_rate=1.0,
        rankseg__stride=4,
        rankseg__layer=0,
        loss__num_points=50,
        loss__no_object=0.7,
        **options,
    )
    rng, batch = np.random.default_rng(0), random_batch()
    for i, image in enumerate(batch['label']):
        image[rng.random(image.shape) > i**2 / 49] = -1  # from no labeled pixel to all
        image[image > i] = i
    batch['mask'][5], batch['label'][5] = False, -1
    model = build(FrozenConfigDict(tiny.config('', **options)))
    (state, whole), (_, micro) = (
        setup(tiny.config('', accumulate=n, **options), model) for n in (1, 4)
    )
    after, metrics = jax.jit(whole)(state, batch)
    slopes = jax.tree.map(lambda a, b: a - b, state.model['params'], after.model['params'])
    after, found = jax.jit(micro)(state, batch)
    ours = jax.tree.map(lambda a, b: a - b, state.model['params'], after.model['params'])
    scale = max(np.abs(x).max() for x in jax.tree.leaves(slopes))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * scale), ours, slopes)
    assert found.keys() == metrics.keys()
    for name in metrics:
        np.testing.assert_allclose(found[name], metrics[name], rtol=1e-5, err_msg=name)


def test_masked_images_are_excluded_from_the_loss():
    """A stand-in for a corrupt image does not change the loss of the others."""
    config = tiny.config('')
    model = models.build(config, 8)
    task = tasks.build(config, 'abcdefgh')
    variables = random_variables(model, np.zeros((1, 32, 32, 3), np.float32))
    batch = random_batch(batch=4)
    batch['label'][3], batch['mask'][3] = -1, False

    @jax.jit
    def loss(batch):
        output = model.apply(variables, batch['image'], train=False)
        parts, _ = train_step.loss_parts(None, output, batch, task.presence(batch), config, task)
        return sum(part.value for part in parts.values())

    np.testing.assert_allclose(loss(batch), loss(jax.tree.map(lambda x: x[:3], batch)), rtol=1e-5)


def test_ema_and_dropout_streams():
    options = dict(model__backbone='tiny_vit', model__drop_path=0.5)
    state, step = setup(tiny.config('', ema=0.75, **options))
    step = jax.jit(step)
    after, metrics = step(state, random_batch())
    assert after.step == 1
    jax.tree.map(
        lambda found, old, new: np.testing.assert_allclose(
            found, 0.75 * np.asarray(old) + 0.25 * np.asarray(new), rtol=1e-5, atol=1e-7
        ),
        after.model['ema'],
        state.model['ema'],
        after.model['params'],
    )
    again, other = (step(state.replace(step=i), random_batch())[1] for i in (0, 1))
    assert again['loss'] == metrics['loss'] != other['loss']


def test_all_classes_step_trains_the_same_parameters_without_selection():
    state, step = setup(tiny.config('', rankseg__temperature='layer_norm'), all_classes=True)
    after, metrics = jax.jit(step)(state, random_batch())
    assert jax.tree.structure(after.model) == jax.tree.structure(state.model)
    assert np.isfinite(metrics['loss'])
    scales = [
        variables.model['params']['decoder']['rank']['temperature']['norm']['scale']
        for variables in (state, after)
    ]
    np.testing.assert_array_equal(*scales)


@pytest.mark.parametrize(
    'key, value, message',
    [
        ('rankseg__num_selected', 9, 'κ.* = 9 .* K = 8'),
        ('batch_size', 7, 'batch_size = 7 .*accumulate = 2'),
        ('mesh__data', 99, 'needs 99 devices, but there are 8'),
        ('model__backbone', 'vgg', "'vgg'.*resnet50"),
        ('model__framework', 'unet', "'unet'.*upernet"),
        ('task', 'depth', "config.task = 'depth' is unknown; .* semantic, panoptic"),
        ('data__name', 'imagenet', "'imagenet'.*emoji_scenes"),
        ('optimizer__name', 'lion', "'lion'.*adamw"),
        ('optimizer__schedule', 'linear', "'linear'.*cosine"),
        ('rankseg__head', 'mlp', "'mlp'.*log_sum_exp"),
        ('rankseg__temperature', 'softmax', "'softmax'"),
        ('rankseg__missed', 'drop', "'drop'.*force"),
        ('loss__multilabel', 'focal', "'focal'.*bce"),
        ('model__dtype', 'float15', "'float15'.*bfloat16"),
        ('rankseg__stride', 3, 'stride = 3'),
        ('log_every', 0, 'log_every = 0'),
        ('optimizer__warmup_steps', 6, 'warmup_steps = 6 .*steps = 6'),
    ],
)
def test_bad_values_are_named(data_dir, tmp_path, key, value, message):
    config = tiny.config(data_dir, accumulate=2, **{key: value})
    with pytest.raises(ValueError, match=message):
        train.train(config, tmp_path)
