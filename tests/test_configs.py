"""Configs: what they build, at full size under eval_shape, and which are refused.

Each has its exact number of parameters, and takes a training step at reduced size.
"""

import importlib
import json
import os
import re
import subprocess
import sys
from functools import cache, partial
from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import traverse_util

from configs import (
    common,
    deeplabv3,
    eomt,
    mask2former,
    mask2former_video,
    maskformer,
    segmenter,
    upernet,
    videomt,
)
from rankseg_jax import (
    config_check,
    frameworks,
    inference,
    models,
    optimizers,
    recipes,
    tasks,
    train_step,
)
from rankseg_jax.frameworks.eomt import EncoderOnly
from tests import tiny  # noqa: F401  (adds the backbones 'tinier' and so on)
from tests.helpers import mend_torchvision, random_state

ROOT = Path(__file__).parents[1]
README = (ROOT / 'README.md').read_text()

RECIPES = json.loads((ROOT / 'configs' / 'recipes.json').read_text())
# (config, its argument, K, parameters)
CONFIGS = [
    (*row['config'].partition(':')[::2], row['num_classes'], row['parameters']) for row in RECIPES
]


def load(name, argument):
    config = recipes.load(f'{name}:{argument}')
    if config.rankseg and not config.rankseg.num_selected:  # left to the data
        with config.unlocked():
            config.rankseg.num_selected = 8
    return config


def test_every_config_is_listed():
    files = {path.stem for path in (ROOT / 'configs').glob('[!_]*.py')}
    assert files == {'common'} | {name for name, *_ in CONFIGS}
    families = (segmenter, deeplabv3, upernet, maskformer, mask2former, mask2former_video, eomt)
    for module in (*families, videomt):
        assert sorted([*module.RECIPES, *getattr(module, 'TINY', ())]) == sorted(
            recipe for name, recipe, *_ in CONFIGS if name == module.__name__.split('.')[1]
        )


# At reduced size these would be the same as another of their family.
SIBLINGS = re.compile(
    'emoji_scenes|camvid:|light_baseline|_l16|_80k|pascal60|coco_stuff10k_b16(_oce.*|_oracle)?$'
    '|ade20k(_b16)?_rankseg$|v3:ade20k$|ade20k_full|coco_lvis_b16(_oracle)?$'
    '|swin_[tsl]|beit_l$|panoptic_r50(_oracle)?$|2former:ade20k_swin_b(_oracle)?$|upernet:ade20k_swin'
    '|upernet:(coco_stuff10k|coco_lvis|tiny_baseline)'
    '|panoptic_swin_b(_oracle)?$|tiny:(?!rankseg)|video_tiny'
    '|mask2former_video:youtubevis_2019_(?!r101_rankseg)|vspw_(r50|r101_oracle)'
    '|vspw_(swin_b$|swin_b_oracle)'
    '|vspw(_b16)?$'
    '|mask2former_video:vspw_swin_b|coco_instance_(r50|swin_b)$|maskformer:ade20k_(r50|swin_b)$'
    '|^eomt:(?!ade20k_l_rankseg|coco_(instance|panoptic)_l_rankseg|coco_panoptic_dinov3_l$)'
    '|videomt:(?!youtubevis_2019_l_rankseg|vspw_l_rankseg)'
)


class TestNumbers:
    """On one worker, since recipes share their backbones and most of what JAX traces."""

    @pytest.mark.parametrize('name, argument, num_classes, num_parameters', CONFIGS)
    def test_config_builds(self, name, argument, num_classes, num_parameters):
        config = load(name, argument)
        config_check.check(config, common.get_config())
        model = models.build(config, num_classes)
        assert count_parameters(model, num_classes, config.augment.crop_size) == num_parameters


def count_parameters(model, num_classes, image_shape):
    """Those of the backbone, which many recipes share, and those of the rest."""
    features, count = backbone_shapes(model.backbone, image_shape)
    if isinstance(model, EncoderOnly):  # which drives the blocks itself
        few = model.clone(backbone=model.backbone.clone(num_layers=model.num_joint))
        params = jax.eval_shape(lambda: models.init(few, num_classes, 0, image_shape))['params']
        return count + count_leaves(params) - count_leaves(params['backbone'])
    rest = model.clone(backbone=Given(features))
    return count + count_leaves(
        jax.eval_shape(lambda: models.init(rest, num_classes, 0, image_shape))['params']
    )


@cache
def backbone_shapes(backbone, image_shape):
    """Names and shapes of a backbone's features, and its number of parameters."""
    names, images = [], jnp.zeros((1, *image_shape, 3))

    def init():
        features, variables = backbone.init_with_output(jax.random.key(0), images, train=False)
        names.extend(features)  # 4, 8, … and 'classes', which have no common order
        return list(features.values()), variables['params']

    features, params = jax.eval_shape(init)
    shapes = [feature.shape for feature in features]
    return tuple(zip(names, shapes, strict=True)), count_leaves(params)


def count_leaves(tree):
    return sum(x.size for x in jax.tree.leaves(tree))


class Given(nn.Module):
    """A backbone without parameters, of which the features have these names and shapes."""

    shapes: tuple[tuple[int | str, tuple[int, ...]], ...]

    def __call__(self, images, *, train):
        return {name: jnp.zeros(shape) for name, shape in self.shapes}


# The others are Swins. They become small Swins in UPerNet and for ADE20K, elsewhere a pyramid,
# which compiles sooner.
SMALL_BACKBONES = {
    'resnet50': 'tinier',
    'resnet101': 'tinier',
    'narrow': 'tinier',
    'efficientnet_lite0': 'tinier',
    'slim': 'tiny_pyramid',
    'beit_l16': 'beit_tiny',
}


def of_one_vector(build, *args, **options):
    """A transformation of all parameters of a group as one vector: with far fewer operations."""
    each = build(*args, **options)
    whole = optax.flatten(each)  # which needs a parameter
    return optax.GradientTransformation(
        lambda params: (whole if jax.tree.leaves(params) else each).init(params),
        lambda updates, *rest: (whole if jax.tree.leaves(updates) else each).update(updates, *rest),
    )


STEPPED = [c[:3] for c in CONFIGS if not SIBLINGS.search(f'{c[0]}:{c[1]}')]


@cache
def lowered() -> set[tuple[str, str]]:
    """The first config with RankSeg of each framework and task, which lowers as the others do."""
    first = {}
    for name, argument, _ in STEPPED:
        config = load(name, argument)
        if config.rankseg:
            first.setdefault((config.model.framework, config.task), (name, argument))
    return set(first.values())


@pytest.mark.parametrize('name, argument, num_classes', STEPPED)
def test_config_steps_and_lowers_for_accelerators(name, argument, num_classes, monkeypatch):
    for kind in ('adamw', 'sgd', 'clip_by_global_norm'):
        monkeypatch.setattr(optax, kind, partial(of_one_vector, getattr(optax, kind)))
    config = load(name, argument)
    config.batch_size, config.augment.crop_size = 2, (64, 64)
    config.model.channels = config.model.decoder_heads = 16
    if config.model.framework == 'segmenter':
        config.model.update(backbone='tinier_vit', decoder_layers=1)
    elif config.model.framework in ('maskformer', 'mask2former'):
        config.model.update(
            backbone=SMALL_BACKBONES.get(
                config.model.backbone,
                'swin_tinier' if argument.startswith('ade20k') else 'tiny_pyramid',
            ),
            channels=32,
            decoder_heads=4,
            pixel_layers=1,
            encoder_layers=min(config.model.encoder_layers, 1),
            decoder_layers=1,
            num_queries=5,
        )
        config.data.max_targets, config.loss.num_points, config.optimizer.milestones = 4, 16, ()
    elif config.model.framework == 'upernet':
        config.model.backbone = SMALL_BACKBONES.get(config.model.backbone, 'swin_tinier')
    elif config.model.framework in ('eomt', 'videomt'):
        config.model.update(backbone='tinier_dino', joint_blocks=1, num_queries=5)
        if config.model.anneal_start:
            config.model.update(anneal_start=(0,), anneal_end=(10,))
        config.data.max_targets, config.loss.num_points = 4, 16
    else:
        config.model.backbone = 'tinier'
    if config.rankseg:
        config.rankseg.update(hidden=16, mlp_dim=32, layer=1)
    config.steps = config.optimizer.warmup_steps + config.optimizer.backbone_warmup_steps + 1
    model = models.build(config, num_classes)
    optimizer = optimizers.make_optimizer(config.optimizer, config.steps)
    state = random_state(
        jax.eval_shape(lambda: train_step.create_state(model, optimizer, config, num_classes))
    )
    things = [i % 2 == 0 for i in range(num_classes)]
    task = tasks.build(config, [str(i) for i in range(num_classes)], things)
    step = jax.jit(train_step.make_train_step(model, optimizer, config, task))
    rng = np.random.default_rng(0)
    batch = {
        'image': rng.normal(size=(2, 64, 64, 3)).astype(np.float32),
        'label': rng.integers(-1, num_classes, (2, 64, 64)).astype(np.int32),
        'mask': np.ones(2, bool),
    }
    if config.task == 'panoptic':
        batch |= {
            'label': rng.integers(-1, 4, (2, 64, 64)).astype(np.int32),
            'left_out': np.zeros(2, np.int32),
            'segment_labels': rng.integers(-1, num_classes, (2, 4)).astype(np.int32),
        }
    if config.task.startswith('video'):
        batch['image'] = rng.normal(size=(2, 2, 64, 64, 3)).astype(np.float32)
        batch['label'] = rng.integers(-1, num_classes, (2, 2, 64, 64)).astype(np.int32)
    if config.task == 'instance':
        batch['label'] = rng.integers(0, 2**4, (2, 64, 64)).astype(np.int32)
    if config.task == 'video_instance':
        batch['label'] = rng.integers(0, 2**4, (2, 2, 64, 64)).astype(np.int32)
    if config.task.endswith('instance'):
        batch |= {
            'left_out': np.zeros(2, np.int32),
            'object_labels': rng.integers(-1, num_classes, (2, 4)).astype(np.int32),
        }
    traced = step.trace(state, batch)
    after, metrics = traced.lower().compile()(state, batch)
    assert np.isfinite(metrics['loss']) and jax.tree.structure(after) == jax.tree.structure(state)
    if (name, argument) not in lowered():
        return
    # One by one, since a kernel for GPUs has no form for others. From JAX 0.11 on it is lowered
    # only where there is a GPU.
    matches = config.model.framework in ('mask2former', 'maskformer', 'eomt', 'videomt')
    for platform in ('tpu', 'cuda')[: 1 if matches and jax.__version_info__ >= (0, 11) else 2]:
        traced.lower(lowering_platforms=(platform,))
    size = np.full((2, 2), 64, np.int32)
    if config.model.framework in ('segmenter', 'deeplabv3', 'upernet'):
        config.eval.window, config.eval.stride = (64, 64), (32, 32)
    predict = jax.jit(
        lambda variables, image, presence: inference.segment(
            model,
            variables,
            ({'image': image, 'content': size},),
            size,
            config,
            task,
            canvas=(64, 64),
            presence=presence,
        )
    )
    jax.export.export(predict, platforms=('tpu', 'cuda'))(
        state.model, batch['image'], np.ones((2, num_classes), bool)
    )


def test_recipes_of_readme_are_of_their_frameworks_and_tasks():
    """Each takes a step above."""
    header, _, *rows = [
        [cell.strip() for cell in line.split('|')[1:-1]]
        for line in re.findall(r'^\| framework \|.*?\n\n', README, re.M | re.S)[0].splitlines()
        if line
    ]
    cells = [
        (row[0], task, *re.fullmatch(r'`(\w+)\.py:(\w+)`', cell).groups())
        for row in rows
        for task, cell in zip(header[1:], row[1:], strict=True)
        if cell
    ]
    stepped = {c[:2] for c in STEPPED}
    assert {cell[2:] for cell in cells} <= stepped
    for framework, task, name, argument in cells:
        config = load(name, argument)
        assert (config.model.framework, config.task) == (framework.lower(), task.replace(' ', '_'))
        assert config.rankseg
    assert {row[0].lower() for row in rows} == set(frameworks.names())


@pytest.mark.parametrize(
    'recipe, width, depths, window, num_queries',
    [
        ('ade20k_r50', 0, (), 0, 100),
        ('ade20k_swin_t', 96, (2, 2, 6, 2), 7, 100),
        ('ade20k_swin_s', 96, (2, 2, 18, 2), 7, 100),
        ('ade20k_swin_b', 128, (2, 2, 18, 2), 12, 100),
        ('ade20k_panoptic_swin_l', 192, (2, 2, 18, 2), 12, 200),
    ],
)
def test_mask2formers_have_hugging_faces_parameters(recipe, width, depths, window, num_queries):
    torch, transformers = pytest.importorskip('torch'), pytest.importorskip('transformers')
    stages = [f'stage{i}' for i in range(1, 5)]
    backbone = (
        transformers.SwinConfig(
            embed_dim=width,
            depths=depths,
            num_heads=[width // 32 * 2**i for i in range(4)],
            window_size=window,
            out_features=stages,
        )
        if width
        else transformers.ResNetConfig(out_features=stages)
    )
    with torch.device('meta'):
        theirs = transformers.Mask2FormerForUniversalSegmentation(
            transformers.Mask2FormerConfig(
                backbone_config=backbone, num_labels=150, num_queries=num_queries
            )
        )
    expected = sum(
        value.numel()
        for name, value in theirs.named_parameters()
        if 'encoder.swin.layernorm' not in name  # unused
    )
    assert [
        count for name, argument, _, count in CONFIGS if (name, argument) == ('mask2former', recipe)
    ] == [expected]


@pytest.mark.parametrize(
    'recipe, width, num_layers, num_blocks, num_queries, side',
    [
        ('ade20k_l', 1024, 24, 4, 100, 512),
        ('coco_panoptic_s', 384, 12, 3, 200, 640),
        ('coco_panoptic_g', 1536, 40, 5, 200, 640),
        ('coco_panoptic_dinov3_b', 768, 12, 3, 200, 640),
        ('coco_panoptic_dinov3_l', 1024, 24, 4, 200, 640),
    ],
)
def test_eomts_have_hugging_faces_parameters(
    recipe, width, num_layers, num_blocks, num_queries, side
):
    torch, transformers = pytest.importorskip('torch'), pytest.importorskip('transformers')
    mend_torchvision()
    ((num_classes, count),) = (found for *name, found in by_recipe() if name == ['eomt', recipe])
    options = dict(
        hidden_size=width,
        num_hidden_layers=num_layers,
        num_attention_heads=width // 64,
        num_blocks=num_blocks,
        num_queries=num_queries,
        num_labels=num_classes,
        image_size=side,
    )
    name = 'EomtDinov3' if 'dinov3' in recipe else 'Eomt'
    if name == 'Eomt':
        options['use_swiglu_ffn'] = width == 1536
    else:
        options['intermediate_size'] = 4 * width
    with torch.device('meta'):
        config = getattr(transformers, f'{name}Config')(**options)
        theirs = getattr(transformers, f'{name}ForUniversalSegmentation')(config)
    assert sum(x.numel() for x in theirs.parameters()) == count


def by_recipe():
    """(config, its argument, (K, parameters)) of all configs."""
    return ((name, argument, tuple(numbers)) for name, argument, *numbers in CONFIGS)


@pytest.mark.parametrize(
    'module, recipe, expected',
    [
        (
            segmenter,
            'ade20k_b16_rankseg',
            {
                (1.0, 1e-4): ['decoder/block0/LayerNorm_0/scale', 'decoder/classify/kernel'],
                (1.0, 0.0): [
                    'decoder/norm/scale',
                    'decoder/block1/LayerNorm_1/bias',
                    'decoder/rank/temperature/norm/scale',
                    'backbone/position',
                    'backbone/class_token',
                    'backbone/class_position',
                ],
                (1.0, 1e-6): ['backbone/block3/LayerNorm_0/scale', 'decoder/project/kernel'],
            },
        ),
        (
            segmenter,
            'ade20k_b16',
            {(1.0, 0.0): ['decoder/block0/LayerNorm_0/scale', 'decoder/project/kernel']},
        ),
        (
            mask2former,
            'ade20k_swin_b_rankseg',
            {
                (0.1, 0.0): [
                    'backbone/norm4/scale',
                    'backbone/stage1_block1/LayerNorm_0/scale',
                    'backbone/stage3_block5/position_bias',
                    'decoder/head/class_embedding',
                    'decoder/head/block/LayerNorm_0/bias',
                    'decoder/head/norm/scale',
                ],
                (0.1, 0.05): [
                    'backbone/patches/kernel',
                    'backbone/stage1_block1/Mlp_0/Dense_0/bias',
                    'decoder/head/classify/kernel',
                ],
                (1.0, 0.0): [
                    'pixel_decoder/fuse4_norm/bias',
                    'decoder/level_embedding',
                    'decoder/queries',
                    'decoder/query_position',
                    'decoder/layer8/norm3/scale',
                    'decoder/rank/temperature/norm/scale',
                ],
                (1.0, 0.05): [
                    'decoder/classes/embedding',
                    'decoder/layer0/self/query/bias',
                    'pixel_decoder/fuse4_conv/kernel',
                    'pixel_decoder/level_embedding',
                ],
            },
        ),
        (
            mask2former,
            'ade20k_r50',
            {
                (0.1, 0.0): ['backbone/stem/norm/scale', 'backbone/stage4_block3_conv3/norm/bias'],
                (0.1, 0.05): ['backbone/stem/conv/kernel'],
                (1.0, 0.05): ['decoder/classes/bias'],
            },
        ),
        (
            upernet,
            'ade20k_swin_b_rankseg',
            {
                (0.1, 0.01): [
                    'classifier/head/block/LayerNorm_0/scale',
                    'classifier/head/classify/bias',
                ],
                (1.0, 0.0): [
                    'backbone/norm4/scale',
                    'backbone/patch_norm/bias',
                    'backbone/stage3_block5/LayerNorm_1/bias',
                    'backbone/stage3_block5/position_bias',
                    'classifier/head/norm/scale',
                    'classifier/rank/temperature/norm/scale',
                ],
                (1.0, 0.01): [
                    'backbone/stage1_block1/Mlp_0/Dense_0/bias',
                    'decoder/fuse/norm/scale',
                    'auxiliary/norm/bias',
                    'classifier/classes/bias',
                    'classifier/head/project/depthwise_kernel',
                ],
            },
        ),
        (
            upernet,
            'ade20k_beit_l_rankseg',
            {
                (0.95**25, 0.05): ['backbone/patches/kernel', 'backbone/class_token'],
                (0.95**25, 0.0): ['backbone/patches/bias'],
                (0.95**23, 0.05): [
                    'backbone/position_bias1/table',
                    'backbone/position_bias1/class',
                ],
                (0.95**24, 0.0): [
                    'backbone/block0/layer_scale1',
                    'backbone/block0/LayerNorm_1/scale',
                    'backbone/block0/MultiHeadDotProductAttention_0/query/bias',
                ],
                (0.95**14, 0.05): ['backbone/block10/Mlp_0/Dense_0/kernel'],
                (0.95, 0.05): ['backbone/block23/MultiHeadDotProductAttention_0/out/kernel'],
                (1.0, 0.05): [
                    'backbone/neck4_1/kernel',
                    'decoder/fuse/conv/kernel',
                    'classifier/classes/bias',
                    'classifier/head/classify/bias',
                    'classifier/head/block/Mlp_0/Dense_1/kernel',
                ],
                (1.0, 0.0): [
                    'backbone/neck4_norm/scale',
                    'decoder/fuse/norm/bias',
                    'classifier/rank/temperature/norm/scale',
                    'classifier/head/project/depthwise_bias',
                ],
            },
        ),
    ],
)
def test_rates_and_decays_of_a_released_recipe(module, recipe, expected):
    config = module.get_config(recipe)
    model = models.build(config, 150)
    params = jax.eval_shape(lambda: models.init(model, 150, 0, config.augment.crop_size))['params']
    groups = [*config.optimizer.groups, ('', 1.0, 1.0)]
    numbers = traverse_util.flatten_dict(
        optimizers.group_numbers(params, [pattern for pattern, *_ in groups]), sep='/'
    )
    for (rate, decay), names in expected.items():
        for name in names:
            factors = groups[numbers[name]][1:]
            assert factors[0] == rate and config.optimizer.weight_decay * factors[
                1
            ] == pytest.approx(decay), name


IMAGENET = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
HALF = ((127.5, 127.5, 127.5),) * 2
SIXTEEN = {
    512: (256, 307, 358, 409, 460, 512, 563, 614, 665, 716, 768, 819, 870, 921, 972, 1024),
    640: (320, 384, 448, 512, 576, 640, 704, 768, 832, 896, 960, 1024, 1088, 1152, 1216, 1280),
}

# What the released code does to images and labels: (config, pattern of its arguments, data set,
# (mean, std), (short, long) side in training, crop, (short, long) side in evaluation, window).
RELEASED_INPUTS = [
    ('segmenter', 'ade20k_b16.*', 'ade20k', HALF, (512, 2048), 512, (512, 2048), 512),
    ('segmenter', 'ade20k_l16.*', 'ade20k', HALF, (640, 2560), 640, (640, 2560), 640),
    (
        'segmenter',
        'coco_stuff10k_b16.*',
        'coco_stuff10k',
        IMAGENET,
        (512, 2048),
        512,
        (512, 2048),
        512,
    ),
    (
        'segmenter',
        'coco_stuff10k_l16.*',
        'coco_stuff10k',
        IMAGENET,
        (640, 2560),
        640,
        (640, 2560),
        640,
    ),
    ('segmenter', 'pascal60_b16.*', 'pascal_context60', HALF, (520, 4160), 480, (520, 4160), 480),
    ('segmenter', 'ade20k_full_b16.*', 'ade20k_full', IMAGENET, (512, 2048), 512, (512, 2048), 512),
    ('segmenter', 'coco_lvis_b16.*', 'coco_lvis', IMAGENET, (512, 2048), 512, (512, 2048), 512),
    ('upernet', 'ade20k_swin.*', 'ade20k', IMAGENET, (512, 2048), 512, (512, 2048), 0),
    (
        'upernet',
        'coco_stuff10k_swin.*',
        'coco_stuff10k',
        IMAGENET,
        (512, 2048),
        512,
        (512, 2048),
        0,
    ),
    ('upernet', 'coco_lvis_swin.*', 'coco_lvis', IMAGENET, (512, 2048), 512, (512, 2048), 0),
    ('upernet', 'ade20k_beit.*', 'ade20k', IMAGENET, (640, 2560), 640, (640, 2560), 640),
    (
        'upernet',
        'coco_stuff10k_beit.*',
        'coco_stuff10k',
        IMAGENET,
        (640, 2560),
        640,
        (640, 2560),
        640,
    ),
    ('upernet', 'coco_lvis_beit.*', 'coco_lvis', IMAGENET, (640, 2560), 640, (640, 2560), 640),
    ('deeplabv3', 'ade20k.*', 'ade20k', IMAGENET, (512, 2048), 512, (512, 2048), 0),
    ('deeplabv3', 'coco_stuff10k.*', 'coco_stuff10k', IMAGENET, (512, 2048), 512, (512, 2048), 0),
    (
        'mask2former',
        'ade20k_(r50|swin_t|swin_s)',
        'ade20k',
        IMAGENET,
        (512, 2048),
        512,
        (512, 2048),
        0,
    ),
    (
        'mask2former',
        'ade20k_(swin_b|swin_l).*',
        'ade20k',
        IMAGENET,
        (640, 2560),
        640,
        (640, 2560),
        0,
    ),
    (
        'mask2former',
        'ade20k_panoptic.*',
        'ade20k_panoptic',
        IMAGENET,
        (640, 2560),
        640,
        (640, 2560),
        0,
    ),
    ('mask2former', 'coco_panoptic.*', 'coco_panoptic', IMAGENET, (0, 0), 1024, (800, 1333), 0),
    ('mask2former', 'coco_instance.*', 'coco_instance', IMAGENET, (0, 0), 1024, (800, 1333), 0),
]


@pytest.mark.parametrize(
    'name, pattern, data_set, colors, base_size, crop, eval_base_size, window', RELEASED_INPUTS
)
def test_inputs_of_the_released_recipes(
    name, pattern, data_set, colors, base_size, crop, eval_base_size, window
):
    recipes = [
        recipe
        for recipe in importlib.import_module(f'configs.{name}').RECIPES
        if re.fullmatch(pattern, recipe)
    ]
    assert recipes
    for config in (load(name, recipe) for recipe in recipes):
        detectron2 = name == 'mask2former'
        coco = detectron2 and data_set.startswith('coco')
        expected = {
            'data': {
                'name': data_set,
                'num_classes': 0,
                'mean': colors[0],
                'std': colors[1],
                'antialias': detectron2,
            },
            'augment': {
                'base_size': base_size,
                'scale_range': (0.1, 2.0) if coco else (0.5, 2.0),
                'large_scale_jitter': coco,
                'short_sides': SIXTEEN[crop] if detectron2 and not coco else (),
                'crop_size': (crop, crop),
                'max_category_ratio': 1.0 if detectron2 else 0.75,
                'flip': 0.5,
                'photometric': not coco,
                'pad_value': 128.0 if detectron2 else -1.0,
            },
            'eval': {
                'base_size': eval_base_size,
                'window': (window, window),
                'stride': (426, 426) if '_beit' in pattern else (window, window),
                'scales': (1.0,),
                'flip': False,
            },
        }
        for group, keys in expected.items():
            assert {key: config[group][key] for key in keys} == keys
        assert set(expected['augment']) == set(config.augment)


@pytest.mark.parametrize(
    'pattern, short_sides, eval_side, length, batch',
    [
        ('youtubevis_2019_r.*', (360, 480), 360, 36, 16),
        ('youtubevis_2019_swin.*', (360, 480), 480, 36, 16),
        ('vspw.*', (480,), 480, 20, 16),
    ],
)
def test_the_released_recipes_of_videos(pattern, short_sides, eval_side, length, batch):
    recipes = [name for name in mask2former_video.RECIPES if re.fullmatch(pattern, name)]
    assert recipes
    for config in (load('mask2former_video', name) for name in recipes):
        assert config.augment.short_sides == short_sides
        assert config.augment.base_size[1] == config.eval.base_size[1] == 1333
        assert config.eval.base_size[0] == eval_side and config.eval.clip_length == length
        assert (config.data.clip_frames, config.data.clip_reach) == (2, 20)
        assert (config.batch_size, config.steps, config.optimizer.milestones) == (16, 6000, (4000,))
        assert config.augment.pad_value == -1  # zeros after normalization, as released


def rates_of(config):
    """The factor of the learning rate of some parameters of a ViT-L, by name; all decay alike."""
    groups = [*config.optimizer.groups, ('', 1.0, 1.0)]
    assert all(decay == 1 for *_, decay in groups) and config.optimizer.weight_decay == 0.05
    names = [
        'patches/kernel',
        'registers',
        'block0/layer_scale1',
        'block3/x',
        'block22/x',
        'norm/x',
    ]
    params = {'backbone': {name: 0 for name in names}, 'queries': 0, 'mask': {'bias': 0}}
    numbers = optimizers.group_numbers(params, [pattern for pattern, *_ in groups])
    rates = jax.tree.map(lambda number: groups[number][1], numbers)
    assert rates['queries'] == rates['mask']['bias'] == rates['backbone'].pop('norm/x') == 1
    return [rates['backbone'][name] for name in names[:-1]]


def test_the_released_recipes_of_eomt():
    for config in (load('eomt', name) for name in eomt.RECIPES):
        dinov3 = 'dinov3' in config.model.backbone
        assert config.batch_size == 16 and config.optimizer.clip_norm == 0.01
        assert config.optimizer.learning_rate == (2e-4 if dinov3 else 1e-4)
        warmup = config.optimizer.warmup_steps, config.optimizer.backbone_warmup_steps
        assert warmup == ((2000, 3000) if dinov3 else (500, 1000))
        assert (config.optimizer.schedule, config.optimizer.power) == ('poly', 0.9)
        assert config.model.anneal_end[-1] < config.steps  # finished models have no masks
        assert (config.loss.class_weight, config.loss.no_object) == (2.0, 0.1)
        assert (config.loss.mask_weight, config.loss.dice_weight) == (5.0, 5.0)
        assert config.loss.num_points == 12_544 and config.augment.pad_value == 0
        semantic = config.task == 'semantic'
        assert config.model.num_queries == (100 if semantic else 200)
        coco = config.data.name.startswith('coco')
        assert config.augment.photometric is not coco
        assert config.augment.scale_range == ((0.5, 2.0) if semantic else (0.1, 2.0))
        side = config.augment.crop_size[0]
        assert config.eval.window == ((side, side) if semantic else (0, 0))
        assert config.eval.stride == (0, 0) and config.eval.pad_value == 0
    early, last = 0.8**23, 0.8
    expected = [early, early, early, 0.8**20, last]
    assert rates_of(load('eomt', 'ade20k_l')) == pytest.approx(expected)
    assert rates_of(load('eomt', 'coco_panoptic_dinov3_l')) == pytest.approx([*expected[:4], 1])
    assert rates_of(load('eomt', 'ade20k_dinov3_l')) == [1] * 5
    config = load('eomt', 'coco_instance_dinov3_l')  # is annealed as with DINOv2
    assert config.model.anneal_start == (14_782, 29_564, 44_346, 59_128)
    for recipe, blocks, backbone in [
        ('coco_panoptic_b', 3, 'dinov2_reg_b16'),
        ('coco_panoptic_g_1280', 5, 'dinov2_reg_g16'),
        ('coco_panoptic_dinov3_b', 3, 'dinov3_b16'),
    ]:
        model = load('eomt', recipe).model
        assert (model.joint_blocks, model.backbone) == (blocks, backbone)


def test_inputs_of_every_released_recipe_are_listed():
    for module in (segmenter, deeplabv3, upernet, mask2former):
        patterns = [
            pattern
            for name, pattern, *_ in RELEASED_INPUTS
            if name == module.__name__.split('.')[1]
        ]
        for recipe in module.RECIPES:
            if recipe.startswith('vspw'):  # ours
                continue
            assert sum(bool(re.fullmatch(pattern, recipe)) for pattern in patterns) == 1


@pytest.mark.parametrize(
    'recipe, batches, rates',
    [
        ('ade20k_swin_b', 1, {0: 0, 1500: 6e-5, 80_750: 3e-5, 160_000: 0}),
        ('ade20k_swin_b_rankseg', 1, {0: 6e-5, 80_000: 1e-4 - 4e-5 * 0.5**0.9, 160_000: 1e-4}),
        ('ade20k_swin_b_rankseg_falling', 1, {0: 0, 1500: 6e-5, 160_000: 0}),
        ('coco_stuff10k_swin_b_rankseg', 1, {0: 0, 1500: 6e-5, 40_000: 0}),
        ('ade20k_beit_l_rankseg', 2, {0: 0, 750: 1e-5, 1500: 2e-5, 160_000: 0}),
    ],
)
def test_schedules_of_upernet(recipe, batches, rates):
    """Swin's released one rises, by accident; of BEiT, two half batches are a step."""
    config = upernet.get_config(recipe)
    assert (config.batch_size, config.accumulate) == (16, batches)
    schedule = optimizers.make_schedule(config.optimizer, config.steps)
    for step, rate in rates.items():
        np.testing.assert_allclose(schedule(step), rate, rtol=1e-5, atol=1e-12)


def test_every_key_of_common_is_read_somewhere():
    code = '\n'.join(path.read_text() for path in (ROOT / 'rankseg_jax').rglob('*.py'))

    def leaves(config):
        for key, value in config.items():
            yield from leaves(value) if hasattr(value, 'items') else [key]

    for key in leaves(common.get_config()):
        assert re.search(rf'\.{key}\b', code), f'{key} is read nowhere'


def test_unknown_keys_and_types_are_refused():
    config = common.get_config()
    config.unlock()
    config.rankseg.num_select = 3
    with pytest.raises(
        ValueError, match='config.rankseg.num_select .* config.rankseg.num_selected'
    ):
        config_check.check(config, common.get_config())
    config = common.get_config()
    config.unlock()
    with config.ignore_type():
        config.optimizer.learning_rate = 'high'
    with pytest.raises(ValueError, match="learning_rate = 'high' must be of type float"):
        config_check.check(config, common.get_config())
    config = common.get_config()
    config.rankseg = None
    config.optimizer.learning_rate = 1
    config_check.check(config, common.get_config())


@pytest.mark.parametrize(
    'group, key, value, message',
    [
        ('eval', 'size', (32,), r'eval.size = \(32,\) must hold 2 whole numbers'),
        ('eval', 'size', ('a', 'b'), 'must hold 2 whole numbers'),
        ('augment', 'crop_size', (0, 32), 'augment.crop_size'),
        ('augment', 'base_size', (-1, -1), 'augment.base_size'),
        ('eval', 'base_size', (512, 0), r'eval.base_size = \(512, 0\) must'),
        ('augment', 'scale_range', (2.0, 0.5), 'scale_range'),
        (
            'augment',
            'short_sides',
            (360, 0),
            r'short_sides = \(360, 0\): each number must be above 0',
        ),
        (
            'augment',
            'short_sides',
            (0.5, 2.0),
            r'short_sides = \(0.5, 2.0\) must hold whole numbers',
        ),
        (
            'augment',
            'short_sides',
            (360, 480),
            r'short_sides = \(360, 480\) needs a longest side: set config.augment.base_size',
        ),
        ('augment', 'pad_value', 256.0, 'pad_value = 256.0 must be in 0..255, or -1'),
        ('augment', 'pad_value', -0.5, 'pad_value = -0.5 must be'),
        ('data', 'std', (0.0, 1.0, 1.0), 'data.std'),
        ('data', 'num_workers', -1, 'num_workers'),
        ('eval', 'size', (32.0, 32.0), 'eval.size .* 2 whole numbers'),
        ('eval', 'recall_at', (0,), 'eval.recall_at'),
        ('eval', 'scales', (float('inf'),), 'eval.scales'),
        ('eval', 'scales', (), 'eval.scales'),
        ('eval', 'scales', (1.0, 0), 'eval.scales'),
        ('eval', 'window', (0, 32), 'eval.window'),
        ('eval', 'stride', (32, 32), r'eval.stride = \(32, 32\) must'),
    ],
)
def test_values_out_of_range_are_refused(group, key, value, message):
    config = common.get_config()
    config[group][key] = value
    with pytest.raises(ValueError, match=message):
        config_check.check(config, common.get_config())


def test_large_scale_jitter_excludes_short_sides():
    config = common.get_config()
    config.augment.update(base_size=(480, 1333), short_sides=(360, 480), large_scale_jitter=True)
    config.augment.max_category_ratio = 1.0
    with pytest.raises(
        ValueError,
        match=r'short_sides = \(360, 480\) must be \(\) with config.augment.large_scale_jitter',
    ):
        config_check.check(config, common.get_config())


def test_frozen_norms_must_not_decay():
    config = deeplabv3.get_config()
    config.model.frozen_norm = True
    with pytest.raises(ValueError, match='frozen_norm needs a group .* backbone/stem/norm/scale'):
        config_check.check(config, common.get_config())
    config.optimizer.groups = (('norm/', 1.0, 0.0),)
    config_check.check(config, common.get_config())


@pytest.mark.parametrize('framework', ['upernet', 'deeplabv3', 'mask2former'])
def test_frozen_norms_reach_the_backbone(framework):
    config = common.get_config()
    config.model.update(framework=framework, frozen_norm=True, decoder_heads=8)
    assert models.build(config, 60).backbone.frozen_norm


@pytest.mark.parametrize(
    'arguments, message',
    [
        (
            [
                '--config=configs/quickstart.py',
                '--workdir=/tmp/never',
                '--config.rankseg.num_select=3',
            ],
            'did you mean config.rankseg.num_selected?',
        ),
        (
            ['--config=configs/quickstart.py', '--workdir=/tmp/never', '--config.data.num_evall=3'],
            'did you mean config.data.num_train?',
        ),
        (['--config=configs/quickstart.py', '--workdir=/tmp/never', '--config.steps=many'], 'many'),
        (['--config=configs/nothing.py', '--workdir=/tmp/never'], 'configs/nothing.py'),
        (['--config=configs/folder.py:best', '--workdir=/tmp/never'], 'folder.py:best is unknown'),
        (['--config=configs/quickstart.py'], 'workdir'),
    ],
)
def test_command_line_errors_are_one_line(arguments, message):
    result = subprocess.run(
        [sys.executable, 'main.py', *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {'XLA_FLAGS': ''},
        timeout=120,
    )
    assert result.returncode != 0
    assert message in result.stderr + result.stdout
    assert 'Traceback' not in result.stderr
