"""The auxiliary head of DeepLabV3 and UPerNet: embeddings whose logits have a loss of their own."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from rankseg_jax.layers import ConvNorm


def auxiliary_embeddings(
    features: Mapping[int, jax.Array], *, train: bool, dtype: Any = jnp.float32
) -> jax.Array:
    """{stride: [B, h, w, D]} → pixel embeddings [B, h16, w16, 256], from stride 16.

    To be called inside a compact module, whose 'auxiliary' layer it is.
    """
    return ConvNorm(256, dtype=dtype, name='auxiliary')(features[16], train=train)
