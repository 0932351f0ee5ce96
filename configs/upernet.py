"""UPerNet on Swin-B and BEiT-L, with and without RankSeg: the released recipes (arXiv 2203.04187).

    python main.py --config=configs/upernet.py:ade20k_beit_l_rankseg --workdir=runs/ade20k \\
        --config.data.dir=<ADEChallengeData2016> \\
        --config.model.pretrained=<beit_large_patch16_224_pt22k_ft22k.pth>

Swins start from swin_base_patch4_window12_384_22k.pth. The data are read from their official folder
or from records (docs/datasets.md). BEiTs see windows of 640 that begin every 426 pixels;
--config.eval.scales='(0.5,0.75,1.0,1.25,1.5,1.75)' --config.eval.flip=True adds scales and mirror
images. The released BEiT computes in half precision; here that is --config.model.dtype=bfloat16.

The released repository's history (commit fb7a30f) holds the two recipes with RankSeg on ADE20K. The
others are published as scores alone; ours take the parts and losses of ADE20K, and the baselines
the schedules of mmsegmentation. Swin's recipe inherits a schedule made for SGD: without a warm-up,
its learning rate *rises* from 6e-5 to 1e-4, an accident. `ade20k_swin_b_rankseg` keeps it;
`ade20k_swin_b_rankseg_falling` has the baseline's schedule, as have the Swins on other data sets.
The recipes for VSPW, whose videos are seen in clips, are ours.

`tiny` and `tiny_baseline` are for two CPU cores: configs/quickstart.py with the released parts, at
65.8 and 63.0 mIoU.
"""

from configs import check_argument, common, quickstart, use_vspw

# Published mIoU in percent: at a single scale, with scales and mirror images; None: not published.
# We have run none of these recipes yet.
RECIPES = {
    'ade20k_swin_b': (50.8, 52.4),
    'ade20k_swin_b_rankseg': (51.4, 53.0),
    'ade20k_swin_b_rankseg_falling': (None, None),
    'coco_stuff10k_swin_b': (45.7, 47.2),
    'coco_stuff10k_swin_b_rankseg': (46.6, 47.9),
    'coco_lvis_swin_b': (20.3, None),
    'coco_lvis_swin_b_rankseg': (20.8, None),
    'vspw_swin_b': (None, None),
    'vspw_swin_b_rankseg': (None, None),
    'ade20k_beit_l': (56.7, 57.0),
    'ade20k_beit_l_rankseg': (57.0, 57.8),
    'coco_stuff10k_beit_l': (49.7, 49.9),
    'coco_stuff10k_beit_l_rankseg': (49.9, 50.3),
    'coco_lvis_beit_l': (None, None),
    'coco_lvis_beit_l_rankseg': (None, None),
}
TINY = ('tiny', 'tiny_baseline')


def get_config(recipe='ade20k_swin_b_rankseg'):
    check_argument('upernet', recipe, [*RECIPES, *TINY])
    if recipe in TINY:
        return tiny(recipe)
    beit, config = '_beit_l' in recipe, common.get_config()
    config.batch_size = 16
    config.steps = 40_000 if recipe.startswith('coco_stuff10k_swin') else 160_000
    config.eval_every = config.steps // 10
    config.data.name = recipe.split('_beit' if beit else '_swin')[0]
    config.loss.multilabel_weight = 5.0 if beit else 10.0
    config.optimizer.schedule, config.optimizer.power = 'poly', 1.0
    config.optimizer.warmup_steps = 1500
    if beit:
        set_beit(config)
    else:
        set_swin(config)
    if config.data.name == 'vspw':
        use_vspw(config)
    config.loss.average_all = True
    if '_rankseg' not in recipe:
        config.rankseg = None
        return config

    add_rankseg(config)
    config.rankseg.update(
        hidden=config.model.channels,
        num_heads=config.model.channels // 64,
        mlp_dim=4 * config.model.channels,
        share_embedding=not beit,
    )
    if recipe == 'ade20k_swin_b_rankseg':  # rises
        config.optimizer.warmup_steps = 0
        config.optimizer.power = 0.9
        config.optimizer.end_factor = 1e-4 / 6e-5
    return config


def set_swin(config):
    config.augment.base_size = config.eval.base_size = (512, 2048)
    config.model.update(backbone='swin_b12', drop_path=0.3, channels=512)
    config.optimizer.learning_rate = 6e-5
    config.optimizer.weight_decay = 0.01
    config.optimizer.groups = (
        ('^classifier/head/(block|classify)/', 0.1, 1.0),
        ('^classifier/(rank|head/norm)/', 1.0, 0.0),
        ('^backbone/.*([nN]orm|position_bias)', 1.0, 0.0),  # batch norms of the decoder decay
    )


def set_beit(config):
    config.accumulate = 2  # as released; the warm-up was 3,000 such half steps
    config.augment.crop_size = config.eval.size = config.eval.window = (640, 640)
    config.augment.base_size = config.eval.base_size = (640, 2560)
    config.eval.stride = (426, 426)
    config.model.update(backbone='beit_l16', drop_path=0.2, channels=1024)
    config.optimizer.learning_rate = 2e-5
    config.optimizer.weight_decay = 0.05
    undecayed = r'(bias|scale\d?)$'
    groups = [('^classifier/(classes|head/classify)/bias$', 1.0, 1.0)]
    # The rate falls by 0.95 from each block to the one before; that of the rest is whole.
    layers = {'(patches|class_token)': 25} | {
        f'(block|position_bias){i}/': 24 - i for i in range(24)
    }
    for pattern, depth in layers.items():
        groups += [
            (f'^backbone/{pattern}.*{undecayed}', 0.95**depth, 0.0),
            (f'^backbone/{pattern}', 0.95**depth, 1.0),
        ]
    config.optimizer.groups = (*groups, (undecayed, 1.0, 0.0))


def add_rankseg(config):
    """RankSeg as released for UPerNet, but for sizes."""
    config.rankseg.update(
        num_selected=50,
        train_selected=0,
        temperature='layer_norm',
        score_prior=False,
        missed='ignore',
        head='encoder',
        pyramid=False,
        separable=True,
        select_auxiliary=False,
    )


def tiny(variant: str):
    config = quickstart.get_config()
    config.model.auxiliary_weight = 0.4
    if variant == 'tiny_baseline':
        config.rankseg = None
        return config
    add_rankseg(config)
    config.rankseg.update(num_selected=16, hidden=64, num_heads=4, mlp_dim=256)
    config.rankseg.share_embedding = True
    config.loss.average_all = True
    return config
