import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from rankseg_jax import optimizers


def options(**values):
    config = common.get_config().optimizer
    config.update(values)
    return config


def test_groups_take_the_first_pattern_found():
    params = {
        'backbone': {'conv1': {'kernel': 0}, 'norm': {'scale': 0}},
        'classifier': {'rank': {'log_tau': 0}},
    }
    numbers = optimizers.group_numbers(params, ['backbone', '(scale|log_tau)$', ''])
    assert numbers == {
        'backbone': {'conv1': {'kernel': 0}, 'norm': {'scale': 0}},
        'classifier': {'rank': {'log_tau': 1}},
    }


@pytest.mark.parametrize('name', ['sgd', 'adamw'])
def test_steps_against_torch(name):
    """Three groups of their own learning rate and decay, five steps, clipping on."""
    torch = pytest.importorskip('torch')
    rng = np.random.default_rng(0)
    start = {key: rng.normal(size=3).astype(np.float32) for key in ('slow', 'bias', 'other')}
    factors = {'slow': (0.1, 1.0), 'bias': (2.0, 0.0), 'other': (1.0, 1.0)}
    chosen = options(
        name=name,
        learning_rate=0.1,
        weight_decay=0.05,
        schedule='poly',
        clip_norm=1.0,
        groups=(('slow', 0.1, 1.0), ('bias$', 2.0, 0.0)),
    )
    optimizer = optimizers.make_optimizer(chosen, 10)
    params = jax.tree.map(jnp.asarray, start)
    state = optimizer.init(params)

    theirs = {
        key: torch.nn.Parameter(torch.from_numpy(value.copy())) for key, value in start.items()
    }
    groups = [
        {'params': [theirs[k]], 'lr': 0.1 * factors[k][0], 'weight_decay': 0.05 * factors[k][1]}
        for k in theirs
    ]
    kinds = {
        'sgd': lambda: torch.optim.SGD(groups, momentum=0.9),
        'adamw': lambda: torch.optim.AdamW(groups),
    }
    peer = kinds[name]()
    schedule = torch.optim.lr_scheduler.PolynomialLR(peer, 10, power=0.9)
    for i in range(5):
        grads = {key: np.sin(value + i).astype(np.float32) for key, value in start.items()}
        updates, state = optimizer.update(grads, state, params)
        params = jax.tree.map(jnp.add, params, updates)
        for key, parameter in theirs.items():
            parameter.grad = torch.from_numpy(grads[key].copy())
        torch.nn.utils.clip_grad_norm_(theirs.values(), 1.0)
        peer.step()
        schedule.step()
    for key, parameter in theirs.items():
        np.testing.assert_allclose(params[key], parameter.detach(), rtol=1e-4, atol=1e-6)


def test_schedules_at_their_corners():
    poly = optimizers.make_schedule(
        options(learning_rate=2.0, schedule='poly', end_factor=0.1, warmup_steps=4), 14
    )
    np.testing.assert_allclose([poly(0), poly(2), poly(4), poly(14)], [0, 1, 2, 0.2], rtol=1e-6)
    np.testing.assert_allclose(poly(9), 0.2 + 1.8 * 0.5**0.9, rtol=1e-6)
    # A group ends where the others do, as with mmcv's min_lr.
    for schedule in ('poly', 'cosine'):
        slow = optimizers.make_schedule(
            options(learning_rate=2.0, schedule=schedule, end_factor=0.1), 10, factor=0.5
        )
        np.testing.assert_allclose([slow(0), slow(10)], [1, 0.2], rtol=1e-6)
    frozen = options(learning_rate=2.0, schedule='poly', end_factor=0.1)
    assert optimizers.make_schedule(frozen, 10, factor=0.0)(9) == 0
    step = optimizers.make_schedule(
        options(learning_rate=2.0, schedule='step', milestones=(3, 6), warmup_steps=2), 8
    )
    np.testing.assert_allclose(
        [step(i) for i in range(8)], [0, 1, 2, 0.2, 0.2, 0.2, 0.02, 0.02], rtol=1e-6
    )
    step = optimizers.make_schedule(options(learning_rate=2.0, schedule='step'), 8)
    np.testing.assert_allclose([step(0), step(7)], [2, 2])
    cosine = optimizers.make_schedule(options(learning_rate=2.0, schedule='cosine'), 10)
    np.testing.assert_allclose([cosine(0), cosine(5), cosine(10)], [2, 1, 0], atol=1e-6)


def test_milestones_come_after_both_warm_ups():
    found = options(schedule='step', warmup_steps=10, backbone_warmup_steps=20, milestones=(25,))
    message = 'from above config.optimizer.warmup_steps and backbone_warmup_steps together = 30'
    with pytest.raises(ValueError, match=message):
        optimizers.make_schedule(found, 100, backbone=True)


@pytest.mark.parametrize('milestones', [(6, 3), (3, 3), (2, 5), (3, 8)])
def test_milestones_lie_in_the_run_and_rise(milestones):
    with pytest.raises(ValueError, match=re.escape(f'milestones = {milestones} must rise')):
        optimizers.make_schedule(options(schedule='step', milestones=milestones, warmup_steps=2), 8)


def test_the_backbone_rests_while_the_others_warm_up():
    """As EoMT's TwoStageWarmupPolySchedule: two clocks, both to the end of training."""
    chosen = options(
        schedule='poly',
        learning_rate=1.0,
        power=0.9,
        warmup_steps=4,
        backbone_warmup_steps=6,
        weight_decay=0.0,
        groups=(('slow', 0.5, 1.0),),
        name='sgd',
        momentum=0.0,
    )
    ours = optimizers.make_schedule(chosen, 20, backbone=True)
    others = optimizers.make_schedule(chosen, 20)
    for step in range(20):
        rise, fall = (step - 4) / 6, 1 - (step - 10) / 10
        expected = 0 if step < 4 else rise if step < 10 else fall**0.9
        np.testing.assert_allclose(ours(step), expected, atol=1e-6)
        np.testing.assert_allclose(
            others(step), step / 4 if step < 4 else (1 - (step - 4) / 16) ** 0.9, atol=1e-6
        )
    params = {'backbone': {'slow': jnp.ones(()), 'w': jnp.ones(())}, 'head': jnp.ones(())}
    optimizer = optimizers.make_optimizer(chosen, 20)
    state = optimizer.init(params)
    for _ in range(8):
        updates, state = optimizer.update(params, state, params)
    np.testing.assert_allclose(updates['backbone']['w'], -3 / 6, rtol=1e-6)
    np.testing.assert_allclose(updates['backbone']['slow'], -0.5 * 3 / 6, rtol=1e-6)
    np.testing.assert_allclose(updates['head'], -((1 - 3 / 16) ** 0.9), rtol=1e-6)
    with pytest.raises(ValueError, match='warmup_steps = 4 must be less than config.steps = 10'):
        optimizers.make_schedule(chosen, 10, backbone=True)
