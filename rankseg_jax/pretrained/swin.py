"""Swin weights: state dicts of timm, of the original code, of mmseg and of Hugging Face."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from rankseg_jax.pretrained import torch_layers

# Hugging Face's names, older and newer, and mmseg's, as patterns, to timm's.
TO_TIMM = [
    (r'^stages\.', 'layers.'),
    (r'\.attn\.w_msa\.', '.attn.'),
    (r'\.ffn\.layers\.0\.0\.', '.mlp.fc1.'),
    (r'\.ffn\.layers\.1\.', '.mlp.fc2.'),
    (r'^patch_embed\.projection\.', 'patch_embed.proj.'),
    (r'^norm(\d)\.', lambda m: f'hidden_states_norms.stage{int(m[1]) + 1}.'),
    (r'^(swin\.|model\.)?(encoder|embeddings)\.', r'\2.'),
    (r'^encoder\.', ''),
    (r'^(swin\.|model\.)?layernorm\.', 'norm.'),
    (r'^hidden_states_norms\.(\d)\.', lambda m: f'hidden_states_norms.stage{int(m[1]) + 1}.'),
    (r'^embeddings\.norm\.', 'patch_embed.norm.'),
    (r'^embeddings\.patch_embeddings\.projection\.', 'patch_embed.proj.'),
    (r'^embeddings\.position_embeddings$', 'absolute_pos_embed'),
    (r'\.layernorm_before\.', '.norm1.'),
    (r'\.layernorm_after\.', '.norm2.'),
    (r'\.attention\.(self\.)?([qkv])\w+\.', r'.attn.\2.'),
    (r'\.attention\.(output\.dense|o_proj)\.', '.attn.proj.'),
    (r'\.attention\.(self|relative_position_bias)\.', '.attn.'),
    (r'\.intermediate\.dense\.', '.mlp.fc1.'),
    (r'\.output\.dense\.', '.mlp.fc2.'),
]
LEFT_OUT = re.compile(
    r'(norm|head|classifier)\.|.*(relative_position_index|attn_mask)$|embeddings\.mask_token$'
)


def from_torch(state: Mapping[str, Any]) -> dict:
    """Parameters of `backbones.swin.Swin`, without the classifier and the norm before it.

    A classifier lacks the norms of the feature maps; these get their initial values.

    Raises:
      ValueError: a name is unknown.
    """
    if any('.w_msa.' in key for key in state):
        state = {
            key: neighbors_first(value) if '.downsample.' in key else value
            for key, value in state.items()
        }
    for pattern, replacement in TO_TIMM:
        state = {re.sub(pattern, replacement, key): value for key, value in state.items()}
    state = {key: np.asarray(value) for key, value in state.items() if not LEFT_OUT.match(key)}
    layer = (
        r'layers\.\d\.(blocks\.\d+\.(norm[12]|attn\.(qkv|q|k|v|proj)|mlp\.fc[12])|'
        r'downsample\.(norm|reduction))'
    )
    known = re.compile(
        rf'({layer}|patch_embed\.(proj|norm)|hidden_states_norms\.stage\d)\.(weight|bias)|'
        r'absolute_pos_embed|'
        r'layers\.\d\.blocks\.\d+\.attn\.relative_position_bias_table'
    )
    strange = sorted(key for key in state if not known.fullmatch(key))
    if strange:
        raise ValueError(f'these are not the weights of a Swin: unknown names {strange[:5]}')
    params = {
        'patches': torch_layers.conv(state, 'patch_embed.proj'),
        'patch_norm': torch_layers.norm(state, 'patch_embed.norm'),
    }
    if 'absolute_pos_embed' in state:
        codes = state['absolute_pos_embed'][0]  # [h · w, D], of a square
        params['position'] = codes.reshape(round(len(codes) ** 0.5), -1, codes.shape[-1])
    # timm merges at the start of a stage, others at the end of the one before.
    late = 'layers.0.downsample.norm.weight' in state
    width = state['patch_embed.norm.weight'].shape[0]
    for name in {
        match[0] for match in map(re.compile(r'layers\.\d\.blocks\.\d+').match, state) if match
    }:
        _, stage, _, number = name.split('.')
        params[f'stage{int(stage) + 1}_block{int(number) + 1}'] = block(state, name)
    for i in range(4):
        if i:
            theirs = f'layers.{i - late}.downsample'
            params |= {
                f'merge{i}_norm': torch_layers.norm(state, f'{theirs}.norm'),
                f'merge{i}': {'kernel': state[f'{theirs}.reduction.weight'].T},
            }
        theirs = f'hidden_states_norms.stage{i + 1}'
        dim = np.zeros(width * 2**i, np.float32)
        params[f'norm{4 * 2**i}'] = (
            torch_layers.norm(state, theirs)
            if f'{theirs}.weight' in state
            else {'scale': dim + 1, 'bias': dim}
        )
    return params


def neighbors_first(value: np.ndarray) -> np.ndarray:
    """A weight of mmseg's patch merging, [..., D · 2 · 2], in timm's order, [..., 4 · D].

    mmseg's order is that of nn.Unfold. In timm, the four neighbors are ordered by column, then by
    row.
    """
    value = np.asarray(value)
    parts = value.reshape(*value.shape[:-1], -1, 2, 2)  # [..., D, row, column]
    return np.moveaxis(parts, -3, -1).swapaxes(-3, -2).reshape(value.shape)


def block(state: dict[str, np.ndarray], name: str) -> dict[str, Any]:
    """Parameters of `backbones.swin.SwinBlock`."""
    table = state[f'{name}.attn.relative_position_bias_table']  # [(2 window - 1)², heads]
    side, num_heads = round(len(table) ** 0.5), table.shape[1]
    if f'{name}.attn.q.weight' in state:  # three projections instead of a packed one
        state = state | {
            f'{name}.attn.qkv.{leaf}': np.concatenate(
                [state[f'{name}.attn.{part}.{leaf}'] for part in 'qkv']
            )
            for leaf in ('weight', 'bias')
        }
    return torch_layers.block(state, name, num_heads) | {
        'position_bias': table.reshape(side, side, num_heads)
    }
