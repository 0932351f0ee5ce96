"""Public weights for the first step of a run: `config.model.pretrained` names a Mask2Former folder of Hugging Face, or a file of

- the original JAX vision transformers (`.npz`),
- timm, torchvision or mmseg ViTs and ResNets, timm's or Hugging Face's Swins (`.safetensors`, or `.pth` where PyTorch is
  installed): the backbone, or
- the paper's released Segmenter (`.pth`): the whole model.

From Python, `load_hf(folder)` gives a Mask2Former of Hugging Face.
"""

import re
from pathlib import Path

import numpy as np
from absl import logging
from flax import traverse_util

from rankseg_jax.backbones.vit import resize_bicubic
from rankseg_jax.checkpoint import check_same
from rankseg_jax.pretrained import hf, released, resnet, swin, vit
from rankseg_jax.pretrained.hf import load_hf  # noqa: F401

# Parameters with one row a category or rank: of another number of them, they start afresh.
HEAD = re.compile(r'/decoder/(head|rank)/')  # what RankSeg adds to a baseline
CLASS_LAYER = re.compile(r'/(class_embedding|classify/(kernel|bias)|classes/(embedding|bias|norm/\w+)|rank/temperature/.+)$')


def read(path) -> dict[str, np.ndarray]:
    """The arrays of a `.npz`, `.safetensors`, `.pth` or `.pt` file, or of Hugging Face's folder, by name.

    Raises:
      FileNotFoundError: there is no such file.
      ImportError: a `.pth` file, and PyTorch is not installed.
      ValueError: another kind of file, or it holds no arrays.
    """
    path = Path(path)
    if (path / 'config.json').is_file():
        return hf.read_folder(path)
    if not path.is_file():
        raise FileNotFoundError(f'config.model.pretrained = {path} is no file')
    if path.suffix == '.npz':
        with np.load(path) as file:
            return {key.removeprefix('opt/target/'): value for key, value in file.items()}
    if path.suffix == '.safetensors':
        from safetensors.numpy import load_file
        return load_file(path)
    if path.suffix not in ('.pth', '.pt'):
        raise ValueError(f'config.model.pretrained = {path} must be a .npz, .safetensors, .pth or .pt file')
    try:
        import torch
    except ImportError as error:
        raise ImportError(f'{path} needs PyTorch to be read: pip install torch, or convert it to .safetensors') from error
    state = torch.load(path, map_location='cpu', weights_only=True)
    while isinstance(state, dict) and not any(isinstance(value, torch.Tensor) for value in state.values()):
        inner = [state[key] for key in ('state_dict', 'model', 'model_ema') if key in state]
        if not inner:
            raise ValueError(f'{path} holds no state dict; its keys are {sorted(map(str, state))[:5]}')
        state = inner[0]
    return {key: value.float().numpy() for key, value in state.items() if isinstance(value, torch.Tensor)}


def convert(arrays) -> dict:
    """Variables {'params'[, 'batch_stats']}, of a 'backbone' or of a whole model, from arrays under somebody's names.

    Raises:
      ValueError: the names are none of those this module knows.
    """
    if 'Transformer/posembed_input/pos_embedding' in arrays:
        return {'params': {'backbone': vit.from_augreg(arrays)}}
    if 'decode_head.proj_patch' in arrays:
        return {'params': released.segmenter(arrays)}
    if 'class_predictor.weight' in arrays:
        return {'params': hf.parameters(arrays)}
    if any(key in arrays for key in ('cls_token', 'class_token')):
        return {'params': {'backbone': vit.from_torch(arrays)}}
    if any(key.endswith('relative_position_bias_table') for key in arrays):
        return {'params': {'backbone': swin.from_torch(arrays)}}
    if 'layer1.0.conv1.weight' in arrays:
        return {collection: {'backbone': tree} for collection, tree in resnet.from_timm(arrays).items()}
    raise ValueError(f'config.model.pretrained: the names are not those of a ViT, a Swin, a ResNet, a Mask2Former or a '
                     f'released Segmenter, but {sorted(arrays)[:5]} …')


def load(path, variables) -> dict:
    """A model's variables with those of a file in their place.

    Position codes are resampled to the model's grid. Class layers of another number of categories keep their fresh values, as do
    the parts of a model that a backbone's file has nothing for, and RankSeg's parts where a file has none; the first are logged.

    Raises:
      ValueError: any other difference in names or shapes; both sides are listed.
    """
    found = traverse_util.flatten_dict(convert(read(path)), sep='/')
    model = traverse_util.flatten_dict({key: variables[key] for key in ('params', 'batch_stats')}, sep='/')
    parts = {key.split('/')[1] for key in found}
    expected = {key: value for key, value in model.items() if key.split('/')[1] in parts}
    if not any(HEAD.search(key) for key in found):
        expected = {key: value for key, value in expected.items() if not HEAD.search(key)}
    for key, value in expected.items():
        if key in found and found[key].shape != value.shape:
            if key.endswith('backbone/position'):
                found[key] = np.asarray(resize_bicubic(found[key], value.shape[:2]))
            elif CLASS_LAYER.search(key) and found[key].shape[1:] == value.shape[1:]:
                logging.warning('%s: %s starts afresh, it has %d rows and the model %d', path, key, len(found[key]), len(value))
                found[key] = value
    check_same(found, expected, f'config.model.pretrained = {path}', 'Choose the model that the weights are of.')
    loaded = {'batch_stats': {}} | traverse_util.unflatten_dict(model | found, sep='/')
    return loaded | ({'ema': loaded['params']} if 'ema' in variables else {})
