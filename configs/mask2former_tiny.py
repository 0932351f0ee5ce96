"""Mask2Former small enough for two CPU cores: panoptic segments of composed scenes, or CamVid's label maps.

    python main.py --config=configs/mask2former_tiny.py --workdir=runs/mask2former_tiny
"""

from configs import quickstart

VARIANTS = ('rankseg', 'baseline', 'oracle', 'camvid')


def get_config(variant='rankseg'):
    if variant not in VARIANTS:
        raise ValueError(f'configs/mask2former_tiny.py:{variant} is unknown; use one of {", ".join(VARIANTS)}')
    config = quickstart.get_config()
    config.task = 'panoptic'
    config.steps = 2000
    config.eval_every = 1000
    config.data.max_targets = 20
    config.model.framework = 'mask2former'
    config.model.backbone = 'tiny'
    config.model.channels = 64
    config.model.decoder_heads = 4
    config.model.pixel_layers = 1
    config.model.decoder_layers = 3
    config.model.num_queries = 20
    config.rankseg.layer = 0
    config.loss.num_points = 1024
    config.optimizer.learning_rate = 2e-3
    config.eval.threshold = 0.5
    if variant == 'baseline':
        config.rankseg = None
    if variant == 'oracle':
        config.rankseg.oracle = True
    return config
