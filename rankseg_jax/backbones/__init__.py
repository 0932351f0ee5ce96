"""Backbones: images [B, H, W, 3] → {stride s: features [B, ceil(H / s), ceil(W / s), D]}.

A family is a module here with `VARIANTS`, which maps names to modules. A module's `strides` are
those of its features.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from rankseg_jax.backbones import beit, efficientnet_lite, resnet, swin, vit

FAMILIES = (resnet, efficientnet_lite, swin, beit, vit)
PYRAMID = (4, 8, 16, 32)  # the strides that most frameworks need


def variants() -> dict[str, Callable[..., nn.Module]]:
    """The backbones of all families, by name."""
    return {name: variant for family in FAMILIES for name, variant in family.VARIANTS.items()}


def find(name: str) -> Callable[..., nn.Module]:
    """What builds the backbone called `name`.

    Raises:
      ValueError: no backbone has this name.
    """
    known = variants()
    if name not in known:
        raise ValueError(
            f'config.model.backbone = {name!r} is unknown; use one of {", ".join(known)}'
        )
    return known[name]


def build(name: str, dtype: Any = jnp.float32, **fields: Any) -> nn.Module:
    """The backbone called `name`, computing in `dtype`, with further fields of its module.

    Raises:
      ValueError: no backbone has this name.
    """
    return find(name)(dtype=dtype, **fields)


def from_config(
    config: ConfigDict, strides: tuple[int, ...] | None = PYRAMID, **needed: Any
) -> nn.Module:
    """The backbone that `config.model` names, if it suits the framework that asks for it.

    An option of the config has no effect on a family whose module has no such field, as
    `drop_path` has none on ResNets. `remat` must not be set there.

    Args:
      config: see configs/common.py.
      strides: of the feature maps that the framework needs; None: one map, of any stride.
      needed: fields that the backbone must have, with their values.

    Raises:
      ValueError: no backbone has this name, or this one lacks strides, fields, or blocks for
        `remat`.
    """
    model = config.model
    variant = find(model.backbone)
    if not suits(variant, strides, needed):
        maps = 'one feature map' if strides is None else f'feature maps of strides {strides}'
        suitable = [name for name, other in variants().items() if suits(other, strides, needed)]
        raise ValueError(
            f'config.model.backbone = {model.backbone!r} does not suit config.model.framework = '
            f'{model.framework!r}, which needs {" and ".join([maps, *needed])}; '
            f'use one of {", ".join(suitable)}'
        )
    options = {
        'image_size': tuple(config.augment.crop_size),
        'drop_path': model.drop_path,
        'remat': model.remat_policy if model.remat else None,
        'frozen_norm': model.frozen_norm,
    }
    if model.feature_blocks:
        options['feature_blocks'] = tuple(model.feature_blocks)
    if model.norm_epsilon:
        options['epsilon'] = model.norm_epsilon
    fields = field_names(variant)
    if model.remat and 'remat' not in fields:
        raise ValueError(
            'config.model.remat = True needs a transformer backbone, and config.model.backbone = '
            f'{model.backbone!r} is not one; to save memory, lower config.batch_size or set '
            'config.accumulate'
        )
    options = {key: value for key, value in options.items() if key in fields}
    return variant(dtype=jnp.dtype(model.dtype), **options, **needed)


def suits(variant: Any, strides: tuple[int, ...] | None, needed: dict[str, Any]) -> bool:
    """Whether a backbone has the strides and fields that `from_config` is asked for."""
    found = variant().strides
    enough = len(found) == 1 if strides is None else set(strides) <= set(found)
    return enough and field_names(variant).issuperset(needed)


def field_names(variant: Any) -> set[str]:
    return {field.name for field in dataclasses.fields(variant.func)}
