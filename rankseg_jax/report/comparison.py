"""Other runs beside this one, from the report.json that their evaluation wrote."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from rankseg_jax import storage

FIGURES = 'report.json'


def read_others(workdirs: Sequence, split: str, class_names: Sequence[str]) -> list[dict[str, Any]]:
    """The contents of the other runs' report.json.

    Args:
      workdirs: of the runs; or the folders of --output that hold their results.
      split: that this run is evaluated on.
      class_names: of this run.

    Raises:
      FileNotFoundError: a run has no report.json.
      ValueError: its split or its class names are others.
    """
    return [read_other(storage.path(workdir), split, class_names) for workdir in workdirs]


def read_other(workdir: Any, split: str, class_names: Sequence[str]) -> dict[str, Any]:
    """As `read_others`, of one run; where there are several analyses, the last checkpoint's."""
    command = f'python main.py --workdir={workdir} --mode=evaluate'

    def step(path):  # or another ending, of a folder that --output named
        return path.parent.name.rpartition('_')[2]

    analyses = workdir.glob(f'analysis_*/{FIGURES}')
    paths = sorted((x for x in analyses if step(x).isdecimal()), key=lambda x: int(step(x)))
    path = workdir / FIGURES
    if not path.is_file():
        if not paths:
            raise FileNotFoundError(
                f'--compare: {workdir} has no {FIGURES}; make it with {command}'
            )
        path = paths[-1]
    needed = {'run', 'checkpoint', 'split', 'scores', 'classes', 'image_scores'}
    try:
        found = json.loads(path.read_text())
        missing = needed - found.keys()
    except (AttributeError, ValueError):
        missing = needed
    if missing:
        raise ValueError(
            f'--compare: {path} lacks {", ".join(sorted(missing))}; make it anew with {command}'
        )
    if found['split'] != split:
        raise ValueError(
            f'--compare: {path} is about the split {found["split"]!r}, not {split!r}; evaluate it '
            f'again with {command} --config.data.eval_split={split}'
        )
    names = [row['name'] for row in found['classes']]
    if names != list(class_names):
        raise ValueError(
            f'--compare: {workdir} has other classes ({len(names)}: {", ".join(names[:3])}, …) '
            f'than this run ({len(class_names)}: {", ".join(class_names[:3])}, …); compare runs on '
            'the same data'
        )
    return found


def paired(image_scores: dict[str, Any], other: dict[str, Any]) -> dict[str, Any] | None:
    """How the scores of the images that both runs have differ; None without two of them.

    Args:
      image_scores: 'ids', 'scores' and the 'name' of these, of this run.
      other: the same of the other run.

    Returns:
      number of images, mean of this run's score minus the other's, its standard error, and on how
      many images this run is better and worse.
    """
    if image_scores['name'] != other['name']:
        return None
    before = dict(zip(other['ids'], other['scores'], strict=True))
    differences = np.array(
        [
            score - before[name]
            for name, score in zip(image_scores['ids'], image_scores['scores'], strict=True)
            if name in before
        ]
    )
    if len(differences) < 2:
        return None
    return {
        'number': len(differences),
        'mean': float(differences.mean()),
        'error': float(differences.std(ddof=1) / np.sqrt(len(differences))),
        'better': int((differences > 0).sum()),
        'worse': int((differences < 0).sum()),
    }
