"""Checkpoints of a run under `<workdir>/checkpoints`, through orbax.

Each holds three items: `model` (params, batch_stats and, if there is one, ema), `optimizer` (its state, unless it is of a converted
model), and `run` (JSON: config, class names, the next step, from which the data position follows, and mIoU if it was evaluated).
"""

from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import args, checkpoint_managers


def open_checkpoints(workdir, keep: int = 0) -> ocp.CheckpointManager:
    """The run's checkpoints, to write (the newest `keep` and the best by mIoU stay) or, with keep 0, to read.

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
                n=1,
                get_metric_fn=lambda metrics: metrics['mIoU'],
                keep_checkpoints_without_metrics=False,
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
            preservation_policy=policy, best_fn=lambda metrics: metrics['mIoU'], read_only=not keep
        ),
    )


def save(manager, step: int, model, optimizer, run: dict):
    """Starts saving in the background; if `run['mIoU']` is a number, the checkpoint may be kept as the best."""
    items = {'model': args.StandardSave(model), 'run': args.JsonSave(run)}
    if optimizer is not None:
        items['optimizer'] = args.StandardSave(optimizer)
    manager.save(
        step,
        metrics=None if run['mIoU'] is None else {'mIoU': run['mIoU']},
        args=args.Composite(**items),
    )


def find(manager, which) -> int:
    """The step of checkpoint `which`: 'last', 'best' or a step.

    Raises:
      FileNotFoundError: there is no such checkpoint.
    """
    steps = manager.all_steps()
    if which == 'last' and steps:
        return max(steps)
    if which == 'best':
        scores = {step: restore_run(manager, step)['mIoU'] for step in steps}
        if any(score is not None for score in scores.values()):
            return max(scores, key=lambda step: (scores[step] is not None, scores[step]))
    if str(which).isdigit() and int(which) in steps:
        return int(which)
    raise FileNotFoundError(
        f"no checkpoint {which!r} in {manager.directory}: use 'last', 'best' or a step, of which there are "
        f'{sorted(steps) or "none"}'
    )


def restore_run(manager, step: int) -> dict:
    return manager.restore(step, args=args.Composite(run=args.JsonRestore())).run


def things_of(run: dict, config):
    """The bools [K] that say which categories are things, for the task 'panoptic'; else None.

    Raises:
      ValueError: the run does not know them.
    """
    if config.task != 'panoptic':
        return None
    if not run.get('things'):
        raise ValueError(
            "config.task = 'panoptic', but the run was not trained for it: set --config.task=semantic"
        )
    return run['things']


def restore(manager, step: int, **items):
    """Restores the named items into arrays shaped and placed like the given trees of `jax.ShapeDtypeStruct`.

    Raises:
      ValueError: the checkpoint holds other names or shapes; both sides are listed.
    """
    for name, expected in items.items():
        check_same(
            manager.item_metadata(step)[name],
            expected,
            f'{name} of checkpoint {manager.directory}/{step}',
            'Use the config of that run, or another --workdir.',
        )
    return manager.restore(
        step, args=args.Composite(**{name: args.StandardRestore(x) for name, x in items.items()})
    )


def read_model(workdir) -> dict:
    """The item `model` of a run's newest checkpoint as arrays, whatever its names and shapes.

    Raises:
      FileNotFoundError: there is no checkpoint.
    """
    manager = open_checkpoints(workdir)
    step = find(manager, 'last')
    shapes = jax.tree.map(
        lambda x: np.empty(x.shape, x.dtype), manager.item_metadata(step)['model']
    )
    return manager.restore(step, args=args.Composite(model=args.StandardRestore(shapes))).model


def check_same(found, expected, where: str, advice: str):
    """Raises a ValueError that lists what differs in names and shapes between a checkpoint and the model."""

    def shapes(tree):
        return {
            jax.tree_util.keystr(path, simple=True, separator='/'): tuple(leaf.shape)
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        }

    found, expected = shapes(found), shapes(expected)
    lines = [
        f'  {name}: checkpoint {found.get(name, "has none")}, model {expected.get(name, "has none")}'
        for name in sorted(found.keys() | expected.keys())
        if found.get(name) != expected.get(name)
    ]
    if lines:
        more = f'\n  … and {len(lines) - 20} more' if len(lines) > 20 else ''
        raise ValueError(
            f'{where} does not fit the model that config describes:\n'
            + '\n'.join(lines[:20])
            + more
            + f'\n{advice}'
        )
