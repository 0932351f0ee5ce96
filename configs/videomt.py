"""VidEoMT on DINOv2 and DINOv3, with and without RankSeg: the released recipes (arXiv 2602.17807).

    python main.py --config=configs/videomt.py:youtubevis_2019_l_rankseg --workdir=runs/vis \\
        --config.data.dir=<ytvis_2019> --config.model.pretrained=<an EoMT of its frames>

Published runs start from EoMTs trained on single frames of the same data, which configs/eomt.py
describes but for the data; a VidEoMT trained with `task` = 'instance' or 'semantic' is one, too.
YouTubeVIS's also learn from clips made of COCO's images, which are not part of this project.

A clip is 5 frames of at most 5 in a row. Queries are matched to the tracks of the whole clip, and
its class logits are means over its frames; the released code matches each track in the first frame
that shows it, and classifies each frame. It makes the predictions before the last from tokens
without the final norm, and crops YouTubeVIS's frames at random; for VSPW on DINOv3 it uses that
norm there, and on the queries that go to the next frame, too. It computes in half precision; here
that is --config.model.dtype=bfloat16. Frames are padded to one size; portraits, which are taller,
are cropped to it in training.

In evaluation a video is seen in clips that go on from each other, and what is known of classes is
averaged over all frames up to the end of a clip: YouTubeVIS's videos are one clip each, as
published; VSPW's frames do not know what follows after their clip of 20. With
--config.eval.average_over=past a frame knows nothing of what follows it, as in a stream.

YouTubeVIS-2019 has no public annotations but those of `train`: evaluation writes results.json for
the server, and nothing is scored. RankSeg is ours, not published and not tuned: the multi-label
head sees the patches before the joint blocks, and κ is K, so that only the order of the categories
matters.
"""

import re

from configs import check_argument, common, eomt

# Published scores in percent, None where there is none. We have run none of these recipes yet.
AP = {  # by the evaluation server
    'youtubevis_2019_s': 52.8,
    'youtubevis_2019_b': 58.2,
    'youtubevis_2019_l': 68.6,
    'youtubevis_2019_l_rankseg': None,
    'youtubevis_2019_dinov3_l': 68.9,
    'youtubevis_2019_dinov3_l_rankseg': None,
}
MIOU = {  # and the consistency over 16 frames, mVC16
    'vspw_l': (64.9, 95.0),
    'vspw_l_rankseg': None,
    'vspw_dinov3_l': (64.0, 94.4),
    'vspw_dinov3_l_rankseg': None,
}
RECIPES = AP | MIOU


def get_config(recipe='youtubevis_2019_l_rankseg'):
    check_argument('videomt', recipe, RECIPES)
    instances, dinov3 = recipe in AP, 'dinov3' in recipe
    size = re.search('_([sbl])(_|$)', recipe)[1]
    config = common.get_config()
    config.task = 'video_instance' if instances else 'video_semantic'
    config.steps = 40_000
    if instances and size == 'l':
        config.steps = 160_000 if dinov3 else 60_000
    config.eval_every = config.steps // 10
    config.batch_size = 8  # clips

    config.data.name = 'youtube_vis_2019' if instances else 'vspw'
    config.data.antialias = True
    config.data.max_targets = 62 if instances else 124
    config.data.clip_frames = 5
    config.data.clip_reach = 2
    config.augment.base_size = (640, 768) if instances else (800, 1333)
    config.augment.short_sides = tuple(range(320, 641, 32) if instances else range(480, 801, 32))
    if instances:  # not quite regular, as released
        config.augment.short_sides = (320, 352, 392, *config.augment.short_sides[3:])
    config.augment.crop_size = (448, 768) if instances else (768, 1344)
    config.augment.max_category_ratio = 1.0
    config.augment.photometric = False
    short_side = 720 if not instances else 480 if dinov3 else 448
    config.eval.base_size = (short_side, 1333)
    config.eval.clip_length = 36 if instances else 20
    config.eval.max_objects = 10
    config.eval.threshold = 0.3

    config.model.framework = 'videomt'
    config.model.backbone = f'dinov3_{size}16' if dinov3 else f'dinov2_reg_{size}16'
    config.model.joint_blocks = 4 if size == 'l' else 3
    config.model.num_queries = 200
    config.loss.average_frames = True

    config.optimizer.schedule = 'poly'
    config.optimizer.learning_rate = 1e-4
    config.optimizer.weight_decay = 0.05
    config.optimizer.clip_norm = 0.01
    config.optimizer.warmup_steps = 500
    config.optimizer.backbone_warmup_steps = 1000
    config.optimizer.groups = eomt.layer_rates(eomt.BLOCKS[size], decay=0.6)
    if not recipe.endswith('_rankseg'):
        config.rankseg = None
        return config

    config.rankseg.num_selected = 40 if instances else 124
    config.rankseg.layer = 0
    config.rankseg.stride = 16
    return config
