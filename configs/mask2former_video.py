"""Mask2Former for videos, with and without RankSeg (arXiv 2112.10764, 2203.04187).

    python main.py --config=configs/mask2former_video.py:youtubevis_2019_swin_l_rankseg \\
        --workdir=runs/youtubevis --config.data.dir=<ytvis_2019> \\
        --config.model.pretrained=facebook/mask2former-swin-large-coco-instance
    python main.py --config=configs/mask2former_video.py:vspw_r101_rankseg --workdir=runs/vspw \\
        --config.data.dir=<VSPW_480p> --config.model.pretrained=<Mask2Former R101, COCO instances>

Published runs start from Mask2Formers trained on COCO's instances. Without these, a user of the
released code reports 52 mIoU instead of 58.9 on VSPW (Swin-B; its issue 4). κ is K, as released.
YouTubeVIS is seen a whole video at a time, VSPW in clips of 20 frames that follow each other. The
released code computes in half precision but for the pixel decoder, which stays in float32; here
--config.model.dtype=bfloat16 is half precision in both. It pads batches to their largest frame;
here frames are padded to 480 × 864, and portraits, which are taller, are cropped to it in training.

YouTubeVIS-2019 has no public annotations but those of `train`: evaluation writes results.json for
the server, and nothing is scored.
"""

import re

from configs import check_argument, mask2former

# Published scores in percent, None where there is none. We have run none of these recipes yet.
AP = {  # by the evaluation server
    'youtubevis_2019_r50': 46.4,
    'youtubevis_2019_r101': 49.2,
    'youtubevis_2019_r101_rankseg': 50.5,
    'youtubevis_2019_swin_t': 51.5,
    'youtubevis_2019_swin_s': 54.3,
    'youtubevis_2019_swin_b': 59.5,
    'youtubevis_2019_swin_b_rankseg': 60.3,
    'youtubevis_2019_swin_l': 60.4,
    'youtubevis_2019_swin_l_rankseg': 61.1,
}
MIOU = {
    'vspw_r50': None,
    'vspw_r101': 45.9,
    'vspw_r101_rankseg': 47.0,
    'vspw_r101_oracle': 62.3,
    'vspw_swin_b': 59.4,
    'vspw_swin_b_rankseg': 60.1,
    'vspw_swin_b_oracle': None,
}
RECIPES = AP | MIOU


def get_config(recipe='youtubevis_2019_swin_l_rankseg'):
    check_argument('mask2former_video', recipe, RECIPES)
    backbone = re.search('|'.join(mask2former.BACKBONES), recipe)[0]
    instances = recipe in AP
    head_rate = 1.0 if instances else 5.0 if backbone == 'swin_b' else 2.0
    config = mask2former.shared_config(backbone, rates={'backbone': 0.1, 'decoder/head': head_rate})
    config.task = 'video_instance' if instances else 'video_semantic'
    config.steps = 6000
    config.eval_every = 3000

    config.data.name = 'youtube_vis_2019' if instances else 'vspw'
    config.data.max_targets = 62 if instances else 124
    config.augment.base_size = (480, 1333)
    config.augment.short_sides = (360, 480) if instances else (480,)
    config.augment.crop_size = (480, 864)
    config.augment.photometric = False
    short_side = 360 if instances and backbone in ('r50', 'r101') else 480
    config.eval.base_size = (short_side, 1333)
    config.eval.clip_length = 36 if instances else 20
    config.eval.max_objects = 10
    config.eval.threshold = 0.3

    config.model.num_queries = 200 if backbone == 'swin_l' else 100

    config.optimizer.schedule = 'step'
    config.optimizer.milestones = (4000,)
    if not recipe.endswith(('_rankseg', '_oracle')):
        config.rankseg = None
        return config

    mask2former.add_rankseg(config, num_selected=40 if instances else 124)
    if recipe.endswith('_oracle'):
        mask2former.use_oracle(config)
    return config
