"""A run small enough for a test: 8 categories of 32-pixel scenes, steps that take milliseconds."""

from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from configs import common
from rankseg_jax.backbones import PYRAMID, resnet, swin, vit
from rankseg_jax.data import emoji_scenes

emoji_scenes.EXAMPLES.update(validation=40, test=40)


class Pyramid(nn.Module):
    """A convolution for each stride: compiles in a fraction of the time of a ResNet."""

    dtype: Any = jnp.float32
    strides = PYRAMID

    @nn.compact
    def __call__(self, images, *, train):
        features, x = {}, images
        for stride in self.strides:
            step = stride if stride == 4 else 2
            x = nn.relu(nn.Conv(8, (step, step), step, dtype=self.dtype, name=f'conv{stride}')(x))
            features[stride] = x
        return features


resnet.VARIANTS['tiny_pyramid'] = partial(Pyramid)
resnet.VARIANTS['tiny'] = partial(resnet.ResNet, (1, 1, 1, 1), width=4, stem='small')
resnet.VARIANTS['tinier'] = partial(resnet.ResNet, (1, 1, 1, 1), width=2, stem='small')
vit.VARIANTS['tiny_vit'] = partial(vit.ViT, patch=8, width=16, num_layers=2, num_heads=2)
vit.VARIANTS['tinier_vit'] = partial(vit.ViT, patch=8, width=16, num_layers=1, num_heads=2)
swin_tiny = partial(swin.Swin, width=8, num_heads=(1, 2, 2, 4), window=3)
swin.VARIANTS['swin_tiny'] = partial(swin_tiny, depths=(1, 1, 2, 1))
swin.VARIANTS['swin_tinier'] = partial(swin_tiny, depths=(1, 1, 1, 1))


# What compiles fastest: a linear Segmenter takes a third of the time of UPerNet on a ResNet.
CHEAPEST = {
    'model__framework': 'segmenter',
    'model__backbone': 'tinier_vit',
    'model__decoder': 'linear',
    'rankseg__stride': 8,
}


def config(data_dir, **overrides):
    """configs/common.py at the smallest size; `overrides` by dotted key with __ for the dot.

    Without a framework among them it is the cheapest model with RankSeg.
    """
    if 'model__framework' not in overrides:
        overrides = CHEAPEST | overrides
    c = common.get_config()
    c.batch_size = 8
    c.steps = 6
    c.mesh_data = 1
    c.data.dir = str(data_dir)
    c.data.num_classes = 8
    c.data.image_size = 32
    c.data.num_train = 24
    c.augment.crop_size = (32, 32)
    c.eval.size = (32, 32)
    c.eval.batch_size = 256
    c.model.backbone = 'tiny'
    c.model.channels = 8
    c.rankseg.num_selected = 3
    c.rankseg.hidden = 8
    c.rankseg.num_heads = 2
    c.log_every, c.eval_every, c.checkpoint_every, c.num_pictures = 2, 3, 4, 2
    for key, value in overrides.items():
        *path, leaf = key.split('__')
        node = c
        for name in path:
            node = node[name]
        node[leaf] = value
    return c
