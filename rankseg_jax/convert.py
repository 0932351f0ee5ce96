"""Writes public weights as a run at step 0.

Every other mode reads such a run, and a later run can start from it (`config.model.pretrained`).
"""

from pathlib import Path

import jax

from rankseg_jax import backbones, checkpoint, data, models, pretrained, storage, tasks
from rankseg_jax.backbones.swin import Swin
from rankseg_jax.data.published.label_maps import read_classes
from rankseg_jax.frameworks.mask2former import Mask2Former
from rankseg_jax.pretrained import hf

# Keys of a preprocessor's config with the only values that are supported.
FIXED = {'do_resize': True, 'do_rescale': True, 'do_normalize': True, 'rescale_factor': 1 / 255}


def run(source, workdir, config, *, as_is: bool) -> Path:
    """--mode=convert: writes a run at step 0.

    Args:
      source: as `config.model.pretrained`.
      workdir: of the new run.
      config: of the new run.
      as_is: True takes the model from `source`, a Hugging Face folder or a name on the hub, and
        changes `config` to describe it. False takes the model from `config`, and weights from
        `source` replace its initial ones.

    Returns:
      The folder of the new checkpoint.

    Raises:
      ValueError: `workdir` already holds checkpoints, the weights do not fit, or no config can
        describe the model.
      FileNotFoundError, ImportError, OSError: as `pretrained.read_variables`, the data set of
        `config` does not exist, or `workdir` cannot be written.
    """
    folder = Path(workdir) / 'checkpoints'
    if folder.is_dir() and any(path.name.isdigit() for path in folder.iterdir()):
        raise ValueError(f'--workdir={workdir} holds checkpoints already; choose a new folder')
    storage.make_folder(workdir, '--workdir')
    model = published_model if as_is else configured_model
    class_names, things, variables = model(source, config)
    run = {
        'config': config.to_dict(),
        'class_names': list(class_names),
        'things': list(things or ()),
        'next_step': 0,
        'score': None,
    }
    with checkpoint.open_checkpoints(workdir, keep=1) as manager:
        checkpoint.save(manager, 0, variables, None, run)
    return folder / '0'


def configured_model(source, config):
    """The model of `config` with weights from `source`.

    Returns:
      Class names, things or None, and variables.
    """
    data_source = data.get_source(config.data, config.data.train_split)
    task = tasks.from_source(config, data_source)
    model = models.build(config, task.num_classes)
    variables = jax.jit(
        lambda: models.init(model, task.num_classes, config.seed, config.augment.crop_size)
    )()
    variables |= {'ema': variables['params']} if config.ema else {}
    loaded = pretrained.load(source, jax.device_get(variables))
    return task.class_names, task.things, loaded


def published_model(source, config):
    """The model in `source`; changes `config` to describe it.

    Returns:
      Class names, things or None, and variables.

    Raises:
      ValueError: `source` has no config.json, or no config can describe its model.
    """
    folder = hf.locate(source)
    if folder.exists() and not (folder / 'config.json').is_file():
        raise ValueError(
            f'--input={source} does not say which model its weights belong to: give a --config'
        )
    model, variables = pretrained.load_hf(folder)
    things = published_things(source, model.decoder.num_classes)
    class_names = describe(folder, model, config)
    config.task = 'panoptic' if things else 'semantic'
    built = models.build(config, len(class_names))
    expected = jax.eval_shape(
        lambda: models.init(built, len(class_names), config.seed, config.augment.crop_size)
    )
    variables = {'batch_stats': {}} | variables
    checkpoint.check_same(
        variables,
        expected,
        where=f'--input={source}',
        advice='No config describes this model; load it in Python with load_hf.',
    )
    return class_names, things, variables


def describe(folder: Path, model, config) -> list[str]:
    """Sets the keys of `config` that describe a Hugging Face model and its input.

    Returns:
      Its class names.

    Raises:
      ValueError: its class names are incomplete, or no config can describe its backbone or input.
    """
    theirs = hf.read_json(folder / 'config.json')
    decoder, num_classes = model.decoder, model.decoder.num_classes
    config.rankseg = None
    config.model.update(
        framework=theirs['model_type'],
        backbone=backbone_name(model.backbone),
        channels=decoder.channels,
        decoder_layers=decoder.num_layers,
        decoder_heads=decoder.num_heads,
        num_queries=decoder.num_queries,
        cosine=False,
        drop_path=model.backbone.drop_path if isinstance(model.backbone, Swin) else 0.0,
    )
    if isinstance(model, Mask2Former):
        config.model.pixel_layers = model.pixel_decoder.num_layers
    else:
        config.model.dropout = decoder.dropout
    config.data.update(name='folder', num_classes=num_classes)
    config.eval.batch_size = 1
    if (folder / 'preprocessor_config.json').is_file():
        describe_input(hf.read_json(folder / 'preprocessor_config.json'), config)
    names = theirs.get('id2label') or {str(i): f'LABEL_{i}' for i in range(num_classes)}
    if sorted(names, key=int) != [str(i) for i in range(num_classes)]:
        raise ValueError(
            f'{folder / "config.json"}: id2label must name the {num_classes} categories of the '
            f'weights, 0 to {num_classes - 1}; it names {len(names)}'
        )
    return [names[str(i)] for i in range(num_classes)]


def published_things(source, num_classes: int) -> list[bool] | None:
    """Which of the K categories are things, told from a checkpoint's name and K.

    Returns:
      K bools for a panoptic or instance checkpoint, None for any other.
    """
    name = Path(source).name.lower()
    if 'instance' in name:
        return [True] * num_classes
    data_set = {133: 'coco_panoptic', 150: 'ade20k_panoptic'}.get(num_classes)
    if data_set is None or 'panoptic' not in name:
        return None
    return [bool(thing) for thing in read_classes(data_set)['isthing']]


def describe_input(processor, config):
    """Sets the keys of `config` for the preprocessing in `preprocessor_config.json`."""
    hf.check_fixed(processor, FIXED, 'preprocessor_config.json')
    for key in ('mean', 'std'):
        config.data[key] = tuple(255 * float(value) for value in processor[f'image_{key}'])
    config.data.antialias = True  # Hugging Face resizes with Pillow
    size = processor['size']
    size = {'shortest_edge': size} if isinstance(size, int) else size
    if 'shortest_edge' in size:
        longest = size.get('longest_edge') or processor['max_size']  # older versions: `max_size`
        config.eval.base_size = (size['shortest_edge'], longest)
    else:
        config.eval.size = (size['height'], size['width'])


def backbone_name(backbone) -> str:
    """The name of a Swin or ResNet among the variants of `backbones`.

    Raises:
      ValueError: no variant has its sizes.
    """
    plain = backbone.clone(drop_path=0.0) if isinstance(backbone, Swin) else backbone
    for name, variant in backbones.variants().items():
        if variant() == plain:
            return name
    raise ValueError(
        f'config.json: no config.model.backbone has the sizes of this {type(backbone).__name__}; '
        f'use one of the published sizes, or load the model in Python with load_hf:\n{backbone}'
    )
