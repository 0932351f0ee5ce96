"""Mask2Former for two CPU cores: panoptic segments of composed scenes, or label maps of CamVid.

    python main.py --config=configs/mask2former_tiny.py --workdir=runs/mask2former_tiny

The argument is a variant: `rankseg`, `baseline`, `oracle`, or `camvid`, which needs
--config.data.dir=<folder>, see configs/camvid.py. After 16,000 samples PQ is 13.3 and mIoU 26.7,
the baseline's 8.6 and 24.9 (benchmarks/panoptic_quality.py): queries learn more slowly than pixels.
"""

from configs import camvid, check_argument, quickstart

VARIANTS = ('rankseg', 'baseline', 'oracle', 'camvid')


def get_config(variant='rankseg'):
    check_argument('mask2former_tiny', variant, VARIANTS)
    config = (camvid if variant == 'camvid' else quickstart).get_config()
    config.steps = 2000
    config.eval_every = 1000
    config.data.max_targets = 12
    config.model.framework = 'mask2former'
    config.model.backbone = 'slim'
    config.model.decoder_heads = 4
    config.model.pixel_layers = 1
    config.model.decoder_layers = 3
    config.model.num_queries = 20
    # The multi-label head learns sooner from the pixel decoder's map than from queries.
    config.rankseg.layer = 0
    config.loss.num_points = 256
    config.loss.multilabel_weight = 10.0
    config.optimizer.learning_rate = 1.5e-3
    if variant == 'camvid':
        return config
    config.task = 'panoptic'
    config.eval.threshold = 0.5
    if variant == 'baseline':
        config.rankseg = None
    if variant == 'oracle':
        config.rankseg.oracle = True
    return config
