"""Checkpoints of a run under `<workdir>/checkpoints`, through orbax.

Each holds three items: `model` (params, batch_stats and, if there is one, ema), `optimizer` (its
state; a converted model has none), and `run` (JSON: config, class names, things, the next step,
which also is the data position, and the score that chooses the best checkpoint).
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from ml_collections import ConfigDict
from orbax.checkpoint import args, checkpoint_managers

# Keys that earlier versions did not have, by section, with the values that mean what they did.
LATER_KEYS = {'eval': {'stretch': False, 'multiple': 32, 'resample': '', 'mask_size': (0, 0)}}


def open_checkpoints(workdir, keep: int = 0) -> ocp.CheckpointManager:
    """The checkpoints of a run: to write, where the newest `keep` and the best stay, or to read.

    Args:
      keep: 0: to read.

    Raises:
      FileNotFoundError: there are none to read.
    """
    folder = Path(workdir).absolute() / 'checkpoints'
    if not keep and not folder.is_dir():
        raise FileNotFoundError(
            f'no checkpoints in {workdir}: train first (main.py --mode=train with this --workdir)'
        )
    policy = checkpoint_managers.AnyPreservationPolicy(
        [
            checkpoint_managers.LatestN(keep),
            checkpoint_managers.BestN(
                n=1, get_metric_fn=score, keep_checkpoints_without_metrics=False
            ),
        ]
    )
    return ocp.CheckpointManager(
        folder,
        item_handlers={
            'model': ocp.StandardCheckpointHandler(),
            'optimizer': ocp.StandardCheckpointHandler(),
            'run': ocp.JsonCheckpointHandler(),
        },
        options=ocp.CheckpointManagerOptions(
            preservation_policy=policy, best_fn=score, read_only=not keep
        ),
    )


def score(run: dict[str, Any]) -> Any:
    """The score that a checkpoint was saved with; None if it was not evaluated."""
    return run['score' if 'score' in run else 'mIoU']  # its name in version 0.1


def save(manager: ocp.CheckpointManager, step: int, model, optimizer, run: dict[str, Any]) -> None:
    """Starts saving in the background.

    Args:
      model: tree of arrays.
      optimizer: likewise, or None.
      run: of which `run['score']` is a number, so that the checkpoint may stay as the best, or
        None.
    """
    items = {'model': args.StandardSave(model), 'run': args.JsonSave(run)}
    if optimizer is not None:
        items['optimizer'] = args.StandardSave(optimizer)
    metrics = None if run['score'] is None else {'score': run['score']}
    manager.save(step, metrics=metrics, args=args.Composite(**items))


def find(manager: ocp.CheckpointManager, which: str | int) -> int:
    """The step of checkpoint `which`: 'last', 'best' or a step.

    Raises:
      FileNotFoundError: there is no such checkpoint.
    """
    steps = manager.all_steps()
    if which == 'last' and steps:
        return max(steps)
    if which == 'best':
        scores = {step: score(read_run(manager, step)) for step in steps}
        if scored := [step for step in steps if scores[step] is not None]:
            return max(scored, key=lambda step: scores[step])
    if str(which).isdigit() and int(which) in steps:
        return int(which)
    raise FileNotFoundError(
        f"no checkpoint {which!r} in {manager.directory}: use 'last', 'best' or a step; it has "
        f'{sorted(steps) or "none"}'
    )


def read_run(manager: ocp.CheckpointManager, step: int) -> dict[str, Any]:
    """The item `run` of a checkpoint."""
    return manager.restore(step, args=args.Composite(run=args.JsonRestore()))['run']


@dataclasses.dataclass(frozen=True)
class SavedRun:
    """A checkpoint to read, and what its run says of the model.

    Attributes:
      step: number of steps it was trained for.
      config: it was trained with.
      class_names: K names.
      things: K bools, or None.
    """

    manager: ocp.CheckpointManager
    step: int
    config: ConfigDict
    class_names: tuple[str, ...]
    things: list[bool] | None

    def check_categories(self, class_names: Sequence[str], origin: str) -> None:
        """Raises a ValueError if data from `origin` has another number of categories."""
        if len(class_names) != len(self.class_names):
            raise ValueError(
                f'{self.manager.directory}/{self.step} was trained on K = '
                f'{len(self.class_names)} categories, but {origin} has {len(class_names)}: use the '
                'data of that run, or another --workdir'
            )


def open_run(workdir, which: str | int = 'last') -> SavedRun:
    """Opens checkpoint `which` of a run: 'last', 'best' or a step.

    Raises:
      FileNotFoundError: there is no such checkpoint.
    """
    manager = open_checkpoints(workdir)
    step = find(manager, which)
    run = read_run(manager, step)
    config = run['config'] | {name: x | run['config'][name] for name, x in LATER_KEYS.items()}
    return SavedRun(
        manager=manager,
        step=step,
        config=ConfigDict(config),
        class_names=tuple(run['class_names']),
        things=run.get('things'),
    )


def restore(manager: ocp.CheckpointManager, step: int, **items):
    """Restores items by name.

    Args:
      items: trees of `jax.ShapeDtypeStruct` with shardings: the arrays' shapes and places.

    Raises:
      ValueError: the checkpoint holds other names or shapes; both sides are listed.
    """
    for name, expected in items.items():
        check_same(
            manager.item_metadata(step)[name],
            expected,
            where=f'{name} of checkpoint {manager.directory}/{step}',
            advice='Use the config of that run, or another --workdir.',
        )
    composite = args.Composite(**{name: args.StandardRestore(x) for name, x in items.items()})
    return manager.restore(step, args=composite)


def read_model(workdir):
    """The item `model` of a run's newest checkpoint as NumPy arrays, whatever its names and shapes.

    Raises:
      FileNotFoundError: there is no checkpoint.
    """
    manager = open_checkpoints(workdir)
    step = find(manager, 'last')
    metadata = manager.item_metadata(step)['model']
    shapes = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), metadata)
    return manager.restore(step, args=args.Composite(model=args.StandardRestore(shapes)))['model']


def check_same(found, expected, *, where: str, advice: str) -> None:
    """Raises a ValueError that lists the names and shapes in which two trees differ.

    Args:
      found: in a checkpoint; `expected`: by the model.
      where: the checkpoint, `advice`: what to do; both for the message.
    """

    def shapes(tree):
        return {
            jax.tree_util.keystr(path, simple=True, separator='/'): tuple(leaf.shape)
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        }

    found, expected = shapes(found), shapes(expected)
    lines = [
        f'  {name}: checkpoint {found.get(name, "has none")}, '
        f'model {expected.get(name, "has none")}'
        for name in sorted(found.keys() | expected.keys())
        if found.get(name) != expected.get(name)
    ]
    if lines:
        more = f'\n  … and {len(lines) - 20} more' if len(lines) > 20 else ''
        raise ValueError(
            f'{where} does not fit the model that config describes:\n'
            + '\n'.join(lines[:20])
            + f'{more}\n{advice}'
        )
