"""Golden files: weights, inputs and outputs of the paper's released code, from the folder in RANKSEG_GOLDEN."""

import os
from pathlib import Path

import numpy as np

FOLDER = Path(os.environ.get('RANKSEG_GOLDEN') or Path(__file__).parents[1] / '../shared/golden')


def load(name: str) -> dict[str, np.ndarray]:
    """The arrays of `<name>.npz` by their names."""
    path = FOLDER / f'{name}.npz'
    assert path.exists(), f'no golden file {path.resolve()}: set RANKSEG_GOLDEN to the folder that holds it'
    with np.load(path) as file:
        return dict(file)


def dense(golden, name):
    """Parameters of a Linear layer or a 1 x 1 convolution, in Flax's layout."""
    weight = golden[f'param/{name}.weight']
    return {'kernel': weight.reshape(weight.shape[:2]).T, 'bias': golden[f'param/{name}.bias']}


def norm(golden, name):
    return {'scale': golden[f'param/{name}.weight'], 'bias': golden[f'param/{name}.bias']}


def attention(weight, bias, out, num_heads):
    """Parameters of MultiHeadDotProductAttention from PyTorch's packed query-key-value projection."""
    dim = weight.shape[1]
    packed = {
        name: {'kernel': w.T.reshape(dim, num_heads, -1), 'bias': b.reshape(num_heads, -1)}
        for name, w, b in zip(('query', 'key', 'value'), np.split(weight, 3), np.split(bias, 3), strict=True)
    }
    return packed | {'out': {'kernel': out['kernel'].reshape(num_heads, -1, dim), 'bias': out['bias']}}


def block(golden, name, num_heads):
    """Parameters of layers.Block."""
    return {
        'LayerNorm_0': norm(golden, f'{name}.norm1'),
        'MultiHeadDotProductAttention_0': attention(
            golden[f'param/{name}.attn.qkv.weight'], golden[f'param/{name}.attn.qkv.bias'],
            dense(golden, f'{name}.attn.proj'), num_heads),
        'LayerNorm_1': norm(golden, f'{name}.norm2'),
        'Mlp_0': {'Dense_0': dense(golden, f'{name}.mlp.fc1'), 'Dense_1': dense(golden, f'{name}.mlp.fc2')},
    }
