"""PyTorch's layers as our parameters.

Each function takes a state dict and the name of a layer in it.
"""

from typing import Any

import numpy as np


def part(state: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The entries whose names start with `prefix`, without it."""
    return {
        key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)
    }


def numbered(state: dict[str, np.ndarray], prefix: str) -> list[int]:
    """The numbers of the layers whose names start with `prefix`."""
    return sorted({int(key.split('.')[0]) for key in part(state, prefix)})


def dense(state: dict[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    """A Linear layer or a 1 × 1 convolution."""
    weight = state[f'{name}.weight']
    return {'kernel': weight.reshape(weight.shape[:2]).T, 'bias': state[f'{name}.bias']}


def classes(state: dict[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    """The embedding and bias of each class, from a Linear layer or a 1 × 1 convolution."""
    weight = state[f'{name}.weight']
    return {'embedding': weight.reshape(weight.shape[:2]), 'bias': state[f'{name}.bias']}


def mlp(state: dict[str, np.ndarray], name: str) -> dict[str, dict[str, np.ndarray]]:
    return {'Dense_0': dense(state, f'{name}.fc1'), 'Dense_1': dense(state, f'{name}.fc2')}


def norm(state: dict[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    return {'scale': state[f'{name}.weight'], 'bias': state[f'{name}.bias']}


def conv(state: dict[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    """A convolution; its kernel [O, I, h, w] becomes [h, w, I, O]."""
    bias = {'bias': state[f'{name}.bias']} if f'{name}.bias' in state else {}
    return {'kernel': state[f'{name}.weight'].transpose(2, 3, 1, 0)} | bias


def conv_norm(
    state: dict[str, np.ndarray], conv_name: str, norm_name: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parameters and statistics of layers.ConvNorm."""
    statistics = {
        'mean': state[f'{norm_name}.running_mean'],
        'var': state[f'{norm_name}.running_var'],
    }
    return {'conv': conv(state, conv_name), 'norm': norm(state, norm_name)}, {'norm': statistics}


def attention(
    state: dict[str, np.ndarray], packed: str, out: str, num_heads: int
) -> dict[str, Any]:
    """MultiHeadDotProductAttention, from the names of its packed and its output projection."""
    separator = '_' if f'{packed}_weight' in state else '.'
    weight, bias = (state[f'{packed}{separator}{leaf}'] for leaf in ('weight', 'bias'))
    dim = weight.shape[1]
    heads = {
        name: {'kernel': w.T.reshape(dim, num_heads, -1), 'bias': b.reshape(num_heads, -1)}
        for name, w, b in zip(
            ('query', 'key', 'value'), np.split(weight, 3), np.split(bias, 3), strict=True
        )
    }
    output = dense(state, out)
    return heads | {
        'out': {'kernel': output['kernel'].reshape(num_heads, -1, dim), 'bias': output['bias']}
    }


def split_attention(state: dict[str, np.ndarray], name: str, num_heads: int) -> dict[str, Any]:
    """MultiHeadDotProductAttention, from a layer with `q_proj`, `k_proj`, `v_proj`, `out_proj`."""
    packed = {
        f'in_proj_{leaf}': np.concatenate([state[f'{name}.{part}_proj.{leaf}'] for part in 'qkv'])
        for leaf in ('weight', 'bias')
    }
    return attention(state | packed, 'in_proj', f'{name}.out_proj', num_heads=num_heads)


def block(state: dict[str, np.ndarray], name: str, num_heads: int) -> dict[str, Any]:
    """layers.Block, from timm's names."""
    return {
        'LayerNorm_0': norm(state, f'{name}.norm1'),
        'MultiHeadDotProductAttention_0': attention(
            state, f'{name}.attn.qkv', f'{name}.attn.proj', num_heads=num_heads
        ),
        'LayerNorm_1': norm(state, f'{name}.norm2'),
        'Mlp_0': mlp(state, f'{name}.mlp'),
    }
