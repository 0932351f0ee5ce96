"""UPerNet of Hugging Face `transformers`, and the decoder's names in mmseg: configs and names."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import linen as nn

from rankseg_jax.decoders.uper import UPerHead
from rankseg_jax.frameworks.upernet import UPerNet
from rankseg_jax.pretrained.torch_layers import classes, conv_norm, part

# Keys of a config with the only values that are supported.
FIXED = {
    'pool_scales': [1, 2, 3, 6],
    'auxiliary_channels': 256,
    'auxiliary_num_convs': 1,
    'auxiliary_concat_input': False,
}
# How weights are named: those of the backbone begin so, and the class layer is called so.
ENCODER = 'backbone.'
CLASS_LAYER = 'decode_head.classifier'
# Logits are resized to the network's input, and from there to the image.
MASK_SIZE = (0, 0)


def widths(config: Mapping[str, Any]) -> dict:
    """The widths in a config that must be the same: there is one."""
    return {'hidden_size': config['hidden_size']}


def build(config: Mapping[str, Any], backbone: nn.Module, num_logits: int) -> UPerNet:
    """The model that a config describes, with `num_logits` = K."""
    return UPerNet(
        num_classes=num_logits,
        backbone=backbone,
        channels=config['hidden_size'],
        auxiliary=config['use_auxiliary_head'],
    )


def variables(config: Mapping[str, Any], state: dict[str, np.ndarray]) -> dict:
    """Variables of a `UPerNet` except for its backbone."""
    return heads(state, 'batch_norm')


def heads(state: dict[str, np.ndarray], norm: str) -> dict:
    """Variables of a `UPerNet` except for its backbone.

    Args:
      norm: how batch norms are called.
    """
    decoder, statistics = uper_head(part(state, 'decode_head.'), norm)
    params = {'decoder': decoder, 'classifier': {'classes': classes(state, CLASS_LAYER)}}
    batch_stats = {'decoder': statistics}
    if 'auxiliary_head.classifier.bias' in state:
        layer = 'auxiliary_head.convs.0'
        params['auxiliary'], batch_stats['auxiliary'] = conv_norm(
            state, f'{layer}.conv', f'{layer}.{norm}'
        )
        params['classifier']['auxiliary_classes'] = classes(state, 'auxiliary_head.classifier')
    return {'params': params, 'batch_stats': batch_stats}


def uper_head(state: dict[str, np.ndarray], norm: str) -> tuple[dict, dict]:
    """Parameters and statistics of `decoders.uper.UPerHead` over strides 4 to 32.

    Args:
      norm: how batch norms are called.
    """
    names = {f'pool{n}': f'psp_modules.{i}.1' for i, n in enumerate(UPerHead.pool_sizes)}
    names |= {'pool_fuse': 'bottleneck', 'fuse': 'fpn_bottleneck'}
    for i, stride in enumerate((4, 8, 16)):
        names |= {f'lateral{stride}': f'lateral_convs.{i}', f'pyramid{stride}': f'fpn_convs.{i}'}
    layers = {
        ours: conv_norm(state, f'{theirs}.conv', f'{theirs}.{norm}')
        for ours, theirs in names.items()
    }
    return (
        {name: layer[0] for name, layer in layers.items()},
        {name: layer[1] for name, layer in layers.items()},
    )
