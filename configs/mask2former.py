"""Mask2Former, with and without RankSeg: the released recipes (arXiv 2112.01527, 2203.04187).

    python main.py --config=configs/mask2former.py:ade20k_swin_b_rankseg --workdir=runs/ade20k \\
        --config.data.dir=<ADEChallengeData2016> \\
        --config.model.pretrained=<swin_base_patch4_window12_384_22k.pth>

The data are read from their official folder or from records (docs/datasets.md). Evaluation takes
whole images; --config.eval.scales='(0.5,0.75,1.0,1.25,1.5,1.75)' --config.eval.flip=True adds
scales and mirror images. The released code computes in half precision but for the pixel decoder,
which stays in float32; here --config.model.dtype=bfloat16 is half precision in both.

κ is K, as released: categories are ranked and none is left out (released for COCO: κ = 150, which
crashes). `oracle`: only categories of the ground truth can win; as released without cosines and
temperature, and its multi-label head learns nothing.
"""

import re

from configs import check_argument, common

# Published scores in percent, None where there is none. We have run none of these recipes yet.
MIOU = {  # at a single scale, with scales and mirror images
    'ade20k_r50': (47.2, 49.2),
    'ade20k_swin_t': (47.7, 49.6),
    'ade20k_swin_s': (51.3, 52.4),
    'ade20k_swin_b': (53.9, 55.1),
    'ade20k_swin_b_rankseg': (54.9, 55.6),
    'ade20k_swin_b_oracle': (68.0, None),
    'ade20k_swin_l': (56.1, 57.3),
    'ade20k_swin_l_rankseg': (56.5, 58.0),
    'ade20k_swin_l_oracle': (None, None),
}
PQ = {
    'ade20k_panoptic_r50': 39.7,
    'ade20k_panoptic_swin_l': 48.1,
    'ade20k_panoptic_swin_l_rankseg': 48.9,
    'ade20k_panoptic_swin_l_oracle': None,
    'coco_panoptic_r50': 51.9,
    'coco_panoptic_swin_b': 56.4,  # 55.1 from ImageNet-1k weights
    'coco_panoptic_swin_b_rankseg': None,
    'coco_panoptic_swin_b_oracle': None,
    'coco_panoptic_swin_l': 57.8,
    'coco_panoptic_swin_l_oracle': None,
}
AP = {
    'coco_instance_r50': 43.7,
    'coco_instance_swin_t': 45.0,
    'coco_instance_swin_s': 46.3,
    'coco_instance_swin_b': 48.1,
    'coco_instance_swin_b_rankseg': None,
    'coco_instance_swin_l': 50.1,
    'coco_instance_swin_l_rankseg': None,
}
RECIPES = MIOU | PQ | AP

BACKBONES = {
    'r50': 'resnet50',
    'r101': 'resnet101',
    'swin_t': 'swin_t7',
    'swin_s': 'swin_s7',
    'swin_b': 'swin_b12',
    'swin_l': 'swin_l12',
}


def get_config(recipe='ade20k_swin_b_rankseg'):
    check_argument('mask2former', recipe, RECIPES)
    backbone = re.search('|'.join(BACKBONES), recipe)[0]
    coco, panoptic, large = 'coco' in recipe, 'panoptic' in recipe, backbone == 'swin_l'
    config = shared_config(backbone, rates={'(backbone|decoder/head)': 0.1})
    config.task = 'panoptic' if panoptic else 'instance' if coco else 'semantic'
    config.steps = 160_000 if not coco else 737_500 if large else 368_750
    config.eval_every = config.steps // 10

    config.data.name = ('coco' if coco else 'ade20k') + (
        '' if recipe in MIOU else f'_{config.task}'
    )
    side = 1024 if coco else 640 if panoptic or backbone in ('swin_b', 'swin_l') else 512
    config.augment.crop_size = config.eval.size = (side, side)
    if coco:
        config.augment.large_scale_jitter = True
        config.augment.scale_range = (0.1, 2.0)
    else:
        config.augment.base_size = (side, 4 * side)
        config.augment.short_sides = tuple(int(tenths * 0.1 * side) for tenths in range(5, 21))
    config.augment.photometric = not coco
    config.augment.pad_value = 128.0
    config.eval.base_size = (800, 1333) if coco else (side, 4 * side)

    config.model.num_queries = 200 if large and recipe not in MIOU else 100

    config.optimizer.schedule = 'step' if coco else 'poly'
    config.optimizer.milestones = (
        () if not coco else (655_556, 710_184) if large else (327_778, 355_092)
    )
    if not recipe.endswith(('_rankseg', '_oracle')):
        config.rankseg = None
        return config

    add_rankseg(config, num_selected=80 if recipe in AP else 133 if coco else 150)
    config.loss.multilabel_weight = 100.0 if coco else 10.0
    if recipe.endswith('_oracle'):
        use_oracle(config)
    return config


def shared_config(backbone: str, rates: dict[str, float]):
    """What the recipes for images and videos share.

    Args:
      rates: × learning rate of the parameters below each path.
    """
    config = common.get_config()
    config.batch_size = 16  # images or clips
    config.data.antialias = True
    config.augment.max_category_ratio = 1.0

    config.model.framework = 'mask2former'
    config.model.backbone = BACKBONES[backbone]
    config.model.frozen_norm = True
    config.model.drop_path = 0.3
    config.model.channels = 256
    config.model.decoder_layers = 9
    config.model.decoder_heads = 8

    config.optimizer.learning_rate = 1e-4
    config.optimizer.weight_decay = 0.05
    config.optimizer.clip_norm = 0.01
    undecayed = r'[nN]orm|(_embedding|queries|position|position_bias)$'
    groups = [('^pixel_decoder/level_embedding$', 1.0, 1.0)]  # the only embedding that decays
    for path, rate in rates.items():
        groups += [(rf'^{path}/.*({undecayed})', rate, 0.0), (rf'^{path}/', rate, 1.0)]
    config.optimizer.groups = (*groups, (undecayed, 1.0, 0.0))
    return config


def use_oracle(config):
    """The oracle as released, without cosines and temperature; its head learns nothing."""
    config.rankseg.update(oracle=True, temperature='none', head='log_sum_exp')
    config.loss.multilabel_weight = 0.0
    config.model.cosine = False


def add_rankseg(config, num_selected: int):
    """RankSeg as released for Mask2Former."""
    config.model.cosine = True
    config.rankseg.update(
        num_selected=num_selected,
        train_selected=0,
        temperature='layer_norm',
        score_prior=False,
        missed='ignore',
        head='encoder',
        hidden=512,
        mlp_dim=2048,
    )
