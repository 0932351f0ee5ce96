"""Data sets: each module here with a `get_source` is one, found by its name."""

import importlib
import re
from pathlib import Path

IGNORE_LABEL = -1  # in int32 labels, so that 255 stays a class like any other


class CorruptExample(ValueError):
    """One example cannot be read. The message names the file and the reason."""


def get_source(data_config, split):
    """Opens a split of the data set `data_config.name`.

    Returns a source: `class_names` (K names in label order), `ids` (N names that a human can
    find), `len()` and `load(index)` -> {'image': uint8 [H, W, 3], 'label': int32 [H, W] in
    0..K-1 or IGNORE_LABEL}, which raises `CorruptExample`. Of panoptic data also `things`, K bools
    (the other categories are stuff), and `segments(index)` -> (ids [H, W] int32, dicts with 'id',
    'category_id' in 0..K-1 and perhaps 'iscrowd' and 'area', as in COCO's format). Published data
    sets have more, see `official.Source`.

    Raises:
      ValueError: no data set has this name.
    """
    return _module(data_config.name).get_source(data_config, split)


def builder_class(name):
    """The TFDS builder of a published data set.

    Raises:
      ValueError: no data set has this name, or it is no published one.
    """
    found = getattr(
        _module(name).get_source, '__self__', None
    )  # of which get_source is a class method
    if found is None:
        raise ValueError(
            f'config.data.name = {name!r} needs no preparing; --mode=prepare is for the data sets of docs/datasets.md'
        )
    return found


def prepare(data_config, records) -> Path:
    """Writes the published data set in the official folder `data_config.dir` as TFDS records into the folder `records`.

    Returns:
      Where they lie. `config.data.dir = records` then reads them.

    Raises:
      ValueError, CorruptExample, FileNotFoundError: as `builder_class`, and as `official.Builder.find` and `read`.
    """
    return builder_class(data_config.name).prepare(Path(data_config.dir).expanduser(), records)


def _module(name):
    modules = sorted(
        path.stem
        for path in Path(__file__).parent.glob('[!_]*.py')
        if re.search(r'^(def )?get_source\b', path.read_text(encoding='utf-8'), re.M)
    )
    if name not in modules:
        raise ValueError(
            f'config.data.name = {name!r} is not a data set; set it to one of {", ".join(modules)}'
        )
    return importlib.import_module(f'{__name__}.{name}')


def things(source, task):
    """For the task 'panoptic' the source's `things` as a list, else None.

    Raises:
      ValueError: the source has no segments.
    """
    if task != 'panoptic':
        return None
    if not hasattr(source, 'segments'):
        raise ValueError(
            "config.task = 'panoptic' needs data with segments, which this data set has not"
        )
    return [bool(thing) for thing in source.things]
