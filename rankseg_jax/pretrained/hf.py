"""Checkpoints of Hugging Face `transformers`, from a folder or the hub."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import numpy as np
from flax import linen as nn

from rankseg_jax.backbones.beit import BEiT
from rankseg_jax.backbones.resnet import ResNet
from rankseg_jax.backbones.swin import Swin
from rankseg_jax.pretrained import (
    beit,
    eomt,
    files,
    mask2former,
    maskformer,
    resnet,
    swin,
    upernet,
    vit,
)
from rankseg_jax.pretrained.torch_layers import part

# By `model_type`; 'beit' is a BeitForSemanticSegmentation.
FRAMEWORKS = {
    'mask2former': mask2former,
    'maskformer': maskformer,
    'upernet': upernet,
    'beit': beit,
    'eomt': eomt,
    'eomt_dinov3': eomt,
    'videomt': eomt,
}
FLAT = ('beit', 'eomt', 'eomt_dinov3', 'videomt')  # whose config is that of the backbone, too
BACKBONES = ('dinov2', 'dinov2_with_registers', 'dinov3_vit')  # `model_type`s of their own
FILES = [
    'config.json',
    'preprocessor_config.json',
    'video_preprocessor_config.json',
    '*.safetensors',
    '*.safetensors.index.json',
    'rankseg_jax.json',  # of `hub`
]
STAGES = {'out_features': ['stage1', 'stage2', 'stage3', 'stage4']}
# Keys of a backbone's config with the only values that are supported.
SWIN = {
    'patch_size': 4,
    'mlp_ratio': 4.0,
    'qkv_bias': True,
    'hidden_act': 'gelu',
    'layer_norm_eps': 1e-5,
}
RESNET = {
    'hidden_act': 'relu',
    'downsample_in_first_stage': False,
    'downsample_in_bottleneck': False,
}
BEIT = {
    'patch_size': 16,
    'num_channels': 3,
    'hidden_act': 'gelu',
    'use_absolute_position_embeddings': False,
    'reshape_hidden_states': True,
}


def locate(source: str | Path) -> Path:
    """A path, whose ~ is the home folder, or the folder that a name on the hub is downloaded to.

    Args:
      source: a path, or a name such as facebook/mask2former-swin-tiny-ade-semantic.

    Raises:
      ImportError: a name, but huggingface_hub is not installed.
      OSError: the path does not exist, and the hub lacks the name or cannot be reached.
    """
    path = Path(os.path.expanduser(source))
    name = str(source)
    if (
        path.exists()
        or not re.fullmatch(r'\w[\w.-]*/\w[\w.-]*', name)
        or path.suffix in ('.npz', '.safetensors', '.pth', '.pt', '.bin')
    ):
        return path
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ImportError(
            f'{name} is not a file or folder; to download it from the Hugging Face hub: '
            'pip install huggingface_hub'
        ) from error
    try:
        return Path(snapshot_download(name, allow_patterns=FILES))
    except (OSError, ValueError) as error:
        raise OSError(
            f'{name} is not a file or folder, and it cannot be downloaded from the Hugging Face '
            'hub. Check the name and the connection, or download the folder elsewhere and give its '
            f'path. The reason: {error}'
        ) from error


def load_hf(source: str | Path) -> tuple[nn.Module, dict]:
    """A model from a folder that `save_pretrained` wrote or from the hub, and its variables.

    `model.apply(variables, images, train=False)` takes images [B, H, W, 3], normalized as its
    preprocessor says, and returns a QueryOutput or PixelOutput over the K categories, in the
    checkpoint's order.

    Args:
      source: see `locate`.

    Returns:
      The model, and its variables {'params'[, 'batch_stats']}.

    Raises:
      FileNotFoundError: the folder lacks `config.json` or the weights.
      ImportError, OSError: as `locate`.
      ValueError: the config describes another kind of model; the difference is named.
    """
    config, state = read_folder(locate(source))
    return build(config, state), variables(config, state)


class Keys(dict):
    """A JSON object of Hugging Face that raises a ValueError for a missing key."""

    def __missing__(self, key: str) -> NoReturn:
        raise ValueError(f'{key} is missing in config.json or preprocessor_config.json')


def read_json(path: Path) -> Keys:
    """Reads a JSON object; ValueError if it is none."""
    try:
        content = json.loads(path.read_text('utf-8'), object_hook=Keys)
    except ValueError as error:
        raise ValueError(f'{path} is not JSON: {error}') from error
    if not isinstance(content, Keys):
        raise ValueError(f'{path} holds no JSON object, but {type(content).__name__}')
    return content


def class_names(folder: Path) -> list[str]:
    """The categories 0 … K-1 that a folder's config.json names; empty if it does not name these."""
    path = folder / 'config.json'
    named = read_json(path).get('id2label') if path.is_file() else None
    if not isinstance(named, dict) or named.keys() != {str(i) for i in range(len(named))}:
        return []
    return [str(named[str(i)]) for i in range(len(named))]


def read_folder(folder: Path) -> tuple[Keys, dict[str, np.ndarray]]:
    """`config.json` and the arrays of `model.safetensors`.

    The arrays may also be in shards, which `model.safetensors.index.json` lists.

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: as `files.read`, or the weights are not those of a whole model or backbone.
    """
    if not (folder / 'config.json').is_file():
        raise FileNotFoundError(f'{folder} holds no config.json')
    state = read_weights(folder)
    config = read_json(folder / 'config.json')
    if config.get('model_type') in BACKBONES:
        return config, state
    theirs = framework(config)  # refuses other kinds of models before the weights are looked at
    if f'{theirs.CLASS_LAYER}.bias' not in state:
        raise ValueError(
            f'{folder}: the weights are not those of a whole model, but {sorted(state)[:5]} …'
        )
    return config, state


def read_weights(folder: Path) -> dict[str, np.ndarray]:
    """The arrays of `model.safetensors`, or of its shards; raises as `read_folder`."""
    name, index = 'model.safetensors', folder / 'model.safetensors.index.json'
    if not index.is_file():
        if not (folder / name).is_file():
            raise FileNotFoundError(f'{folder} holds no {name}')
        return files.read(folder / name)
    shards = read_json(index).get('weight_map')
    if not isinstance(shards, dict):
        raise ValueError(f'{index} names no files: it lacks weight_map, or that is no JSON object')
    state = {}
    for shard in sorted(set(shards.values())):
        state |= files.read(folder / shard)
    return state


def framework(config: Mapping[str, Any]) -> ModuleType:
    """The module of this package for the framework of a config.

    Raises:
      ValueError: the framework is not supported, or the config does not describe its backbone.
    """
    if config.get('model_type') not in FRAMEWORKS:
        raise ValueError(
            f'config.json: model_type = {config.get("model_type")!r} is not supported, '
            f'only {", ".join(FRAMEWORKS)}'
        )
    if config['model_type'] not in FLAT and not config.get('backbone_config'):
        raise ValueError(
            f'config.json: backbone = {config.get("backbone")!r} without a backbone_config is not '
            'supported'
        )
    return FRAMEWORKS[config['model_type']]


def build(config: Mapping[str, Any], state: Mapping[str, np.ndarray]) -> nn.Module:
    """The model that `config.json` describes, for weights `state`, whose class layer gives K."""
    theirs = framework(config)
    check_fixed(config, theirs.FIXED, 'config.json')
    length = len(state[f'{theirs.CLASS_LAYER}.bias'])
    if theirs is eomt:
        return eomt.build(config, length - 1)
    widths = theirs.widths(config)
    if len(set(widths.values())) > 1:
        raise ValueError(f'config.json: widths {widths} must be the same')
    if nested := config.get('backbone_config'):
        # A MaskFormer takes all stages, whatever its config says; a BEiT has blocks instead.
        if config['model_type'] != 'maskformer' and nested['model_type'] != 'beit':
            check_fixed(nested, STAGES, 'config.json: backbone_config')
        backbone = build_backbone(nested)
    else:
        backbone = build_beit(config, 'config.json', whole=True)
    return theirs.build(config, backbone, length)


def build_backbone(config: Mapping[str, Any]) -> Swin | BEiT | ResNet:
    """The backbone that `backbone_config` of `config.json` describes.

    Raises:
      ValueError: the kind of backbone is not supported; the difference is named.
    """
    where, kind = 'config.json: backbone_config', config['model_type']
    if kind in ('swin', 'maskformer-swin'):
        check_fixed(config, SWIN, where)
        size = config['image_size']
        rows, columns = size if isinstance(size, list) else (size, size)
        return Swin(
            width=config['embed_dim'],
            depths=tuple(config['depths']),
            num_heads=tuple(config['num_heads']),
            window=config['window_size'],
            position_shape=(rows // 4, columns // 4) if config['use_absolute_embeddings'] else None,
            drop_path=config['drop_path_rate'],
        )
    if kind == 'beit':
        return build_beit(config, where, whole=False)
    if kind != 'resnet':
        raise ValueError(
            f'{where}: model_type = {kind!r} is not supported, only swin, beit and resnet'
        )
    bottleneck, width = config['layer_type'] == 'bottleneck', config['embedding_size']
    sizes = [width * 2**i * (4 if bottleneck else 1) for i in range(4)]
    check_fixed(config, RESNET | {'hidden_sizes': sizes}, where)
    return ResNet(stage_sizes=tuple(config['depths']), bottleneck=bottleneck, width=width)


def build_beit(config: Mapping[str, Any], where: str, *, whole: bool) -> BEiT:
    """The backbone of a BeitForSemanticSegmentation if `whole`, or a BeitBackbone.

    They count blocks differently: `out_indices` are hidden states, of which number 0 is that before
    the first block, and the former takes those before the given ones.

    Raises:
      ValueError: the config at `where` describes another kind of BEiT.
    """
    width, indices = config['hidden_size'], config['out_indices']
    check_fixed(config, BEIT | {'intermediate_size': 4 * width}, where)
    if not whole:
        check_fixed(config, {'add_fpn': True}, where)
    size = config['image_size']
    return BEiT(
        width=width,
        num_layers=config['num_hidden_layers'],
        num_heads=config['num_attention_heads'],
        feature_blocks=tuple(index - whole for index in indices),
        image_size=tuple(size) if isinstance(size, list) else (size, size),
        epsilon=config['layer_norm_eps'],
        drop_path=config['drop_path_rate'],
    )


def check_fixed(config: Mapping[str, Any], fixed: Mapping[str, Any], where: str) -> None:
    """Refuses a config with other values than `fixed`, by key; missing keys are accepted.

    Raises:
      ValueError: it names the first difference and its place, `where`.
    """
    for key, value in fixed.items():
        if isinstance(value, dict):
            check_fixed(config.get(key) or {}, value, f'{where}: {key}')
        elif config.get(key, value) != value:
            raise ValueError(f'{where}: {key} = {config[key]!r} is not supported, only {value!r}')


def variables(config: Mapping[str, Any], state: dict[str, np.ndarray]) -> dict:
    """Variables {'params'[, 'batch_stats']} of the model that `build` gives, or of a backbone."""
    if config['model_type'] in BACKBONES:
        return {'params': {'backbone': vit.from_torch(state, config['num_attention_heads'])}}
    theirs = framework(config)
    if theirs is eomt:
        return eomt.variables(state, config['num_attention_heads'])
    encoder = part(state, theirs.ENCODER)
    kind = config.get('backbone_config', config)['model_type']
    if kind == 'resnet':
        backbone = resnet.from_timm(encoder)
    elif kind == 'beit':
        backbone = beit.from_torch(encoder)
    else:
        backbone = {'params': swin.from_torch(encoder)}
    found = {collection: {'backbone': tree} for collection, tree in backbone.items()}
    for collection, tree in theirs.variables(config, state).items():
        found[collection] = found.get(collection, {}) | tree
    return found
