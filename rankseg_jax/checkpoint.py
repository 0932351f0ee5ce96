"""Checkpoints of a run under `<workdir>/checkpoints`, through orbax.

Each holds three items: `model` (params, batch_stats and, if there is one, ema), `optimizer` (its
state; a converted model has none), and `run` (JSON: config, class names, things, the next step,
which also is the data position, and the score that chooses the best checkpoint).
"""

import dataclasses
import functools
import json
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from ml_collections import ConfigDict
from orbax.checkpoint import args, checkpoint_managers

from rankseg_jax import categories, storage
from rankseg_jax.bucket_checkpoints import BucketManager, DamagedCheckpoint

T = TypeVar('T')

# What else may go wrong while a checkpoint is read.
UNDAMAGED = (MemoryError, PermissionError, jax.errors.JaxRuntimeError)

# Keys that runs of earlier versions lack, and the values that their models go on with.
LATER_KEYS = {
    'local_batch_size': 0,
    'mesh.fsdp': 1,
    'mesh.model': 1,
    'sharding': (),
    'compilation_cache': '~/.cache/rankseg_jax',
    'data.long_side': 0,
    'data.max_pixels': 250_000_000,
    'eval.stretch': False,
    'eval.multiple': 32,
    'eval.pad_value': -1.0,
    'eval.resample': '',
    'eval.mask_size': (0, 0),
    'data.clip_frames': 2,
    'data.clip_reach': 20,
    'eval.max_objects': 100,
    'eval.clip_length': 20,
    'eval.clip_overlap': 0,
    'eval.average_over': 'clip',
    'model.feature_blocks': (),
    'model.norm_epsilon': 0.0,
    'model.encoder_layers': 0,
    'model.joint_blocks': 4,
    'model.anneal_start': (),
    'model.anneal_end': (),
    'model.remat_policy': 'nothing_saveable',
    'rankseg.train_selected': 0,
    'loss.cell_weight': 0.0,
    'loss.average_frames': False,
    'rankseg.tokens': 'patches',
    'rankseg.pyramid': True,
    'rankseg.separable': False,
    'rankseg.select_auxiliary': True,
    'optimizer.backbone_warmup_steps': 0,
}


def place(manager: ocp.CheckpointManager) -> epath.Path:
    """The folder that holds the checkpoints."""
    return manager.folder if isinstance(manager, BucketManager) else manager.directory


def damaged(manager: ocp.CheckpointManager, step: int, cause: BaseException) -> DamagedCheckpoint:
    """The error that names a checkpoint and why it cannot be read."""
    reason = (str(cause).splitlines() or [''])[0][:200]
    return DamagedCheckpoint(
        f'checkpoint {place(manager)}/{step} is damaged ({type(cause).__name__}: {reason}); '
        'those before it may be whole'
    )


def alone() -> ocp.options.MultiprocessingOptions:
    """Options for reading in this process alone, without waiting for others."""
    index = jax.process_index()
    return ocp.options.MultiprocessingOptions(primary_host=index, active_processes={index})


def open_checkpoints(workdir: str | os.PathLike, keep: int = 0) -> ocp.CheckpointManager:
    """The checkpoints of a run: to write, where the newest `keep` and the best stay, or to read.

    All processes write together; each reads alone.

    Args:
      keep: 0: to read.

    Raises:
      FileNotFoundError: there are none to read.
    """
    folder = storage.path(workdir) / 'checkpoints'
    if not keep and not folder.is_dir():
        raise FileNotFoundError(
            f'no checkpoints in {workdir}: train first (main.py --mode=train with this --workdir)'
        )
    options = ocp.CheckpointManagerOptions(
        read_only=True,
        create=False,
        multiprocessing_options=alone(),
        lightweight_initialize=True,  # does not read the scores of all, one may be damaged
    )
    if keep:
        if jax.process_index() == 0 and not storage.is_remote(folder):
            set_aside_unscored(folder)
        best = checkpoint_managers.BestN(
            n=1, get_metric_fn=score, keep_checkpoints_without_metrics=False
        )
        newest = checkpoint_managers.LatestN(keep)
        policy = checkpoint_managers.AnyPreservationPolicy([newest, best])
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policy,
            best_fn=score,
            # In the background, a folder that cannot be made would be an error after five minutes.
            async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
        )
    handlers = {
        'model': ocp.StandardCheckpointHandler(),
        'optimizer': ocp.StandardCheckpointHandler(),
        'run': ocp.JsonCheckpointHandler(),
    }
    if only_in_buckets(folder):
        return BucketManager(folder, item_handlers=handlers, options=options)
    folder = folder if storage.is_remote(folder) else folder.absolute()
    return ocp.CheckpointManager(folder, item_handlers=handlers, options=options)


def only_in_buckets(folder: str | os.PathLike) -> bool:
    """Whether checkpoints pass through a `BucketManager`: orbax knows no buckets but gs://."""
    return storage.is_remote(folder) and not str(folder).startswith('gs://')


def check_place(workdir: str | os.PathLike) -> None:
    """Raises a ValueError if several processes cannot write checkpoints together in `workdir`."""
    if jax.process_count() > 1 and only_in_buckets(workdir):
        raise ValueError(
            f'--workdir={workdir}: {jax.process_count()} processes cannot write their checkpoints '
            'there together; use gs://…, or a path that all of them share'
        )


def score(run: dict[str, Any]) -> Any:
    """The score that a checkpoint was saved with; None if it was not evaluated."""
    return run['score' if 'score' in run else 'mIoU']  # its name in version 0.1


def save(
    manager: ocp.CheckpointManager, step: int, model: Any, optimizer: Any, run: dict[str, Any]
) -> None:
    """Starts saving in the background.

    Args:
      model: tree of arrays.
      optimizer: likewise, or None.
      run: of which `run['score']` is a number, so that the checkpoint may stay as the best, or
        None.

    Raises:
      OSError: the folder cannot be written or is another one now, or an earlier checkpoint could
        not be written.
    """
    manager.wait_until_finished()  # as orbax does later
    if jax.process_index() == 0 and not storage.is_remote(manager.directory):
        check_still_there(manager)
    items = {'model': args.StandardSave(model), 'run': args.JsonSave(run)}
    if optimizer is not None:
        items['optimizer'] = args.StandardSave(optimizer)
    metrics = None if run['score'] is None else {'score': run['score']}
    manager.save(step, metrics=metrics, args=args.Composite(**items))


def check_still_there(manager: ocp.CheckpointManager) -> None:
    """Raises an OSError if the folder has vanished, even if another one has its name.

    Orbax would make it anew, and does so if it vanishes in this moment.
    """
    folder, newest = Path(manager.directory), manager.latest_step()
    storage.check_writable(folder, '--workdir')
    if newest is not None and not (folder / str(newest)).is_dir():
        raise OSError(
            f'{folder} no longer holds checkpoint {newest} of this run: put back what was there '
            'and start the same command again, or choose another folder with --workdir'
        )


def score_of(manager: ocp.CheckpointManager, step: int) -> Any:
    """The score of a checkpoint; None if it has none or is damaged, which is logged."""
    try:
        return score(read_run(manager, step))
    except DamagedCheckpoint as error:
        logging.error('%s', error)
        return None


def find(manager: ocp.CheckpointManager, which: str | int) -> int:
    """The step of checkpoint `which`: 'last', 'best' or a step.

    'last' is the newest that is whole.

    Raises:
      DamagedCheckpoint: there are checkpoints, but none is whole.
      FileNotFoundError: there is no such checkpoint.
    """
    steps = manager.all_steps()
    if which == 'last' and steps:
        return newest_whole(manager, lambda *one: (read_run(*one), model_arrays(*one)))[0]
    if which == 'best':
        scores = {step: score_of(manager, step) for step in steps}
        if scored := [step for step in steps if scores[step] is not None]:
            return max(scored, key=lambda step: scores[step])
    if str(which).isdigit() and int(which) in steps:
        return int(which)
    raise FileNotFoundError(
        f"no checkpoint {which!r} in {place(manager)}: use 'last', 'best' or a step; it has "
        f'{sorted(steps) or "none"}'
    )


def newest_whole(
    manager: ocp.CheckpointManager, read: Callable[[ocp.CheckpointManager, int], T]
) -> tuple[int, T]:
    """The newest step that `read` can read, and what it returns.

    Raises:
      DamagedCheckpoint: there are checkpoints, but it can read none.
      FileNotFoundError: there are none.
    """
    first = None
    for step in sorted(manager.all_steps(), reverse=True):
        try:
            found = read(manager, step)
        except DamagedCheckpoint as error:
            first = first or error
            continue
        if first:
            logging.error('%s. Going on from the one after step %d', first, step)
        return step, found
    raise first or FileNotFoundError(f'no checkpoint in {place(manager)}')


def read_items(manager: ocp.CheckpointManager, step: int, **items: Any) -> Any:
    """Items of a checkpoint by name, read as their orbax arguments say.

    Raises:
      DamagedCheckpoint: they cannot be read.
    """
    fetch(manager, step, items)
    try:
        return manager.restore(step, args=args.Composite(**items))
    except UNDAMAGED:
        raise
    except Exception as error:  # orbax and tensorstore raise any kind
        raise damaged(manager, step, error) from error


def fetch(manager: ocp.CheckpointManager, step: int, items: Iterable[str]) -> None:
    """Copies items of a checkpoint to this machine, if orbax can read them only there.

    Raises:
      DamagedCheckpoint: a file is missing or cut short.
    """
    if isinstance(manager, BucketManager):
        manager.fetch(step, items)


def set_aside(manager: ocp.CheckpointManager, after: int) -> None:
    """Renames the damaged checkpoints after a step, which training will reach again."""
    for step in manager.all_steps():
        if step > after:
            rename_damaged(place(manager) / str(step))


def set_aside_unscored(folder: epath.Path | Path) -> None:
    """Renames checkpoints whose score cannot be read: orbax, to write, reads those of all."""
    for file in folder.glob('*/metrics/metrics'):
        step = file.parent.parent
        try:
            json.loads(file.read_text())
        except ValueError as error:
            if step.name.isdigit():
                logging.error('Checkpoint %s is damaged: its score is unreadable (%s)', step, error)
                rename_damaged(step)


def rename_damaged(folder: epath.Path | Path) -> None:
    """Renames the folder of a step, so that it is no longer one."""
    storage.rename(folder, folder.with_name(f'damaged_{folder.name}_{time.time():.0f}'))


def read_run(manager: ocp.CheckpointManager, step: int) -> dict[str, Any]:
    """The item `run` of a checkpoint; raises as `read_items`."""
    return read_items(manager, step, run=args.JsonRestore())['run']


@dataclasses.dataclass(frozen=True)
class SavedRun:
    """A checkpoint to read, and what its run says of the model.

    Attributes:
      step: number of steps it was trained for.
      config: it was trained with.
      class_names: K names.
      things: K bools; empty if the task counts none.
    """

    manager: ocp.CheckpointManager
    step: int
    config: ConfigDict
    class_names: tuple[str, ...]
    things: tuple[bool, ...]

    def stem(self, split: str) -> str:
        """Names the files of results on a split."""
        return f'{split.replace("/", "_")}_{self.step}'

    def shapes(self) -> dict[str, Any]:
        """Names and shapes of the model's variables, which are float32."""
        metadata = shapes_of(self.manager, self.step, 'model')
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, np.float32), metadata)

    def check_categories(self, data: Any, data_config: ConfigDict) -> None:
        """As `categories.check`, of this run."""
        where = f'{place(self.manager)}/{self.step}'
        categories.check(self, data, where=where, data_config=data_config)


def open_run(workdir: str | os.PathLike, which: str | int = 'last') -> SavedRun:
    """Opens checkpoint `which` of a run: 'last', 'best' or a step.

    Raises:
      DamagedCheckpoint: the checkpoint cannot be read; for 'last', none can.
      FileNotFoundError: there is no such checkpoint.
    """
    manager = open_checkpoints(workdir)
    return read_saved(manager, find(manager, which))


def read_saved(manager: ocp.CheckpointManager, step: int) -> SavedRun:
    """What the run of a checkpoint says of the model."""
    run = read_run(manager, step)
    return SavedRun(
        manager=manager,
        step=step,
        config=current_config(run['config']),
        class_names=tuple(run['class_names']),
        things=tuple(run.get('things') or ()),
    )


def current_config(content: dict[str, Any]) -> ConfigDict:
    """The config of a run, with the keys that it lacks if an earlier version wrote it."""
    config = ConfigDict({key: with_tuples(value) for key, value in content.items()})
    if 'mesh_data' in config:  # the only axis of earlier versions
        config.mesh = {'data': config.mesh_data}
        del config.mesh_data
    for key, value in LATER_KEYS.items():
        *groups, name = key.split('.')
        group = functools.reduce(getattr, groups, config)
        if group is not None and name not in group:  # config.rankseg of a baseline is None
            group[name] = value
    return config


def with_tuples(value: Any) -> Any:
    """A value of a config that JSON has turned into lists."""
    if isinstance(value, dict):
        return {key: with_tuples(inner) for key, inner in value.items()}
    return tuple(map(with_tuples, value)) if isinstance(value, list) else value


def restore(manager: ocp.CheckpointManager, step: int, **items: Any) -> Any:
    """Restores items by name.

    Args:
      items: trees of `jax.ShapeDtypeStruct` with shardings: the arrays' shapes and places.

    Raises:
      ValueError: the checkpoint holds other names or shapes; both sides are listed.
    """
    for name, expected in items.items():
        check_same(
            shapes_of(manager, step, name),
            expected,
            where=f'{name} of checkpoint {place(manager)}/{step}',
            advice='Use the config of that run, or another --workdir.',
        )
    return read_items(manager, step, **{name: args.StandardRestore(x) for name, x in items.items()})


def read_model(workdir: str | os.PathLike) -> dict[str, Any]:
    """The item `model` of a run's newest whole checkpoint, see `model_arrays`.

    Raises:
      FileNotFoundError: there is no checkpoint.
    """
    return newest_whole(open_checkpoints(workdir), model_arrays)[1]


def model_arrays(manager: ocp.CheckpointManager, step: int) -> dict[str, Any]:
    """The item `model` of a checkpoint as NumPy arrays, whatever its names and shapes.

    Raises:
      DamagedCheckpoint: it cannot be read.
    """
    shapes = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), shapes_of(manager, step, 'model'))
    return read_items(manager, step, model=args.StandardRestore(shapes))['model']


def shapes_of(manager: ocp.CheckpointManager, step: int, item: str) -> Any:
    """A tree of what has the shape and dtype of each array of an item.

    Raises:
      DamagedCheckpoint: it cannot be read.
    """
    fetch(manager, step, [item])
    try:
        if (found := manager.item_metadata(step)[item]) is None:
            raise FileNotFoundError(f'no {item}')
    except UNDAMAGED:
        raise
    except Exception as error:  # as in `read_items`
        raise damaged(manager, step, error) from error
    return found


def check_same(found: Any, expected: Any, *, where: str, advice: str) -> None:
    """Raises a ValueError that lists the names and shapes in which two trees differ.

    Args:
      found: in a checkpoint.
      expected: by the model.
      where: the checkpoint, for the message.
      advice: what to do, for the message.
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
