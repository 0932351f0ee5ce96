"""Mask2Former on composed videos for two CPU cores: tracks, or label maps of every frame.

    python main.py --config=configs/mask2former_video_tiny.py --workdir=runs/video_tiny

The argument is a variant: `rankseg`, `baseline`, `oracle`, and the same with `semantic_` before it.
Started from an image run, with --config.model.pretrained, 600 steps reach AP 14.0, the baseline
13.5; mIoU 47.8 and 46.4 (benchmarks/video_quality.py).
"""

from configs import check_argument, mask2former_tiny

VARIANTS = (
    'rankseg',
    'baseline',
    'oracle',
    'semantic_rankseg',
    'semantic_baseline',
    'semantic_oracle',
)


def get_config(variant='rankseg'):
    check_argument('mask2former_video_tiny', variant, VARIANTS)
    config = mask2former_tiny.get_config(variant.removeprefix('semantic_'))
    config.task = 'video_semantic' if variant.startswith('semantic_') else 'video_instance'
    config.batch_size = 4  # clips
    config.data.name = 'emoji_videos'
    config.data.num_classes = 40
    config.data.num_train = 0
    config.data.clip_reach = 10
    config.augment.max_category_ratio = 1.0
    config.eval.max_objects = 10
    config.eval.threshold = 0.3
    config.eval.clip_length = 12
    config.eval.clip_overlap = 4 if config.task == 'video_instance' else 0
    config.eval.batch_size = 2  # clips
    if config.rankseg:
        config.rankseg.num_selected = 12
    return config
