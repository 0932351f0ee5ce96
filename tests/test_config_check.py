"""Configs that no run can have end in one line that names the key."""

import math

import pytest

from configs import common, folder
from rankseg_jax import config_check

# Of tuples that are empty by default.
ITEMS = {
    'augment.short_sides': 360,
    'model.anneal_start': 100,
    'model.anneal_end': 100,
    'optimizer.milestones': 100,
    'eval.recall_at': 5,
}


def leaves(config, prefix=''):
    """Keys with their groups, and their values."""
    for key, value in config.items():
        if hasattr(value, 'items'):
            yield from leaves(value, f'{prefix}{key}.')
        else:
            yield f'{prefix}{key}', value


def is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def message(key, value):
    """What the check says of a config in which one key differs; '' if nothing."""
    config = common.get_config()
    with config.ignore_type():
        config.update_from_flattened_dict({key: value})
    try:
        config_check.check(config, common.get_config())
    except ValueError as error:
        return str(error)
    return ''


def test_the_defaults_are_accepted():
    config_check.check(common.get_config(), common.get_config())


@pytest.mark.parametrize('bad', [math.nan, math.inf, -math.inf, -2])
def test_no_number_is_without_a_range(monkeypatch, bad):
    """A new key with a number fails here until the check has a range for it."""
    monkeypatch.setattr(config_check, 'check_names', lambda config: None)  # is slow
    numbers = 0
    for key, default in leaves(common.get_config()):
        if key in ITEMS:
            values = [(ITEMS[key], bad)]
        elif key == 'optimizer.groups':
            values = [(('bias$', bad, 0.0),), (('bias$', 1.0, bad),)]
        elif isinstance(default, tuple):
            places = range(len(default))
            values = [(*default[:i], bad, *default[i + 1 :]) for i in places]
        elif is_number(default):
            values = [bad]
        else:
            continue
        for value in values:
            assert f'config.{key}' in message(key, value), f'{key} = {value} is accepted'
        numbers += 1
    assert numbers > 70


@pytest.mark.parametrize(
    'key, value, expected',
    [
        ('seed', -1, 'config.seed = -1 must be in 0..2**32 - 1'),
        ('seed', 2**32, 'config.seed = 4294967296 must be in 0..2**32 - 1'),
        ('data.train_split', '', "config.data.train_split = '' must name a split"),
        ('optimizer.learning_rate', -1e-3, 'learning_rate = -0.001 must be at least 0'),
        ('optimizer.b2', 1.0, 'config.optimizer.b2 = 1.0 must be at least 0 and below 1'),
        ('ema', 1.0, 'config.ema = 1.0 must be'),
        ('model.decoder_layers', 0, 'config.model.decoder_layers = 0 must be at least 1'),
        ('loss.class_weight', -1.0, 'loss.class_weight = -1.0 must be at least 0'),
        ('augment.flip', 1.5, 'augment.flip = 1.5 must be in 0..1'),
        ('data.mean', (0.0, 0.0, 256.0), '256.0): each number must be in 0..255'),
        ('rankseg.pool', -1, 'config.rankseg.pool = -1 must be at least 0'),
        ('optimizer.milestones', (5, 'last'), "milestones = (5, 'last') must hold whole"),
        ('optimizer.groups', (('(', 1.0, 0.0),), "groups: '(' is not a regular expression"),
        ('optimizer.groups', (('bias$', 1.0),), "groups: ('bias$', 1.0) must be (pattern"),
        ('optimizer.groups', ('bias$',), "groups: 'bias$' must be (pattern"),
        ('sharding', (('(', ()),), "config.sharding: '(' is not a regular expression"),
        ('sharding', (('bias$', 'fsdp'),), "sharding: ('bias$', 'fsdp') must be (pattern, spec)"),
        ('eval.size', (0, 512), 'eval.size = (0, 512) must be at least 1 × 1, or (0, 0)'),
        ('eval.mask_size', (-1, 4), 'eval.mask_size = (-1, 4) must be (0, 0), (-1, -1)'),
    ],
)
def test_impossible_values_are_refused(key, value, expected):
    assert expected in message(key, value)


def test_overrides_without_effect_are_refused():
    for group, key in (('augment', 'base_size'), ('augment', 'crop_size'), ('eval', 'size')):
        config = folder.get_config('light')
        config[group][key] = (256, 256)
        with pytest.raises(
            ValueError, match=rf'{group}.{key} = .* no effect, .*data.long_side = 256'
        ):
            config_check.check(config, common.get_config())
        config.data.long_side = 0
        config_check.check(config, common.get_config())
    config.augment.large_scale_jitter = True
    with pytest.raises(ValueError, match='max_category_ratio = 0.75 must be 1 with .*jitter'):
        config_check.check(config, common.get_config())


@pytest.mark.parametrize('key', config_check.known_names())
def test_unknown_names_are_refused_with_the_nearest(key):
    known = [*config_check.known_names()[key]]
    found = message(key, known[-1] + 'x')
    assert f"config.{key} = '{known[-1]}x' is unknown; did you mean '{known[-1]}'?" in found
    assert not message(key, known[0])


def test_names_and_ranges_of_a_baseline_are_checked():
    config = common.get_config()
    config.rankseg = None
    config_check.check(config, common.get_config())
    config.optimizer.schedule = 'linear'
    with pytest.raises(ValueError, match="schedule = 'linear' is unknown"):
        config_check.check(config, common.get_config())


def test_paths_that_lead_nowhere_are_refused():
    assert config_check.check_path('config.eval.size', common.get_config()) == (512, 512)
    for path, message in (
        ('config.evall.size', 'config.evall is not a key .* did you mean config.eval?'),
        ('config.eval.size.x', 'config.eval.size holds no keys such as x'),
    ):
        with pytest.raises(ValueError, match=message):
            config_check.check_path(path, common.get_config())
