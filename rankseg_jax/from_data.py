"""What a config leaves to the training images: κ and the sizes of images."""

import math
import os

import numpy as np
from ml_collections import ConfigDict

from rankseg_jax import checkpoint, tasks
from rankseg_jax.data.report import Report

MULTIPLE = 32  # the coarsest stride of backbones


def is_complete(config: ConfigDict) -> bool:
    """Whether the config leaves nothing to the data."""
    return not config.data.long_side and not (config.rankseg and not config.rankseg.num_selected)


def complete(config: ConfigDict, report: Report) -> ConfigDict:
    """The config with what it leaves to the training images.

    κ (`rankseg.num_selected` = 0) becomes the 99th percentile of categories per image. With
    `data.long_side`, the usual shape of the images becomes `augment.base_size`,
    `augment.crop_size` and `eval.size`.

    Args:
      report: what `Source.check` of the training images returned.

    Raises:
      ValueError: the data set is one whose images are not counted, or κ is that of clips.
    """
    if is_complete(config):
        return config
    options = config.rankseg
    if options and not options.num_selected and tasks.task_class(config.task).takes_clips:
        raise ValueError(
            'config.rankseg.num_selected = 0 takes κ from the categories of images, and '
            f'config.task = {config.task!r} selects those of clips: set κ; --mode=analyze counts '
            'them'
        )
    if not len(report.categories):
        raise ValueError(
            'config.rankseg.num_selected = 0 and config.data.long_side need a data set of files '
            f'that are counted before training, which config.data.name = {config.data.name!r} is '
            'not: set κ, and the sizes instead of config.data.long_side'
        )
    config = config.copy_and_resolve_references()
    with config.unlocked():
        if config.rankseg and not config.rankseg.num_selected:
            config.rankseg.num_selected = math.ceil(np.percentile(report.categories, 99))
        if config.data.long_side:
            height, width = usual_shape(report.sizes, config.data.long_side)
            config.augment.base_size = (min(height, width), max(height, width))
            config.augment.crop_size = config.eval.size = (height, width)
            config.data.long_side = 0
    return config


def usual_shape(sizes: np.ndarray, long_side: int) -> tuple[int, int]:
    """(height, width) of the median ratio of images, in multiples of 32.

    Args:
      sizes: int64 [N, 2], their heights and widths.
      long_side: of the result.
    """
    ratio = np.median(sizes[:, 0] / sizes[:, 1])  # height / width
    shape = long_side * np.minimum((ratio, 1 / ratio), 1)
    height, width = np.maximum(np.round(shape / MULTIPLE), 1).astype(int) * MULTIPLE
    return int(height), int(width)


def as_trained(config: ConfigDict, workdir: str | os.PathLike) -> ConfigDict:
    """The config with what it leaves to the data as it was found when `workdir` was trained.

    It stays as it is if that has not begun.
    """
    if is_complete(config):
        return config
    try:
        trained = checkpoint.open_run(workdir).config
    except FileNotFoundError:
        return config
    config = config.copy_and_resolve_references()
    with config.unlocked():
        if config.rankseg and trained.rankseg and not config.rankseg.num_selected:
            config.rankseg.num_selected = trained.rankseg.num_selected
        if config.data.long_side:
            config.augment.base_size = trained.augment.base_size
            config.augment.crop_size = trained.augment.crop_size
            config.eval.size = trained.eval.size
            config.data.long_side = 0
    return config
