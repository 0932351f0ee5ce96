"""Refuses a config with unknown keys, values of another type, or values out of range."""

import difflib
import math
import re

from ml_collections import ConfigDict

FREE_LENGTH = ('groups', 'scales')  # tuples with a default whose length may differ from it
FILTERS = ('nearest', 'box', 'bilinear', 'hamming', 'bicubic', 'lanczos')


def check(config, defaults) -> None:
    """Refuses a config that no run can have.

    Args:
      config: the config of a run.
      defaults: every key with its default, `configs.common.get_config()`.

    Raises:
      ValueError: it names the key, its value, and what is valid instead.
    """
    check_keys(config, defaults, 'config')
    check_counts(config)
    check_input_sizes(config)
    check_short_sides(config.augment)
    check_colors(config)
    check_scores(config.eval)
    check_windows(config.eval)
    check_optimizer(config.optimizer)
    if config.model.frozen_norm:
        check_frozen_norm_decay(config.optimizer)


def check_keys(config, defaults, prefix: str) -> None:
    """Compares keys, types and lengths with those of `defaults`; `prefix` is where both lie."""
    for key, value in config.items():
        name = f'{prefix}.{key}'
        if key not in defaults:
            nearest = difflib.get_close_matches(key, defaults.keys(), n=1, cutoff=0)[0]
            raise ValueError(
                f'{name} is not a key of configs/common.py; did you mean {prefix}.{nearest}?'
            )
        default = defaults[key]
        if name == 'config.rankseg' and value is None:
            continue
        if isinstance(default, ConfigDict) and isinstance(value, ConfigDict):
            check_keys(value, default, name)
            continue
        check_type(name, value, default)
        if isinstance(default, tuple) and default and key not in FREE_LENGTH:
            check_items(name, value, default)


def check_type(name: str, value, default) -> None:
    """Refuses a value of another type than the default's; a float may be given as an int."""
    expected = (int, float) if isinstance(default, float) else type(default)
    if not isinstance(value, expected):
        raise ValueError(
            f'{name} = {value!r} must be of type {type(default).__name__}, like {default!r}'
        )


def check_items(name: str, value: tuple, default: tuple) -> None:
    """Refuses a tuple whose numbers are not as many and of the same kind as the default's."""
    whole = all(isinstance(item, int) for item in default)
    expected = int if whole else (int, float)
    if len(value) != len(default) or not all(isinstance(item, expected) for item in value):
        kind = 'whole numbers' if whole else 'numbers'
        raise ValueError(f'{name} = {value!r} must hold {len(default)} {kind}, like {default!r}')


def check_counts(config) -> None:
    for key, value, least in (
        ('seed', config.seed, 0),
        ('data.max_targets', config.data.max_targets, 1),
        ('data.num_workers', config.data.num_workers, 0),
        ('loss.num_points', config.loss.num_points, 1),
        ('model.num_queries', config.model.num_queries, 1),
        ('model.decoder_heads', config.model.decoder_heads, 1),
        ('model.decoder_layers', config.model.decoder_layers, 1),
        ('model.output_stride', config.model.output_stride, 1),
        ('eval.multiple', config.eval.multiple, 1),
        ('rankseg.pool', config.rankseg.pool if config.rankseg else 0, 0),
    ):
        if value < least:
            raise ValueError(f'config.{key} = {value} must be at least {least}')


def check_input_sizes(config) -> None:
    """Sizes and scales of images, in training and in evaluation."""
    low, high = config.augment.scale_range
    if not 0 < low <= high:
        raise ValueError(f'config.augment.scale_range = {(low, high)} must rise from above 0')
    if min(config.augment.crop_size) < 1:
        raise ValueError(
            f'config.augment.crop_size = {config.augment.crop_size} must be at least 1 × 1'
        )
    if any(config.eval.size) and min(config.eval.size) < 1:
        raise ValueError(
            f"config.eval.size = {config.eval.size} must be at least 1 × 1, or (0, 0): an image's "
            'own size'
        )
    mask_size = tuple(config.eval.mask_size)
    if mask_size not in ((0, 0), (-1, -1)) and min(mask_size) < 1:
        raise ValueError(
            f'config.eval.mask_size = {mask_size} must be (0, 0), (-1, -1), or at least 1 × 1'
        )
    if config.eval.resample not in ('', *FILTERS):
        raise ValueError(
            f'config.eval.resample = {config.eval.resample!r} is unknown; use one of '
            f"{', '.join(FILTERS)}, or ''"
        )
    for key, size in (
        ('augment.base_size', config.augment.base_size),
        ('eval.base_size', config.eval.base_size),
    ):
        if any(size) and min(size) < 1:
            raise ValueError(
                f'config.{key} = {size} must be (0, 0), or a short and a long side of at least 1'
            )


def check_short_sides(augment) -> None:
    name = f'config.augment.short_sides = {augment.short_sides}'
    if not all(isinstance(side, int) and side > 0 for side in augment.short_sides):
        raise ValueError(f'{name} must hold whole numbers above 0')
    if not augment.short_sides:
        return
    if not any(augment.base_size):
        raise ValueError(f'{name} needs a longest side: set config.augment.base_size')
    if augment.large_scale_jitter:
        raise ValueError(
            f'{name} must be () with config.augment.large_scale_jitter, which draws from '
            'config.augment.scale_range'
        )


def check_colors(config) -> None:
    if min(config.data.std) <= 0:
        raise ValueError(f'config.data.std = {config.data.std} must be above 0')
    pad_value = config.augment.pad_value
    if pad_value != -1 and not 0 <= pad_value <= 255:
        raise ValueError(
            f'config.augment.pad_value = {pad_value} must be in 0..255, or -1 for the mean color'
        )


def check_scores(evaluation) -> None:
    """The values of κ that are scored, and the thresholds of panoptic segments."""
    if not all(isinstance(k, int) and k > 0 for k in evaluation.recall_at):
        raise ValueError(
            f'config.eval.recall_at = {evaluation.recall_at} must hold whole numbers above 0'
        )
    for key in ('threshold', 'overlap'):
        if not 0 <= evaluation[key] <= 1:
            raise ValueError(f'config.eval.{key} = {evaluation[key]} must be in 0..1')


def check_windows(evaluation) -> None:
    """The views of an image that are averaged: scales and sliding windows."""
    scales, window, stride = evaluation.scales, evaluation.window, evaluation.stride
    numbers = all(isinstance(scale, (int, float)) for scale in scales)
    if not scales or not numbers or not all(0 < scale < math.inf for scale in scales):
        raise ValueError(
            f'config.eval.scales = {scales} must hold at least one number, all above 0'
        )
    if any(window) and min(window) < 1:
        raise ValueError(
            f'config.eval.window = {window} must be (0, 0), or a height and a width above 0'
        )
    fits = all(1 <= step <= side for step, side in zip(stride, window, strict=True))
    if any(window + stride) and not fits:
        raise ValueError(
            f'config.eval.stride = {stride} must be at least 1 and at most config.eval.window = '
            f'{window}; set it to the window to have no overlap'
        )


def check_optimizer(optimizer) -> None:
    """The milestones of the learning rate, and the parameter groups."""
    if not all(isinstance(step, int) for step in optimizer.milestones):
        raise ValueError(
            f'config.optimizer.milestones = {optimizer.milestones} must hold whole numbers'
        )
    for group in optimizer.groups:
        match group:
            case (str(pattern), int() | float(), int() | float()):
                try:
                    re.compile(pattern)
                except re.error as error:
                    raise ValueError(
                        f'config.optimizer.groups: {pattern!r} is not a regular expression: {error}'
                    ) from error
            case _:
                raise ValueError(
                    f'config.optimizer.groups: {group!r} must be (pattern, × learning rate, × '
                    "decay), like ('bias$', 1.0, 0.0)"
                )


def check_frozen_norm_decay(optimizer) -> None:
    """Weight decay would move the scale and bias of a frozen norm all the same."""
    for name in ('backbone/stem/norm/scale', 'backbone/stem/norm/bias'):
        found = (decay for pattern, _, decay in optimizer.groups if re.search(pattern, name))
        if next(found, 1.0) * optimizer.weight_decay:
            raise ValueError(
                'config.model.frozen_norm needs a group in config.optimizer.groups that sets the '
                f'decay of {name} to 0, or config.optimizer.weight_decay = 0'
            )
