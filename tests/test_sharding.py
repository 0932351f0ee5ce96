"""A state that is spread over a mesh trains, restores and predicts as on one device."""

import functools
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from rankseg_jax import checkpoint, evaluate, models, optimizers, sharding, tasks, train, train_step
from tests import tiny
from tests.helpers import random_like, random_state

MESHES = [(8, 1, 1), (1, 8, 1), (2, 4, 1), (2, 2, 2)]  # data × fsdp × model
SEGMENTER = dict(
    model__framework='segmenter',
    model__backbone='tinier_vit',
    model__channels=16,
    model__decoder_heads=2,
    model__decoder_layers=1,
    rankseg__stride=8,
)


@pytest.fixture(autouse=True)
def spread_small_parameters(monkeypatch):
    monkeypatch.setattr(sharding, 'SMALL', 64)


def random_batch(seed):
    """Images of noise, labeled in squares."""
    rng = np.random.default_rng(seed)
    squares = rng.integers(-1, 8, (8, 4, 4))
    return {
        'image': rng.normal(size=(8, 32, 32, 3)).astype(np.float32),
        'label': np.kron(squares, np.ones((1, 8, 8))).astype(np.int32),
        'mask': np.ones(8, bool),
    }


def ten_losses(config, mesh):
    """The losses of ten steps, and the compiled step."""
    model, task = models.build(config, 8), tasks.build(config, 'abcdefgh')
    optimizer = optimizers.make_optimizer(config.optimizer, 10)
    shapes = jax.eval_shape(lambda: train_step.create_state(model, optimizer, config, 8))
    shardings = sharding.state_shardings(mesh, shapes, shapes.model['params'])
    step = jax.jit(
        train_step.make_train_step(model, optimizer, config, task),
        in_shardings=(shardings, sharding.split(mesh)),
        out_shardings=(shardings, sharding.copied(mesh)),
    )
    state, losses = jax.device_put(random_state(shapes), shardings), []
    batches = [sharding.shard_batch(random_batch(i), mesh) for i in range(10)]
    step = step.lower(state, batches[0]).compile()
    for batch in batches:
        state, metrics = step(state, batch)
        losses.append(float(metrics['loss']))
    return losses, step


@pytest.mark.parametrize(
    'config, meshes',
    [
        (tiny.config('', ema=0.5, **SEGMENTER), MESHES),
        (tiny.queries_config('', ema=0.5), MESHES[::3]),
    ],
    ids=['segmenter', 'mask2former'],
)
def test_every_mesh_gives_the_losses_of_one_device_with_less_memory(config, meshes):
    """With dropout, random points, matching, moments and averages."""
    expected, _ = ten_losses(config, sharding.make_mesh(1))
    state, total = [], []
    for mesh in meshes:
        losses, step = ten_losses(config, sharding.make_mesh(*mesh))
        np.testing.assert_allclose(losses, expected, rtol=1e-5, err_msg=str(mesh))
        memory = step.memory_analysis()
        state.append(memory.argument_size_in_bytes)  # the batch included
        total.append(state[-1] + memory.temp_size_in_bytes)
    assert max(state[1:]) < state[0] / 1.5
    assert total[1] < total[0]


def go_on(config, workdir, steps):
    """Trains as many more steps from the newest checkpoint; returns the examples and the state."""
    from rankseg_jax.data import pipeline

    setup = train.set_up(config)
    state = train.first_state(setup, workdir)
    with checkpoint.open_checkpoints(workdir, keep=9) as manager:
        start, step = int(state.step), train.jit_step(setup)
        batches = pipeline.train_batches(setup.source, config, setup.task, start_step=start)
        for _ in range(steps):
            state, _ = step(state, sharding.shard_batch(next(batches), setup.mesh))
        batches.close()
        if not start:
            train.save(setup, manager, state, score=None)
    names = [setup.batch_ids(i) for i in range(start, start + steps)]
    return names, sharding.host_copy(state.model, setup.mesh)


def on(mesh, data_dir):
    """The config of a run on a mesh."""
    # AdamW makes steps of full size from the rounding of gradients that are 0, such as those of the
    # biases of attention's keys. Micro-batches would drop other activations.
    options = SEGMENTER | dict(optimizer__name='sgd', model__dropout=0.0)
    config = tiny.config(data_dir, steps=100, **options)
    config.mesh.data, config.mesh.fsdp, config.mesh.model = mesh
    return config


@pytest.fixture(scope='module')
def saved(data_dir, tmp_path_factory):
    """The folder of a run of two steps on 8 × 1 devices."""
    workdir = tmp_path_factory.mktemp('saved')
    go_on(on((8, 1, 1), data_dir), workdir, 2)
    return workdir


def test_a_run_goes_on_on_another_mesh(saved, data_dir):
    """Ten steps on half the devices and on other axes; bit-equal where sums have the same parts."""
    names, expected = go_on(on((8, 1, 1), data_dir), saved, 10)
    for mesh in [(4, 1, 1), (2, 4, 1), (1, 8, 1)]:
        found_names, found = go_on(on(mesh, data_dir), saved, 10)
        assert found_names == names
        rtol = 0 if mesh == (1, 8, 1) else 1e-5  # others add up in another order
        compare = functools.partial(np.testing.assert_allclose, rtol=rtol, atol=rtol / 10)
        jax.tree.map(compare, found, expected)


def test_fewer_devices_take_more_micro_batches_of_the_same_batch(saved, data_dir):
    expected_names, expected = go_on(on((8, 1, 1), data_dir), saved, 10)
    config = on((2, 1, 1), data_dir)
    config.local_batch_size = 2
    assert train.set_up(config).config.accumulate == config.batch_size // 4
    names, found = go_on(config, saved, 10)
    assert names == expected_names
    compare = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(compare, found, expected)


def test_a_sharded_state_scores_as_a_whole_one(saved, data_dir, tmp_path):
    scores = [
        evaluate.totals(evaluate.run(on(mesh, data_dir), saved, tmp_path))
        for mesh in [(1, 1, 1), (2, 2, 2)]
    ]
    assert scores[0] == pytest.approx(scores[1], rel=1e-6)


@pytest.mark.parametrize('mesh', [(1, 1, 2), (1, 2, 1)])
def test_a_host_gets_the_scores_of_all_categories_of_a_split_head(mesh):
    """A head with more categories than channels is split over its categories."""
    config, num_classes = tiny.config(''), 32
    model = models.build(config, num_classes)
    task = tasks.build(config, [str(i) for i in range(num_classes)])
    variables = random_like(jax.eval_shape(lambda: models.init(model, num_classes, 0, (32, 32))))
    rng, size = np.random.default_rng(0), np.full((2, 2), 32, np.int32)
    batch = {
        'views': ({'image': rng.normal(size=(2, 32, 32, 3)).astype(np.float32), 'content': size},),
        'size': size,
        'label': rng.integers(0, num_classes, (2, 32, 32)).astype(np.int32),
        'mask': np.ones(2, bool),
    }

    def scores(mesh):
        mesh = sharding.make_mesh(*mesh)
        shardings = sharding.state_shardings(mesh, variables, variables['params'])
        step = evaluate.make_eval_step(model, config, task, mesh)
        ((_, maps),) = step(jax.device_put(variables, shardings), batch)
        return sharding.local_part(maps['presence_logits'])

    np.testing.assert_allclose(scores(mesh), scores((1, 1, 1)), rtol=1e-5, atol=1e-6)


PARAMS = {
    'backbone': {'kernel': (6, 64), 'bias': (64,), 'odd': (7, 9)},
    'decoder': {'classes': {'embedding': (151, 64)}, 'head': {'classify': {'kernel': (64, 200)}}},
}


def specs(mesh, rules=()):
    shapes = jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32),
        PARAMS,
        is_leaf=lambda x: isinstance(x, tuple),
    )
    shardings = sharding.state_shardings(sharding.make_mesh(*mesh), shapes, shapes, rules)
    return {name: x.spec for name, x in sharding.named_leaves(shardings)}


def test_axes_take_the_longest_dimension_that_they_divide():
    found = specs((1, 4, 2))
    assert found == {
        'backbone/kernel': PartitionSpec(None, 'fsdp'),
        'backbone/bias': PartitionSpec('fsdp'),
        'backbone/odd': PartitionSpec(),
        'decoder/classes/embedding': PartitionSpec(None, 'model'),
        'decoder/head/classify/kernel': PartitionSpec('fsdp', 'model'),
    }
    found = specs((1, 2, 1), [('^backbone/k', ('fsdp',)), ('kernel$', ())])
    assert found['backbone/kernel'] == PartitionSpec('fsdp')
    assert found['decoder/head/classify/kernel'] == PartitionSpec()


@pytest.mark.parametrize(
    'mesh, rules, message',
    [
        ((3, 3, 1), (), r'config.mesh = 3 × 3 × 1 .* needs 9 devices, but there are 8'),
        ((-1, 3, 1), (), r'8 devices are not a multiple of fsdp × model = 3'),
        ((1, 1, 1), [('conv', ())], "'conv' is found in no path of a parameter, such as backbone/"),
        ((1, 1, 1), [('bias', ('tensor',))], r"'tensor' is no axis of the mesh; use data, fsdp"),
        ((1, 1, 1), [('bias', (None, 'fsdp'))], r'bias \[64\] has more dimensions than'),
        ((1, 4, 1), [('kernel', ('fsdp',))], r'kernel \[6, 64\]: fsdp = 4 does not divide 6'),
    ],
)
def test_what_cannot_be_spread_is_refused(mesh, rules, message):
    with pytest.raises(ValueError, match=message):
        specs(mesh, rules)


HOST = """
import sys
import jax, numpy as np
jax.config.update('jax_cpu_collectives_implementation', 'gloo')
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
from rankseg_jax import sharding
sharding.SMALL = 0
values = {'kernel': np.arange(128.0).reshape(8, 16), 'odd': np.arange(3.0)}
for axes in ((1, 8, 1), (2, 4, 1), (2, 2, 2)):
    mesh = sharding.make_mesh(*axes)
    placed = jax.device_put(values, sharding.state_shardings(mesh, values, values))
    here, found = sharding.local(mesh, placed)
    assert here.size == 4 and sharding.batch_parts(here) == 4 // axes[2], here
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(found), values)
    assert found['kernel'].addressable_data(0).size == 128 // here.shape['fsdp']
    jax.tree.map(np.testing.assert_array_equal, sharding.host_copy(placed, mesh), values)
"""


def test_each_of_two_hosts_gets_the_whole_state():
    with socket.socket() as free:
        free.bind(('localhost', 0))
        address = f'localhost:{free.getsockname()[1]}'
    processes = [
        subprocess.Popen(
            [sys.executable, '-c', HOST, address, str(number)],
            cwd=Path(__file__).parents[1],
            env=os.environ | {'XLA_FLAGS': '--xla_force_host_platform_device_count=4'},
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
