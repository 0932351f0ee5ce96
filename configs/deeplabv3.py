"""DeepLabV3 with ResNet-101, with and without RankSeg: the released recipes (arXiv 2203.04187).

    python main.py --config=configs/deeplabv3.py:coco_stuff10k_rankseg --workdir=runs/deeplab \\
        --config.data.dir=<coco_stuff10k>

The data are read from their official folder or from records (docs/datasets.md). Evaluation takes
whole images, as published; --config.eval.scales='(0.5,0.75,1.0,1.25,1.5,1.75)'
--config.eval.flip=True adds scales and mirror images.

The recipes for VSPW, whose videos are seen in clips, are ours.
"""

from configs import check_argument, common, use_vspw

# Published mIoU in percent: at a single scale, with scales and mirror images; None: not published.
# We have run none of these recipes yet.
RECIPES = {
    'coco_stuff10k': (37.3, 38.4),
    'coco_stuff10k_rankseg': (38.4, 39.8),
    'ade20k': (44.1, 45.2),
    'ade20k_rankseg': (45.5, 46.6),
    'vspw': (None, None),
    'vspw_rankseg': (None, None),
}


def get_config(recipe='coco_stuff10k_rankseg'):
    check_argument('deeplabv3', recipe, RECIPES)
    dataset = recipe.removesuffix('_rankseg')
    config = common.get_config()
    config.batch_size = 16
    config.steps = {'ade20k': 80_000, 'coco_stuff10k': 20_000, 'vspw': 40_000}[dataset]
    config.eval_every = config.steps // 10

    config.data.name = dataset
    config.augment.base_size = config.eval.base_size = (512, 2048)
    if dataset == 'vspw':
        use_vspw(config)

    config.model.framework = 'deeplabv3'
    config.model.backbone = 'resnet101_v1c'

    config.optimizer.name = 'sgd'
    config.optimizer.learning_rate = 0.01
    config.optimizer.weight_decay = 5e-4
    config.optimizer.schedule = 'poly'
    config.optimizer.end_factor = 0.01
    config.optimizer.groups = ()
    config.loss.average_all = True
    if not recipe.endswith('_rankseg'):
        config.rankseg = None
        return config

    config.rankseg.update(
        num_selected=50,
        train_selected=0,
        temperature='layer_norm',
        score_prior=False,
        missed='ignore',
        head='encoder',
        pool=16,
        hidden=512,
        mlp_dim=2048,
        separable=True,
        share_embedding=True,
    )
    return config
