"""Models in Hugging Face's format: the inverse of `hf`, for Mask2Former and EoMT without RankSeg.

Which array goes where, and how it is laid out, only the readers know: they are given arrays of
places in a file, and what they make of these tells where each of our parameters belongs. Here are
the names and shapes of Hugging Face's arrays.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, cast

import jax
import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict

from rankseg_jax import checkpoint
from rankseg_jax.backbones.resnet import ResNet
from rankseg_jax.backbones.swin import Swin
from rankseg_jax.frameworks.eomt import EoMT, num_upscales
from rankseg_jax.frameworks.mask2former import Mask2Former
from rankseg_jax.pretrained import eomt, hf, mask2former

Arrays = dict[str, np.ndarray]

# Fields of modules by which predictions do not differ.
OTHER_FIELDS = (
    'parent', 'name', 'dtype', 'drop_path', 'remat', 'frozen_norm', 'anneal_start', 'anneal_end',
)  # fmt: skip


def describe(model: nn.Module, class_names: Sequence[str], loss: ConfigDict) -> dict[str, Any]:
    """The content of config.json that describes a model.

    Args:
      model: a Mask2Former or an EoMT.
      class_names: K names in label order.
      loss: the keys of `config.loss`, with which Hugging Face would train on.

    Raises:
      ValueError: Hugging Face has no such model; the message says what it lacks.
    """
    if isinstance(model, Mask2Former):
        config = mask2former_config(model)
    elif isinstance(model, EoMT):
        config = eomt_config(model)
    else:
        raise ValueError(f'{type(model).__name__} is not written in its format')
    config |= {
        'dtype': 'float32',
        'id2label': {str(i): name for i, name in enumerate(class_names)},
        'label2id': {name: i for i, name in enumerate(class_names)},
        'no_object_weight': loss.no_object,
        'class_weight': loss.class_weight,
        'mask_weight': loss.mask_weight,
        'dice_weight': loss.dice_weight,
        'train_num_points': loss.num_points,
    }
    check_equal(model, hf.build(config, initial(config)))
    return config


def check_equal(ours: nn.Module, theirs: nn.Module, place: str = 'model') -> None:
    """Raises a ValueError that names the first field in which two modules predict differently."""
    if type(ours) is not type(theirs):
        raise ValueError(f'{place} is a {type(ours).__name__}, there a {type(theirs).__name__}')
    for field in dataclasses.fields(cast(Any, ours)):
        if field.name in OTHER_FIELDS:
            continue
        here, there = getattr(ours, field.name), getattr(theirs, field.name)
        if isinstance(here, nn.Module):
            check_equal(here, there, f'{place}.{field.name}')
        elif here != there:
            raise ValueError(f'{place}.{field.name} is {here!r}, there {there!r}')


def mask2former_config(model: Mask2Former) -> dict[str, Any]:
    decoder, maps = model.decoder, model.pixel_decoder
    return mask2former.FIXED | {
        'model_type': 'mask2former',
        'architectures': ['Mask2FormerForUniversalSegmentation'],
        'backbone_config': backbone_config(model.backbone),
        'hidden_dim': decoder.channels,
        'feature_size': maps.channels,
        'mask_feature_size': maps.channels,
        'num_attention_heads': decoder.num_heads,
        'encoder_layers': maps.num_layers,
        'encoder_feedforward_dim': maps.mlp_dim,
        'decoder_layers': decoder.num_layers + 1,  # they count the prediction before the first
        'dim_feedforward': decoder.mlp_dim,
        'num_queries': decoder.num_queries,
    }


def backbone_config(backbone: nn.Module) -> dict[str, Any]:
    """`backbone_config` of a Swin or a ResNet."""
    if isinstance(backbone, Swin):
        return {
            **hf.SWIN,
            **hf.STAGES,
            'model_type': 'swin',
            'image_size': 224,
            'embed_dim': backbone.width,
            'depths': list(backbone.depths),
            'num_heads': list(backbone.num_heads),
            'window_size': backbone.window,
            'use_absolute_embeddings': False,
            'drop_path_rate': backbone.drop_path,
        }
    if isinstance(backbone, ResNet):
        expansion = 4 if backbone.bottleneck else 1
        return {
            **hf.RESNET,
            **hf.STAGES,
            'model_type': 'resnet',
            'embedding_size': backbone.width,
            'hidden_sizes': [backbone.width * 2**i * expansion for i in range(4)],
            'depths': list(backbone.stage_sizes),
            'layer_type': 'bottleneck' if backbone.bottleneck else 'basic',
        }
    raise ValueError(f'its Mask2Former is not built on a {type(backbone).__name__}')


def eomt_config(model: EoMT) -> dict[str, Any]:
    backbone = model.backbone
    rotary, width, side = backbone.codes == 'rotary', backbone.width, backbone.image_size[0]
    mlp_dim = backbone.mlp_dim or 4 * width
    if side % backbone.patch:
        raise ValueError(f'its images have whole patches; {side} pixels have none')
    config = {
        'model_type': 'eomt',
        'architectures': ['EomtForUniversalSegmentation'],
        'hidden_size': width,
        'num_hidden_layers': backbone.num_layers,
        'num_attention_heads': backbone.num_heads,
        'hidden_act': 'gelu',
        'layer_norm_eps': backbone.epsilon,
        'image_size': side,
        'patch_size': backbone.patch,
        'layerscale_value': backbone.layer_scale,
        'num_register_tokens': backbone.num_registers,
        'num_upscale_blocks': num_upscales(backbone.patch),
        'num_blocks': model.num_joint,
        'num_queries': model.num_queries,
    }
    if not rotary:
        ratio = 4 if backbone.gated else mlp_dim // width
        return config | {'use_swiglu_ffn': backbone.gated, 'mlp_ratio': ratio}
    biased = {f'{part}_bias': part not in backbone.unbiased for part in ('query', 'key', 'value')}
    return {
        **config,
        **biased,
        'model_type': 'eomt_dinov3',
        'architectures': ['EomtDinov3ForUniversalSegmentation'],
        'hidden_act': 'silu' if backbone.gated else 'gelu',
        'rope_parameters': eomt.FIXED['rope_parameters'],
        'intermediate_size': mlp_dim,
        'use_gated_mlp': backbone.gated,
        'pos_embed_rescale': backbone.rescale,
    }


def state(config: Mapping[str, Any], variables: dict) -> Arrays:
    """The arrays of model.safetensors for variables of ours, the inverse of `hf.variables`.

    Args:
      config: as `describe` returns it.
      variables: {'params', 'batch_stats'} of that model, on the host.

    Returns:
      Arrays by Hugging Face's names. Those that our model has no use for keep their initial values.

    Raises:
      ValueError: the variables are those of another model; both sides are listed.
    """
    arrays = initial(config)
    ends = np.cumsum([x.size for x in arrays.values()])
    kind = np.int32 if ends[-1] < 2**31 else np.int64
    places = {
        name: np.arange(end - x.size, end, dtype=kind).reshape(x.shape)
        for (name, x), end in zip(arrays.items(), ends, strict=True)
    }
    found = {'batch_stats': {}} | hf.variables(config, places)  # our variables, made of places
    checkpoint.check_same(
        variables, found, where='the run', advice='Its config describes another model.'
    )
    values = np.concatenate([x.ravel() for x in arrays.values()], dtype=np.float32)
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(variables), strict=True)
    for leaf, value in pairs:
        values[leaf] = value
    return {
        name: values[end - x.size : end].reshape(x.shape).astype(x.dtype)
        for (name, x), end in zip(arrays.items(), ends, strict=True)
    }


def initial(config: Mapping[str, Any]) -> Arrays:
    """Hugging Face's arrays for a config.json by name: zeros, but ones where norms multiply."""
    num_classes = len(config['id2label'])
    arrays = eomt_arrays if hf.framework(config) is eomt else mask2former_arrays
    weight = np.ones(num_classes + 1, np.float32)
    weight[-1] = config['no_object_weight']
    return {'criterion.empty_weight': weight} | arrays(config, num_classes + 1)


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


def linear(name: str, inputs: int, outputs: int, *, bias: bool = True) -> Arrays:
    return conv(name, inputs, outputs, sides=(), bias=bias)


def conv(
    name: str, inputs: int, outputs: int, sides: tuple[int, ...], *, bias: bool = True
) -> Arrays:
    """A convolution; without sides, a linear layer."""
    weight = {f'{name}.weight': zeros(outputs, inputs, *sides)}
    return weight | ({f'{name}.bias': zeros(outputs)} if bias else {})


def norm(name: str, width: int) -> Arrays:
    return {f'{name}.weight': zeros(width) + 1, f'{name}.bias': zeros(width)}


def mask2former_arrays(config: Mapping[str, Any], num_logits: int) -> Arrays:
    dim, heads = config['hidden_dim'], config['num_attention_heads']
    nested, encoder = config['backbone_config'], mask2former.ENCODER
    if nested['model_type'] == 'swin':
        backbone, widths = swin_arrays(nested), [nested['embed_dim'] * 2**i for i in range(4)]
    else:
        backbone, widths = resnet_arrays(nested), nested['hidden_sizes']
    found = {f'{encoder}{name}': x for name, x in backbone.items()}

    maps = 'model.pixel_level_module.decoder'
    found[f'{maps}.level_embed'] = zeros(3, dim)
    for i in range(3):  # from the coarsest
        found |= conv(f'{maps}.input_projections.{i}.0', widths[3 - i], dim, sides=(1, 1))
        found |= norm(f'{maps}.input_projections.{i}.1', dim)
    for i in range(config['encoder_layers']):
        layer = f'{maps}.encoder.layers.{i}'
        points = heads * 3 * 4  # of each query, on three maps
        found |= linear(f'{layer}.self_attn.sampling_offsets', dim, 2 * points)
        found |= linear(f'{layer}.self_attn.attention_weights', dim, points)
        found |= linear(f'{layer}.self_attn.value_proj', dim, dim)
        found |= linear(f'{layer}.self_attn.output_proj', dim, dim)
        found |= norm(f'{layer}.self_attn_layer_norm', dim)
        found |= mlp(layer, dim, config['encoder_feedforward_dim'])
        found |= norm(f'{layer}.final_layer_norm', dim)
    found |= conv(f'{maps}.mask_projection', dim, dim, sides=(1, 1))
    found |= conv(f'{maps}.adapter_1.0', widths[0], dim, sides=(1, 1), bias=False)
    found |= norm(f'{maps}.adapter_1.1', dim)
    found |= conv(f'{maps}.layer_1.0', dim, dim, sides=(3, 3), bias=False)
    found |= norm(f'{maps}.layer_1.1', dim)

    queries = 'model.transformer_module'
    found[f'{queries}.level_embed.weight'] = zeros(3, dim)
    for name in ('queries_embedder', 'queries_features'):
        found[f'{queries}.{name}.weight'] = zeros(config['num_queries'], dim)
    for i in range(config['decoder_layers'] - 1):
        layer = f'{queries}.decoder.layers.{i}'
        found[f'{layer}.cross_attn.in_proj_weight'] = zeros(3 * dim, dim)
        found[f'{layer}.cross_attn.in_proj_bias'] = zeros(3 * dim)
        found |= linear(f'{layer}.cross_attn.out_proj', dim, dim)
        for name in ('q', 'k', 'v', 'out'):
            found |= linear(f'{layer}.self_attn.{name}_proj', dim, dim)
        for name in ('cross_attn_layer_norm', 'self_attn_layer_norm', 'final_layer_norm'):
            found |= norm(f'{layer}.{name}', dim)
        found |= mlp(layer, dim, config['dim_feedforward'])
    found |= norm(f'{queries}.decoder.layernorm', dim)
    for i in range(3):
        found |= linear(f'{queries}.decoder.mask_predictor.mask_embedder.{i}.0', dim, dim)
    return found | linear(mask2former.CLASS_LAYER, dim, num_logits)


def mlp(name: str, width: int, inner: int) -> Arrays:
    return linear(f'{name}.fc1', width, inner) | linear(f'{name}.fc2', inner, width)


def swin_arrays(config: Mapping[str, Any]) -> Arrays:
    width, window = config['embed_dim'], config['window_size']
    found = conv('embeddings.patch_embeddings.projection', 3, width, sides=(4, 4))
    found |= norm('embeddings.norm', width)
    for i, (depth, heads) in enumerate(zip(config['depths'], config['num_heads'], strict=True)):
        dim = width * 2**i
        for j in range(depth):
            block = f'encoder.layers.{i}.blocks.{j}'
            table = f'{block}.attention.self.relative_position_bias_table'
            found[table] = zeros((2 * window - 1) ** 2, heads)
            for name in ('self.query', 'self.key', 'self.value', 'output.dense'):
                found |= linear(f'{block}.attention.{name}', dim, dim)
            found |= linear(f'{block}.intermediate.dense', dim, 4 * dim)
            found |= linear(f'{block}.output.dense', 4 * dim, dim)
            found |= norm(f'{block}.layernorm_before', dim)
            found |= norm(f'{block}.layernorm_after', dim)
        if i < 3:
            found |= norm(f'encoder.layers.{i}.downsample.norm', 4 * dim)
            found |= linear(
                f'encoder.layers.{i}.downsample.reduction', 4 * dim, 2 * dim, bias=False
            )
        found |= norm(f'hidden_states_norms.stage{i + 1}', dim)
    return found | norm('swin.layernorm', 8 * width)  # which no feature map passes


def resnet_arrays(config: Mapping[str, Any]) -> Arrays:
    def layer(name, inputs, outputs, side):
        kernel = conv(f'{name}.convolution', inputs, outputs, sides=(side, side), bias=False)
        statistics = {
            f'{name}.normalization.running_mean': zeros(outputs),
            f'{name}.normalization.running_var': zeros(outputs) + 1,
            f'{name}.normalization.num_batches_tracked': np.array(0),
        }
        return kernel | norm(f'{name}.normalization', outputs) | statistics

    before = config['embedding_size']
    found = layer('embedder.embedder', 3, before, side=7)
    for i, (depth, width) in enumerate(zip(config['depths'], config['hidden_sizes'], strict=True)):
        for j in range(depth):
            block = f'encoder.stages.{i}.layers.{j}'
            if config['layer_type'] == 'bottleneck':
                sizes = [
                    (before, width // 4, 1),
                    (width // 4, width // 4, 3),
                    (width // 4, width, 1),
                ]
            else:
                sizes = [(before, width, 3), (width, width, 3)]
            for k, size in enumerate(sizes):
                found |= layer(f'{block}.layer.{k}', *size)
            if j == 0 and (i or before != width):
                found |= layer(f'{block}.shortcut', before, width, side=1)
            before = width
    return found


def eomt_arrays(config: Mapping[str, Any], num_logits: int) -> Arrays:
    width, patch = config['hidden_size'], config['patch_size']
    rotary = config['model_type'] == 'eomt_dinov3'
    patches = 'embeddings.patch_embeddings' + ('' if rotary else '.projection')
    kind = eomt.kind_of_backbone(config)
    gated, inner = cast(bool, kind['gated']), kind['mlp_dim'] or 4 * width
    found = conv(patches, 3, width, sides=(patch, patch)) | norm('layernorm', width)
    found['embeddings.cls_token'] = zeros(1, 1, width)
    found['embeddings.register_tokens'] = zeros(1, config['num_register_tokens'], width)
    if not rotary:
        cells = (config['image_size'] // patch) ** 2
        found['embeddings.position_embeddings.weight'] = zeros(cells, width)
    for i in range(config['num_hidden_layers']):
        block = f'layers.{i}'
        for part in ('query', 'key', 'value'):
            bias = part not in kind.get('unbiased', ())
            found |= linear(f'{block}.attention.{part[0]}_proj', width, width, bias=bias)
        out = 'o_proj' if rotary else 'out_proj'
        found |= linear(f'{block}.attention.{out}', width, width)
        names = ('gate_proj', 'up_proj', 'down_proj') if gated else ('up_proj', 'down_proj')
        if not (gated or rotary):
            names = ('fc1', 'fc2')
        for name in names[:-1]:
            found |= linear(f'{block}.mlp.{name}', width, inner)
        found |= linear(f'{block}.mlp.{names[-1]}', inner, width)
        for k in (1, 2):
            found |= norm(f'{block}.norm{k}', width)
            found[f'{block}.layer_scale{k}.lambda1'] = zeros(width)
    found['query.weight'] = zeros(config['num_queries'], width)
    found['attn_mask_probs'] = zeros(config['num_blocks'])
    for i in range(3):
        found |= linear(f'mask_head.fc{i + 1}', width, width)
    for i in range(config['num_upscale_blocks']):
        block = f'upscale_block.block.{i}'
        found |= conv(f'{block}.conv1', width, width, sides=(2, 2))
        found |= conv(f'{block}.conv2', 1, width, sides=(3, 3), bias=False)
        found |= norm(f'{block}.layernorm2d', width)
    return found | linear(eomt.CLASS_LAYER, width, num_logits)
