"""ResNet weights of timm and torchvision, which name them alike."""

import re

import numpy as np
from flax import traverse_util

KEY = re.compile(r'(?:layer(\d)\.(\d+)\.)?(?:(conv|bn)(\d)|downsample\.([01]))\.(\w+)')
NORM = {
    'weight': ('params', 'scale'), 'bias': ('params', 'bias'),
    'running_mean': ('batch_stats', 'mean'), 'running_var': ('batch_stats', 'var'),
}


def from_timm(state_dict) -> dict:
    """Variables {'params', 'batch_stats'} of `backbones.resnet.ResNet` from a PyTorch state dict.

    `state_dict` maps names to tensors or arrays, such as that of timm's resnet50; its classifier is
    left out. Raises ValueError on a name that a plain ResNet does not have (a ResNet-D, say).
    """
    variables = {}
    for key, value in state_dict.items():
        if key.startswith('fc.') or key.endswith('.num_batches_tracked'):
            continue
        match = KEY.fullmatch(key)
        if match is None:
            raise ValueError(f'{key!r} is no weight of a plain ResNet of timm or torchvision.')
        stage, block, kind, number, shortcut, leaf = match.groups()
        layer = 'stem'
        if stage:
            layer = f'stage{stage}_block{int(block) + 1}_'
            layer += 'shortcut' if shortcut else f'conv{number}'
        value = np.asarray(value)
        if kind == 'conv' or shortcut == '0':
            value = value.transpose(2, 3, 1, 0)  # [h, w, C, D]
            variables['params', layer, 'conv', 'kernel'] = value
        else:
            collection, name = NORM[leaf]
            variables[collection, layer, 'norm', name] = value  # [D]
    return traverse_util.unflatten_dict(variables)
