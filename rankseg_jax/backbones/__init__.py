"""Backbones: images [B, H, W, 3] -> {stride s: features [B, ceil(H / s), ceil(W / s), C]}."""

import jax.numpy as jnp
from flax import linen as nn

from rankseg_jax.backbones import resnet


def build(name: str, dtype=jnp.float32, *, family=resnet, **fields) -> nn.Module:
    """The backbone called `name`, computing in `dtype`, with further fields of its module.

    Raises:
      ValueError: `family`, the module of this package whose backbones the framework can use, has none of this name.
    """
    if name not in family.VARIANTS:
        raise ValueError(
            f'config.model.backbone = {name!r} does not fit this framework; use one of {", ".join(family.VARIANTS)}'
        )
    return family.VARIANTS[name](dtype=dtype, **fields)
