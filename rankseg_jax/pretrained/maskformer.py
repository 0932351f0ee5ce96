"""MaskFormer of Hugging Face `transformers`: its config and its names."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import linen as nn

from rankseg_jax.decoders.fpn import FeaturePyramid
from rankseg_jax.decoders.query_decoder import DetrDecoder
from rankseg_jax.frameworks.maskformer import MaskFormer
from rankseg_jax.pretrained.torch_layers import (
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
    'decoder_config': {'model_type': 'detr', 'activation_function': 'relu', 'auxiliary_loss': False}
}
# How weights are named: those of the backbone begin so, and the class layer is called so.
ENCODER = 'model.pixel_level_module.encoder.'
CLASS_LAYER = 'class_predictor'
# At which Hugging Face's post-processing turns masks into probabilities, their own.
MASK_SIZE = (-1, -1)


def widths(config: Mapping[str, Any]) -> dict:
    """The widths of maps and queries in a config, by key; they must be the same."""
    return {
        'fpn_feature_size': config['fpn_feature_size'],
        'mask_feature_size': config['mask_feature_size'],
        'decoder_config.d_model': config['decoder_config']['d_model'],
    }


def build(config: Mapping[str, Any], backbone: nn.Module, num_logits: int) -> MaskFormer:
    """The model that a config describes, with `num_logits` = K + 1 of no-object."""
    decoder = config['decoder_config']
    return MaskFormer(
        backbone=backbone,
        pixel_decoder=FeaturePyramid(config['fpn_feature_size']),
        decoder=DetrDecoder(
            num_classes=num_logits - 1,
            num_queries=decoder['num_queries'],
            channels=decoder['d_model'],
            num_layers=decoder['decoder_layers'],
            num_heads=decoder['decoder_attention_heads'],
            mlp_dim=decoder['decoder_ffn_dim'],
            dropout=decoder['dropout'],
        ),
    )


def variables(config: Mapping[str, Any], state: dict[str, np.ndarray]) -> dict:
    """Variables of a `MaskFormer` except for its backbone."""
    num_heads = config['decoder_config']['decoder_attention_heads']
    maps = feature_pyramid(part(state, 'model.pixel_level_module.decoder.'))
    decoder = detr_decoder(part(state, 'model.transformer_module.'), num_heads)
    decoder['mask'] = {f'Dense_{i}': dense(state, f'mask_embedder.{i}.0') for i in range(3)}
    decoder['classes'] = classes(state, CLASS_LAYER)
    return {'params': {'pixel_decoder': maps, 'decoder': decoder}}


def feature_pyramid(state: dict[str, np.ndarray]) -> dict:
    """Parameters of `decoders.fpn.FeaturePyramid`."""
    names = {'fuse32': 'stem.'}
    for i, stride in enumerate((16, 8, 4)):
        names |= {f'lateral{stride}': f'layers.{i}.proj.', f'fuse{stride}': f'layers.{i}.block.'}
    params = {'mask_features': conv(state, 'mask_projection')}
    for ours, theirs in names.items():
        params |= {
            f'{ours}_conv': conv(state, f'fpn.{theirs}0'),
            f'{ours}_norm': norm(state, f'fpn.{theirs}1'),
        }
    return params


def detr_decoder(state: dict[str, np.ndarray], num_heads: int) -> dict:
    """Parameters of `decoders.query_decoder.DetrDecoder`, without class layer and masks."""
    params = {
        'query_position': state['queries_embedder.weight'],
        'norm': norm(state, 'decoder.layernorm'),
    }
    if 'input_projection.weight' in state:  # absent if the map has the queries' width
        params['project'] = dense(state, 'input_projection')
    for i in numbered(state, 'decoder.layers.'):
        layer = f'decoder.layers.{i}'
        params[f'layer{i}'] = {
            'self': split_attention(state, f'{layer}.self_attn', num_heads),
            'cross': split_attention(state, f'{layer}.encoder_attn', num_heads),
            'norm1': norm(state, f'{layer}.self_attn_layer_norm'),
            'norm2': norm(state, f'{layer}.encoder_attn_layer_norm'),
            'norm3': norm(state, f'{layer}.final_layer_norm'),
            'mlp': mlp(state, layer),
        }
    return params
