"""EoMT on DINOv2 and DINOv3, with and without RankSeg: the released recipes (arXiv 2503.19108).

    python main.py --config=configs/eomt.py:ade20k_l_rankseg --workdir=runs/ade20k \\
        --config.data.dir=<ADEChallengeData2016> \\
        --config.model.pretrained=facebook/dinov2-with-registers-large

DINOv3 recipes start from weights such as facebook/dinov3-vitl16-pretrain-lvd1689m; ADE20K's
panoptic recipe starts from a COCO run. Masked attention is annealed away block by block, so that
the finished model makes one prediction without masks; earlier evaluations still use the masks. The
backbone is frozen while the new parts warm up; its rate falls by 0.8 from block to block; all
parameters have weight decay.

As released, semantic images are evaluated in square windows along the long side, others whole and
padded to a square with black. Otherwise than released, crops lie on the diagonal of what the jitter
leaves over, as in detectron2, and colors change as in mmsegmentation. The released code computes in
half precision; here that is --config.model.dtype=bfloat16.

RankSeg is ours, not published and not tuned: the multi-label head sees the patches before the joint
blocks, and categories are selected once for all windows of an image.
"""

import re

from configs import check_argument, common

# Published scores in percent, None where there is none. We have run none of these recipes yet.
MIOU = {
    'ade20k_l': 58.4,
    'ade20k_l_rankseg': None,
    'ade20k_l_oracle': None,
    'ade20k_dinov3_l': 59.5,
    'ade20k_dinov3_l_rankseg': None,
}
PQ = {
    'ade20k_panoptic_l': 50.6,
    'coco_panoptic_s': 46.7,
    'coco_panoptic_b': 51.6,
    'coco_panoptic_l': 56.0,
    'coco_panoptic_l_rankseg': None,
    'coco_panoptic_l_1280': 58.3,
    'coco_panoptic_g': 57.0,
    'coco_panoptic_g_1280': 59.2,
    'coco_panoptic_dinov3_s': 47.2,
    'coco_panoptic_dinov3_b': 53.1,
    'coco_panoptic_dinov3_l': 56.8,
    'coco_panoptic_dinov3_l_1280': 58.9,
}
AP = {
    'coco_instance_l': 45.2,
    'coco_instance_l_rankseg': None,
    'coco_instance_l_1280': 48.8,
    'coco_instance_dinov3_l': 45.9,
    'coco_instance_dinov3_l_1280': 49.9,
}
RECIPES = MIOU | PQ | AP

BLOCKS = {'s': 12, 'b': 12, 'l': 24, 'g': 40}
ADE20K, COCO = 1263, 7391  # steps of an epoch

# First and last step of the annealing of each joint block.
ANNEALING = {
    'ade20k_l': ((6520, 13_040, 19_560, 26_080), (13_040, 19_560, 26_080, 32_600)),
    'ade20k_dinov3_l': ((0, 6520, 9780, 13_040), (3000, 9780, 13_040, 16_300)),
    'coco_l': ((14_782, 29_564, 44_346, 59_128), (29_564, 44_346, 59_128, 73_910)),
    'coco_s': ((29_564, 73_910, 118_256), (59_128, 103_474, 147_820)),
    'coco_g': ((14_782, 25_869, 36_955, 48_042, 59_128), (29_564, 40_651, 51_737, 62_824, 73_910)),
    'coco_dinov3_s': ((0, 73_910, 118_256), (3000, 103_474, 147_820)),
    'coco_dinov3_l': ((0, 29_564, 44_346, 59_128), (3000, 44_346, 59_128, 73_910)),
}


def get_config(recipe='ade20k_l_rankseg'):
    check_argument('eomt', recipe, RECIPES)
    coco, dinov3 = recipe.startswith('coco'), 'dinov3' in recipe
    size = re.search('_([sblg])(_|$)', recipe)[1]
    config = common.get_config()
    config.task = 'semantic' if recipe in MIOU else 'panoptic' if recipe in PQ else 'instance'
    epochs = (24 if size in 'sb' else 12) if coco else 16 if dinov3 else 31
    config.steps = epochs * (COCO if coco else ADE20K)
    config.eval_every = config.steps // 10
    config.batch_size = 16

    semantic = config.task == 'semantic'
    config.data.name = 'ade20k' if semantic else f'{"coco" if coco else "ade20k"}_{config.task}'
    config.data.antialias = True
    side = 1280 if recipe.endswith('1280') else 512 if semantic else 640
    config.augment.crop_size = config.eval.size = (side, side)
    config.augment.large_scale_jitter = True
    config.augment.scale_range = (0.5, 2.0) if semantic else (0.1, 2.0)
    config.augment.max_category_ratio = 1.0
    config.augment.photometric = not coco
    config.augment.pad_value = 0.0
    config.eval.pad_value = 0.0
    if semantic:
        config.eval.base_size = (side, 4 * side)
        config.eval.window = (side, side)

    config.model.framework = 'eomt'
    config.model.backbone = f'dinov3_{size}16' if dinov3 else f'dinov2_reg_{size}16'
    kind = f'{"coco" if coco else "ade20k"}{"_dinov3" * dinov3}_{size}'
    kind = re.sub('_b$', '_s', kind)
    if config.task == 'instance':
        kind = kind.replace('_dinov3', '')
    config.model.anneal_start, config.model.anneal_end = ANNEALING[kind]
    config.model.joint_blocks = len(config.model.anneal_start)
    config.model.num_queries = 100 if semantic else 200

    config.optimizer.schedule = 'poly'
    config.optimizer.learning_rate = 2e-4 if dinov3 else 1e-4
    config.optimizer.weight_decay = 0.05
    config.optimizer.clip_norm = 0.01
    config.optimizer.warmup_steps = 2000 if dinov3 else 500
    config.optimizer.backbone_warmup_steps = 3000 if dinov3 else 1000
    full = 0 if not dinov3 else BLOCKS[size] if not coco else config.model.joint_blocks
    config.optimizer.groups = layer_rates(BLOCKS[size], full)
    if not recipe.endswith(('_rankseg', '_oracle')):
        config.rankseg = None
        return config

    config.rankseg.num_selected = 50
    config.rankseg.layer = 0
    config.rankseg.stride = 16
    config.rankseg.oracle = recipe.endswith('_oracle')
    return config


def layer_rates(num_blocks: int, full: int = 0, decay: float = 0.8):
    """Groups in which a block has `decay` × the next one's rate; the last `full` have the full one.

    What comes before the blocks has the rate of the first, the final norm the full one.
    """
    if full == num_blocks:
        return ()
    rates = {
        f'block{i}/': decay ** (num_blocks - 1 - i) if i < num_blocks - full else 1.0
        for i in range(num_blocks)
    }
    rates |= {'(patches/|position|class_token|registers)': decay ** (num_blocks - 1)}
    return tuple((f'^backbone/{name}', rate, 1.0) for name, rate in rates.items())
