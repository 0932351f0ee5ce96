"""Writes public weights as a run at step 0.

Every other mode reads such a run, and a later run can start from it (`config.model.pretrained`).
"""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path

import jax

from rankseg_jax import backbones, checkpoint, models, pretrained, storage, tasks
from rankseg_jax.backbones.beit import BEiT
from rankseg_jax.backbones.resnet import ResNet
from rankseg_jax.backbones.swin import Swin
from rankseg_jax.backbones.vit import ViT
from rankseg_jax.data.published.label_maps import read_classes
from rankseg_jax.frameworks.eomt import EncoderOnly, EoMT
from rankseg_jax.frameworks.mask2former import Mask2Former
from rankseg_jax.frameworks.upernet import UPerNet
from rankseg_jax.frameworks.videomt import VidEoMT
from rankseg_jax.pretrained import hf, processor

# Data sets whose names tell things: title → files of classes; the first says which are things.
KNOWN = {
    'COCO': ('coco_panoptic',),
    'ADE20K': ('ade20k_panoptic', 'ade20k'),
    'Cityscapes': ('cityscapes',),
    'Mapillary Vistas': ('mapillary_vistas',),
}
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
# Names of published models that state the task.
PUBLISHED = re.compile(
    r'mask2?former-.*-(semantic|instance|panoptic)|.*_(semantic|instance|panoptic)_eomt_.*'
)


def run(
    source,
    workdir,
    config,
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
        changes `config` to describe it. False takes the model from `config`, and weights from
        `source` replace its initial ones.
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
    folder = Path(workdir) / 'checkpoints'
    if folder.is_dir() and any(path.name.isdigit() for path in folder.iterdir()):
        raise ValueError(f'--workdir={workdir} holds checkpoints already; choose a new folder')
    storage.make_folder(workdir, '--workdir')
    if as_is:
        class_names, is_thing, variables = published_model(source, config, task, things)
    else:
        class_names, is_thing, variables = configured_model(source, config)
    run = {
        'config': config.to_dict(),
        'class_names': list(class_names),
        'things': list(is_thing or ()),
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
    data_source = tasks.open_source(config, config.data.train_split)
    task = tasks.from_source(config, data_source)
    pretrained.check_order(source, task.class_names)
    model = models.build(config, task.num_classes)
    variables = jax.jit(
        lambda: models.init(model, task.num_classes, config.seed, config.augment.crop_size)
    )()
    variables |= {'ema': variables['params']} if config.ema else {}
    loaded = pretrained.load(source, jax.device_get(variables), config.model.pretrained)
    return task.class_names, task.things, loaded


def published_model(source, config, task: str | None, things: Sequence[str] | None):
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
        found = published_task(source, class_names, task, things)
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
        lambda: models.init(built, len(class_names), config.seed, config.augment.crop_size)
    )
    variables = {'batch_stats': {}} | variables
    checkpoint.check_same(
        variables,
        expected,
        where=f'--input={source}',
        advice='No config describes this model; load it in Python with load_hf.',
    )
    return class_names, is_thing, variables


def describe(folder: Path, model, config) -> list[str]:
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
            config.model.dropout = decoder.dropout
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


def describe_backbone(backbone, config) -> None:
    """Sets the keys of `config` that describe a Hugging Face backbone."""
    config.model.backbone = backbone_name(backbone)
    config.model.drop_path = 0.0 if isinstance(backbone, ResNet) else backbone.drop_path
    if isinstance(backbone, BEiT):
        config.model.feature_blocks = backbone.feature_blocks
    if isinstance(backbone, BEiT | ViT):
        config.model.norm_epsilon = backbone.epsilon
        config.augment.crop_size = backbone.image_size  # to which position biases and codes belong


def describe_input(folder: Path, model_type: str, config) -> None:
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
    except TypeError as error:
        raise ValueError(f'{path} is no image processor: {error}') from error
    for section, keys in found.items():
        config[section].update(keys)


def semantic_task(
    why: str, task: str | None, things: Sequence[str] | None
) -> tuple[str, list[bool], str]:
    """As `published_task`, of a model that has one task, and `why`."""
    if task not in (None, 'semantic') or things:
        raise ValueError(f'{why}, which is --task=semantic, without --things')
    return 'semantic', [], f'since {why}'


def video_task(
    source, task: str | None, things: Sequence[str] | None
) -> tuple[str, list[bool], str]:
    """As `published_task`, of a model that sees videos."""
    if task not in (None, *VIDEO_DEFAULTS) or things:
        raise ValueError(
            f'this model sees videos, which is --task={" or --task=".join(VIDEO_DEFAULTS)}, '
            'without --things'
        )
    if task:
        return task, [], 'as --task says'
    if re.search('ytvis|yt_20|ovis', Path(source).name.lower()):
        return 'video_instance', [], 'as its name says'
    return 'video_semantic', [], 'since its name tells of no data set with tracks'


def published_task(
    source, class_names: Sequence[str], task: str | None, things: Sequence[str] | None
) -> tuple[str, list[bool], str]:
    """The task of a checkpoint, which its files do not state.

    Without `task` and `things` it is told from the names of the categories; those of some data sets
    serve several tasks, so that a published name, such as
    mask2former-swin-large-cityscapes-panoptic or ade20k_semantic_eomt_large_512, decides.

    Args:
      source: name or folder of the checkpoint.
      task: 'semantic', 'panoptic' or 'instance'; None: see above.
      things: of a panoptic task, see `parse_things`; None: as in the data set whose categories
        have these names.

    Returns:
      The task, K bools for one that has things, and the reason in words.

    Raises:
      ValueError: there is no such task, or not of public weights; or it is not known which
        categories are things.
    """
    all_things = [True] * len(class_names)
    if task is not None:
        tasks.task_class(task)
    if task not in (None, *DEFAULTS):
        raise ValueError(
            f'--task={task}: public weights are read for one of {", ".join(DEFAULTS)}; a run of '
            'another task can start from them, with --config'
        )
    if things and task in ('semantic', 'instance'):
        has = 'none' if task == 'semantic' else 'nothing else'
        raise ValueError(f'--things belongs to --task=panoptic; --task={task} has {has}')
    if task == 'semantic':
        return 'semantic', [], 'as --task says'
    if task == 'instance':
        return 'instance', all_things, 'as --task says'
    if things:
        chosen = parse_things(things, class_names)
        kind = task or ('instance' if all(chosen) else 'panoptic')
        return kind, chosen, f'{count(chosen)}, as --things says'
    known = known_things(class_names)
    if task:
        if not known:
            raise ValueError(
                f'--task={task}: the {len(class_names)} categories ({", ".join(class_names[:3])} '
                '…) are of no data set whose things are known; give their names or numbers, such '
                'as --things=0-79,person or --things=all'
            )
        return task, known[1], f'{count(known[1])}, as in {known[0]}'

    published = PUBLISHED.fullmatch(Path(source).name.lower())
    kind = published and (published[1] or published[2])
    if kind == 'semantic':
        return 'semantic', [], 'as its name says'
    if not known:
        if kind == 'instance':
            return 'instance', all_things, 'as its name says'
        return 'semantic', [], 'since it is not known which categories are things'
    title, is_thing = known
    everything = read_classes(KNOWN[title][0])['isthing']
    if kind == 'panoptic' or kind == 'instance' and all(is_thing):
        return kind, is_thing, f'{count(is_thing)}, as in {title}, and as its name says'
    # Names that only one task has: those of COCO's panoptic task, and the things of a data set.
    if title == 'COCO' and len(is_thing) == len(everything):
        return 'panoptic', is_thing, f'{count(is_thing)}, as in {title}'
    if all(is_thing) and len(is_thing) == sum(everything):
        return 'instance', is_thing, f'{count(is_thing)}, as in {title}'
    return 'semantic', [], f'which is commoner than panoptic with the categories of {title}'


def count(is_thing: Sequence[bool]) -> str:
    return f'{sum(is_thing)} of {len(is_thing)} categories are things'


def known_things(class_names: Sequence[str]) -> tuple[str, list[bool]] | None:
    """The first data set of KNOWN that has all these names, and which of them are its things."""
    names = [plain(name) for name in class_names]
    for title, files in KNOWN.items():
        is_thing = read_classes(files[0])['isthing']
        table = {
            plain(name): bool(thing)
            for file in files
            for name, thing in zip(read_classes(file)['names'], is_thing, strict=True)
        }
        if table.keys() >= set(names):
            return title, [table[name] for name in names]
    return None


def plain(name: str) -> str:
    """The first of the synonyms in the name of a category, in lower case."""
    return re.split('[,;]', name)[0].strip().lower()


def parse_things(things: Sequence[str], class_names: Sequence[str]) -> list[bool]:
    """K bools from names of categories, their numbers such as '7' or '0-79', or 'all'.

    Raises:
      ValueError: there is no such category.
    """
    chosen = set()
    for entry in things:
        numbers = re.fullmatch(r'(\d+)(?:-(\d+))?', entry)
        if entry == 'all':
            found = range(len(class_names))
        elif numbers:
            found = range(int(numbers[1]), int(numbers[2] or numbers[1]) + 1)
        else:
            found = [i for i, name in enumerate(class_names) if name == entry]
        if not found or found[-1] >= len(class_names):
            near = difflib.get_close_matches(entry, class_names, 1, 0)[0]
            raise ValueError(
                f'--things: {entry!r} is no category; give names, such as {near!r}, numbers from '
                f"0 to {len(class_names) - 1}, such as '0-2', or 'all'"
            )
        chosen.update(found)
    return [i in chosen for i in range(len(class_names))]


def backbone_name(backbone) -> str:
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
