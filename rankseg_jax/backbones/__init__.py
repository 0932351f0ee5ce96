"""Backbones: images [B, H, W, 3] -> {stride s: features [B, ceil(H / s), ceil(W / s), C]}."""

import jax.numpy as jnp
from flax import linen as nn

from rankseg_jax.backbones import resnet


def build(name: str, dtype=jnp.float32) -> nn.Module:
    """The backbone called `name`, computing in `dtype`. Raises ValueError if there is none."""
    if name not in resnet.VARIANTS:
        names = ', '.join(resnet.VARIANTS)
        raise ValueError(f'There is no backbone {name!r}; the valid names are {names}.')
    return resnet.VARIANTS[name](dtype=dtype)
