"""Vision transformers, DINOv2 and DINOv3 among them, and original JAX files (AugReg).

The names are those of timm, torchvision, mmseg or Hugging Face.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from rankseg_jax.backbones.vit import resize_codes
from rankseg_jax.pretrained import torch_layers

# Names of torchvision, mmseg and Hugging Face, as patterns, to those of timm; the projections of
# attention and the parts of a gated MLP have names of their own.
TO_TIMM = [
    (r'^encoder\.layers\.encoder_layer_(\d+)\.', r'blocks.\1.'),
    (r'^(?:encoder\.|model\.)?layers?\.(\d+)\.', r'blocks.\1.'),
    (r'\.ln_?([12])\.', r'.norm\1.'),
    (r'\.self_attention\.in_proj_', '.attn.qkv.'),
    (r'\.self_attention\.out_proj\.', '.attn.proj.'),
    (r'\.attn\.attn\.in_proj_', '.attn.qkv.'),
    (r'\.attn\.attn\.out_proj\.', '.attn.proj.'),
    (r'\.attention\.(?:attention\.)?([qkv])(?:uery|ey|alue|_proj)\.', r'.attn.\1.'),
    (r'\.attention\.(?:output\.dense|o_proj|out_proj)\.', '.attn.proj.'),
    (r'\.attn\.([qkv])_bias$', r'.attn.\1.bias'),
    (r'\.(?:layer_scale([12])\.lambda1|gamma_([12]))$', r'.ls\1\2.gamma'),
    (r'\.mlp\.(0|linear_1|weights_in)\.', '.mlp.fc1.'),
    (r'\.mlp\.(3|linear_2|weights_out)\.', '.mlp.fc2.'),
    (r'\.mlp\.(?:gate_proj|fc1_g)\.', '.mlp.gate.'),
    (r'\.mlp\.(?:up_proj|fc1_x)\.', '.mlp.up.'),
    (r'\.mlp\.down_proj\.', '.mlp.fc2.'),
    (r'\.ffn\.layers\.0\.0\.', '.mlp.fc1.'),
    (r'\.ffn\.layers\.1\.', '.mlp.fc2.'),
    (r'^(encoder\.ln|ln1|layernorm)\.', 'norm.'),
    (
        r'^(conv_proj|patch_embed\.projection|embeddings\.patch_embeddings(\.projection)?)\.',
        'patch_embed.proj.',
    ),
    (r'^(class_token|embeddings\.cls_token)$', 'cls_token'),
    (r'^embeddings\.register_tokens$', 'reg_token'),
    (r'^(encoder\.pos_embedding|embeddings\.position_embeddings(\.weight)?)$', 'pos_embed'),
]
# Not of the features.
HEAD = re.compile(
    r'(head|heads|head_dist|fc_norm|pre_logits|representation_layer|embeddings\.mask_token)\b'
)


def from_torch(state: dict[str, np.ndarray], num_heads: int = 0) -> dict:
    """Parameters of `backbones.vit.ViT` from a state dict, without its classifier.

    Args:
      num_heads: of attention; 0: as published models of this width have them.

    Raises:
      ValueError: names are unknown or missing; the weights are not those of a ViT.
    """
    state = {key: value for key, value in state.items() if not HEAD.match(key)}
    for pattern, replacement in TO_TIMM:
        state = {re.sub(pattern, replacement, key): value for key, value in state.items()}
    known = re.compile(
        r'(cls_token|reg_token|pos_embed|cls_emb|blocks\.\d+\.ls[12]\.gamma|'
        r'(patch_embed\.proj|norm|'
        r'blocks\.\d+\.(norm[12]|attn\.(qkv|q|k|v|proj)|mlp\.(fc[12]|gate|up)))'
        r'\.(weight|bias))$'
    )
    strange = sorted(key for key in state if not known.match(key))
    needed = {'cls_token', 'patch_embed.proj.weight', 'norm.weight'}
    if 'reg_token' not in state:  # with registers, codes may be rotary
        needed |= {'pos_embed'}
    missing = sorted(needed - state.keys())
    if strange or missing:
        raise ValueError(
            f'these are not the weights of a plain ViT: unknown names {strange[:5]}, '
            f'missing names {missing}'
        )
    width = state['cls_token'].shape[-1]
    num_heads = num_heads or width // (128 if width == 4096 else 64)
    params = {
        'patches': torch_layers.conv(state, 'patch_embed.proj'),
        'class_token': state['cls_token'].reshape(-1),
        'norm': torch_layers.norm(state, 'norm'),
    }
    if 'pos_embed' in state:
        params |= positions(state['pos_embed'])
    if 'reg_token' in state and state['reg_token'].size:
        params['registers'] = state['reg_token'].reshape(-1, width)
        # Without a code for the class token, as timm and EoMT have it.
        params['class_token'] = params['class_token'] + params.pop('class_position', 0)
    if 'pos_embed' not in state and width < 4096:  # all DINOv3s but the largest have some
        zeros = np.zeros(width, np.float32)
        names = [key.removesuffix('qkv.weight') for key in state if key.endswith('qkv.weight')]
        state = {f'{name}{part}.bias': zeros for name in names for part in 'qv'} | state
    for i in sorted({int(key.split('.')[1]) for key in state if key.startswith('blocks.')}):
        params[f'block{i}'] = block(state, f'blocks.{i}', num_heads)
    if 'cls_emb' in state:
        params['class_embedding'] = state['cls_emb'][0]
    return params


def block(state: dict[str, np.ndarray], name: str, num_heads: int) -> dict:
    """Parameters of `layers.Block`, from the names that `TO_TIMM` leads to."""
    params = {
        'LayerNorm_0': torch_layers.norm(state, f'{name}.norm1'),
        'MultiHeadDotProductAttention_0': attention(state, f'{name}.attn', num_heads),
        'LayerNorm_1': torch_layers.norm(state, f'{name}.norm2'),
    }
    for i in (1, 2):
        if f'{name}.ls{i}.gamma' in state:
            params[f'layer_scale{i}'] = state[f'{name}.ls{i}.gamma']
    parts = torch_layers.part(state, f'{name}.mlp.')
    up, down = ('fc1', 'fc2') if 'fc1.weight' in parts else ('up', 'fc2')
    packed = len(parts[f'{up}.weight']) == 2 * parts[f'{down}.weight'].shape[1]
    if packed:  # the gate first
        for leaf in ('weight', 'bias'):
            parts[f'gate.{leaf}'], parts[f'up.{leaf}'] = np.split(parts[f'fc1.{leaf}'], 2)
        up = 'up'
    if 'gate.weight' in parts:
        names = {'gate': 'gate', 'up': up, 'down': down}
    else:
        names = {'Dense_0': up, 'Dense_1': down}
    mlp = {ours: torch_layers.dense(parts, theirs) for ours, theirs in names.items()}
    return params | {'GatedMlp_0' if 'gate' in mlp else 'Mlp_0': mlp}


def attention(state: dict[str, np.ndarray], name: str, num_heads: int) -> dict:
    """Parameters of `layers.SelfAttention`; a projection without a bias stays without."""
    if f'{name}.qkv.weight' in state:
        for leaf in ('weight', 'bias'):
            if f'{name}.qkv.{leaf}' in state:
                names = (f'{name}.{letter}.{leaf}' for letter in 'qkv')
                parts = np.split(state[f'{name}.qkv.{leaf}'], 3)
                state = state | dict(zip(names, parts, strict=True))
    params: dict[str, Any] = {}
    for ours in ('query', 'key', 'value'):
        theirs = f'{name}.{ours[0]}'
        kernel = state[f'{theirs}.weight'].T
        params[ours] = {'kernel': kernel.reshape(len(kernel), num_heads, -1)}
        if f'{theirs}.bias' in state:
            params[ours]['bias'] = state[f'{theirs}.bias'].reshape(num_heads, -1)
    out = torch_layers.dense(state, f'{name}.proj')
    kernel = out['kernel'].reshape(num_heads, -1, len(out['bias']))
    return params | {'out': {'kernel': kernel, 'bias': out['bias']}}


def from_augreg(arrays: Mapping[str, np.ndarray]) -> dict:
    """Parameters of `backbones.vit.ViT` from the original JAX names, without its classifier."""
    names = [
        ('Transformer/encoderblock_', 'block'),
        ('Transformer/encoder_norm', 'norm'),
        ('embedding/', 'patches/'),
        ('LayerNorm_2', 'LayerNorm_1'),
        ('MultiHeadDotProductAttention_1', 'MultiHeadDotProductAttention_0'),
        ('MlpBlock_3', 'Mlp_0'),
    ]
    params = {'class_token': arrays['cls'].reshape(-1)}
    flat = {}
    for key, value in arrays.items():
        if key.startswith(('head/', 'pre_logits/')) or key == 'cls':
            continue
        if key.endswith('pos_embedding'):
            params |= positions(value)
            continue
        for theirs, ours in names:
            key = key.replace(theirs, ours)
        flat[key] = value
    return params | traverse_util.unflatten_dict(flat, sep='/')


def positions(codes: np.ndarray) -> dict:
    """Position codes as parameters of `ViT`: [(1,) n · n, D], or with the class token's first.

    Raises:
      ValueError: they are not those of a square grid.
    """
    codes = codes.reshape(-1, codes.shape[-1])
    side = int(len(codes) ** 0.5)
    if len(codes) - side * side not in (0, 1):
        raise ValueError(f'{len(codes)} position codes are not a class token and a square grid')
    grid = codes[-side * side :].reshape(side, side, -1)
    return {'position': grid} | ({'class_position': codes[0]} if len(codes) > side * side else {})


def resize_kernel(kernel: np.ndarray, side: int) -> np.ndarray:
    """The kernel of patches of another size, [k, k, C, D] → [side, side, C, D], as timm's.

    It gives an image that is enlarged (bicubically) what the kernel gave the image, as far as it
    can: the pseudo-inverse of the enlargement (Beyer et al., 2023).
    """
    size = len(kernel)
    pixels = np.eye(size * size, dtype=np.float32).reshape(size, size, -1)
    enlarged = np.asarray(resize_codes(pixels, (side, side), antialias=True))  # [side, side, k · k]
    inverse = np.linalg.pinv(enlarged.reshape(side * side, -1))  # [k · k, side · side]
    flat = inverse.T @ kernel.reshape(size * size, -1)
    return flat.reshape(side, side, *kernel.shape[2:]).astype(np.float32)
