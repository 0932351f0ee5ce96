"""The training step, from a batch to a new state: pure functions, to be jitted over a mesh."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct
from ml_collections import ConfigDict

from rankseg_jax import inference, losses, models, tasks
from rankseg_jax.outputs import PixelOutput, QueryOutput
from rankseg_jax.selector import Choice


@struct.dataclass
class TrainState:
    """All that a step changes.

    Attributes:
      step: [] int32, number of steps done.
      model: {'params', 'batch_stats'[, 'ema']}.
      optimizer: the optimizer's state.
    """

    step: jax.Array
    model: dict[str, Any]
    optimizer: Any


def create_state(
    model: nn.Module, optimizer: optax.GradientTransformation, config: ConfigDict, num_classes: int
) -> TrainState:
    """The state before the first step."""
    variables = models.init(
        model, num_classes, seed=config.seed, image_shape=config.augment.crop_size
    )
    if config.ema:  # a copy, since donated buffers must differ
        variables['ema'] = jax.tree.map(jnp.copy, variables['params'])
    return TrainState(jnp.int32(0), variables, optimizer.init(variables['params']))


def loss_parts(
    key: jax.Array,
    output: PixelOutput | QueryOutput,
    batch: Mapping[str, jax.Array],
    presence: jax.Array,
    config: ConfigDict,
    task: tasks.Task,
) -> tuple[dict[str, losses.Mean], dict[str, jax.Array]]:
    """The parts that the training loss of a batch is the sum of, and further figures, by name.

    Args:
      key: random key for the task's loss.
      output: PixelOutput or QueryOutput.
      batch: see `pipeline.train_batches`.
      presence: [B, K] bool, the categories in the ground truth.

    Raises:
      ValueError: an unknown multi-label loss, or the model cannot do the task or the evaluation.
    """
    # Refused before the first step, not at the first evaluation.
    inference.check(config, output)
    task.check(output)
    parts, figures = task.loss(key, output, batch)
    if output.presence_logits is not None:
        parts['loss_multilabel'] = losses.multilabel_loss(
            output.presence_logits, presence, mask=batch['mask'], options=config.loss
        )
    if output.cell_logits is not None and config.loss.cell_weight:
        value = losses.pixel_cross_entropy(
            output.cell_logits, task.category_map(batch), upsample=False
        )
        parts['loss_cells'] = config.loss.cell_weight * value
    return parts, figures


def make_train_step(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    config: ConfigDict,
    task: tasks.Task,
    *,
    all_classes: bool = False,
) -> Callable:
    """(TrainState, batch) → (TrainState, metrics), to be jitted; see `pipeline.train_batches`.

    Args:
      all_classes: classify over all K (the warm-up).
    """

    def forward(params, batch_stats, step, batch, rng):
        """The parts of the loss, further figures, and the new batch statistics."""
        presence = task.presence(batch)  # [B, K]
        output, updates = models.apply(
            model,
            {'params': params, 'batch_stats': batch_stats},
            batch['image'],
            choice=Choice(presence=presence, all_classes=all_classes, step=step),
            train=True,
            rngs={'dropout': rng},
        )
        key = jax.random.fold_in(rng, 0)
        parts, figures = loss_parts(key, output, batch, presence=presence, config=config, task=task)
        return parts, figures, updates.get('batch_stats', {})

    def loss_fn(params, batch_stats, step, batch, rng, shares=None):
        """The loss; of a micro-batch, `shares` are its shares of what each part is a mean over."""
        parts, figures, batch_stats = forward(params, batch_stats, step, batch, rng)
        values = {
            name: part.value if shares is None else shares[name] * part.value
            for name, part in parts.items()
        }
        loss = sum(values.values())
        return loss, (batch_stats, values | {'loss': loss}, figures)

    gradient = jax.grad(loss_fn, has_aux=True)

    def accumulated_gradient(params, batch_stats, step, batch, rng):
        """`gradient` from micro-batches, one after another."""
        # Every accumulate-th image makes a micro-batch, so that each stays spread over all devices.
        micro = jax.tree.map(
            lambda x: x.reshape(-1, config.accumulate, *x.shape[1:]).swapaxes(0, 1), batch
        )

        rngs = jax.vmap(functools.partial(jax.random.fold_in, rng))(jnp.arange(config.accumulate))

        # Selection decides which pixels and targets count, so counting needs a forward pass. XLA
        # removes from it what comes after selection; without selection, everything.
        def count(item):
            parts, _, _ = forward(params, batch_stats, step, *item)
            return {name: part.count for name, part in parts.items()}

        counts = jax.lax.map(count, (micro, rngs))  # [micro-batches] each
        shares = {name: x / jnp.where(x.any(), x.sum(), 1) for name, x in counts.items()}

        def add(carry, item):
            batch_stats, total = carry
            grads, (batch_stats, values, figures) = gradient(params, batch_stats, step, *item)
            return (batch_stats, jax.tree.map(jnp.add, total, grads)), (values, figures)

        zeros = jax.tree.map(jnp.zeros_like, params)
        (batch_stats, grads), (values, figures) = jax.lax.scan(
            add, (batch_stats, zeros), (micro, rngs, shares)
        )
        values, figures = jax.tree.map(jnp.sum, values), jax.tree.map(jnp.mean, figures)
        return grads, (batch_stats, values, figures)

    def train_step(state, batch):
        rng = jax.random.fold_in(jax.random.key(config.seed), state.step)
        params = state.model['params']
        differentiate = gradient if config.accumulate == 1 else accumulated_gradient
        grads, (batch_stats, values, figures) = differentiate(
            params, state.model['batch_stats'], state.step, batch, rng
        )
        updates, optimizer_state = optimizer.update(grads, state.optimizer, params)
        params = optax.apply_updates(params, updates)
        variables = {'params': params, 'batch_stats': batch_stats}
        if config.ema:
            decay = 1 - config.ema
            variables['ema'] = optax.incremental_update(params, state.model['ema'], decay)
        norms = {'grad_norm': optax.tree.norm(grads), 'param_norm': optax.tree.norm(params)}
        metrics = values | figures | norms
        return TrainState(state.step + 1, variables, optimizer_state), metrics

    return train_step
