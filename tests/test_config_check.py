"""Configs that no run can have end in one line that names the key."""

import pytest

from configs import common
from rankseg_jax import config_check


@pytest.mark.parametrize(
    'key, value, message',
    [
        ('seed', -1, r'config.seed = -1 must be at least 0'),
        ('model.decoder_layers', 0, r'config.model.decoder_layers = 0 must be at least 1'),
        ('model.output_stride', 0, r'config.model.output_stride = 0 must be at least 1'),
        ('rankseg.pool', -1, r'config.rankseg.pool = -1 must be at least 0'),
        ('eval.multiple', 0, r'config.eval.multiple = 0 must be at least 1'),
        ('eval.size', (0, 512), r'eval.size = \(0, 512\) must be at least 1 × 1, or \(0, 0\)'),
        ('eval.resample', 'cubic', r"eval.resample = 'cubic' is unknown; .* bicubic, lanczos"),
        ('eval.mask_size', (-1, 4), r'eval.mask_size = \(-1, 4\) must be \(0, 0\), \(-1, -1\)'),
        ('optimizer.milestones', (5, 'last'), r"milestones = \(5, 'last'\) must hold whole"),
        ('optimizer.groups', (('(', 1.0, 0.0),), r"groups: '\(' is not a regular expression"),
        ('optimizer.groups', (('bias$', 1.0),), r"groups: \('bias\$', 1.0\) must be \(pattern"),
        ('optimizer.groups', ('bias$',), r"groups: 'bias\$' must be \(pattern"),
    ],
)
def test_impossible_values_are_refused(key, value, message):
    config = common.get_config()
    config.update_from_flattened_dict({key: value})
    with pytest.raises(ValueError, match=message):
        config_check.check(config, common.get_config())
