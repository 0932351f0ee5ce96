"""Checkpoints of the paper's released Segmenter, with mmseg's `backbone.*` and `decode_head.*`."""

import numpy as np

from rankseg_jax.pretrained import torch_layers, vit
from rankseg_jax.pretrained.torch_layers import dense, norm, part


def segmenter(state: dict[str, np.ndarray]) -> dict:
    """Parameters of `frameworks.segmenter.Segmenter` with a mask transformer."""
    head = part(state, 'decode_head.')
    decoder = mask_transformer(head, head['proj_patch'].shape[0] // 64)
    return {'backbone': vit.from_torch(part(state, 'backbone.')), 'decoder': decoder}


def mask_transformer(state: dict[str, np.ndarray], num_heads: int) -> dict:
    """Parameters of `decoders.mask_transformer.MaskTransformer`, with or without RankSeg."""
    params = {
        'project': dense(state, 'proj_dec'),
        'norm': norm(state, 'decoder_norm'),
        'project_patches': {'kernel': state['proj_patch']},
        'project_classes': {'kernel': state['proj_classes']},
    }
    for i in sorted({int(key.split('.')[1]) for key in state if key.startswith('blocks.')}):
        params[f'block{i}'] = torch_layers.block(state, f'blocks.{i}', num_heads)
    if 'cls_emb' in state:
        params['class_embedding'] = state['cls_emb'][0]
    if 'ml_fc.W' in state:  # the first block is the multi-label head
        params |= {
            'class_norm': norm(state, 'decoder_norm2'),
            'classify': class_wise_linear(state, 'ml_fc'),
        }
    elif 'img_cls_head.input_proj.weight' in state:
        params['head'] = decoder_head(state, 'img_cls_head.', num_heads)
    elif 'img_cls_head.2.weight' in state:
        params['head'] = {
            'hidden': dense(state, 'img_cls_head.1.conv'),
            'classify': dense(state, 'img_cls_head.2'),
        }
    else:
        return params | {'classes': {'norm': norm(state, 'mask_norm')}}
    return params | {'rank': {'temperature': {'norm': norm(state, 'mask_norm')}}}


def class_wise_linear(state: dict[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    return {'kernel': state[f'{name}.W'][0], 'bias': state[f'{name}.b'][0]}


def decoder_head(state: dict[str, np.ndarray], prefix: str, num_heads: int) -> dict:
    """Parameters of `multilabel.DecoderHead`."""
    params = {
        'project': dense(state, f'{prefix}input_proj'),
        'norm': norm(state, f'{prefix}transformer.decoder.norm'),
        'classify': class_wise_linear(state, f'{prefix}fc'),
    }
    if f'{prefix}query_embed.weight' in state:
        params['class_embedding'] = state[f'{prefix}query_embed.weight']
    layers = f'{prefix}transformer.decoder.layers.'
    for i in sorted(
        {int(key.removeprefix(layers).split('.')[0]) for key in state if key.startswith(layers)}
    ):
        layer = f'{layers}{i}.'
        params[f'layer{i}'] = {
            'attention': torch_layers.attention(
                state,
                f'{layer}multihead_attn.in_proj',
                f'{layer}multihead_attn.out_proj',
                num_heads=num_heads,
            ),
            'norm1': norm(state, f'{layer}norm2'),
            'mlp': {
                'Dense_0': dense(state, f'{layer}linear1'),
                'Dense_1': dense(state, f'{layer}linear2'),
            },
            'norm2': norm(state, f'{layer}norm3'),
        }
    return params
