"""EoMT and VidEoMT of Hugging Face `transformers`, and EoMT of its authors, on DINOv2 or DINOv3."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import logging

from rankseg_jax.backbones.vit import ViT
from rankseg_jax.frameworks.eomt import EoMT, num_upscales
from rankseg_jax.frameworks.videomt import VidEoMT
from rankseg_jax.pretrained import vit
from rankseg_jax.pretrained.torch_layers import dense, norm, numbered, part

CLASS_LAYER = 'class_predictor'
MASK_SIZE = (0, 0)  # masks become probabilities at the image's size, or that of windows
# Keys of a config with the only values that are supported.
FIXED = {
    'num_channels': 3,
    'hidden_dropout_prob': 0.0,
    'attention_dropout': 0.0,
    'drop_path_rate': 0.0,
    'rope_theta': 100.0,
    'rope_parameters': {'rope_type': 'default', 'rope_theta': 100.0},
}
# Names of the authors' code, as patterns, to those of Hugging Face; the backbone keeps timm's or
# Hugging Face's.
AUTHORS = [
    (r'^q\.', 'query.'),
    (r'^class_head\.', 'class_predictor.'),
    (r'^mask_head\.0\.', 'mask_head.fc1.'),
    (r'^mask_head\.2\.', 'mask_head.fc2.'),
    (r'^mask_head\.4\.', 'mask_head.fc3.'),
    (r'^upscale\.(\d+)\.norm\.', r'upscale_block.block.\1.layernorm2d.'),
    (r'^upscale\.', 'upscale_block.block.'),
]


def build(config: Mapping[str, Any], num_classes: int) -> EoMT | VidEoMT:
    """The model that a config describes, with K classes.

    Raises:
      ValueError: it upscales more or less often than its patches need, or has another activation
        than published ones.
    """
    patch, width, size = config['patch_size'], config['hidden_size'], config['image_size']
    upscales = config.get('num_upscale_blocks', num_upscales(patch))
    if upscales != num_upscales(patch):
        raise ValueError(
            f'config.json: num_upscale_blocks = {upscales} is not supported for patch_size = '
            f'{patch}, only {num_upscales(patch)}'
        )
    gated = config['model_type'] == 'eomt_dinov3' and config.get('use_gated_mlp', False)
    activation, suitable = config.get('hidden_act', 'gelu'), 'silu' if gated else 'gelu'
    if activation != suitable:
        raise ValueError(
            f'config.json: hidden_act = {activation!r} is not supported, only {suitable!r} where '
            f'use_gated_mlp = {gated}'
        )
    backbone = ViT(
        patch=patch,
        width=width,
        num_layers=config['num_hidden_layers'],
        num_heads=config['num_attention_heads'],
        image_size=(size, size),
        num_registers=config.get('num_register_tokens', 4),
        epsilon=config.get('layer_norm_eps', 1e-6),
        layer_scale=config.get('layerscale_value', 1.0),
        **kind_of_backbone(config),
    )
    framework = VidEoMT if config['model_type'] == 'videomt' else EoMT
    return framework(
        backbone=backbone,
        num_classes=num_classes,
        num_queries=config['num_queries'],
        num_joint=config['num_blocks'],
    )


def kind_of_backbone(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a `ViT` in which DINOv2 and DINOv3 differ."""
    width = config['hidden_size']
    if config['model_type'] != 'eomt_dinov3':
        gated = config.get('use_swiglu_ffn', False)
        mlp_dim = int(width * config.get('mlp_ratio', 4))
        if gated:
            mlp_dim = (int(mlp_dim * 2 / 3) + 7) // 8 * 8
        kind = {'codes': 'patches'}
    else:
        gated, mlp_dim = config.get('use_gated_mlp', False), config['intermediate_size']
        biased = {'query': True, 'key': False, 'value': True}
        kind = {
            'codes': 'rotary',
            'unbiased': tuple(x for x in biased if not config.get(f'{x}_bias', biased[x])),
            'rescale': config.get('pos_embed_rescale') or 1.0,
        }
    # As in published backbones, 0 stands for 4 · D.
    return kind | {'gated': gated, 'mlp_dim': 0 if mlp_dim == 4 * width else mlp_dim}


def variables(state: dict[str, np.ndarray], num_heads: int = 0) -> dict:
    """Variables of the model; logs a warning of masks that an `EoMT` uses by chance.

    Args:
      num_heads: of attention; see `vit.from_torch`.
    """
    heads = ('query.', 'class_predictor.', 'mask_head.', 'upscale_block.', 'attn_mask_probs')
    others = (*heads, 'query_updater.', 'criterion.')
    encoder = {key: value for key, value in state.items() if not key.startswith(others)}
    for key, kernel in list(encoder.items()):
        if re.search(r'\.(o|gate|up|down)_proj\.weight$', key):  # which may have no bias
            encoder.setdefault(f'{key.removesuffix("weight")}bias', np.zeros_like(kernel[:, 0]))
    params = {
        'backbone': vit.from_torch(encoder, num_heads),
        'queries': state['query.weight'],
        'mask': {f'Dense_{i}': dense(state, f'mask_head.fc{i + 1}') for i in range(3)},
        'decoder': {
            'classes': {
                'embedding': state['class_predictor.weight'],
                'bias': state['class_predictor.bias'],
            }
        },
    }
    for i in numbered(state, 'upscale_block.block.'):
        theirs = f'upscale_block.block.{i}'
        params[f'upscale_{i}'] = {
            'expand': {'kernel': state[f'{theirs}.conv1.weight'].transpose(0, 2, 3, 1)},
            'bias': state[f'{theirs}.conv1.bias'],
            'depthwise': state[f'{theirs}.conv2.weight'][:, 0].transpose(1, 2, 0),
            'norm': norm(state, f'{theirs}.layernorm2d'),
        }
    if 'query_updater.weight' in state:  # a VidEoMT, whose attn_mask_probs are not used
        return {'params': params | {'update': dense(state, 'query_updater')}}
    probability = np.asarray(state['attn_mask_probs'])
    if ((probability > 0) & (probability < 1)).any():
        logging.warning(
            'attn_mask_probs = %s: masks are used where it is above 0, not by chance', probability
        )
    return {'params': params, 'batch_stats': {'mask_probability': probability}}


def from_authors(arrays: dict[str, np.ndarray]) -> dict:
    """Variables of an `EoMT` from the names of its authors' code (tue-mps/eomt)."""
    encoder = part(arrays, 'network.encoder.backbone.')
    if 'patch_embed.cls_token' in encoder:  # a DINOv3, with Hugging Face's names but for these
        encoder = {re.sub('^patch_embed', 'embeddings', key): x for key, x in encoder.items()}
    others = part(arrays, 'network.')
    for pattern, replacement in AUTHORS:
        others = {re.sub(pattern, replacement, key): x for key, x in others.items()}
    others = {key: x for key, x in others.items() if not key.startswith('encoder.')}
    return variables(encoder | others)


def is_difference(backbone: Mapping[str, Any]) -> bool:
    """Whether parameters of a ViT are differences from others, as the authors' of DINOv3s are.

    The scales of trained norms are positive but for a few; differences have either sign.
    """
    blocks = [block for name, block in backbone.items() if name.startswith('block')]
    scales = [block[f'LayerNorm_{i}']['scale'] for block in blocks for i in (0, 1)]
    return bool((np.concatenate(scales) > 0).mean() < 0.9)
