"""Public weights as a run at step 0, which every other mode reads and a later run can start from (`config.model.pretrained`)."""

from pathlib import Path

import jax

from rankseg_jax import backbones, checkpoint, data, models, pretrained
from rankseg_jax.backbones.swin import Swin
from rankseg_jax.frameworks.mask2former import Mask2Former
from rankseg_jax.pretrained import hf

# What the preprocessor of a checkpoint may say only this way, its values by key.
FIXED = {'do_resize': True, 'do_rescale': True, 'do_normalize': True, 'rescale_factor': 1 / 255}

ADE20K_STUFF = (
    0,
    1,
    2,
    3,
    4,
    5,
    6,
    9,
    11,
    13,
    16,
    17,
    21,
    25,
    26,
    28,
    29,
    34,
    40,
    46,
    48,
    51,
    52,
    54,
    59,
    60,
    61,
    63,
    68,
    77,
    79,
    84,
    91,
    94,
    96,
    99,
    100,
    101,
    105,
    106,
    109,
    113,
    114,
    117,
    122,
    128,
    131,
    140,
    141,
    145,
)


def run(source, workdir, config, *, as_is: bool) -> Path:
    """Writes a run, whose newest checkpoint is the folder that is returned.

    Args:
      source: as `config.model.pretrained`.
      workdir: of the new run.
      config: of the new run, whose fresh variables get those of `source` in their place.
      as_is: instead, the model is the one that `source` is, a folder of Hugging Face or a name on the hub, and `config` is changed
        to describe it.

    Raises:
      ValueError: `workdir` holds checkpoints, or the weights do not fit, or no config describes the model.
      FileNotFoundError, ImportError, OSError: as `pretrained.read_variables`, or the data set of `config` is not there.
    """
    folder = Path(workdir) / 'checkpoints'
    if folder.exists():
        raise ValueError(f'--workdir={workdir} holds checkpoints already; choose a new folder')
    class_names, variables = (whole_model if as_is else fill)(source, config)
    with checkpoint.open_checkpoints(workdir, keep=1) as manager:
        checkpoint.save(
            manager,
            0,
            variables,
            None,
            {
                'config': config.to_dict(),
                'class_names': list(class_names),
                'next_step': 0,
                'mIoU': None,
                'things': published_things(source, len(class_names)) if as_is else None,
            },
        )
    return folder / '0'


def fill(source, config):
    """(names of the categories of the data set, fresh variables of the model of `config` with those of `source` in place)."""
    class_names = data.get_source(config.data, config.data.train_split).class_names
    model = models.build(config, len(class_names))
    variables = jax.jit(
        lambda: models.init(model, len(class_names), config.seed, config.augment.crop_size)
    )()
    variables |= {'ema': variables['params']} if config.ema else {}
    return class_names, pretrained.load(source, jax.device_get(variables))


def whole_model(source, config):
    """(names of the categories, variables) of a model of Hugging Face, which `config` is changed to describe."""
    folder = hf.locate(source)
    if folder.exists() and not (folder / 'config.json').is_file():
        raise ValueError(
            f'--input={source} does not say what model it is of: give the --config of one'
        )
    model, variables = pretrained.load_hf(folder)
    class_names = describe(source, folder, model, config)
    built = models.build(config, len(class_names))
    expected = jax.eval_shape(
        lambda: models.init(built, len(class_names), config.seed, config.augment.crop_size)
    )
    variables = {'batch_stats': {}} | variables
    checkpoint.check_same(
        variables,
        expected,
        f'--input={source}',
        'No config describes it: use it in Python, by load_hf.',
    )
    return class_names, variables


def describe(source, folder: Path, model, config) -> list[str]:
    """Sets the keys of `config` that tell a model of Hugging Face and its input; returns the names of its categories."""
    theirs = hf.read_json(folder / 'config.json')
    decoder, num_classes = model.decoder, model.decoder.num_classes
    own = (
        {'pixel_layers': model.pixel_decoder.num_layers}
        if isinstance(model, Mask2Former)
        else {'dropout': decoder.dropout}
    )
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
        **own,
    )
    config.task = 'panoptic' if published_things(source, num_classes) else 'semantic'
    config.data.update(name='folder', num_classes=num_classes)
    config.eval.batch_size = 1
    if (folder / 'preprocessor_config.json').is_file():
        describe_input(hf.read_json(folder / 'preprocessor_config.json'), config)
    names = theirs.get('id2label') or {str(i): f'LABEL_{i}' for i in range(num_classes)}
    if sorted(names, key=int) != [str(i) for i in range(num_classes)]:
        raise ValueError(
            f'{folder / "config.json"}: id2label must name the {num_classes} categories of the weights, '
            f'0 to {num_classes - 1}; it names {len(names)}'
        )
    return [names[str(i)] for i in range(num_classes)]


def published_things(source, num_classes: int) -> list[bool] | None:
    """Which categories are things, of a panoptic or instance checkpoint, which its name tells; None: neither, or not known."""
    name = Path(source).name.lower()
    if 'instance' in name:
        return [True] * num_classes
    stuff = (
        {133: range(80, 133), 150: ADE20K_STUFF}.get(num_classes) if 'panoptic' in name else None
    )  # COCO and ADE20K
    return stuff and [i not in stuff for i in range(num_classes)]


def describe_input(processor, config):
    """Sets the keys of `config` for what `preprocessor_config.json` does to an image."""
    hf.check_fixed(processor, FIXED, 'preprocessor_config.json')
    for key in ('mean', 'std'):
        config.data[key] = tuple(255 * float(value) for value in processor[f'image_{key}'])
    config.data.antialias = True  # theirs resize with Pillow
    size = processor['size']
    size = {'shortest_edge': size} if isinstance(size, int) else size
    if 'shortest_edge' in size:  # `max_size`: as older versions wrote it
        config.eval.base_size = (
            size['shortest_edge'],
            size.get('longest_edge') or processor['max_size'],
        )
    else:
        config.eval.size = (size['height'], size['width'])


def backbone_name(backbone) -> str:
    """The name among the variants of `backbones` that a Swin or ResNet has."""
    plain = backbone.clone(drop_path=0.0) if isinstance(backbone, Swin) else backbone
    for name, variant in backbones.variants().items():
        if variant() == plain:
            return name
    raise ValueError(
        f'config.json: no config.model.backbone has the sizes of this {type(backbone).__name__}; use one of the '
        f'published sizes, or the model in Python, by load_hf:\n{backbone}'
    )
