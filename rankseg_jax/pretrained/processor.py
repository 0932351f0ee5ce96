"""Hugging Face's image and video processors, as keys of our config: those for segmentation.

The rules and defaults are those of transformers 5.23; both its backends, Pillow and torchvision,
follow them.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from rankseg_jax.pretrained.hf import FRAMEWORKS, check_fixed

FILE = 'preprocessor_config.json'
VIDEO_FILE = 'video_preprocessor_config.json'
DEFAULTS: dict[str, Any] = {
    'do_resize': True,
    'size': {'shortest_edge': 800, 'longest_edge': 1333},
    'size_divisor': 32,
    'resample': 2,
    'do_rescale': True,
    'rescale_factor': 1 / 255,
    'do_normalize': True,
    'image_mean': (0.485, 0.456, 0.406),
    'image_std': (0.229, 0.224, 0.225),
}
# Of processors that stretch images to a size, one number of which stands for a square.
SQUARE: dict[str, dict[str, Any]] = {
    'segformer': DEFAULTS | {'size': 512, 'size_divisor': 1},
    'videomt': DEFAULTS | {'size': 640, 'size_divisor': 1},
    'beit': DEFAULTS
    | {'size': 224, 'size_divisor': 1, 'resample': 3, 'image_mean': 0.5, 'image_std': 0.5},
}
# Of EoMTs.
EOMT: dict[str, Any] = DEFAULTS | {
    'size': {'shortest_edge': 640, 'longest_edge': 640},
    'size_divisor': 1,
    'do_split_image': False,
    'do_pad': False,
}
# By `model_type`, the processors that a model may have, its own first; others: as it is called.
PROCESSORS = {
    'upernet': ('segformer', 'beit'),
    'beit': ('beit', 'segformer'),
    'eomt': ('eomt',),
    'eomt_dinov3': ('eomt',),
    'videomt': ('videomt',),
}
OTHERS = ('mask2former', 'maskformer')
LONGEST = 100  # long side of images that are split, in short ones; Hugging Face has no limit
# Padding to a size, or a part cut out, moves the masks of Hugging Face's post-processing away from
# the image.
FIXED = {'pad_size': None, 'do_center_crop': False}
FILTERS = ('nearest', 'lanczos', 'bilinear', 'bicubic', 'box', 'hamming')  # by Pillow's number


def input_keys(processor: Mapping[str, Any], model_type: str) -> dict[str, dict[str, Any]]:
    """The keys of `config.data` and `config.eval` that see and post-process images alike.

    Args:
      processor: content of `preprocessor_config.json`; missing keys have Hugging Face's defaults.
      model_type: of `config.json`, whose processor it is unless it says otherwise.

    Returns:
      {'data': keys, 'eval': keys}.

    Raises:
      ValueError: no keys can describe the processor.
    """
    given = {key: value for key, value in processor.items() if value is not None}
    check_fixed(given, FIXED, FILE)
    kind = processor_kind(given, model_type)
    options = (SQUARE | {'eomt': EOMT}).get(kind, DEFAULTS) | given
    if kind in SQUARE:
        options['size'] = square(options['size'])
    elif 'size' not in given and 'max_size' in given:
        options['size'] = DEFAULTS['size'] | {'longest_edge': given['max_size']}
    if options['resample'] not in range(len(FILTERS)):
        raise ValueError(
            f'{FILE}: resample = {options["resample"]!r} is no filter of Pillow, '
            f'0 to {len(FILTERS) - 1}'
        )
    # Processors of models that classify pixels post-process alike; what they get depends on the
    # model.
    mask_size = FRAMEWORKS[model_type if kind in SQUARE else kind].MASK_SIZE
    keys = eomt_size_keys(options) if kind == 'eomt' else size_keys(options)
    evaluation = keys | {'resample': FILTERS[options['resample']], 'mask_size': mask_size}
    # Both backends resize with a filter that grows as images shrink.
    return {'data': color_keys(options) | {'antialias': True}, 'eval': evaluation}


def processor_kind(processor: Mapping[str, Any], model_type: str) -> str:
    """Whose image processor this is: 'eomt', a key of SQUARE, or one of OTHERS."""
    keys = ('image_processor_type', 'video_processor_type', 'feature_extractor_type')
    key = next((key for key in keys if key in processor), None)
    if key is None:
        return PROCESSORS.get(model_type, (model_type,))[0]
    suitable = PROCESSORS.get(model_type, OTHERS)
    match = re.match(r'(\w+?)(ImageProcessor|VideoProcessor|FeatureExtractor)', processor[key])
    if not match or match[1].lower() not in suitable:
        raise ValueError(
            f'{FILE}: {key} = {processor[key]!r} is not supported, only those of '
            f'{" and ".join(suitable)}'
        )
    return match[1].lower()


def square(size: Any) -> dict[str, int]:
    """Height and width of `size`, of which one number stands for both.

    Raises:
      ValueError: it is given otherwise.
    """
    if isinstance(size, int):
        size = {'height': size, 'width': size}
    if not isinstance(size, Mapping) or not (size.get('height') and size.get('width')):
        raise ValueError(
            f'{FILE}: size = {size!r} is not supported, only a number, or height and width'
        )
    return {side: size[side] for side in ('height', 'width')}


def color_keys(options: Mapping[str, Any]) -> dict[str, Any]:
    """`data.mean` and `data.std` of values 0..255, for rescaled and normalized ones."""
    factor = options['rescale_factor'] if options['do_rescale'] else 1.0
    mean, std = options['image_mean'], options['image_std']
    if not options['do_normalize']:
        mean, std = 0.0, 1.0

    def colors(values):
        values = [values] * 3 if isinstance(values, (int, float)) else values
        if len(values) != 3 or not factor:
            raise ValueError(
                f'{FILE}: image_mean and image_std must be a number or three, and rescale_factor '
                f'above 0; got {values!r} and {factor!r}'
            )
        return tuple(float(value) / factor for value in values)

    return {'mean': colors(mean), 'std': colors(std)}


def size_keys(options: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of `config.eval` for the size that images are resized to."""
    if not options['do_resize']:
        return {'size': (0, 0), 'base_size': (0, 0), 'stretch': False, 'multiple': 1}
    size, multiple = options['size'], options['size_divisor'] or 1
    if isinstance(size, int):
        size = {'shortest_edge': size}
    elif isinstance(size, (list, tuple)) and len(size) == 2:
        size = dict(zip(('height', 'width'), size, strict=True))
    size = {k: v for k, v in size.items() if v} if isinstance(size, Mapping) else {}
    if 'shortest_edge' in size:
        # Earlier versions gave the longest edge apart.
        longest = size.get('longest_edge', options.get('max_size'))
        if not longest:
            raise ValueError(
                f'{FILE}: size = {options["size"]!r} lacks longest_edge, without which Hugging '
                'Face cannot resize either; add it, such as 1333'
            )
        edges = (size['shortest_edge'], longest)
        return {'base_size': edges, 'stretch': True, 'multiple': multiple}
    if not {'height', 'width'} <= size.keys():
        raise ValueError(
            f'{FILE}: size = {options["size"]!r} is not supported, only height and width, or '
            'shortest_edge and longest_edge'
        )
    fixed = tuple(-(-size[side] // multiple) * multiple for side in ('height', 'width'))
    return {'size': fixed, 'base_size': (0, 0), 'stretch': True, 'multiple': multiple}


def eomt_size_keys(options: Mapping[str, Any]) -> dict[str, Any]:
    """As `size_keys`, for images that are split into square windows or padded to a square.

    Raises:
      ValueError: as `size_keys`, or the squares are none.
    """
    split = options['do_split_image']
    if not (split or options['do_pad']):
        return size_keys(options)
    check_fixed(options, {'do_resize': True}, FILE)
    size = options['size']
    edges = {'shortest_edge': size} if isinstance(size, int) else size
    side = edges.get('shortest_edge')
    longest = edges.get('longest_edge')
    if not side or not split and longest not in (None, side):
        raise ValueError(
            f'{FILE}: size = {size!r} is not supported, only shortest_edge, and where images are '
            'not split longest_edge, the same number'
        )
    keys = {'size': (side, side), 'stretch': split}
    if not split:
        return keys | {'base_size': (0, 0), 'pad_value': 0.0}
    windows = {'window': (side, side), 'stride': (0, 0)}
    return keys | windows | {'base_size': (side, longest or LONGEST * side), 'multiple': 1}


def described(config: ConfigDict, model_type: str) -> tuple[dict[str, Any], list[str]]:
    """The content of preprocessor_config.json for a run: what comes nearest to its `config.eval`.

    Args:
      config: of the run.
      model_type: 'mask2former', 'eomt' or 'eomt_dinov3'.

    Returns:
      The content, and the keys of the config by which predictions still differ.
    """
    kind = PROCESSORS.get(model_type, OTHERS)[0]
    evaluation = config.eval
    options = {
        'image_processor_type': {'eomt': 'EomtImageProcessor'}.get(
            kind, 'Mask2FormerImageProcessor'
        ),
        'do_resize': True,
        'do_rescale': True,
        'rescale_factor': 1 / 255,
        'do_normalize': True,
        'image_mean': [x / 255 for x in config.data.mean],
        'image_std': [x / 255 for x in config.data.std],
        'resample': FILTERS.index(evaluation.resample or 'bilinear'),
    }
    size, base_size = tuple(evaluation.size), tuple(evaluation.base_size)
    split = any(evaluation.window)
    if kind == 'eomt' and (split or not evaluation.stretch):  # squares, as its model takes them
        side = config.augment.crop_size[0]
        longest = (base_size[1] or None) if split else side
        options |= {'do_split_image': split, 'do_pad': not split}
        options['size'] = {'shortest_edge': side, 'longest_edge': longest}
    elif any(base_size):
        options['size'] = {'shortest_edge': base_size[0], 'longest_edge': base_size[1]}
        options['size_divisor'] = evaluation.multiple
    elif not any(size):
        options['do_resize'] = False
    elif evaluation.stretch:
        options['size'] = {'height': size[0], 'width': size[1]}
        options['size_divisor'] = evaluation.multiple
    else:
        options['size'] = {'shortest_edge': min(size), 'longest_edge': max(size)}
        options['size_divisor'] = evaluation.multiple
    theirs = input_keys(options, model_type)
    theirs['eval'] = {'window': (0, 0), 'scales': (1.0,), 'flip': False} | theirs['eval']
    different = [
        f'{section}.{key}'
        for section, keys in theirs.items()
        for key, value in keys.items()
        if not same(config[section][key], value)
    ]
    return options, different


def same(a: Any, b: Any) -> bool:
    """Whether values of a key are equal, numbers up to rounding."""
    if isinstance(a, str | bool):
        return a == b
    return bool(np.allclose(a, b, rtol=1e-6))
