"""Every key of a run, its default and its meaning. A config file starts from this and changes what differs.

    from configs import common

    def get_config(variant=''):
        config = common.get_config()
        config.data.name = 'folder'
        return config

On the command line any leaf can be set: `--config.rankseg.num_selected=25`. Tuples: `--config.eval.size='(96,96)'`.
"""

import difflib
import math
import re

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()

    config.seed = 0  # initialisation, data order, augmentation, dropout
    config.batch_size = 16  # images a step, over all devices and hosts
    config.steps = 40_000  # optimiser steps
    config.task = 'semantic'  # or panoptic: for per-query frameworks and data with segments
    config.accumulate = 1  # a step is computed as this many micro-batches, one after another
    config.mesh_data = -1  # devices along the mesh's `data` axis; -1: all there are

    config.data = data = ConfigDict()
    data.name = 'emoji_scenes'  # a module of rankseg_jax/data: emoji_scenes, camvid, folder, or one of docs/datasets.md
    data.dir = ''  # where the data or their records lie; '': TFDS's, ~/tensorflow_datasets
    data.num_classes = (
        0  # K; 0: as many as the data set names. emoji_scenes needs it: 60, 150, 847, 1284, …
    )
    data.image_size = 128  # emoji_scenes: side in pixels
    data.num_train = 0  # emoji_scenes: training images to generate; 0: its default
    data.train_split = 'train'
    data.eval_split = (
        'validation'  # scored and predicted on; `test`, `unseen`, … with --config.data.eval_split
    )
    data.ignore_label = 255  # folder: the value in label files that means "don't count"
    data.reduce_zero_label = (
        False  # folder: value 0 in label files means "don't count", v means class v - 1
    )
    data.max_corrupt = (
        10  # unreadable images skipped (each is named in the log) before the run stops
    )
    data.mean = (123.675, 116.28, 103.53)  # RGB, 0..255
    data.std = (58.395, 57.12, 57.375)
    data.antialias = False  # images are resized with a filter that grows as they shrink, like Pillow's, not like OpenCV's
    data.max_targets = 100  # per-query frameworks: masks learned of one image, the largest
    data.num_workers = 0  # images loaded and transformed at once; 0: tf.data decides

    config.augment = augment = ConfigDict()
    augment.base_size = (
        0,
        0,
    )  # (short, long) side that an image is fitted to before scaling; (0, 0): its own
    augment.scale_range = (0.5, 2.0)
    augment.short_sides = ()  # instead: the lengths that the short side is drawn from, the long one at most base_size's
    augment.large_scale_jitter = False  # instead: detectron2's ResizeScale into crop_size × scale_range and its FixedSizeCrop
    augment.crop_size = (512, 512)  # (height, width) of a training crop
    augment.max_category_ratio = (
        0.75  # a crop with more than this share of one category (panoptic: of one segment) is
    )
    #                                 drawn again, 10 times at most
    augment.flip = 0.5  # probability of a horizontal flip
    augment.photometric = True  # brightness, contrast, saturation, hue
    augment.pad_value = (
        -1.0
    )  # the grey, 0..255, below and right of images smaller than a crop; -1: the mean colour

    config.model = model = ConfigDict()
    model.framework = 'upernet'  # a module of rankseg_jax/frameworks
    model.backbone = (
        'resnet50'  # upernet, deeplabv3: narrow, resnet{18,34,50,101}, resnet{50,101}_v1c;
    )
    #                                 segmenter: vit_{ti,s,b,l}{8,16,32}; mask2former, maskformer: swin_{t,s,b,l}{7,12} or a resnet
    model.pretrained = (
        ''  # weights to start from: a file, a run, a name on the Hugging Face hub, …, see
    )
    #                                 rankseg_jax/pretrained/__init__.py
    model.frozen_norm = False  # ResNets: batch norm keeps its statistics, scale and bias
    model.channels = 512  # of the decoder and the class embeddings
    model.dropout = (
        0.1  # before the pixel classifier; in the blocks of mask transformer and maskformer
    )
    model.output_stride = 8  # deeplabv3: of the dilated backbone; 8 or 16
    model.drop_path = 0.0  # ViT, Swin: of the backbone's last block, see backbones/vit.py
    model.remat = False  # Swin: compute blocks again in the backward pass, for less memory
    model.decoder = 'mask_transformer'  # segmenter: or linear
    model.decoder_layers = (
        2  # segmenter: blocks of the mask transformer; mask2former, maskformer: of the queries
    )
    model.decoder_heads = (
        12  # segmenter, maskformer: attention heads of these; mask2former: of both decoders
    )
    model.pixel_layers = 6  # mask2former: layers of deformable attention in the pixel decoder
    model.num_queries = 100  # mask2former, maskformer
    model.cosine = False  # mask2former, maskformer: class logits are cosines (as released with RankSeg), not products
    model.late_classes = (
        False  # segmenter: class embeddings join before the backbone's last block (OCE)
    )
    model.auxiliary_weight = 0.4  # of the auxiliary head's pixel loss; 0: no such head
    model.dtype = 'float32'  # of the computation, or 'bfloat16'; parameters and losses stay float32

    # None (in a config file) is the baseline: pixels are classified over all K.
    config.rankseg = rankseg = ConfigDict()
    rankseg.num_selected = 50  # κ
    rankseg.temperature = 'layer_norm'  # by rank: temperature (paper), layer_norm (released code), shared (one τ), none
    rankseg.score_prior = (
        True  # add log σ(class score) of a category to its pixel logits (ours, not in the paper)
    )
    rankseg.missed = (
        'force'  # categories present but not selected, in training: force them in, or ignore
    )
    #                                 their pixels (as released)
    rankseg.warmup_steps = 0  # steps that classify pixels over all K before selection starts
    rankseg.select = True  # False: only the multi-label loss is added to the baseline
    rankseg.oracle = False  # select by the ground truth: the upper bound, needs labels to predict
    rankseg.head = (
        'log_sum_exp'  # multi-label head: encoder (as released), decoder, global_pool, log_sum_exp;
    )
    #                                 segmenter also first_block (as released)
    rankseg.layer = 3  # mask2former, maskformer: the head sees queries after this layer; 0: the pixel decoder's map
    rankseg.stride = (
        32  # of the map that the head sees: 4, 8, 16, 32; linear segmenter: the patch size
    )
    rankseg.pool = (
        0  # encoder, decoder and first_block see that map pooled to pool × pool; 0: as it is
    )
    rankseg.hidden = 256  # width of the encoder and decoder heads
    rankseg.num_heads = 8  # attention heads of the encoder and decoder heads
    rankseg.mlp_dim = 1024  # width inside their MLPs
    rankseg.share_embedding = (
        False  # encoder and decoder heads use the pixel classifier's class embeddings
    )

    config.loss = loss = ConfigDict()
    loss.upsample = (
        True  # pixel loss at the labels' size; False: at stride 4, labels subsampled (faster)
    )
    loss.average_all = (
        False  # divide the pixel loss by all pixels (as released), not by those that count
    )
    loss.class_weight = (
        2.0  # per-query frameworks: of the classes, of the masks' pixels and of their dice loss
    )
    loss.mask_weight = 5.0
    loss.dice_weight = 5.0
    loss.no_object = 0.1  # weight of queries without a target among the classes
    loss.num_points = 12_544  # where masks are compared
    loss.multilabel = 'asymmetric'  # or bce
    loss.multilabel_weight = 10.0
    loss.gamma_neg = 2.0
    loss.gamma_pos = 0.0
    loss.clip = 0.05

    config.optimizer = optimizer = ConfigDict()
    optimizer.name = 'adamw'  # or sgd
    optimizer.learning_rate = 1e-3
    optimizer.momentum = 0.9  # sgd
    optimizer.b2 = 0.999  # adamw
    optimizer.weight_decay = 0.01
    optimizer.schedule = 'cosine'  # or poly, step
    optimizer.power = 0.9  # poly
    optimizer.milestones = ()  # step: the steps from which on the learning rate is a tenth of what it was
    optimizer.end_factor = 0.0  # poly, cosine: the last learning rate as a share of the first
    optimizer.warmup_steps = 0  # linear, from 0
    optimizer.clip_norm = 0.0  # of the global gradient; 0: off
    optimizer.groups = (
        ('(bias|scale|log_tau)$', 1.0, 0.0),
    )  # (pattern, × learning rate, × decay): a parameter
    #                                 takes the first pattern found in its path, such as backbone/stage1/conv1/kernel
    config.ema = 0.0  # decay of averaged parameters, used for evaluation; 0: off

    config.eval = evaluation = ConfigDict()
    evaluation.size = (
        512,
        512,
    )  # (height, width) an image is fitted into, its ratio kept, and padded to
    evaluation.base_size = (
        0,
        0,
    )  # instead: (short, long) side it is fitted to; (0, 0): `size` holds. Without windows,
    #                                 images are padded to the largest of their batch
    evaluation.window = (
        0,
        0,
    )  # (height, width) of sliding windows; (0, 0): the whole image at once
    evaluation.stride = (0, 0)  # from one window to the next; the window's size: without overlap
    evaluation.scales = (1.0,)  # probabilities are averaged over these multiples of the size, …
    evaluation.flip = False  # … and over the mirrored image
    evaluation.threshold = 0.8  # panoptic: the least class probability of a segment
    evaluation.overlap = 0.8  # panoptic: the least share of its mask that a segment keeps
    evaluation.batch_size = 16
    evaluation.recall_at = ()  # further values of κ for recall@κ and precision@κ
    evaluation.checkpoint = (
        'last'  # what every mode but train loads: 'last', 'best' (by mIoU) or '1200'
    )

    config.log_every = 50  # steps; likewise below
    config.eval_every = 4_000
    config.checkpoint_every = 1_000
    config.keep_checkpoints = 2  # newest ones, besides the best
    config.num_pictures = 8  # predicted and drawn at the end of training

    return config.lock()


def check(config):
    """Refuses keys that `get_config` does not have and values of other types.

    Raises:
      ValueError: it names the key and the nearest valid one, or the type expected.
    """

    def compare(given, known, prefix):
        for key, value in given.items():
            if key not in known:
                near = difflib.get_close_matches(key, known.keys(), 1, 0)
                raise ValueError(
                    f'{prefix}.{key} is not a key of configs/common.py; did you mean {prefix}.{near[0]}?'
                )
            default = known[key]
            kind = (int, float) if isinstance(default, float) else type(default)
            if isinstance(default, ConfigDict) and isinstance(value, ConfigDict):
                compare(value, default, f'{prefix}.{key}')
            elif not isinstance(value, kind) and (prefix, key, value) != (
                'config',
                'rankseg',
                None,
            ):
                raise ValueError(
                    f'{prefix}.{key} = {value!r} must be of type {type(default).__name__}, like {default!r}'
                )
            elif default and isinstance(default, tuple) and key not in ('groups', 'scales'):
                whole = all(isinstance(x, int) for x in default)
                if [isinstance(x, int if whole else (int, float)) for x in value] != [True] * len(
                    default
                ):
                    kind = 'whole numbers' if whole else 'numbers'
                    raise ValueError(
                        f'{prefix}.{key} = {value!r} must hold {len(default)} {kind}, like {default!r}'
                    )

    compare(config, get_config(), 'config')
    low, high = config.augment.scale_range
    if not 0 < low <= high:
        raise ValueError(f'config.augment.scale_range = {(low, high)} must rise from above 0')
    if min(config.data.std) <= 0:
        raise ValueError(f'config.data.std = {config.data.std} must be above 0')
    for key, size in (
        ('augment.crop_size', config.augment.crop_size),
        ('eval.size', config.eval.size),
    ):
        if min(size) < 1:
            raise ValueError(f'config.{key} = {size} must be at least 1 × 1')
    for key, size in (
        ('augment.base_size', config.augment.base_size),
        ('eval.base_size', config.eval.base_size),
    ):
        if any(size) and min(size) < 1:
            raise ValueError(
                f'config.{key} = {size} must be (0, 0), or a short and a long side of at least 1'
            )
    scales, window, stride = config.eval.scales, config.eval.window, config.eval.stride
    if not scales or not all(
        isinstance(scale, (int, float)) and 0 < scale < math.inf for scale in scales
    ):
        raise ValueError(
            f'config.eval.scales = {scales} must hold at least one number, all above 0'
        )
    if not all(isinstance(k, int) and k > 0 for k in config.eval.recall_at):
        raise ValueError(
            f'config.eval.recall_at = {config.eval.recall_at} must hold whole numbers above 0'
        )
    short_sides = config.augment.short_sides
    if not all(isinstance(side, int) and side > 0 for side in short_sides):
        raise ValueError(
            f'config.augment.short_sides = {short_sides} must hold whole numbers above 0'
        )
    if short_sides and not any(config.augment.base_size):
        raise ValueError(
            f'config.augment.short_sides = {short_sides} needs a longest side: set config.augment.base_size'
        )
    if short_sides and config.augment.large_scale_jitter:
        raise ValueError(
            f'config.augment.short_sides = {short_sides} must be () with config.augment.large_scale_jitter, which '
            'draws from config.augment.scale_range'
        )
    if config.augment.pad_value != -1 and not 0 <= config.augment.pad_value <= 255:
        raise ValueError(
            f'config.augment.pad_value = {config.augment.pad_value} must be in 0..255, or -1 for the mean colour'
        )
    if any(window) and min(window) < 1:
        raise ValueError(
            f'config.eval.window = {window} must be (0, 0), or a height and a width above 0'
        )
    if any(window + stride) and not all(
        1 <= step <= side for step, side in zip(stride, window, strict=True)
    ):
        raise ValueError(
            f'config.eval.stride = {stride} must be at least 1 and at most config.eval.window = {window}; set it to '
            'the window to have no overlap'
        )
    if config.model.frozen_norm:
        for name in ('backbone/stem/norm/scale', 'backbone/stem/norm/bias'):
            factor = next(
                (
                    decay
                    for pattern, _, decay in config.optimizer.groups
                    if re.search(pattern, name)
                ),
                1.0,
            )
            if factor * config.optimizer.weight_decay:
                raise ValueError(
                    f'config.model.frozen_norm needs a group in config.optimizer.groups that sets the decay of {name} '
                    'to 0, or config.optimizer.weight_decay = 0'
                )
    if config.task not in ('semantic', 'panoptic'):
        raise ValueError(f"config.task = {config.task!r} is unknown; use 'semantic' or 'panoptic'")
    for key, value in (
        ('data.max_targets', config.data.max_targets),
        ('loss.num_points', config.loss.num_points),
        ('model.num_queries', config.model.num_queries),
        ('model.decoder_heads', config.model.decoder_heads),
    ):
        if value < 1:
            raise ValueError(f'config.{key} = {value} must be at least 1')
    for key in ('threshold', 'overlap'):
        if not 0 <= config.eval[key] <= 1:
            raise ValueError(f'config.eval.{key} = {config.eval[key]} must be in 0..1')
    if config.data.num_workers < 0:
        raise ValueError(f'config.data.num_workers = {config.data.num_workers} must be at least 0')
