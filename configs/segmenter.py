"""Segmenter, with and without RankSeg: the released recipes (arXiv 2203.04187).

    python main.py --config=configs/segmenter.py:ade20k_b16_rankseg --workdir=runs/ade20k \\
        --config.data.dir=<ADEChallengeData2016> \\
        --config.model.pretrained=<B_16-i21k-300ep-…-res_384.npz>

The data are read from their official folder or from records (docs/datasets.md). Evaluation slides a
window, as published; --config.eval.scales='(0.5,0.75,1.0,1.25,1.5,1.75)' --config.eval.flip=True
adds scales and mirror images.

`oce`: class embeddings join before the backbone's last block. `oracle`: the ground truth selects;
the released one has no multi-label head at all. `decoder_head`, `pooling_head`: multi-label heads
separate from the mask transformer's first block. Scores on ADE20K-Full and COCO+LVIS are published
without their recipes; ours take the κ, losses and weight decay of ADE20K. The recipes for VSPW,
whose videos are seen in clips, are ours.
"""

import re

from configs import check_argument, common, use_vspw

# Published mIoU in percent: at a single scale, with scales and mirror images; None: not published.
# We have run none of these recipes yet.
RECIPES = {
    'ade20k_b16': (48.8, 50.7),
    'ade20k_b16_rankseg': (49.7, 51.4),
    'ade20k_b16_oce': (48.8, None),
    'ade20k_b16_oce_rankseg': (50.1, None),
    'ade20k_b16_oracle': (63.6, None),
    'ade20k_l16': (52.0, 53.6),
    'ade20k_l16_rankseg': (52.6, 54.4),
    'coco_stuff10k_b16': (41.9, 43.8),
    'coco_stuff10k_b16_rankseg': (44.9, 46.2),
    'coco_stuff10k_b16_oce': (44.1, None),
    'coco_stuff10k_b16_oce_rankseg': (46.0, None),
    'coco_stuff10k_b16_oracle': (66.8, None),
    'coco_stuff10k_b16_decoder_head': (44.1, None),
    'coco_stuff10k_b16_pooling_head': (43.2, None),
    'coco_stuff10k_b16_80k': (43.4, 45.2),
    'coco_stuff10k_b16_80k_rankseg': (45.7, 46.7),
    'coco_stuff10k_l16': (45.5, 47.1),
    'coco_stuff10k_l16_rankseg': (46.7, 47.9),
    'pascal60_b16': (53.8, 54.6),
    'pascal60_b16_rankseg': (54.7, 55.4),
    'pascal60_b16_oracle': (70.8, None),
    'ade20k_full_b16': (17.8, None),
    'ade20k_full_b16_rankseg': (18.8, None),
    'ade20k_full_b16_oracle': (37.0, None),
    'coco_lvis_b16': (19.4, None),
    'coco_lvis_b16_rankseg': (21.3, None),
    'coco_lvis_b16_oracle': (46.8, None),
    'vspw_b16': (None, None),
    'vspw_b16_rankseg': (None, None),
}


def get_config(recipe='ade20k_b16_rankseg'):
    check_argument('segmenter', recipe, RECIPES)
    dataset = re.split('_[bl]16', recipe)[0]
    large = '_l16' in recipe
    config = common.get_config()
    config.batch_size = 8
    config.steps = {
        'ade20k': 160_000,
        'ade20k_full': 160_000,
        'coco_lvis': 320_000,
        'pascal60': 80_000,
        'coco_stuff10k': 80_000 if '_80k' in recipe else 40_000,
        'vspw': 80_000,
    }[dataset]
    config.eval_every = config.steps // 10

    side = 640 if large else 480 if dataset == 'pascal60' else 512
    config.data.name = 'pascal_context60' if dataset == 'pascal60' else dataset
    if dataset in ('ade20k', 'pascal60'):
        config.data.mean = config.data.std = (127.5, 127.5, 127.5)
    config.augment.crop_size = (side, side)
    config.augment.base_size = (520, 4160) if dataset == 'pascal60' else (side, 4 * side)
    config.eval.base_size = config.augment.base_size
    config.eval.size = config.eval.window = config.eval.stride = (side, side)
    config.eval.batch_size = config.batch_size
    if dataset == 'vspw':
        use_vspw(config)
        config.eval.window = config.eval.stride = config.augment.crop_size

    config.model.framework = 'segmenter'
    config.model.backbone = 'vit_l16' if large else 'vit_b16'
    config.model.channels = 1024 if large else 768
    config.model.decoder_heads = config.model.channels // 64
    config.model.drop_path = 0.1
    config.model.auxiliary_weight = 0.0
    config.model.late_classes = '_oce' in recipe

    config.optimizer.name = 'sgd'
    config.optimizer.learning_rate = 1e-3
    config.optimizer.weight_decay = 0.0
    config.optimizer.schedule = 'poly'
    config.optimizer.end_factor = 0.01
    config.loss.average_all = True
    if not recipe.endswith(('_rankseg', '_oracle', '_head')):
        config.rankseg = None
        return config

    config.rankseg.update(
        num_selected=25 if dataset == 'pascal60' else 50,
        train_selected=0,
        temperature='layer_norm',
        score_prior=False,
        missed='ignore',
        head='first_block',
        pool=8,
    )
    config.loss.multilabel_weight = 5.0 if dataset == 'pascal60' or '_80k' in recipe else 10.0
    if dataset == 'coco_stuff10k' and not large:
        config.loss.multilabel = 'bce'
    if recipe.endswith('_head'):  # separate from the mask transformer's blocks
        config.rankseg.head = 'decoder' if 'decoder' in recipe else 'global_pool'
        config.rankseg.update(
            pool=16, hidden=768, mlp_dim=2048, share_embedding='decoder' in recipe
        )
        config.loss.multilabel, config.loss.gamma_neg = 'asymmetric', 0.0
    else:
        config.model.decoder_layers = 3
    config.rankseg.oracle = recipe.endswith('_oracle')
    if (
        dataset in ('ade20k', 'ade20k_full', 'coco_lvis', 'vspw')
        or recipe == 'pascal60_b16_rankseg'
    ):
        config.optimizer.weight_decay = 1e-6
        config.optimizer.groups = (
            (r'^decoder/(block0|classify)/', 1.0, 100.0),
            (r'(class_token|position)$', 1.0, 0.0),
            (r'^decoder/.*(norm|LayerNorm)', 1.0, 0.0),
        )
    return config
