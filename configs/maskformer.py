"""MaskFormer, with and without RankSeg: the released recipes (arXiv 2107.06278, 2203.04187).

    python main.py --config=configs/maskformer.py:ade20k_swin_b_rankseg --workdir=runs/ade20k \\
        --config.data.dir=<ADEChallengeData2016> \\
        --config.model.pretrained=<swin_base_patch4_window12_384_22k.pth>

The data are read from their official folder or from records (docs/datasets.md). Evaluation takes
whole images; --config.eval.scales='(0.5,0.75,1.0,1.25,1.5,1.75)' --config.eval.flip=True adds
scales and mirror images.

Panoptic recipes have a transformer encoder of six layers before the feature pyramid, as released.
The scores with RankSeg are published without their recipes; ours take the κ and the head of
Mask2Former's. The released code compares whole masks by focal and dice losses; here they are
compared at points, by cross-entropy and dice, as in Mask2Former.
"""

from configs import check_argument, mask2former

# Published scores in percent, None where there is none. We have run none of these recipes yet.
MIOU = {  # at a single scale, with scales and mirror images
    'ade20k_r50': (44.5, 46.7),
    'ade20k_swin_b': (52.7, 53.9),
    'ade20k_swin_b_rankseg': (53.9, 55.1),
}
PQ = {
    'ade20k_panoptic_r50': 34.7,
    'ade20k_panoptic_r50_rankseg': 36.5,
    'ade20k_panoptic_r50_oracle': 44.3,
}
RECIPES = MIOU | PQ


def get_config(recipe='ade20k_swin_b_rankseg'):
    check_argument('maskformer', recipe, RECIPES)
    panoptic, swin = recipe in PQ, 'swin' in recipe
    rates = {'(backbone|decoder/head)': 0.1} if not swin else {'decoder/head': 0.1}
    config = mask2former.shared_config('swin_b' if swin else 'r50', rates=rates)
    config.task = 'panoptic' if panoptic else 'semantic'
    config.steps = 720_000 if panoptic else 160_000
    config.eval_every = config.steps // 10

    config.data.name = 'ade20k_panoptic' if panoptic else 'ade20k'
    side = 640 if panoptic or swin else 512
    config.augment.crop_size = config.eval.size = (side, side)
    config.augment.base_size = config.eval.base_size = (side, 4 * side)
    config.augment.short_sides = tuple(int(tenths * 0.1 * side) for tenths in range(5, 21))
    config.augment.pad_value = 128.0

    config.model.framework = 'maskformer'
    config.model.decoder_layers = 6
    config.model.dropout = 0.1
    if panoptic:
        config.model.encoder_layers = 6
        config.eval.threshold = 0.7

    config.optimizer.schedule = 'poly'
    if swin:
        config.optimizer.learning_rate = 6e-5
        config.optimizer.weight_decay = 0.01
        config.optimizer.warmup_steps = 1500
    else:
        config.optimizer.weight_decay = 1e-4
    if not recipe.endswith(('_rankseg', '_oracle')):
        config.rankseg = None
        return config

    mask2former.add_rankseg(config, num_selected=150)
    config.rankseg.oracle = recipe.endswith('_oracle')
    return config
