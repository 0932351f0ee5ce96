"""Writes public weights as a run at step 0.

Every other mode reads such a run, and a later run can start from it (`config.model.pretrained`).
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from flax import linen as nn
from ml_collections import ConfigDict

from rankseg_jax import (
    backbones,
    checkpoint,
    config_check,
    from_data,
    models,
    pretrained,
    storage,
    tasks,
)
from rankseg_jax.backbones.beit import BEiT
from rankseg_jax.backbones.resnet import ResNet
from rankseg_jax.backbones.swin import Swin
from rankseg_jax.backbones.vit import ViT
from rankseg_jax.frameworks.eomt import EncoderOnly, EoMT
from rankseg_jax.frameworks.mask2former import Mask2Former
from rankseg_jax.frameworks.upernet import UPerNet
from rankseg_jax.frameworks.videomt import VidEoMT
from rankseg_jax.pretrained import hf, hub, processor
from rankseg_jax.published_task import published_task, semantic_task, video_task

# Fields of backbones that their names leave open.
OPTIONS = {
    Swin: ('drop_path',),
    BEiT: ('drop_path', 'feature_blocks', 'image_size', 'epsilon', 'layer_scale'),
    ViT: ('drop_path', 'image_size', 'epsilon', 'layer_scale', 'rescale'),
}
# Keys of `config.eval` for the defaults of Hugging Face's post-processing.
DEFAULTS = {
    'panoptic': {'threshold': 0.5, 'overlap': 0.8},
    'instance': {'threshold': 0.5},
    'semantic': {},
}
EOMT_DEFAULTS = {
    'panoptic': {'threshold': 0.8, 'overlap': 0.8},
    'instance': {'threshold': 0.8},
    'semantic': {},
}
# A frame's label map is of its own classes, added up at the masks' size; tracks need an average.
VIDEO_DEFAULTS = {
    'video_semantic': {'average_over': 'frame', 'mask_size': (-1, -1)},
    'video_instance': {'threshold': 0.5, 'max_objects': 10},
}


def run(
    source: str | Path,
    workdir: str | os.PathLike,
    config: ConfigDict,
    *,
    as_is: bool,
    task: str | None = None,
    things: Sequence[str] | None = None,
) -> Path:
    """--mode=convert: writes a run at step 0.

    Args:
      source: as `config.model.pretrained`.
      workdir: of the new run.
      config: of the new run. Its `model.pretrained` is added to weights that are differences.
      as_is: True takes the model from `source`, a Hugging Face folder or a name on the hub, and
        changes `config` to describe it; what --mode=publish wrote becomes the run that it was.
        False takes the model from `config`, and weights from `source` replace its initial ones.
      task: of a model as it is, see `published_task` and `video_task`.
      things: likewise.

    Returns:
      The folder of the new checkpoint.

    Raises:
      ValueError: `workdir` already holds checkpoints, the weights do not fit, or no config can
        describe the model, its task or its things.
      FileNotFoundError, ImportError, OSError: as `pretrained.read_variables`, the data set of
        `config` does not exist, or `workdir` cannot be written.
    """
    folder = storage.path(workdir) / 'checkpoints'
    if folder.is_dir() and any(path.name.isdigit() for path in folder.iterdir()):
        raise ValueError(f'--workdir={workdir} holds checkpoints already; choose a new folder')
    storage.make_folder(workdir, '--workdir')
    if as_is and (published := hub.read_run(pretrained.locate(source))):
        if task or things:
            raise ValueError(f'--input={source} says its task itself: leave --task, --things out')
        config, variables = published_run(source, published, config)
        class_names, is_thing = published['class_names'], published['things']
    elif as_is:
        class_names, is_thing, variables = published_model(source, config, task=task, things=things)
    else:
        config, class_names, is_thing, variables = configured_model(source, config)
    run = {
        'config': config.to_dict(),
        'class_names': list(class_names),
        'things': list(is_thing or ()),
        'next_step': 0,
        'score': None,
    }
    with checkpoint.open_checkpoints(workdir, keep=1) as manager:
        checkpoint.save(manager, 0, model=variables, optimizer=None, run=run)
    return folder / '0'


def configured_model(
    source: str | Path, config: ConfigDict
) -> tuple[ConfigDict, tuple[str, ...], tuple[bool, ...], dict]:
    """The model of `config` with weights from `source`.

    Returns:
      The config with what it leaves to the data, class names, things or None, and variables.
    """
    data_source = tasks.open_source(config, config.data.train_split)
    if not from_data.is_complete(config):
        config = from_data.complete(config, data_source.check())
    task = tasks.from_source(config, data_source)
    model = models.build(config, task.num_classes)
    variables = jax.jit(
        lambda: models.init(
            model, task.num_classes, seed=config.seed, image_shape=config.augment.crop_size
        )
    )()
    variables |= {'ema': variables['params']} if config.ema else {}
    loaded = pretrained.load(
        source,
        jax.device_get(variables),
        base=config.model.pretrained,
        class_names=task.class_names,
    )
    return config, task.class_names, task.things, loaded


def published_run(
    source: str | Path, run: dict[str, Any], defaults: ConfigDict
) -> tuple[ConfigDict, dict]:
    """The config and the variables of a run that --mode=publish wrote.

    Args:
      defaults: see `config_check.check`.
      run: as `hub.read_run` returns it.

    Raises:
      ValueError: the weights are not those of the run, or this version has no such model.
    """
    names = run['class_names']
    try:
        config = checkpoint.current_config(run['config'])
        config_check.check(ConfigDict(with_tuples(config.to_dict())), defaults)
        model = models.build(config, len(names))
        expected = jax.eval_shape(
            lambda: models.init(
                model, len(names), seed=config.seed, image_shape=config.augment.crop_size
            )
        )
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f'--input={source} describes no run of this version: {error}') from error
    variables = {'batch_stats': {}} | pretrained.read_variables(source)
    checkpoint.check_same(
        variables,
        expected,
        where=f'--input={source}',
        advice=f'Its files describe a run of {len(names)} categories, but hold other weights.',
    )
    return config, variables | ({'ema': variables['params']} if config.ema else {})


def with_tuples(value: Any) -> Any:
    """Plain data in which lists, all that JSON knows, are tuples."""
    if isinstance(value, dict):
        return {key: with_tuples(x) for key, x in value.items()}
    return tuple(map(with_tuples, value)) if isinstance(value, list) else value


def published_model(
    source: str | Path, config: ConfigDict, task: str | None, things: Sequence[str] | None
) -> tuple[list[str], list[bool], dict]:
    """The model in `source`; changes `config` to describe it, and prints what was assumed.

    Returns:
      Class names, things (empty for a task without), and variables.

    Raises:
      ValueError: `source` has no config.json, or no config can describe its model or task.
    """
    folder = pretrained.locate(source)
    if folder.exists() and not (folder / 'config.json').is_file():
        raise ValueError(
            f'--input={source} does not say which model its weights belong to: give a --config'
        )
    model, variables = pretrained.load_hf(folder)
    class_names = describe(folder, model, config)
    if isinstance(model, UPerNet):
        found = semantic_task('this model classifies pixels', task, things)
    elif isinstance(model, VidEoMT):
        found = video_task(source, task, things)
    elif any(config.eval.window):
        found = semantic_task('images are split into windows', task, things)
    else:
        found = published_task(source, class_names, task=task, things=things)
    config.task, is_thing, reason = found
    defaults = EOMT_DEFAULTS if isinstance(model, EoMT) else DEFAULTS
    config.eval.update((defaults | VIDEO_DEFAULTS)[config.task])
    if config.task == 'instance':
        config.eval.max_objects = config.model.num_queries
    if 'instance' in config.task:
        config.augment.max_category_ratio = 1.0  # objects may overlap
    print(f'Task: {config.task}, {reason}. To change it: --task, --things')
    built = models.build(config, len(class_names))
    expected = jax.eval_shape(
        lambda: models.init(
            built, len(class_names), seed=config.seed, image_shape=config.augment.crop_size
        )
    )
    variables = {'batch_stats': {}} | variables
    checkpoint.check_same(
        variables,
        expected,
        where=f'--input={source}',
        advice='No config describes this model; load it in Python with load_hf.',
    )
    return class_names, is_thing, variables


def describe(folder: Path, model: nn.Module, config: ConfigDict) -> list[str]:
    """Sets the keys of `config` that describe a Hugging Face model and its input.

    Returns:
      Its class names.

    Raises:
      ValueError: its class names are incomplete, or no config can describe its backbone or input.
    """
    theirs = hf.read_json(folder / 'config.json')
    config.rankseg = None
    if isinstance(model, UPerNet):
        num_classes = model.num_classes
        weight = theirs['auxiliary_loss_weight'] if model.auxiliary else 0.0
        config.model.update(
            framework='upernet', channels=model.channels, auxiliary_weight=float(weight)
        )
    elif isinstance(model, EncoderOnly):
        num_classes = model.num_classes
        config.model.update(
            framework='eomt' if isinstance(model, EoMT) else 'videomt',
            joint_blocks=model.num_joint,
            num_queries=model.num_queries,
            cosine=False,
        )
    else:
        decoder, num_classes = model.decoder, model.decoder.num_classes
        config.model.update(
            framework=theirs['model_type'],
            channels=decoder.channels,
            decoder_layers=decoder.num_layers,
            decoder_heads=decoder.num_heads,
            num_queries=decoder.num_queries,
            cosine=False,
        )
        if isinstance(model, Mask2Former):
            config.model.pixel_layers = model.pixel_decoder.num_layers
        else:
            config.model.update(dropout=decoder.dropout, encoder_layers=0)
    describe_backbone(model.backbone, config)
    data = 'video_folder' if isinstance(model, VidEoMT) else 'folder'
    config.data.update(name=data, num_classes=num_classes)
    config.eval.batch_size = 1
    describe_input(folder, theirs['model_type'], config)
    names = theirs.get('id2label') or {str(i): f'LABEL_{i}' for i in range(num_classes)}
    if sorted(names, key=int) != [str(i) for i in range(num_classes)]:
        raise ValueError(
            f'{folder / "config.json"}: id2label must name the {num_classes} categories of the '
            f'weights, 0 to {num_classes - 1}; it names {len(names)}'
        )
    return [names[str(i)] for i in range(num_classes)]


def describe_backbone(backbone: nn.Module, config: ConfigDict) -> None:
    """Sets the keys of `config` that describe a Hugging Face backbone."""
    config.model.backbone = backbone_name(backbone)
    config.model.drop_path = 0.0 if isinstance(backbone, ResNet) else backbone.drop_path
    if isinstance(backbone, BEiT):
        config.model.feature_blocks = backbone.feature_blocks
    if isinstance(backbone, BEiT | ViT):
        config.model.norm_epsilon = backbone.epsilon
        config.augment.crop_size = backbone.image_size  # to which position biases and codes belong


def describe_input(folder: Path, model_type: str, config: ConfigDict) -> None:
    """Sets the keys of `config` for the image or video processor of a Hugging Face model."""
    path = folder / processor.VIDEO_FILE
    if not path.is_file():
        path = folder / processor.FILE
    if path.is_file():
        options = hf.read_json(path)
    else:
        options = {}
        print(f"{path} is missing: images are resized and normalized by Hugging Face's defaults")
    try:
        found = processor.input_keys(options, model_type)
    except (AttributeError, TypeError) as error:
        raise ValueError(f'{path} is no image processor: {error}') from error
    for section, keys in found.items():
        config[section].update(keys)


def backbone_name(backbone: nn.Module) -> str:
    """The name of a backbone among the variants of `backbones`.

    Raises:
      ValueError: no variant has its sizes.
    """
    for name, variant in backbones.variants().items():
        known = variant()
        if type(known) is type(backbone):
            fields = {field: getattr(known, field) for field in OPTIONS.get(type(known), ())}
            if backbone.clone(**fields) == known:
                return name
    raise ValueError(
        f'config.json: no config.model.backbone has the sizes of this {type(backbone).__name__}; '
        f'use one of the published sizes, or load the model in Python with load_hf:\n{backbone}'
    )
