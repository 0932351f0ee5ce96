"""ResNet weights under the names of timm and torchvision, of Hugging Face, and of mmcv's v1c."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import traverse_util

KEY = re.compile(r'(?:layer(\d)\.(\d+)\.)?(?:(conv|bn)(\d)|downsample\.([01]))\.\w+')
NORM = {
    'weight': ('params', 'scale'),
    'bias': ('params', 'bias'),
    'running_mean': ('batch_stats', 'mean'),
    'running_var': ('batch_stats', 'var'),
}

# Hugging Face's names, as patterns, to timm's, which count from 1.
TO_TIMM = [
    (r'^embedder\.embedder\.convolution\.', 'conv1.'),
    (r'^embedder\.embedder\.normalization\.', 'bn1.'),
    (r'\.shortcut\.convolution\.', '.downsample.0.'),
    (r'\.shortcut\.normalization\.', '.downsample.1.'),
    (r'^encoder\.stages\.(\d)\.layers\.', lambda m: f'layer{int(m[1]) + 1}.'),
    (r'\.layer\.(\d)\.convolution\.', lambda m: f'.conv{int(m[1]) + 1}.'),
    (r'\.layer\.(\d)\.normalization\.', lambda m: f'.bn{int(m[1]) + 1}.'),
]
# Deep stems: timm's and mmcv's names to ours.
DEEP_STEM = {
    'conv1.0': 'stem1.conv',
    'conv1.1': 'stem1.norm',
    'conv1.3': 'stem2.conv',
    'conv1.4': 'stem2.norm',
    'conv1.6': 'stem3.conv',
    'bn1': 'stem3.norm',
    'stem.0': 'stem1.conv',
    'stem.1': 'stem1.norm',
    'stem.3': 'stem2.conv',
    'stem.4': 'stem2.norm',
    'stem.6': 'stem3.conv',
    'stem.7': 'stem3.norm',
}


def from_timm(state_dict: Mapping[str, Any]) -> dict:
    """Variables {'params', 'batch_stats'} of `backbones.resnet.ResNet` from a PyTorch state dict.

    Args:
      state_dict: tensors or arrays by name, such as those of timm's resnet50; the classifier is
        dropped.

    Raises:
      ValueError: a name that a plain ResNet does not have, such as one of a ResNet-D.
    """
    for pattern, replacement in TO_TIMM:
        state_dict = {re.sub(pattern, replacement, key): value for key, value in state_dict.items()}
    variables = {}
    deep = any(key.startswith(('conv1.0.', 'stem.0.')) for key in state_dict)
    for key, value in state_dict.items():
        if key.startswith('fc.') or key.endswith('.num_batches_tracked'):
            continue
        name, leaf = key.rsplit('.', 1)
        match = KEY.fullmatch(key)
        if deep and name in DEEP_STEM:
            layer, kind = DEEP_STEM[name].split('.')
        elif match:
            stage, block, kind, number, shortcut = match.groups()
            kind = 'conv' if kind == 'conv' or shortcut == '0' else 'norm'
            layer = 'stem'
            if stage:
                layer = f'stage{stage}_block{int(block) + 1}_' + (
                    'shortcut' if shortcut else f'conv{number}'
                )
        else:
            raise ValueError(
                f'{key!r} is not a weight of a ResNet (plain or v1c) of timm, torchvision, '
                'Hugging Face or mmcv'
            )
        value = np.asarray(value)
        if kind == 'conv':
            kernel = value.transpose(2, 3, 1, 0)  # [height, width, in, out]
            variables['params', layer, 'conv', 'kernel'] = kernel
        else:
            collection, ours = NORM[leaf]
            variables[collection, layer, 'norm', ours] = value  # [D]
    return traverse_util.unflatten_dict(variables)
