"""VidEoMT on composed videos for two CPU cores: tracks, or label maps of every frame.

    python main.py --config=configs/videomt_tiny.py --workdir=runs/videomt_tiny

The argument is a variant: `rankseg`, `baseline`, `oracle`, and the same with `semantic_` before it.
"""

from configs import check_argument, mask2former_video_tiny

VARIANTS = mask2former_video_tiny.VARIANTS


def get_config(variant='rankseg'):
    check_argument('videomt_tiny', variant, VARIANTS)
    config = mask2former_video_tiny.get_config(variant)
    config.data.clip_frames = 3
    config.data.clip_reach = 2
    config.model.framework = 'videomt'
    config.model.backbone = 'vit_slim8'
    config.model.joint_blocks = 2
    config.eval.clip_overlap = 0
    config.eval.average_over = 'past'
    config.loss.average_frames = True
    config.optimizer.learning_rate = 1e-3
    return config
