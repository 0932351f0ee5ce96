"""Optimizers and schedules from `config.optimizer`, see configs/common.py."""

import re
from collections.abc import Hashable, Sequence
from typing import Any

import jax
import optax
from ml_collections import ConfigDict


def make_schedule(
    options: ConfigDict, steps: int, *, factor: float = 1.0, backbone: bool = False
) -> optax.Schedule:
    """Step number → learning rate.

    It rises linearly from 0 to `factor` × `learning_rate` during the warm-up, then goes, as 'poly'
    or 'cosine', to `end_factor` × `learning_rate`, or, as 'step', to a tenth at each milestone.

    Args:
      factor: of a parameter group. All groups end at the same rate, as in mmcv, save for 0.
      backbone: of its parameters, whose own warm-up, if there is one, follows the others'.

    Raises:
      ValueError: unknown schedule, a warm-up as long as the run, or milestones that do not rise or
        lie outside the steps after the warm-up.
    """
    rate = factor * options.learning_rate
    end = options.end_factor * options.learning_rate if factor else 0.0
    warmup, milestones = options.warmup_steps, options.milestones
    idle = 0
    if backbone and options.backbone_warmup_steps:
        idle, warmup = warmup, warmup + options.backbone_warmup_steps
    if warmup >= steps and idle:
        raise ValueError(
            f'config.optimizer.backbone_warmup_steps = {options.backbone_warmup_steps} and '
            f'warmup_steps = {idle} must be less than config.steps = {steps} together'
        )
    if not 0 <= warmup < steps:
        raise ValueError(
            f'config.optimizer.warmup_steps = {warmup} must be less than config.steps = {steps}'
        )
    if options.schedule == 'poly':
        decay = optax.polynomial_schedule(rate, end, options.power, steps - warmup)
    elif options.schedule == 'cosine':
        decay = optax.cosine_decay_schedule(rate, steps - warmup, end / rate if rate else 0.0)
    elif options.schedule == 'step':
        bounded = all(warmup < milestone < steps for milestone in milestones)
        if not bounded or list(milestones) != sorted(set(milestones)):
            both = 'warmup_steps and backbone_warmup_steps together' if idle else 'warmup_steps'
            raise ValueError(
                f'config.optimizer.milestones = {milestones} must rise, from above '
                f'config.optimizer.{both} = {warmup} to below config.steps = {steps}'
            )
        decay = optax.piecewise_constant_schedule(
            rate, {milestone - warmup: 0.1 for milestone in milestones}
        )
    else:
        raise ValueError(
            f'config.optimizer.schedule = {options.schedule!r} is unknown; '
            "use 'poly', 'cosine' or 'step'"
        )
    if not warmup:
        return decay
    rise = optax.linear_schedule(0.0, rate, warmup - idle, transition_begin=idle)
    return optax.join_schedules([rise, decay], [warmup])


def make_optimizer(options: ConfigDict, steps: int) -> optax.GradientTransformation:
    """Clipping, then SGD or AdamW with a learning rate and weight decay for each parameter group.

    Raises:
      ValueError: unknown optimizer or schedule.
    """

    def one_group(rate_factor, decay_factor, backbone=False):
        rate = make_schedule(options, steps, factor=rate_factor, backbone=backbone)
        decay = options.weight_decay * decay_factor
        if options.name == 'adamw':
            return optax.adamw(rate, b2=options.b2, weight_decay=decay)
        if options.name == 'sgd':
            return optax.chain(optax.add_decayed_weights(decay), optax.sgd(rate, options.momentum))
        raise ValueError(
            f"config.optimizer.name = {options.name!r} is unknown; use 'adamw' or 'sgd'"
        )

    groups = [*options.groups, ('', 1.0, 1.0)]  # the last takes whatever no pattern finds
    transforms: dict[Hashable, optax.GradientTransformation] = {
        i: one_group(*factors) for i, (_, *factors) in enumerate(groups)
    }
    if options.backbone_warmup_steps:
        for i, (_, *factors) in enumerate(groups):
            transforms[~i] = one_group(*factors, backbone=True)
    clip = optax.clip_by_global_norm(options.clip_norm) if options.clip_norm else optax.identity()
    return optax.chain(
        clip,
        optax.partition(
            transforms,
            lambda params: group_numbers(
                params,
                [pattern for pattern, *_ in groups],
                split_backbone=bool(options.backbone_warmup_steps),
            ),
        ),
    )


def group_numbers(params: Any, patterns: Sequence[str], *, split_backbone: bool = False) -> Any:
    """The number of the first pattern found in each parameter's path, a tree like `params`.

    With `split_backbone` those of the backbone are ~i instead of i.
    """

    def number(path, _):
        name = jax.tree_util.keystr(path, simple=True, separator='/')
        i = next(i for i, pattern in enumerate(patterns) if re.search(pattern, name))
        return ~i if split_backbone and name.startswith('backbone/') else i

    return jax.tree_util.tree_map_with_path(number, params)
