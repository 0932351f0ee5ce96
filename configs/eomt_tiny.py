"""EoMT for two CPU cores: panoptic segments of composed scenes.

    python main.py --config=configs/eomt_tiny.py --workdir=runs/eomt_tiny

The argument is a variant: `rankseg`, `baseline` or `oracle`. After 16,000 samples PQ is 26.4 and
mIoU 44.5, the baseline's 20.8 and 43.0 (benchmarks/panoptic_quality.py --config=eomt_tiny).
"""

from configs import check_argument, quickstart

VARIANTS = ('rankseg', 'baseline', 'oracle')


def get_config(variant='rankseg'):
    check_argument('eomt_tiny', variant, VARIANTS)
    config = quickstart.get_config()
    config.task = 'panoptic'
    config.steps = 2000
    config.eval_every = 1000
    config.data.max_targets = 12
    config.model.framework = 'eomt'
    config.model.backbone = 'vit_slim8'
    config.model.joint_blocks = 2
    config.model.anneal_start = (400, 1000)
    config.model.anneal_end = (1000, 1800)
    config.model.num_queries = 20
    config.rankseg.layer = 0
    config.eval.threshold = 0.5
    config.loss.num_points = 256
    config.loss.multilabel_weight = 10.0
    config.optimizer.learning_rate = 1e-3
    if variant == 'baseline':
        config.rankseg = None
    if variant == 'oracle':
        config.rankseg.oracle = True
    return config
