"""EfficientNet-Lite weights under the names of timm and of `efficientnet_lite_pytorch`."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from rankseg_jax.backbones.efficientnet_lite import STAGES
from rankseg_jax.pretrained.torch_layers import conv_norm

# The classifier and the convolution before it.
LEFT_OUT = re.compile(r'(conv_head|bn2|classifier|_conv_head|_bn1|_fc)\.|.*num_batches_tracked$')


def from_torch(state: Mapping[str, Any]) -> dict:
    """Variables {'params', 'batch_stats'} of `backbones.efficientnet_lite.EfficientNetLite`.

    Raises:
      ValueError: names are missing or unknown.
    """
    state = {key: np.asarray(x) for key, x in state.items() if not LEFT_OUT.match(key)}
    names = package_names() if '_conv_stem.weight' in state else timm_names()
    expected = {f'{conv}.weight' for conv, _ in names.values()} | {
        f'{norm}.{leaf}'
        for _, norm in names.values()
        for leaf in ('weight', 'bias', 'running_mean', 'running_var')
    }
    if expected != state.keys():
        raise ValueError(
            'these are not the weights of an EfficientNet-Lite0: unknown names '
            f'{sorted(state.keys() - expected)[:5]}, missing names '
            f'{sorted(expected - state.keys())[:5]}'
        )
    layers = {ours: conv_norm(state, *theirs) for ours, theirs in names.items()}
    return {
        'params': {name: layer[0] for name, layer in layers.items()},
        'batch_stats': {name: layer[1] for name, layer in layers.items()},
    }


def timm_names() -> dict[str, tuple[str, str]]:
    """{our layer: (convolution, norm) of timm}."""
    names = {'stem': ('conv_stem', 'bn1')}
    for i, stage in enumerate(STAGES):
        parts = {'expand': 'conv_pw', 'depthwise': 'conv_dw', 'project': 'conv_pwl'}
        if stage.expansion == 1:
            parts = {'depthwise': 'conv_dw', 'project': 'conv_pw'}
        for j in range(stage.depth):
            names |= {
                f'stage{i + 1}_block{j + 1}_{ours}': (
                    f'blocks.{i}.{j}.{theirs}',
                    f'blocks.{i}.{j}.bn{n}',
                )
                for n, (ours, theirs) in enumerate(parts.items(), start=1)
            }
    return names


def package_names() -> dict[str, tuple[str, str]]:
    """{our layer: (convolution, norm) of efficientnet_lite_pytorch}, which numbers all blocks."""
    names, number = {'stem': ('_conv_stem', '_bn0')}, 0
    norms = {'expand': '_bn0', 'depthwise': '_bn1', 'project': '_bn2'}
    for i, stage in enumerate(STAGES):
        for j in range(stage.depth):
            block = f'_blocks.{number}.'
            names |= {
                f'stage{i + 1}_block{j + 1}_{ours}': (f'{block}_{ours}_conv', f'{block}{norm}')
                for ours, norm in norms.items()
                if ours != 'expand' or stage.expansion > 1
            }
            number += 1
    return names
