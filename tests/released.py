"""Names and layouts of the paper's released code that only comparisons with it need."""

import jax
import jax.numpy as jnp

from rankseg_jax.pretrained import released, torch_layers
from rankseg_jax.pretrained.torch_layers import dense, norm
from rankseg_jax.pretrained.upernet import uper_head


def full_logits(rank_logits, selection, num_classes: int, fill: float = -100.0):
    """[B, …, κ] -> [B, …, K], with `fill` for categories that were not selected."""

    def scatter(logits, labels):
        empty = jnp.full((*logits.shape[:-1], num_classes), fill, logits.dtype)
        return empty.at[..., labels].set(logits)

    return jax.vmap(scatter)(rank_logits, selection.labels)


def encoder_head(state, prefix: str, num_heads: int) -> dict:
    """Parameters of `multilabel.EncoderHead`."""
    separable = f'{prefix}proj_dec.depthwise_conv.conv'
    params = {
        'project': {
            'depthwise_kernel': state[f'{separable}.weight'].reshape(-1),
            'depthwise_bias': state[f'{separable}.bias'],
            'pointwise': dense(state, f'{prefix}proj_dec.pointwise_conv.conv'),
        }
        if f'{separable}.weight' in state
        else dense(state, f'{prefix}proj_dec'),
        'block': torch_layers.block(state, f'{prefix}block', num_heads),
        'norm': norm(state, f'{prefix}norm'),
        'classify': released.class_wise_linear(state, f'{prefix}fc'),
    }
    return params | (
        {'class_embedding': state[f'{prefix}cls_emb'][0]} if f'{prefix}cls_emb' in state else {}
    )


def deeplabv3_decoder(state, num_heads: int) -> tuple[dict, dict, dict]:
    """DeepLabV3's decoder.

    Returns:
      Parameters and statistics of `decoders.aspp.ASPP`, and parameters of the `PixelClassifier`
      behind it.
    """
    names = {'pool': 'image_pool.1', 'fuse0': 'bottleneck'}
    branches = {key.split('.')[1] for key in state if key.startswith('aspp_modules.')}
    names |= {f'branch{i}': f'aspp_modules.{i}' for i in branches}
    layers = {
        name: torch_layers.conv_norm(state, f'{theirs}.conv', f'{theirs}.bn')
        for name, theirs in names.items()
    }
    classifier = {
        'classes': {'embedding': state['cls_emb'][0], 'bias': state['cls_bias_emb'][0]},
        'head': encoder_head(state, 'img_cls_head.', num_heads),
        'rank': {'temperature': {'norm': norm(state, 'norm')}},
    }
    return (
        {name: layer[0] for name, layer in layers.items()},
        {name: layer[1] for name, layer in layers.items()},
        classifier,
    )


def upernet(state, num_heads: int) -> dict:
    """Variables of `frameworks.upernet.UPerNet`, without its backbone and its auxiliary head."""
    params, statistics = uper_head(state, 'bn')
    classifier = {
        'classes': {'embedding': state['cls_emb'][0], 'bias': state['cls_bias_emb'][0]},
        'head': encoder_head(state, 'img_cls_head.', num_heads),
        'rank': {'temperature': {'norm': norm(state, 'norm')}},
    }
    return {
        'params': {'decoder': params, 'classifier': classifier},
        'batch_stats': {'decoder': statistics},
    }


def query_decoder(state, num_heads: int) -> dict:
    """Parameters of `decoders.query_decoder.QueryDecoder`, for images and clips alike."""
    params = {
        'level_embedding': state['level_embed.weight'],
        'query_position': state['query_embed.weight'],
        'queries': state['query_feat.weight'],
        'norm': norm(state, 'decoder_norm'),
        'mask': {f'Dense_{i}': dense(state, f'mask_embed.layers.{i}') for i in range(3)},
        'classes': {'embedding': state['class_embed.weight']},
    }
    if 'class_embed.bias' in state:
        params['classes']['bias'] = state['class_embed.bias']
    for i in torch_layers.numbered(state, 'transformer_ffn_layers.'):
        kinds = ('cross_attention', 'self_attention', 'ffn')
        cross, own, ffn = (f'transformer_{kind}_layers.{i}' for kind in kinds)
        cross_attention, self_attention = f'{cross}.multihead_attn', f'{own}.self_attn'
        params[f'layer{i}'] = {
            'cross': torch_layers.attention(
                state, f'{cross_attention}.in_proj', f'{cross_attention}.out_proj', num_heads
            ),
            'self': torch_layers.attention(
                state, f'{self_attention}.in_proj', f'{self_attention}.out_proj', num_heads
            ),
            'norm1': norm(state, f'{cross}.norm'),
            'norm2': norm(state, f'{own}.norm'),
            'norm3': norm(state, f'{ffn}.norm'),
            'mlp': {
                'Dense_0': dense(state, f'{ffn}.linear1'),
                'Dense_1': dense(state, f'{ffn}.linear2'),
            },
        }
    return params
