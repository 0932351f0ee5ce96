"""EoMT and VidEoMT of Hugging Face `transformers`, on DINOv2 or DINOv3: config and names."""

from typing import Any

import numpy as np
from absl import logging

from rankseg_jax.backbones.vit import ViT
from rankseg_jax.frameworks.eomt import EoMT, num_upscales
from rankseg_jax.frameworks.videomt import VidEoMT
from rankseg_jax.pretrained import vit
from rankseg_jax.pretrained.torch_layers import dense, norm, numbered

# Keys of a config with the only values that are supported.
CLASS_LAYER = 'class_predictor'
FIXED = {
    'hidden_act': 'gelu',
    'num_channels': 3,
    'hidden_dropout_prob': 0.0,
    'attention_dropout': 0.0,
    'drop_path_rate': 0.0,
    'use_gated_mlp': False,  # of DINOv3s whose activation is SiLU
    'proj_bias': True,
    'mlp_bias': True,
    'rope_theta': 100.0,
    'rope_parameters': {'rope_type': 'default', 'rope_theta': 100.0},
}


def build(config, num_classes: int) -> EoMT | VidEoMT:
    """The model that a config describes, with K classes.

    Raises:
      ValueError: it upscales more or less often than its patches need.
    """
    patch, width, size = config['patch_size'], config['hidden_size'], config['image_size']
    upscales = config.get('num_upscale_blocks', num_upscales(patch))
    if upscales != num_upscales(patch):
        raise ValueError(
            f'config.json: num_upscale_blocks = {upscales} is not supported for patch_size = '
            f'{patch}, only {num_upscales(patch)}'
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


def kind_of_backbone(config) -> dict[str, Any]:
    """The fields of a `ViT` in which DINOv2 and DINOv3 differ."""
    width = config['hidden_size']
    if config['model_type'] != 'eomt_dinov3':
        mlp_dim = int(width * config.get('mlp_ratio', 4))
        gated = config.get('use_swiglu_ffn', False)
        if gated:
            mlp_dim = (int(mlp_dim * 2 / 3) + 7) // 8 * 8
        return {'codes': 'patches', 'gated': gated, 'mlp_dim': mlp_dim}
    biased = {'query': True, 'key': False, 'value': True}
    return {
        'codes': 'rotary',
        'mlp_dim': config['intermediate_size'],
        'unbiased': tuple(x for x in biased if not config.get(f'{x}_bias', biased[x])),
        'rescale': config.get('pos_embed_rescale') or 1.0,
    }


def variables(config, state) -> dict:
    """Variables of the model; logs a warning of masks that an `EoMT` uses by chance."""
    encoder = {
        key: value
        for key, value in state.items()
        if key.startswith(('embeddings.', 'layers.', 'layernorm.'))
    }
    params = {
        'backbone': vit.from_torch(encoder, config['num_attention_heads']),
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
    if config['model_type'] == 'videomt':  # its attn_mask_probs are not used
        return {'params': params | {'update': dense(state, 'query_updater')}}
    probability = np.asarray(state['attn_mask_probs'], np.float32)
    if ((probability > 0) & (probability < 1)).any():
        logging.warning(
            'attn_mask_probs = %s: masks are used where it is above 0, not by chance', probability
        )
    return {'params': params, 'batch_stats': {'mask_probability': probability}}
