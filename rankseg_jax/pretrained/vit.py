"""Vision transformers of timm, torchvision and mmseg, and original JAX files (AugReg)."""

import re

from flax import traverse_util

from rankseg_jax.pretrained import torch_layers

# torchvision's and mmseg's names, as patterns, to timm's.
TO_TIMM = [
    (r'^encoder\.layers\.encoder_layer_(\d+)\.', r'blocks.\1.'),
    (r'^layers\.(\d+)\.', r'blocks.\1.'),
    (r'\.ln_?([12])\.', r'.norm\1.'),
    (r'\.self_attention\.in_proj_', '.attn.qkv.'),
    (r'\.self_attention\.out_proj\.', '.attn.proj.'),
    (r'\.attn\.attn\.in_proj_', '.attn.qkv.'),
    (r'\.attn\.attn\.out_proj\.', '.attn.proj.'),
    (r'\.mlp\.(0|linear_1)\.', '.mlp.fc1.'),
    (r'\.mlp\.(3|linear_2)\.', '.mlp.fc2.'),
    (r'\.ffn\.layers\.0\.0\.', '.mlp.fc1.'),
    (r'\.ffn\.layers\.1\.', '.mlp.fc2.'),
    (r'^(encoder\.ln|ln1)\.', 'norm.'),
    (r'^(conv_proj|patch_embed\.projection)\.', 'patch_embed.proj.'),
    (r'^class_token$', 'cls_token'),
    (r'^encoder\.pos_embedding$', 'pos_embed'),
]
HEAD = re.compile(r'(head|heads|head_dist|fc_norm|pre_logits|representation_layer)\b')


def from_torch(state) -> dict:
    """Parameters of `backbones.vit.ViT` from a state dict, without its classifier.

    Raises:
      ValueError: names are unknown or missing; the weights are not those of a plain ViT.
    """
    state = {key: value for key, value in state.items() if not HEAD.match(key)}
    for pattern, replacement in TO_TIMM:
        state = {re.sub(pattern, replacement, key): value for key, value in state.items()}
    known = re.compile(
        r'(cls_token|pos_embed|cls_emb|'
        r'(patch_embed\.proj|norm|blocks\.\d+\.(norm[12]|attn\.(qkv|proj)|mlp\.fc[12]))'
        r'\.(weight|bias))$'
    )
    strange = sorted(key for key in state if not known.match(key))
    missing = sorted(
        {'cls_token', 'pos_embed', 'patch_embed.proj.weight', 'norm.weight'} - state.keys()
    )
    if strange or missing:
        raise ValueError(
            f'these are not the weights of a plain ViT: unknown names {strange[:5]}, '
            f'missing names {missing}'
        )
    num_heads = state['cls_token'].shape[-1] // 64
    params = {
        'patches': torch_layers.conv(state, 'patch_embed.proj'),
        'class_token': state['cls_token'].reshape(-1),
        **positions(state['pos_embed']),
        'norm': torch_layers.norm(state, 'norm'),
    }
    for i in sorted({int(key.split('.')[1]) for key in state if key.startswith('blocks.')}):
        params[f'block{i}'] = torch_layers.block(state, f'blocks.{i}', num_heads)
    if 'cls_emb' in state:
        params['class_embedding'] = state['cls_emb'][0]
    return params


def from_augreg(arrays) -> dict:
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


def positions(codes) -> dict:
    """Position codes [1, 1 + n·n, D], the class token's first, as the two parameters of `ViT`."""
    side = round((codes.shape[1] - 1) ** 0.5)
    if side * side + 1 != codes.shape[1]:
        raise ValueError(f'{codes.shape[1]} position codes are not a class token and a square grid')
    return {'class_position': codes[0, 0], 'position': codes[0, 1:].reshape(side, side, -1)}
