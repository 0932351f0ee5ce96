"""Training: a jitted step over a mesh, and the loop around it that logs, evaluates, checkpoints and resumes."""

import collections
import contextlib
import json
import signal
import time
from pathlib import Path
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from clu import metric_writers
from jax.experimental import multihost_utils

from rankseg_jax import (
    checkpoint,
    data,
    evaluate,
    inference,
    losses,
    models,
    optimizers,
    pretrained,
    sharding,
)
from rankseg_jax.data import pipeline
from rankseg_jax.decoders.query_decoder import QueryOutput
from rankseg_jax.multilabel import pixel_counts
from rankseg_jax.tasks import queries, semantic


@flax.struct.dataclass
class TrainState:
    """All that a step changes: {'params', 'batch_stats'[, 'ema']} and the optimiser's state."""

    model: dict[str, Any]
    optimizer: Any


def create_state(model, optimizer, config, num_classes: int) -> TrainState:
    variables = models.init(model, num_classes, config.seed, config.augment.crop_size)
    if config.ema:
        variables['ema'] = jax.tree.map(
            jnp.copy, variables['params']
        )  # a copy: donated buffers must differ
    return TrainState(variables, optimizer.init(variables['params']))


def total_loss(output, batch, presence, config, num_classes: int, rng):
    """The training loss of a batch, and all its parts and further figures by name.

    Args:
      output: PixelOutput or QueryOutput.
      batch: as of `pipeline.train_batches`.
      presence: [B, K] bool, the categories in the labels.
      rng: key for points in masks.

    Raises:
      ValueError: unknown multi-label loss, or a task or an evaluation that the model cannot do.
    """
    per_query = isinstance(output, QueryOutput)
    inference.check_views(
        config, per_query, config.task == 'panoptic'
    )  # before the first step, not at the first evaluation
    if per_query:
        parts, figures = queries.loss(rng, output, batch, config, num_classes)
    else:
        parts, figures = semantic.loss(output, batch, config, num_classes), {}
    if output.presence_logits is not None:
        parts['loss_multilabel'] = losses.multilabel_loss(
            output.presence_logits, presence, batch['mask'], config.loss
        )
    loss = sum(parts.values())
    return loss, parts | figures | {'loss': loss}


def make_train_step(model, optimizer, config, num_classes: int, *, all_classes: bool = False):
    """(state, batch, rng) -> (state, metrics), to be jitted.

    Args of the step:
      state: TrainState.
      batch: 'image' float32 [B, H, W, 3], 'label' int32 [B, H, W], 'mask' bool [B], and more of panoptic data; see
        `pipeline.train_batches`.
      rng: key for dropout and for points in masks.
    """

    def loss_fn(params, batch_stats, batch, rng):
        presence = pixel_counts(batch['label'], num_classes) > 0  # [B, K]
        output, updates = model.apply(
            {'params': params, 'batch_stats': batch_stats},
            batch['image'],
            train=True,
            presence=presence,
            all_classes=all_classes,
            rngs={'dropout': rng},
            mutable=['batch_stats'],
        )
        loss, metrics = total_loss(
            output, batch, presence, config, num_classes, jax.random.fold_in(rng, 0)
        )
        return loss, (updates.get('batch_stats', {}), metrics)

    grad_fn = jax.grad(loss_fn, has_aux=True)

    def train_step(state, batch, rng):
        params = state.model['params']
        if config.accumulate == 1:
            grads, (batch_stats, metrics) = grad_fn(params, state.model['batch_stats'], batch, rng)
        else:
            # Every accumulate-th image makes a micro-batch, so that each stays spread over all devices.
            micro = jax.tree.map(
                lambda x: x.reshape(-1, config.accumulate, *x.shape[1:]).swapaxes(0, 1), batch
            )

            def add(carry, item):
                batch_stats, total = carry
                grads, (batch_stats, metrics) = grad_fn(
                    params, batch_stats, item[0], jax.random.fold_in(rng, item[1])
                )
                return (batch_stats, jax.tree.map(jnp.add, total, grads)), metrics

            zeros = jax.tree.map(jnp.zeros_like, params)
            (batch_stats, grads), metrics = jax.lax.scan(
                add, (state.model['batch_stats'], zeros), (micro, jnp.arange(config.accumulate))
            )
            grads, metrics = (
                jax.tree.map(lambda x: x / config.accumulate, grads),
                jax.tree.map(jnp.mean, metrics),
            )
        updates, optimizer_state = optimizer.update(grads, state.optimizer, params)
        params = optax.apply_updates(params, updates)
        variables = {'params': params, 'batch_stats': batch_stats}
        if config.ema:
            variables['ema'] = optax.incremental_update(params, state.model['ema'], 1 - config.ema)
        norms = {'grad_norm': optax.global_norm(grads), 'param_norm': optax.global_norm(params)}
        return TrainState(variables, optimizer_state), metrics | norms

    return train_step


class Stop:
    """Within its block, SIGTERM becomes a question that the loop asks after each step.

    With several hosts, JAX's own handler stays, through which they agree on the step to stop at.
    """

    def __enter__(self):
        self.signalled = False
        if jax.process_count() == 1:
            self.before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *_):
        if jax.process_count() == 1:
            signal.signal(signal.SIGTERM, self.before)

    def _note(self, *_):
        self.signalled = True

    def asked(self, step: int) -> bool:
        """Whether to save and exit."""
        return (
            self.signalled
            if jax.process_count() == 1
            else multihost_utils.reached_preemption_sync_point(step)
        )


class Progress:
    """Metrics of the steps since the last report: to the terminal, TensorBoard and metrics.jsonl, from the first host."""

    def __init__(self, config, workdir: Path, schedule, start: int):
        self.config, self.schedule = config, schedule
        self.rows, self.time, self.step = [], time.time(), start
        self.first = jax.process_index() == 0
        self.writer = metric_writers.SummaryWriter(str(workdir)) if self.first else None
        self.file = (workdir / 'metrics.jsonl').open('a') if self.first else None

    def write(self, step: int, scalars: dict):
        if self.first:
            self.writer.write_scalars(step, scalars)
            self.writer.flush()
            row = evaluate.without_nan({k: float(v) for k, v in scalars.items()})
            self.file.write(json.dumps({'step': step} | row) + '\n')
            self.file.flush()

    def report(self, step: int):
        """Reports the means of `rows`; `step` steps are done."""
        seconds, steps = time.time() - self.time, step - self.step
        means = {f'train/{k}': np.mean([row[k] for row in self.rows]) for k in self.rows[0]}
        rate = steps * self.config.batch_size / seconds
        speed = {
            'steps/s': steps / seconds,
            'img/s': rate,
            'img/s/device': rate / jax.device_count(),
        }
        self.write(step, means | speed | {'learning_rate': self.schedule(step - 1)})
        left = (self.config.steps - step) * seconds / steps
        parts = ' '.join(
            f'{k.removeprefix("train/loss_")} {v:.3f}'
            for k, v in means.items()
            if k.startswith('train/loss_')
        )
        if self.first:
            print(
                f'step {step}/{self.config.steps}  loss {means["train/loss"]:.3f} ({parts})  {rate:.1f} img/s  '
                f'ETA {int(left) // 60}:{int(left) % 60:02d}',
                flush=True,
            )
        self.rows = []

    def restart_clock(self, step: int):
        self.time, self.step = time.time(), step


def open_sources(config):
    """The training and evaluation source; files of one's own are checked first, and the report printed.

    Raises:
      ValueError: they cannot be used.
    """
    sources = []
    for split in (config.data.train_split, config.data.eval_split):
        source = data.get_source(config.data, split)
        report = source.check(config.data.max_corrupt)
        if text := str(report):
            print(f'{split}: {text}', flush=True)
        if report.problems:
            raise ValueError(f'split {split!r} cannot be used: ' + '; '.join(report.problems))
        sources.append(source)
    return sources


def check(config, mesh):
    """Raises a ValueError for intervals below 1 and a batch that cannot be divided."""
    for key in (
        'steps',
        'accumulate',
        'log_every',
        'eval_every',
        'checkpoint_every',
        'keep_checkpoints',
    ):
        if config[key] < 1:
            raise ValueError(f'config.{key} = {config[key]} must be at least 1')
    for key, batch_size, parts in (
        ('batch_size', config.batch_size, mesh.size * config.accumulate),
        ('eval.batch_size', config.eval.batch_size, mesh.size),
    ):
        if batch_size < 1 or batch_size % parts:
            raise ValueError(
                f'config.{key} = {batch_size} must be a multiple of {parts}: {mesh.size} devices'
                + (f' × config.accumulate = {config.accumulate}' if key == 'batch_size' else '')
            )


def train(config, workdir) -> dict:
    """Trains as `config` says, resuming from the newest checkpoint in `workdir`.

    Returns:
      The scores of the last evaluation; nothing if SIGTERM ended the run before.

    Raises:
      ValueError: the config, the data, public weights or an existing checkpoint do not fit.
      FloatingPointError: the loss is not finite; the message names the step and the examples of its batch.
    """
    mesh = sharding.make_mesh(config.mesh_data)
    check(config, mesh)
    workdir = Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    source, eval_source = open_sources(config)
    num_classes = len(source.class_names)
    model = models.build(config, num_classes)
    optimizer = optimizers.make_optimizer(config.optimizer, config.steps)
    copied = sharding.copied(mesh)

    def jit_step(**kwargs):
        step = make_train_step(model, optimizer, config, num_classes, **kwargs)
        return jax.jit(
            step,
            donate_argnums=0,
            in_shardings=(copied, sharding.split(mesh), None),
            out_shardings=copied,
        )

    train_step, warmup_step = jit_step(), jit_step(all_classes=True)
    warmup_steps = config.rankseg.warmup_steps if config.rankseg else 0
    eval_step = evaluate.make_eval_step(model, config, eval_source, mesh)

    manager = checkpoint.open_checkpoints(workdir, config.keep_checkpoints)
    make_state = jax.jit(
        lambda: create_state(model, optimizer, config, num_classes), out_shardings=copied
    )
    start = manager.latest_step() or 0
    if manager.all_steps() and not start:
        raise ValueError(
            f'{workdir} holds converted weights: train in another --workdir, with --config.model.pretrained={workdir}'
        )
    if start:
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=copied),
            jax.eval_shape(make_state),
        )
        restored = checkpoint.restore(
            manager, start, model=shapes.model, optimizer=shapes.optimizer
        )
        state = TrainState(restored.model, restored.optimizer)
        run = checkpoint.restore_run(manager, start)
        if run['class_names'] != list(source.class_names):
            raise ValueError(
                f'{workdir} was trained on other categories: {run["class_names"][:5]} …, now '
                f'{list(source.class_names[:5])} …; use another --workdir'
            )
        for key in ('seed', 'batch_size'):
            if run['config'][key] != config[key]:
                print(
                    f'config.{key} was {run["config"][key]} and is {config[key]}: the images come in another order now'
                )
        start = run['next_step']
        print(f'Resuming {workdir} after step {start}', flush=True)
    else:
        state = make_state()
        if config.model.pretrained:
            loaded = pretrained.load(config.model.pretrained, jax.device_get(state.model))
            state = state.replace(model=jax.device_put(loaded, copied, may_alias=False))
            print(f'Starting from {config.model.pretrained}', flush=True)
    if start >= config.steps:
        print(f'config.steps = {config.steps} are done already', flush=True)
        return evaluate.evaluate(eval_step, state.model, eval_source, config, mesh)
    count = sum(x.size for x in jax.tree.leaves(state.model['params']))
    print(
        f'{len(source)} images, {num_classes} categories, {count / 1e6:.2f} M parameters, '
        f'{mesh.size} {jax.devices()[0].device_kind} device(s); compiling …',
        flush=True,
    )

    progress = Progress(
        config, workdir, optimizers.make_schedule(config.optimizer, config.steps), start
    )
    pending = (
        collections.deque()
    )  # metrics still on the device: the host runs at most two steps ahead
    saved = start
    scores = {}

    def settle(leave: int):
        while len(pending) > leave:
            step, metrics = pending.popleft()
            row = {k: float(v) for k, v in jax.device_get(metrics).items()}
            if not np.isfinite(list(row.values())).all():
                ids = [
                    source.ids[i]
                    for i in pipeline.example_indices(
                        len(source), config.seed, step, config.batch_size
                    )
                ]
                raise FloatingPointError(
                    f'the loss or a norm is not finite at step {step}, whose batch holds: {", ".join(ids)}; {row}. '
                    + (
                        f'The last checkpoint, after step {saved}, is from before. '
                        if saved
                        else ''
                    )
                    + 'Lower config.optimizer.learning_rate, set config.optimizer.clip_norm, or look at these examples.'
                )
            progress.rows.append(row)

    with (
        manager,
        Stop() as stop,
        contextlib.closing(pipeline.train_batches(source, config, start_step=start)) as batches,
    ):
        for step in range(start, config.steps):
            batch = sharding.shard_batch(next(batches), mesh)
            rng = jax.random.fold_in(jax.random.key(config.seed), step)
            state, metrics = (warmup_step if step < warmup_steps else train_step)(state, batch, rng)
            pending.append((step, metrics))
            settle(2)
            done = step + 1
            last, first = done == config.steps, step == start
            stopping = stop.asked(step)
            evaluating = (done % config.eval_every == 0 or last) and not stopping
            saving = evaluating or stopping or done % config.checkpoint_every == 0
            logging = first or last or done % config.log_every == 0
            if saving or logging:
                settle(0)
            if logging:
                progress.report(done)
            if evaluating:
                scores = evaluate.evaluate(eval_step, state.model, eval_source, config, mesh)
                progress.write(done, {f'eval/{k}': v for k, v in scores.items() if np.isscalar(v)})
                print(
                    f'step {done}/{config.steps}  {config.data.eval_split}: {evaluate.one_line(scores)}',
                    flush=True,
                )
            if saving:
                run = {
                    'config': config.to_dict(),
                    'class_names': list(source.class_names),
                    'next_step': done,
                    'things': data.things(source, config.task),
                    'mIoU': evaluate.without_nan(scores['mIoU']) if evaluating else None,
                }
                checkpoint.save(manager, done, state.model, state.optimizer, run)
                saved = done
            if saving or first:
                progress.restart_clock(done)  # evaluation, saving and compilation are no training
            if stopping:
                print(
                    f'Asked to stop: saved after step {done}; run the same command to go on.',
                    flush=True,
                )
                return {}
    return scores
