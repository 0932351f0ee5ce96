"""The configs that come with this library: `--mode=list`, and `--config` by name."""

import importlib
import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

import configs
from rankseg_jax import config_check, tasks

FOLDER = Path(configs.__file__).parent
TITLES = ('config', 'task', 'data', 'K', 'κ', 'parameters', 'score in percent')


def file(name: str) -> Path:
    """The config file at this path or of this name, such as quickstart.

    Raises:
      ValueError: there is none; the nearest name is suggested.
    """
    names = [path.stem for path in FOLDER.glob('[!_]*.py') if path.stem != 'common']
    if Path(name).is_file():
        return Path(name)
    if name not in names:
        raise ValueError(
            f'--config={name} is no file, and no config has this name; did you mean '
            f'{config_check.nearest(Path(name).stem, names)}? --mode=list shows all'
        )
    return FOLDER / f'{name}.py'


def load(name: str) -> ConfigDict:
    """The config of a name such as segmenter:ade20k_b16."""
    module, _, argument = name.partition(':')
    get_config = importlib.import_module(f'configs.{module}').get_config
    return get_config(argument) if argument else get_config()


def table() -> str:
    """A line for each config of recipes.json, aligned in columns."""
    rows = [TITLES, *map(cells, json.loads((FOLDER / 'recipes.json').read_text()))]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        '  '.join(
            f'{cell:>{width}}' if title in ('K', 'κ', 'parameters') else f'{cell:<{width}}'
            for title, cell, width in zip(TITLES, row, widths, strict=True)
        ).rstrip()
        for row in rows
    ]
    return '\n'.join([*lines, '', 'measured: with this library; published: by the authors.'])


def cells(recipe: dict[str, Any]) -> tuple[str, ...]:
    """The cells of a config's line, as text.

    Args:
      recipe: its row of recipes.json: 'config', 'num_classes', 'parameters' and, where we have run
        it, the score 'measured' in percent.
    """
    config = load(recipe['config'])
    num_classes, num_selected = str(recipe['num_classes']), ''
    if config.data.name == 'folder':
        num_classes = 'yours'
    if config.rankseg:
        num_selected = str(config.rankseg.num_selected or 'auto')
    return (
        recipe['config'],
        config.task,
        config.data.name,
        num_classes,
        num_selected,
        f'{recipe["parameters"] / 1e6:.1f} M',
        score(recipe, config),
    )


def score(recipe: dict[str, Any], config: ConfigDict) -> str:
    """The score that a run can expect, measured or published; '' where neither is known."""
    metric = tasks.task_class(config.task).best_by
    if 'measured' in recipe:
        return f'{metric} {recipe["measured"]} measured'
    module, _, argument = recipe['config'].partition(':')
    published = getattr(importlib.import_module(f'configs.{module}'), 'RECIPES', {}).get(argument)
    if isinstance(published, tuple):  # (at a single scale, with scales and mirror images)
        published = published[0]
    return '' if published is None else f'{metric} {published} published'
