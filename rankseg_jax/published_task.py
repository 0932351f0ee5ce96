"""The task and the things of a public checkpoint, which its files do not state."""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path

from rankseg_jax import tasks
from rankseg_jax.data.published.label_maps import read_classes

IMAGE_TASKS = ('panoptic', 'instance', 'semantic')
VIDEO_TASKS = ('video_semantic', 'video_instance')
# Data sets whose names tell things: title → files of classes; the first says which are things.
KNOWN = {
    'COCO': ('coco_panoptic',),
    'ADE20K': ('ade20k_panoptic', 'ade20k'),
    'Cityscapes': ('cityscapes',),
    'Mapillary Vistas': ('mapillary_vistas',),
}
# Names of published models that state the task.
PUBLISHED = re.compile(
    r'mask2?former-.*-(semantic|instance|panoptic)|.*_(semantic|instance|panoptic)_eomt_.*'
)


def semantic_task(
    why: str, task: str | None, things: Sequence[str] | None
) -> tuple[str, list[bool], str]:
    """As `published_task`, of a model that has one task, and `why`."""
    if task not in (None, 'semantic') or things:
        raise ValueError(f'{why}, which is --task=semantic, without --things')
    return 'semantic', [], f'since {why}'


def video_task(
    source: str | Path, task: str | None, things: Sequence[str] | None
) -> tuple[str, list[bool], str]:
    """As `published_task`, of a model that sees videos."""
    if task not in (None, *VIDEO_TASKS) or things:
        raise ValueError(
            f'this model sees videos, which is --task={" or --task=".join(VIDEO_TASKS)}, '
            'without --things'
        )
    if task:
        return task, [], 'as --task says'
    if re.search('ytvis|yt_20|ovis', Path(source).name.lower()):
        return 'video_instance', [], 'as its name says'
    return 'video_semantic', [], 'since its name tells of no data set with tracks'


def published_task(
    source: str | Path, class_names: Sequence[str], task: str | None, things: Sequence[str] | None
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
    if task not in (None, *IMAGE_TASKS):
        raise ValueError(
            f'--task={task}: public weights are read for one of {", ".join(IMAGE_TASKS)}; a run of '
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
                f'--task={task}: the things among these {len(class_names)} categories '
                f'({", ".join(class_names[:3])} …) are unknown; give their names or numbers, such '
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
