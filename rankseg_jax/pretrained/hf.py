"""Mask2Former checkpoints of Hugging Face `transformers`: a folder of `config.json` and `.safetensors`, whole or in shards."""

import json
from pathlib import Path

import numpy as np

from rankseg_jax.backbones.swin import Swin
from rankseg_jax.decoders.pixel_decoder import STRIDES, PixelDecoder
from rankseg_jax.decoders.query_decoder import QueryDecoder
from rankseg_jax.frameworks.mask2former import Mask2Former
from rankseg_jax.pretrained import swin, torch_layers
from rankseg_jax.pretrained.torch_layers import conv, dense, norm

# What a config may say only this way, its values by key.
FIXED = {
    'model_type': 'mask2former', 'activation_function': 'relu', 'pre_norm': False, 'enforce_input_projection': False,
    'common_stride': 4, 'feature_strides': [4, 8, 16, 32], 'backbone_config': {
        'model_type': 'swin', 'patch_size': 4, 'mlp_ratio': 4.0, 'qkv_bias': True, 'hidden_act': 'gelu', 'layer_norm_eps': 1e-5,
        'out_features': ['stage1', 'stage2', 'stage3', 'stage4']}}


def load_hf(folder) -> tuple[Mask2Former, dict]:
    """The model of a folder that `save_pretrained` wrote, and its variables {'params'}.

    `model.apply(variables, images, train=False)` takes images [B, H, W, 3], normalised as its preprocessor says, and returns a
    QueryOutput over the K categories, in the checkpoint's order.

    Raises:
      FileNotFoundError: there is no `config.json` or no weights in the folder.
      ValueError: the config is of another kind of model; the difference is named.
    """
    folder = Path(folder)
    for name in ('config.json', 'model.safetensors'):
        if not (folder / name).is_file() and not (folder / f'{name}.index.json').is_file():
            raise FileNotFoundError(f'{folder} holds no {name}')
    config = json.loads((folder / 'config.json').read_text())
    state = read_folder(folder)
    return build(config, state), {'params': parameters(state)}


def read_folder(folder) -> dict[str, np.ndarray]:
    """The arrays of `model.safetensors`, or of the shards that `model.safetensors.index.json` lists."""
    from safetensors.numpy import load_file

    index = Path(folder) / 'model.safetensors.index.json'
    files = sorted(set(json.loads(index.read_text())['weight_map'].values())) if index.is_file() else ['model.safetensors']
    return {key: value for file in files for key, value in load_file(Path(folder) / file).items()}


def build(config, state) -> Mask2Former:
    """The model that `config.json` describes, for weights `state`, whose class layer tells K."""
    check_fixed(config, FIXED, 'config.json')
    widths = {key: config[key] for key in ('feature_size', 'mask_feature_size', 'hidden_dim')}
    if len(set(widths.values())) > 1:
        raise ValueError(f'config.json: widths {widths} must be the same')
    channels, num_heads, theirs = config['hidden_dim'], config['num_attention_heads'], config['backbone_config']
    size = theirs['image_size']
    rows, columns = size if isinstance(size, list) else (size, size)
    backbone = Swin(
        theirs['embed_dim'], tuple(theirs['depths']), tuple(theirs['num_heads']), theirs['window_size'],
        (rows // 4, columns // 4) if theirs['use_absolute_embeddings'] else None, theirs['drop_path_rate'])
    return Mask2Former(
        backbone,
        PixelDecoder(channels, config['encoder_layers'], num_heads, config['encoder_feedforward_dim']),
        QueryDecoder(len(state['class_predictor.bias']) - 1, config['num_queries'], channels, config['decoder_layers'] - 1,
                     num_heads, config['dim_feedforward']))


def check_fixed(config, fixed, where: str):
    for key, value in fixed.items():
        if isinstance(value, dict):
            check_fixed(config.get(key) or {}, value, f'{where}: {key}')
        elif config.get(key, value) != value:
            raise ValueError(f'{where}: {key} = {config[key]!r} is not supported, only {value!r}')


def parameters(state) -> dict:
    """Parameters of `frameworks.mask2former.Mask2Former` from Hugging Face's names."""
    offsets = state['model.pixel_level_module.decoder.encoder.layers.0.self_attn.sampling_offsets.bias']
    num_heads = len(offsets) // (len(STRIDES) * 4 * 2)  # of 4 points with 2 coordinates
    def part(prefix):
        return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}

    classes = {'embedding': state['class_predictor.weight'], 'bias': state['class_predictor.bias']}
    return {
        'backbone': swin.from_torch(part('model.pixel_level_module.encoder.')),
        'pixel_decoder': pixel_decoder(part('model.pixel_level_module.decoder.'), num_heads),
        'decoder': query_decoder(part('model.transformer_module.'), num_heads) | {'classes': classes},
    }


def numbered(state, prefix):
    """The numbers of the layers whose names start with `prefix`."""
    return sorted({int(key.removeprefix(prefix).split('.')[0]) for key in state if key.startswith(prefix)})


def mlp(state, name):
    return {'Dense_0': dense(state, f'{name}.fc1'), 'Dense_1': dense(state, f'{name}.fc2')}


def pixel_decoder(state, num_heads: int) -> dict:
    """Parameters of `decoders.pixel_decoder.PixelDecoder`."""
    names = {f'input{stride}': f'input_projections.{i}' for i, stride in enumerate(STRIDES)}
    names |= {'lateral4': 'adapter_1', 'fuse4': 'layer_1'}
    params = {'level_embedding': state['level_embed'], 'mask_features': conv(state, 'mask_projection')}
    for ours, theirs in names.items():
        params |= {f'{ours}_conv': conv(state, f'{theirs}.0'), f'{ours}_norm': norm(state, f'{theirs}.1')}
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
                'out': {'kernel': out['kernel'].reshape(num_heads, -1, len(out['bias'])), 'bias': out['bias']},
            },
            'norm1': norm(state, f'{layer}.self_attn_layer_norm'),
            'mlp': mlp(state, layer),
            'norm2': norm(state, f'{layer}.final_layer_norm'),
        }
    return params


def query_decoder(state, num_heads: int) -> dict:
    """Parameters of `decoders.query_decoder.QueryDecoder`, except for its class layer."""
    params = {
        'level_embedding': state['level_embed.weight'],
        'query_position': state['queries_embedder.weight'],
        'queries': state['queries_features.weight'],
        'norm': norm(state, 'decoder.layernorm'),
        'mask': {f'Dense_{i}': dense(state, f'decoder.mask_predictor.mask_embedder.{i}.0') for i in range(3)},
    }
    for i in numbered(state, 'decoder.layers.'):
        layer = f'decoder.layers.{i}'
        packed = {f'{layer}.self_attn.in_proj_{leaf}': np.concatenate(
            [state[f'{layer}.self_attn.{name}_proj.{leaf}'] for name in 'qkv']) for leaf in ('weight', 'bias')}
        params[f'layer{i}'] = {
            name: torch_layers.attention(
                state | packed, f'{layer}.{name}_attn.in_proj', f'{layer}.{name}_attn.out_proj', num_heads)
            for name in ('self', 'cross')
        } | {
            'norm1': norm(state, f'{layer}.cross_attn_layer_norm'),
            'norm2': norm(state, f'{layer}.self_attn_layer_norm'),
            'norm3': norm(state, f'{layer}.final_layer_norm'),
            'mlp': mlp(state, layer),
        }
    return params
