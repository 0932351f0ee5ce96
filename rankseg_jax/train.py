"""A run: from a config to its first state, and the loop that logs, evaluates and saves."""

import contextlib
import dataclasses
import functools
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.experimental import multihost_utils

from rankseg_jax import (
    categories,
    checkpoint,
    data,
    evaluate,
    from_data,
    models,
    optimizers,
    pretrained,
    processes,
    sharding,
    storage,
    tasks,
)
from rankseg_jax.data import reading
from rankseg_jax.data.report import Report
from rankseg_jax.reporting import Progress
from rankseg_jax.train_step import TrainState, create_state, make_train_step


class Stop:
    """Within its block, SIGTERM becomes a question that the loop asks after each step.

    With several hosts, JAX's own handler stays, through which they agree on the step to stop at.
    """

    def __enter__(self):
        self.signaled = False
        if jax.process_count() == 1:
            self.before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *_):
        if jax.process_count() == 1:
            signal.signal(signal.SIGTERM, self.before)

    def _note(self, *_):
        self.signaled = True

    def asked(self, step: int) -> bool:
        """Whether to save and exit."""
        if jax.process_count() == 1:
            return self.signaled
        return multihost_utils.reached_preemption_sync_point(step)


def check_source(source: data.Source, config, split: str) -> Report:
    """Checks a split and prints what it finds; raises a ValueError if it cannot be used."""
    report = source.check(config.data.max_corrupt)
    if text := str(report):
        print(f'{split}: {text}')
    problems = report.problems
    if split == config.data.train_split and report.unlearnable:
        problems = [*problems, report.unlearnable]
    if problems:
        raise ValueError(f'split {split!r} cannot be used: ' + '; '.join(problems))
    return report


def open_sources(config) -> tuple[list[data.Source], Report]:
    """The training and the evaluation source, validated by the first process, and its report on the
    training split, which is empty in others.

    Raises:
      ValueError: they cannot be used.
    """
    sources, reports = [], []
    for split in (config.data.train_split, config.data.eval_split):
        source = tasks.open_source(config, split)
        reports.append(check_source(source, config, split) if processes.is_first() else Report())
        sources.append(source)
    if not sources[0].annotated:
        raise ValueError(f'split {config.data.train_split!r} has no annotations to learn from')
    return sources, reports[0]


def check(config, mesh) -> None:
    """Raises a ValueError for intervals below 1 and a batch that cannot be divided."""
    intervals = ('log_every', 'eval_every', 'checkpoint_every', 'keep_checkpoints')
    for key in ('steps', 'accumulate', *intervals):
        if config[key] < 1:
            raise ValueError(f'config.{key} = {config[key]} must be at least 1')
    parts = sharding.batch_parts(mesh) * config.accumulate
    if config.batch_size < 1 or config.batch_size % parts:
        raise ValueError(
            f'config.batch_size = {config.batch_size} must be a multiple of {parts}: '
            f'data × fsdp of config.mesh = {sharding.batch_parts(mesh)}, times '
            f'config.accumulate = {config.accumulate}'
        )


def with_micro_batches(config, mesh):
    """The config with as many micro-batches as `config.local_batch_size` asks for on a mesh."""
    share = config.batch_size // sharding.batch_parts(mesh)  # of a device
    limit = config.local_batch_size or share
    counts = range(config.accumulate, share + 1)
    count = next(n for n in counts if share % n == 0 and share // n <= limit)
    if count > config.accumulate:
        sharding.print_once(f'{count} micro-batches per step, {share // count} images per device')
        config = config.copy_and_resolve_references()
        config.accumulate = count
    return config


@dataclasses.dataclass(frozen=True)
class Setup:
    """All that stays the same during training."""

    config: Any
    mesh: jax.sharding.Mesh
    source: data.Source
    eval_source: data.Source
    task: tasks.Task
    eval_task: tasks.Task
    model: nn.Module
    optimizer: optax.GradientTransformation

    def new_state(self) -> TrainState:
        """The state before the first step."""
        return create_state(self.model, self.optimizer, self.config, self.task.num_classes)

    @functools.cached_property
    def shapes(self) -> TrainState:
        """The shapes of the state."""
        return jax.eval_shape(self.new_state)

    @functools.cached_property
    def shardings(self) -> TrainState:
        """Where the state lies on the mesh."""
        params, rules = self.shapes.model['params'], self.config.sharding
        return sharding.state_shardings(self.mesh, self.shapes, params, rules)

    def batch_ids(self, step: int) -> list[str]:
        """The names of the examples of a step."""
        count, config = len(self.source), self.config
        indices = reading.example_indices(count, config.seed, step, config.batch_size)
        return [self.source.ids[i] for i in indices]


def set_up(config) -> Setup:
    """Opens the data and builds the model.

    Raises:
      ValueError: config and data do not fit each other.
    """
    mesh = sharding.make_mesh(**config.mesh)
    check(config, mesh)
    config = with_micro_batches(config, mesh)
    optimizer = optimizers.make_optimizer(config.optimizer, config.steps)  # or refused
    if not processes.is_first():
        processes.wait()  # for the data, which the first one may have to generate
    (source, eval_source), report = open_sources(config)
    if processes.is_first():
        processes.wait()
    if not from_data.is_complete(config):
        config = from_data.complete(config, sharding.gather(report)[0])
    task, eval_task = tasks.from_source(config, source), tasks.from_source(config, eval_source)
    if difference := categories.first_difference(task, eval_task):
        raise ValueError(
            f'split {config.data.eval_split!r} must have the categories of split '
            f'{config.data.train_split!r}, which the run learns, in their order: {difference}'
        )
    return Setup(
        config=config,
        mesh=mesh,
        source=task.samples(source),
        eval_source=eval_source,
        task=task,
        eval_task=eval_task,
        model=models.build(config, task.num_classes),
        optimizer=optimizer,
    )


def first_state(setup: Setup, workdir: Path) -> TrainState:
    """The state after the newest whole checkpoint; without one, before the first step.

    Damaged checkpoints after it are renamed.

    Raises:
      DamagedCheckpoint: there are checkpoints, but none is whole.
      ValueError: the run was trained on other categories or another model, or it was converted.
    """
    if not (workdir / 'checkpoints').is_dir():
        return fresh_state(setup)
    manager = checkpoint.open_checkpoints(workdir)
    steps = manager.all_steps()
    if steps == [0]:
        raise ValueError(
            f'{workdir} holds converted weights: train in another --workdir, with '
            f'--config.model.pretrained={workdir}'
        )
    if not steps:
        return fresh_state(setup)
    step, state = checkpoint.newest_whole(manager, functools.partial(restored_state, setup))
    if jax.process_index() == 0:
        checkpoint.set_aside(manager, step)
    report_resumed(setup, checkpoint.read_saved(manager, step))
    return state


def fresh_state(setup: Setup) -> TrainState:
    """The state before the first step, from `config.model.pretrained` if it is set."""
    state = jax.jit(setup.new_state, out_shardings=setup.shardings)()
    pretrained_from = setup.config.model.pretrained
    if not pretrained_from:
        if setup.task.start:
            sharding.print_once(
                f'config.model.pretrained is empty: published runs of config.task = '
                f'{setup.config.task!r} start from {setup.task.start} and score far higher'
            )
        return state
    loaded = pretrained.load(
        pretrained_from,
        sharding.host_copy(state.model, setup.mesh),
        class_names=setup.task.class_names,
    )
    sharding.print_once(f'Starting from {pretrained_from}')
    # Copied, since the step donates the state.
    return state.replace(model=jax.device_put(loaded, setup.shardings.model, may_alias=False))


def restored_state(setup: Setup, manager, step: int) -> TrainState:
    """The state of checkpoint `step` of the run, if all processes can read their parts of it.

    Raises:
      DamagedCheckpoint: one cannot.
      ValueError: the run was trained on other categories, for another task, or another model.
    """
    expected = sharding.place(setup.shapes, setup.shardings)
    restored, problem = {}, ''
    try:
        check_run(setup, checkpoint.read_saved(manager, step))
        restored = checkpoint.restore(
            manager, step, model=expected.model, optimizer=expected.optimizer
        )
    except checkpoint.DamagedCheckpoint as error:
        problem = str(error)
    if problems := list(filter(None, sharding.gather(problem))):
        raise checkpoint.DamagedCheckpoint(problems[0])
    done = jax.device_put(jnp.int32(step), setup.shardings.step)
    return TrainState(done, restored['model'], restored['optimizer'])


def check_run(setup: Setup, run: checkpoint.SavedRun) -> None:
    """Raises a ValueError if a run was trained on other categories or for another task."""
    run.check_categories(setup.task, setup.config.data)
    if run.config.task != setup.config.task:
        workdir = checkpoint.place(run.manager).parent
        raise ValueError(
            f'{workdir} was trained with config.task = {run.config.task!r}, not '
            f'{setup.config.task!r}: use another --workdir, with '
            f'--config.model.pretrained={workdir} to start from it'
        )


def report_resumed(setup: Setup, run: checkpoint.SavedRun) -> None:
    """Says where a run goes on, and what its config makes different."""
    # In JSON, tuples are lists.
    before, now = (json.loads(json.dumps(x.to_dict())) for x in (run.config, setup.config))
    for key in ('seed', 'batch_size'):
        if before[key] != now[key]:
            sharding.print_once(
                f'config.{key} changed from {before[key]} to {now[key]}: the images now come in '
                'another order'
            )
    workdir = checkpoint.place(run.manager).parent
    if any(before[key] != now[key] for key in ('steps', 'optimizer')):
        sharding.print_once(
            f'config.steps or config.optimizer differ from those of {workdir}: '
            'the learning rate follows the new schedule from here on'
        )
    sharding.print_once(f'Resuming {workdir} after step {run.step}')


def jit_step(setup: Setup, *, all_classes: bool = False) -> Callable:
    """The compiled train step, see `make_train_step`."""
    step = make_train_step(
        setup.model, setup.optimizer, setup.config, setup.task, all_classes=all_classes
    )
    shardings = setup.shardings
    return jax.jit(
        step,
        donate_argnums=0,
        in_shardings=(shardings, sharding.split(setup.mesh)),
        out_shardings=(shardings, sharding.copied(setup.mesh)),
    )


def save(setup: Setup, manager, state: TrainState, score: float | None) -> None:
    """Starts saving a checkpoint; `score` decides whether it is the best."""
    done = int(state.step)
    run = {
        'config': setup.config.to_dict(),
        'class_names': list(setup.task.class_names),
        'things': list(setup.task.things),
        'next_step': done,
        'score': score,
    }
    checkpoint.save(manager, done, model=state.model, optimizer=state.optimizer, run=run)


def train(config, workdir) -> dict[str, Any] | None:
    """--mode=train: trains for `config.steps` steps, from the newest checkpoint if there is one.

    Returns:
      The scores after the last step, {} without annotations to score against; None if SIGTERM ended
      the run.

    Raises:
      DamagedCheckpoint: there are checkpoints, but none can be read.
      FloatingPointError: the loss is not finite.
      OSError: the folder cannot be written.
      ValueError: config, data and checkpoints do not fit each other, or more than
        `data.max_corrupt` examples cannot be read.
    """
    checkpoint.check_place(workdir)
    workdir = storage.make_folder(workdir, '--workdir')
    setup = set_up(from_data.as_trained(config, workdir))
    config, state = setup.config, first_state(setup, workdir)
    manager = checkpoint.open_checkpoints(workdir, config.keep_checkpoints)
    mesh, task, source = setup.mesh, setup.eval_task, setup.eval_source
    local_mesh = sharding.local_mesh(mesh)
    eval_step = evaluate.make_eval_step(setup.model, config, task, local_mesh)

    def evaluated(state: TrainState, **options) -> dict[str, Any]:
        if not source.annotated:
            return {}
        _, variables = sharding.local(mesh, state.model)
        return evaluate.evaluate(
            eval_step, variables, source, config=config, task=task, mesh=local_mesh, **options
        )

    if int(state.step) >= config.steps:
        sharding.print_once(f'{workdir} is trained already: config.steps = {config.steps} are done')
        return evaluated(state)
    if not source.annotated:
        sharding.print_once(
            f'The split {config.data.eval_split!r} has no annotations to score against: choose '
            'another with --config.data.eval_split to know how good the model is'
        )
    count = sum(x.size for x in jax.tree.leaves(setup.shapes.model['params']))
    sharding.print_once(
        f'{len(setup.source)} {setup.source.unit}, {task.num_classes} categories, '
        f'{count / 1e6:.2f} M parameters, {mesh.size} {jax.devices()[0].device_kind} device(s); '
        'compiling …'
    )
    return run_steps(setup, state, manager, workdir, evaluated)


def run_steps(
    setup: Setup, state: TrainState, manager, workdir: Path, evaluated: Callable
) -> dict[str, Any] | None:
    """The loop of `train`.

    Args:
      evaluated: (state, `stopped`, see `evaluate.evaluate`) → the scores, if there are any.
    """
    config, start, scores = setup.config, int(state.step), {}
    train_step, warmup_step = jit_step(setup), jit_step(setup, all_classes=True)
    warmup_steps = config.rankseg.warmup_steps if config.rankseg else 0
    from rankseg_jax.data import pipeline  # imports TensorFlow, which the step does not need

    progress = Progress(setup, workdir, start)
    batches = pipeline.train_batches(setup.source, config, setup.task, start_step=start)
    with manager, Stop() as stop, contextlib.closing(progress), contextlib.closing(batches):
        for step in range(start, config.steps):
            batch = sharding.shard_batch(next(batches), setup.mesh)
            state, metrics = (warmup_step if step < warmup_steps else train_step)(state, batch)
            progress.add(step, metrics)
            done = step + 1
            last, first = done == config.steps, step == start
            stopping = stop.asked(step)
            evaluating = last or (done % config.eval_every == 0 and not stopping)
            saving = evaluating or stopping or done % config.checkpoint_every == 0
            logging = first or last or done % config.log_every == 0
            if saving or logging:
                progress.settle()
            if logging:
                progress.report(done)
            score = None
            if evaluating:
                # The last one goes on, since no later start would evaluate again and save.
                stopped = (lambda: False) if last else (lambda: stop.signaled)
                try:
                    scores = evaluated(state, stopped=stopped)
                except evaluate.Stopped:
                    scores, stopping = {}, True
                if scores:
                    progress.report_scores(done, scores)
                    score = evaluate.without_nan(scores[setup.task.best_by])
            if saving:
                save(setup, manager, state, score)
                progress.saved = done
            if saving or first:  # evaluation, saving and compilation are not training
                progress.restart_clock(done)
            if stopping:
                sharding.print_once(
                    f'Asked to stop: saved after step {done}; run the same command to go on.'
                )
                return None
    return scores
