"""Whether a run and data have the same categories, in the same order."""

import re
from typing import Any

from ml_collections import ConfigDict


def check(run: Any, data: Any, *, where: str, data_config: ConfigDict) -> None:
    """Refuses data whose categories are not those of a run, in the same order.

    Args:
      run: as for `first_difference`.
      data: likewise.
      where: the run, for the message.
      data_config: `config.data`, for the message.

    Raises:
      ValueError: they differ; it names the first difference.
    """
    if difference := first_difference(run, data):
        folder = f' in {data_config.dir}' if data_config.dir else ''
        raise ValueError(
            f'the categories of config.data.name = {data_config.name!r}{folder} differ from the '
            f'categories that {where} was trained on, or come in another order: {difference}. '
            "Give the data the run's categories in the run's order, spelled the same, or use "
            'another --workdir.'
        )


def first_difference(run: Any, data: Any) -> str:
    """In words, where the categories of data first differ from those of a run; '' if they do not.

    Names agree if they share a synonym, see `synonyms`, and the run's is not another one's in the
    data. Placeholders of a run (LABEL_0, LABEL_1, …) agree with any names.

    Args:
      run: has `class_names` and `things`, such as a `checkpoint.SavedRun` or a task.
      data: likewise, such as a source or a task; `things` are compared if both have some.
    """
    trained, found = run.class_names, data.class_names
    if len(trained) != len(found):
        return f'K is {len(trained)} in the run, {len(found)} in the data'
    if not all(re.fullmatch(r'LABEL_\d+', name) for name in trained):
        for i, (a, b) in enumerate(zip(trained, found, strict=True)):
            if a != b and (a in found or not synonyms(a) & synonyms(b)):
                return f'category {i} is {a!r} in the run, {b!r} in the data'
    for i, (a, b) in enumerate(zip(run.things, data.things, strict=False)):
        if a != b:
            here, there = ('a thing', 'stuff') if a else ('stuff', 'a thing')
            return f'category {i}, {trained[i]!r}, is {here} in the run, {there} in the data'
    return ''


def synonyms(name: str) -> set[str]:
    """The synonyms in a name such as 'Bed ', 'traffic_light' or 'person, individual; human'."""
    names = (re.sub(r'(?<=\w)[\s_-]+(?=\w)', ' ', x.strip()) for x in re.split('[,;]', name))
    return {name.casefold() for name in names if name}
