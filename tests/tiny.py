"""A run small enough for a test: 8 categories of 32-pixel scenes, steps that take milliseconds."""

import json
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from PIL import Image

from configs import common
from rankseg_jax import checkpoint, models
from rankseg_jax.backbones import PYRAMID, beit, resnet, swin, vit
from rankseg_jax.data import emoji_scenes, rle

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
vit.VARIANTS['tinier_dino'] = partial(
    vit.ViT,
    patch=8,
    width=16,
    num_layers=2,
    num_heads=2,
    num_registers=1,
    codes='patches',
    layer_scale=1.0,
)
vit.VARIANTS['tinier_vit'] = partial(vit.ViT, patch=8, width=16, num_layers=1, num_heads=2)
beit.VARIANTS['beit_tiny'] = partial(
    beit.BEiT, width=16, num_layers=5, num_heads=2, feature_blocks=(2, 3, 4, 5)
)
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
    c.mesh.data = 1
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
    c.rankseg.train_selected = 0
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


def queries_config(data_dir, **overrides):
    """`config` of a Mask2Former, for tasks on objects and on clips of 4 frames."""
    small = dict(
        model__framework='mask2former',
        model__backbone='tiny_pyramid',
        model__channels=32,
        model__decoder_heads=2,
        model__pixel_layers=1,
        model__num_queries=12,
        rankseg__layer=1,
        data__max_targets=8,
        augment__max_category_ratio=1.0,
        loss__num_points=32,
        eval__threshold=0.05,
        eval__max_objects=6,
        eval__clip_length=4,
        eval__clip_overlap=1,
    )
    return config(data_dir, **small | overrides)


def save_run(config, workdir, class_names='abcdefgh'):
    """Saves a Mask2Former at its initial values, but with queries that differ; returns variables.

    All of its categories are things.
    """
    num_classes = len(class_names)
    model = models.build(config, num_classes)
    variables = jax.jit(lambda: models.init(model, num_classes, 0, config.augment.crop_size))()
    variables = jax.device_get(variables)
    decoder = variables['params']['decoder']
    decoder['queries'] = 3 * decoder['queries']
    run = {
        'config': config.to_dict(),
        'class_names': list(class_names),
        'things': [True] * num_classes,
        'next_step': 0,
        'score': None,
    }
    with checkpoint.open_checkpoints(workdir, keep=1) as manager:
        checkpoint.save(manager, 0, variables, None, run)
    return variables


def write_videos(root, lengths=(6, 3)):
    """Videos with tracks for `data.name = 'video_folder'`; K = 4.

    In video v, squares of the categories v, v + 1 and v + 2 (mod 4) move to the right. The n-th one
    appears in frame n.

    Args:
      root: a new folder.
      lengths: number of frames of each video of a split.
    """
    colors = np.array([[220, 40, 40], [40, 200, 60], [60, 80, 230], [230, 220, 50]], np.uint8)
    for split in ('train', 'validation'):
        content = {'videos': [], 'annotations': []}
        content['categories'] = [{'id': i + 1, 'name': 'abcd'[i]} for i in range(4)]
        for v, length in enumerate(lengths):
            folder = root / 'videos' / split / f'video{v}'
            folder.mkdir(parents=True)
            images = np.full((length, 32, 32, 3), 128, np.uint8)
            for n in range(3):
                category, masks = (v + n) % 4, np.zeros((length, 32, 32), bool)
                for frame in range(n, length):
                    masks[frame, 11 * n : 11 * n + 9, 3 * frame : 3 * frame + 9] = True
                images[masks] = colors[category]
                content['annotations'].append(
                    {
                        'video_id': v + 1,
                        'category_id': category + 1,
                        'segmentations': [rle.encode(mask) for mask in masks],
                    }
                )
            for frame, image in enumerate(images):
                Image.fromarray(image).save(folder / f'{frame}.png')
            content['videos'].append({'id': v + 1, 'name': f'video{v}'})
        (root / f'{split}.json').write_text(json.dumps(content))
