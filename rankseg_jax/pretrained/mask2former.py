"""Mask2Former of Hugging Face `transformers`: its config and its names."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import linen as nn

from rankseg_jax.decoders.pixel_decoder import STRIDES, PixelDecoder
from rankseg_jax.decoders.query_decoder import QueryDecoder
from rankseg_jax.frameworks.mask2former import Mask2Former
from rankseg_jax.pretrained.torch_layers import (
    attention,
    classes,
    conv,
    dense,
    mlp,
    norm,
    numbered,
    part,
    split_attention,
)

# Keys of a config with the only values that are supported.
FIXED = {
    'activation_function': 'relu',
    'pre_norm': False,
    'enforce_input_projection': False,
    'common_stride': 4,
    'feature_strides': [4, 8, 16, 32],
}
# How weights are named: those of the backbone begin so, and the class layer is called so.
ENCODER = 'model.pixel_level_module.encoder.'
CLASS_LAYER = 'class_predictor'
# At which Hugging Face's post-processing turns masks into probabilities.
MASK_SIZE = (384, 384)


def widths(config: Mapping[str, Any]) -> dict:
    """The widths of maps and queries in a config, by key; they must be the same."""
    return {key: config[key] for key in ('hidden_dim', 'feature_size', 'mask_feature_size')}


def build(config: Mapping[str, Any], backbone: nn.Module, num_logits: int) -> Mask2Former:
    """The model that a config describes, with `num_logits` = K + 1 of no-object."""
    channels, num_heads = config['hidden_dim'], config['num_attention_heads']
    return Mask2Former(
        backbone=backbone,
        pixel_decoder=PixelDecoder(
            channels=channels,
            num_layers=config['encoder_layers'],
            num_heads=num_heads,
            mlp_dim=config['encoder_feedforward_dim'],
        ),
        decoder=QueryDecoder(
            num_classes=num_logits - 1,
            num_queries=config['num_queries'],
            channels=channels,
            num_layers=config['decoder_layers'] - 1,
            num_heads=num_heads,
            mlp_dim=config['dim_feedforward'],
        ),
    )


def variables(config: Mapping[str, Any], state: dict[str, np.ndarray]) -> dict:
    """Variables of a `Mask2Former` except for its backbone."""
    num_heads = config['num_attention_heads']
    maps = pixel_decoder(part(state, 'model.pixel_level_module.decoder.'), num_heads)
    decoder = query_decoder(part(state, 'model.transformer_module.'), num_heads)
    decoder['classes'] = classes(state, CLASS_LAYER)
    return {'params': {'pixel_decoder': maps, 'decoder': decoder}}


def pixel_decoder(state: dict[str, np.ndarray], num_heads: int) -> dict:
    """Parameters of `decoders.pixel_decoder.PixelDecoder`."""
    names = {f'input{stride}': f'input_projections.{i}' for i, stride in enumerate(STRIDES)}
    names |= {'lateral4': 'adapter_1', 'fuse4': 'layer_1'}
    params = {
        'level_embedding': state['level_embed'],
        'mask_features': conv(state, 'mask_projection'),
    }
    for ours, theirs in names.items():
        params |= {
            f'{ours}_conv': conv(state, f'{theirs}.0'),
            f'{ours}_norm': norm(state, f'{theirs}.1'),
        }
    for i in numbered(state, 'encoder.layers.'):
        layer = f'encoder.layers.{i}'

        def heads(name, *shape, layer=layer):
            linear = dense(state, f'{layer}.self_attn.{name}')
            return {leaf: x.reshape(*x.shape[:-1], num_heads, *shape) for leaf, x in linear.items()}

        out = dense(state, f'{layer}.self_attn.output_proj')
        params[f'layer{i}'] = {
            'attention': {
                'offsets': heads('sampling_offsets', len(STRIDES), -1, 2),
                'weights': heads('attention_weights', -1),
                'value': heads('value_proj', -1),
                'out': {
                    'kernel': out['kernel'].reshape(num_heads, -1, len(out['bias'])),
                    'bias': out['bias'],
                },
            },
            'norm1': norm(state, f'{layer}.self_attn_layer_norm'),
            'mlp': mlp(state, layer),
            'norm2': norm(state, f'{layer}.final_layer_norm'),
        }
    return params


def query_decoder(state: dict[str, np.ndarray], num_heads: int) -> dict:
    """Parameters of `decoders.query_decoder.QueryDecoder`, without its class layer."""
    params = {
        'level_embedding': state['level_embed.weight'],
        'query_position': state['queries_embedder.weight'],
        'queries': state['queries_features.weight'],
        'norm': norm(state, 'decoder.layernorm'),
        'mask': {
            f'Dense_{i}': dense(state, f'decoder.mask_predictor.mask_embedder.{i}.0')
            for i in range(3)
        },
    }
    for i in numbered(state, 'decoder.layers.'):
        layer = f'decoder.layers.{i}'
        params[f'layer{i}'] = {
            'cross': attention(
                state,
                f'{layer}.cross_attn.in_proj',
                f'{layer}.cross_attn.out_proj',
                num_heads=num_heads,
            ),
            'self': split_attention(state, f'{layer}.self_attn', num_heads),
            'norm1': norm(state, f'{layer}.cross_attn_layer_norm'),
            'norm2': norm(state, f'{layer}.self_attn_layer_norm'),
            'norm3': norm(state, f'{layer}.final_layer_norm'),
            'mlp': mlp(state, layer),
        }
    return params
