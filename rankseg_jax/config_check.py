"""Refuses a config with unknown keys or names, values of another type, or values out of range."""

import difflib
import math
import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from ml_collections import ConfigDict

FREE_LENGTH = ('groups', 'scales')  # tuples with a default whose length may differ from it
FILTERS = ('nearest', 'box', 'bilinear', 'hamming', 'bicubic', 'lanczos')


class Range(NamedTuple):
    """The numbers that a key may have: in words, and as a predicate, which is False for NaN."""

    text: str
    holds: Callable[[float], bool]


def at_least(least: float) -> Range:
    return Range(f'at least {least}', lambda value: least <= value < math.inf)


ABOVE_0 = Range('above 0', lambda value: 0 < value < math.inf)
SHARE = Range('in 0..1', lambda value: 0 <= value <= 1)
BELOW_1 = Range('at least 0 and below 1', lambda value: 0 <= value < 1)
COLOR = Range('in 0..255', lambda value: 0 <= value <= 255)
COLOR_OR_MEAN = Range(
    'in 0..255, or -1 for the mean color', lambda value: value == -1 or 0 <= value <= 255
)

# Of every key with a number or numbers, but optimizer.groups.
RANGES = {
    'seed': Range('in 0..2**32 - 1', lambda value: 0 <= value < 2**32),
    'batch_size': at_least(1),
    'steps': at_least(1),
    'accumulate': at_least(1),
    'local_batch_size': at_least(0),
    'mesh.data': at_least(-1),
    'mesh.fsdp': at_least(1),
    'mesh.model': at_least(1),
    'data.num_classes': at_least(0),
    'data.image_size': at_least(1),
    'data.num_train': at_least(0),
    'data.ignore_label': at_least(-1),
    'data.max_corrupt': at_least(0),
    'data.max_pixels': at_least(1),
    'data.long_side': at_least(0),
    'data.mean': COLOR,
    'data.std': ABOVE_0,
    'data.max_targets': at_least(1),
    'data.clip_frames': at_least(1),
    'data.clip_reach': at_least(0),
    'data.num_workers': at_least(0),
    'augment.base_size': at_least(0),
    'augment.scale_range': ABOVE_0,
    'augment.short_sides': ABOVE_0,
    'augment.crop_size': at_least(1),
    'augment.max_category_ratio': SHARE,
    'augment.flip': SHARE,
    'augment.pad_value': COLOR_OR_MEAN,
    'model.channels': at_least(1),
    'model.dropout': BELOW_1,
    'model.output_stride': at_least(1),
    'model.drop_path': BELOW_1,
    'model.feature_blocks': at_least(1),
    'model.norm_epsilon': at_least(0),
    'model.decoder_layers': at_least(1),
    'model.decoder_heads': at_least(1),
    'model.pixel_layers': at_least(0),
    'model.encoder_layers': at_least(0),
    'model.num_queries': at_least(1),
    'model.joint_blocks': at_least(1),
    'model.anneal_start': at_least(0),
    'model.anneal_end': at_least(1),
    'model.auxiliary_weight': at_least(0),
    'rankseg.num_selected': at_least(0),
    'rankseg.train_selected': at_least(0),
    'rankseg.warmup_steps': at_least(0),
    'rankseg.layer': at_least(0),
    'rankseg.stride': at_least(1),
    'rankseg.pool': at_least(0),
    'rankseg.hidden': at_least(1),
    'rankseg.num_heads': at_least(1),
    'rankseg.mlp_dim': at_least(1),
    'loss.class_weight': at_least(0),
    'loss.mask_weight': at_least(0),
    'loss.dice_weight': at_least(0),
    'loss.no_object': at_least(0),
    'loss.num_points': at_least(1),
    'loss.multilabel_weight': at_least(0),
    'loss.cell_weight': at_least(0),
    'loss.gamma_neg': at_least(0),
    'loss.gamma_pos': at_least(0),
    'loss.clip': BELOW_1,
    'optimizer.learning_rate': at_least(0),
    'optimizer.momentum': BELOW_1,
    'optimizer.b2': BELOW_1,
    'optimizer.weight_decay': at_least(0),
    'optimizer.power': at_least(0),
    'optimizer.milestones': at_least(1),
    'optimizer.end_factor': at_least(0),
    'optimizer.warmup_steps': at_least(0),
    'optimizer.backbone_warmup_steps': at_least(0),
    'optimizer.clip_norm': at_least(0),
    'ema': BELOW_1,
    'eval.size': at_least(0),
    'eval.multiple': at_least(1),
    'eval.pad_value': COLOR_OR_MEAN,
    'eval.mask_size': at_least(-1),
    'eval.base_size': at_least(0),
    'eval.window': at_least(0),
    'eval.stride': at_least(0),
    'eval.scales': ABOVE_0,
    'eval.threshold': SHARE,
    'eval.overlap': SHARE,
    'eval.max_objects': at_least(1),
    'eval.clip_length': at_least(1),
    'eval.clip_overlap': at_least(0),
    'eval.batch_size': at_least(1),
    'eval.recall_at': at_least(1),
    'log_every': at_least(1),
    'eval_every': at_least(1),
    'checkpoint_every': at_least(1),
    'keep_checkpoints': at_least(1),
    'num_pictures': at_least(0),
}


def check(config: ConfigDict, defaults: ConfigDict) -> None:
    """Refuses a config that no run can have.

    Args:
      config: the config of a run.
      defaults: every key with its default, `configs.common.get_config()`.

    Raises:
      ValueError: it names the key, its value, and what is valid instead.
    """
    check_keys(config, defaults, 'config')
    check_names(config)
    check_splits(config.data)
    check_input_sizes(config)
    check_long_side(config, defaults)
    check_short_sides(config.augment)
    check_jitter(config.augment)
    check_windows(config.eval)
    check_clips(config.eval)
    check_sharding(config.sharding)
    check_groups(config.optimizer)
    if config.model.frozen_norm:
        check_frozen_norm_decay(config.optimizer)


def check_keys(config: ConfigDict, defaults: ConfigDict, prefix: str) -> None:
    """Compares keys, types, lengths and ranges; `prefix` is where `config` and `defaults` lie."""
    for key, value in config.items():
        name = f'{prefix}.{key}'
        check_key(prefix, key, defaults)
        default = defaults[key]
        if name == 'config.rankseg' and value is None:
            continue
        if isinstance(default, ConfigDict) and isinstance(value, ConfigDict):
            check_keys(value, default, name)
            continue
        check_type(name, value, default)
        if isinstance(default, tuple) and key not in ('groups', 'sharding'):
            check_items(name, value, default, free=not default or key in FREE_LENGTH)
        if valid := RANGES.get(name.removeprefix('config.')):
            check_range(name, value, valid)


def check_path(path: str, defaults: ConfigDict) -> Any:
    """The value in `defaults` of a path such as 'config.eval.size', which must lead to one."""
    prefix, *keys = path.split('.')
    for key in keys:
        check_key(prefix, key, defaults)
        prefix, defaults = f'{prefix}.{key}', defaults[key]
    return defaults


def check_key(prefix: str, key: str, defaults: Any) -> None:
    """Refuses a key that is not in `defaults`, and names the nearest one."""
    if not isinstance(defaults, ConfigDict):
        raise ValueError(f'{prefix} holds no keys such as {key}: set {prefix} itself')
    if key not in defaults:
        raise ValueError(
            f'{prefix}.{key} is not a key of configs/common.py; did you mean '
            f'{prefix}.{nearest(key, defaults)}?'
        )


def check_type(name: str, value: Any, default: Any) -> None:
    """Refuses a value of another type than the default's; a float may be given as an int."""
    expected = (int, float) if isinstance(default, float) else type(default)
    if not isinstance(value, expected):
        raise ValueError(
            f'{name} = {value!r} must be of type {type(default).__name__}, like {default!r}'
        )


def check_items(name: str, value: tuple, default: tuple, *, free: bool) -> None:
    """Refuses a tuple whose items are not of the default's kind, or as many unless they are `free`.

    A tuple that is empty by default holds whole numbers.
    """
    whole = all(isinstance(item, int) for item in default)
    kind = 'whole numbers' if whole else 'numbers'
    right = all(isinstance(item, int if whole else (int, float)) for item in value)
    if free and not (right and (value or not default)):
        raise ValueError(f'{name} = {value!r} must hold {kind}')
    if not free and not (right and len(value) == len(default)):
        raise ValueError(f'{name} = {value!r} must hold {len(default)} {kind}, like {default!r}')


def check_range(name: str, value: Any, valid: Range) -> None:
    """Refuses a number, or a tuple with a number, out of range."""
    if isinstance(value, tuple):
        if not all(map(valid.holds, value)):
            raise ValueError(f'{name} = {value}: each number must be {valid.text}')
    elif not valid.holds(value):
        raise ValueError(f'{name} = {value} must be {valid.text}')


def nearest(name: str, known: Iterable[str]) -> str:
    """The one of the `known` names that looks most like `name`."""
    return difflib.get_close_matches(name, list(known), n=1, cutoff=0)[0]


def known_names() -> dict[str, Iterable[str]]:
    """The values of every key that names something, but splits, files and checkpoints."""
    # Here, since they are slow to import: a mistyped key is refused at once.
    from rankseg_jax import backbones, data, frameworks, layers, multilabel, tasks

    return {
        'task': tasks.TASKS,
        'data.name': data.DATA_SETS,
        'model.framework': frameworks.names(),
        'model.backbone': backbones.variants(),
        'model.decoder': ('mask_transformer', 'linear'),
        'model.dtype': ('float32', 'bfloat16'),
        'model.remat_policy': layers.REMAT_POLICIES,
        'eval.resample': ('', *FILTERS),
        'eval.average_over': ('clip', 'past', 'frame'),
        'rankseg.head': (*multilabel.ATTENTION_HEADS, *multilabel.POOLING_HEADS, 'first_block'),
        'rankseg.temperature': ('temperature', 'affine', 'layer_norm', 'shared', 'none'),
        'rankseg.missed': ('force', 'ignore'),
        'rankseg.tokens': ('patches', 'class', 'registers'),
        'loss.multilabel': ('asymmetric', 'bce'),
        'optimizer.name': ('adamw', 'sgd'),
        'optimizer.schedule': ('cosine', 'poly', 'step'),
    }


def check_names(config: ConfigDict) -> None:
    """Refuses names that nothing has, with the nearest one that something has."""
    for key, known in known_names().items():
        *groups, leaf = key.split('.')
        group = config[groups[0]] if groups else config
        if group is None:  # config.rankseg of a baseline
            continue
        if (name := group[leaf]) not in known:
            raise ValueError(
                f'config.{key} = {name!r} is unknown; did you mean {nearest(name, known)!r}? '
                f'Use one of {", ".join(known)}'
            )


def check_splits(data: ConfigDict) -> None:
    """Refuses splits without a name, for which a folder of all splits would be searched."""
    for key in ('train_split', 'eval_split'):
        if not data[key].strip():
            raise ValueError(f'config.data.{key} = {data[key]!r} must name a split of the data')


def check_input_sizes(config: ConfigDict) -> None:
    """Sizes and scales of images that limit each other, in training and in evaluation."""
    low, high = config.augment.scale_range
    if low > high:
        raise ValueError(f'config.augment.scale_range = {(low, high)} must be in ascending order')
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
    for key, size in (
        ('augment.base_size', config.augment.base_size),
        ('eval.base_size', config.eval.base_size),
        ('eval.window', config.eval.window),
    ):
        if any(size) and not all(size):
            raise ValueError(f'config.{key} = {size} must be (0, 0), or two sides of at least 1')


def check_long_side(config: ConfigDict, defaults: ConfigDict) -> None:
    """Refuses sizes in whose place those of `data.long_side` would come."""
    for group, key in (('augment', 'base_size'), ('augment', 'crop_size'), ('eval', 'size')):
        size = tuple(config[group][key])
        if config.data.long_side and size != defaults[group][key]:
            raise ValueError(
                f'config.{group}.{key} = {size} has no effect, since config.data.long_side = '
                f'{config.data.long_side} sets it: set config.data.long_side = 0 to set sizes'
            )


def check_jitter(augment: ConfigDict) -> None:
    """Crops of large-scale jitter are not drawn again."""
    if augment.large_scale_jitter and augment.max_category_ratio < 1:
        raise ValueError(
            f'config.augment.max_category_ratio = {augment.max_category_ratio} must be 1 with '
            'config.augment.large_scale_jitter, whose crops are not drawn again'
        )


def check_short_sides(augment: ConfigDict) -> None:
    name = f'config.augment.short_sides = {augment.short_sides}'
    if not augment.short_sides:
        return
    if not any(augment.base_size):
        raise ValueError(f'{name} needs a longest side: set config.augment.base_size')
    if augment.large_scale_jitter:
        raise ValueError(
            f'{name} must be () with config.augment.large_scale_jitter, which draws from '
            'config.augment.scale_range'
        )


def check_clips(evaluation: ConfigDict) -> None:
    """Refuses clips that overlap as far as they are long."""
    length, overlap = evaluation.clip_length, evaluation.clip_overlap
    if overlap >= length:
        raise ValueError(
            f'config.eval.clip_overlap = {overlap} must be less than config.eval.clip_length = '
            f'{length}'
        )


def check_windows(evaluation: ConfigDict) -> None:
    """The stride of sliding windows."""
    window, stride = evaluation.window, evaluation.stride
    fits = all(1 <= step <= side for step, side in zip(stride, window, strict=True))
    if any(stride) and not fits:
        raise ValueError(
            f'config.eval.stride = {stride} must be at least 1 and at most config.eval.window = '
            f'{window}, or (0, 0) for windows that are evenly spaced'
        )


def check_pattern(name: str, pattern: str) -> None:
    """Refuses what is not a regular expression."""
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f'{name}: {pattern!r} is not a regular expression: {error}') from error


def check_sharding(rules: Iterable) -> None:
    """The form of the sharding rules; the mesh and the model decide whether they hold."""
    for rule in rules:
        match rule:
            case (str(pattern), tuple() | list() as axes) if all(
                isinstance(axis, str | None) for axis in axes
            ):
                check_pattern('config.sharding', pattern)
            case _:
                raise ValueError(
                    f'config.sharding: {rule!r} must be (pattern, spec), like '
                    "('classes/embedding$', ('model', 'fsdp'))"
                )


def check_groups(optimizer: ConfigDict) -> None:
    """The parameter groups."""
    for group in optimizer.groups:
        match group:
            case (str(pattern), int() | float() as rate, int() | float() as decay):
                if not all(map(at_least(0).holds, (rate, decay))):
                    raise ValueError(
                        f'config.optimizer.groups: the factors of {group!r} must be at least 0'
                    )
                check_pattern('config.optimizer.groups', pattern)
            case _:
                raise ValueError(
                    f'config.optimizer.groups: {group!r} must be (pattern, × learning rate, × '
                    "decay), like ('bias$', 1.0, 0.0)"
                )


def check_frozen_norm_decay(optimizer: ConfigDict) -> None:
    """Weight decay would move the scale and bias of a frozen norm all the same."""
    for name in ('backbone/stem/norm/scale', 'backbone/stem/norm/bias'):
        found = (decay for pattern, _, decay in optimizer.groups if re.search(pattern, name))
        if next(found, 1.0) * optimizer.weight_decay:
            raise ValueError(
                'config.model.frozen_norm needs a group in config.optimizer.groups that sets the '
                f'decay of {name} to 0, or config.optimizer.weight_decay = 0'
            )
