"""BEiT weights: state dicts of timm and of the original code, of mmseg and of Hugging Face."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from rankseg_jax.pretrained import torch_layers, upernet
from rankseg_jax.pretrained.torch_layers import numbered

# As in upernet.py, of BeitForSemanticSegmentation: a UPerNet whose decoder has the tokens' width.
FIXED = upernet.FIXED
ENCODER = ''
CLASS_LAYER = upernet.CLASS_LAYER
MASK_SIZE = (-1, -1)  # logits are resized directly to the image
widths = upernet.widths
build = upernet.build


def variables(config: Mapping[str, Any], state: dict[str, np.ndarray]) -> dict:
    """Variables of a `UPerNet` except for its backbone."""
    return upernet.heads(state, 'bn')


# Hugging Face's names, older and newer, and mmseg's, as patterns, to timm's; those of the neck to
# the original code's.
TO_TIMM = [
    (r'^beit\.', ''),
    (r'^embeddings\.(cls_token|mask_token)$', r'\1'),
    (r'^embeddings\.position_embeddings$', 'pos_embed'),
    (r'^(embeddings\.patch_embeddings|patch_embed)\.projection\.', 'patch_embed.proj.'),
    (r'^(encoder\.layer|layers)\.(\d+)\.', r'blocks.\2.'),
    (r'^(encoder\.relative_position_bias|shared_position_bias)\.', 'rel_pos_bias.'),
    (r'\.(attention\.attention\.)?relative_position_bias\.', '.attn.'),
    (r'\.attention\.(attention\.)?([qkv])[a-z_]+\.', r'.attn.\2.'),
    (r'\.attention\.(output\.dense|o_proj)\.', '.attn.proj.'),
    (r'\.(intermediate\.dense|ffn\.layers\.0\.0)\.', '.mlp.fc1.'),
    (r'\.(output\.dense|ffn\.layers\.1)\.', '.mlp.fc2.'),
    (r'\.(layernorm_before|ln1)\.', '.norm1.'),
    (r'\.(layernorm_after|ln2)\.', '.norm2.'),
    (r'\.lambda_', '.gamma_'),
    (r'^fpn\.fpn1\.conv_transpose1\.', 'fpn1.0.'),
    (r'^fpn\.fpn1\.normalization\.', 'fpn1.1.'),
    (r'^fpn\.fpn1\.conv_transpose2\.', 'fpn1.3.'),
    (r'^fpn\.fpn2\.', 'fpn2.0.'),
    (r'^neck\.upsample_4x\.', 'fpn1.'),
    (r'^neck\.upsample_2x\.', 'fpn2.'),
]
# Classifiers and what comes before them, and what follows from sizes.
LEFT_OUT = re.compile(
    r'(head|norm|fc_norm|pooler|layernorm|lm_head|mask_token|decode_head|auxiliary_head)\b|'
    r'.*(relative_position_index|num_batches_tracked|k_bias)$'
)
TABLE = 'relative_position_bias_table'
KNOWN = re.compile(
    r'cls_token|(patch_embed\.proj|fpn1\.[03]|fpn2\.0)\.(weight|bias)|'
    r'fpn1\.1\.(weight|bias|running_mean|running_var)|'
    rf'rel_pos_bias\.{TABLE}|'
    r'blocks\.\d+\.(gamma_[12]|(norm[12]|mlp\.fc[12]|attn\.(proj|qkv|[qkv]))\.(weight|bias)|'
    rf'attn\.([qv]_bias|{TABLE}))'
)


def from_torch(state: Mapping[str, Any]) -> dict:
    """Variables {'params'[, 'batch_stats']} of `backbones.beit.BEiT`, without a classifier.

    A table of position biases that all blocks share is added to that of each block. A classifier
    lacks the neck.

    Raises:
      ValueError: a name is unknown, or there are no position biases.
    """
    for pattern, replacement in TO_TIMM:
        state = {re.sub(pattern, replacement, key): value for key, value in state.items()}
    state = {key: np.asarray(value) for key, value in state.items() if not LEFT_OUT.match(key)}
    strange = sorted(key for key in state if not KNOWN.fullmatch(key))
    if strange:
        raise ValueError(f'these are not the weights of a BEiT: unknown names {strange[:5]}')
    params = {
        'patches': torch_layers.conv(state, 'patch_embed.proj'),
        'class_token': state['cls_token'].reshape(-1),
    }
    for i in numbered(state, 'blocks.'):
        tables = [
            state[key]
            for key in (f'rel_pos_bias.{TABLE}', f'blocks.{i}.attn.{TABLE}')
            if key in state
        ]
        if not tables:
            raise ValueError('this BEiT has no relative position biases, which is not supported')
        params[f'position_bias{i}'] = position_bias(np.asarray(sum(tables)))
        params[f'block{i}'] = block(state, f'blocks.{i}', tables[0].shape[1])
    if 'fpn1.0.weight' not in state:
        return {'params': params}
    params |= {
        'neck4_1': double(state, 'fpn1.0'),
        'neck4_norm': torch_layers.norm(state, 'fpn1.1'),
        'neck4_2': double(state, 'fpn1.3'),
        'neck8': double(state, 'fpn2.0'),
    }
    statistics = {'mean': state['fpn1.1.running_mean'], 'var': state['fpn1.1.running_var']}
    return {'params': params, 'batch_stats': {'neck4_norm': statistics}}


def position_bias(table: np.ndarray) -> dict[str, np.ndarray]:
    """Parameters of `backbones.beit.PositionBias`, for a square grid.

    Args:
      table: [(2 side - 1)² + 3, heads]; the last three are of the class token.

    Raises:
      ValueError: the grid is not square.
    """
    side = round((len(table) - 3) ** 0.5)
    if side * side + 3 != len(table):
        raise ValueError(f'{len(table)} position biases are not those of a square grid')
    return {'table': table[:-3].reshape(side, side, -1), 'class': table[-3:]}


def block(state: dict[str, np.ndarray], name: str, num_heads: int) -> dict[str, Any]:
    """Parameters of `layers.Block` without a bias of the keys, with factors of 1 if it has none."""
    separate = f'{name}.attn.q.weight' in state  # three projections instead of a packed one
    dim = state[f'{name}.norm1.weight'].shape[0]
    if separate:
        weights = [state[f'{name}.attn.{part}.weight'] for part in 'qkv']
        state = state | {f'{name}.attn.qkv.weight': np.concatenate(weights)}
    zeros = np.zeros(dim, np.float32)
    biases = [
        state.get(f'{name}.attn.{part}.bias' if separate else f'{name}.attn.{part}_bias', zeros)
        for part in 'qkv'
    ]
    params = torch_layers.block(
        state | {f'{name}.attn.qkv.bias': np.concatenate(biases)}, name, num_heads
    )
    del params['MultiHeadDotProductAttention_0']['key']['bias']
    scales = {
        f'layer_scale{i}': state.get(f'{name}.gamma_{i}', np.ones(dim, np.float32)) for i in (1, 2)
    }
    return params | scales


def double(state: dict[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    """nn.ConvTranspose of stride 2; PyTorch's kernels [I, O, 2, 2] point the other way."""
    kernel = state[f'{name}.weight'].transpose(2, 3, 0, 1)[::-1, ::-1]
    return {'kernel': np.ascontiguousarray(kernel), 'bias': state[f'{name}.bias']}
