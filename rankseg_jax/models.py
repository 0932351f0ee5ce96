"""From a config to a model and its variables, for training, evaluation and prediction alike."""

import dataclasses
import importlib
from collections.abc import Mapping
from typing import Any

import flax
import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import Mesh
from ml_collections import ConfigDict

from rankseg_jax import checkpoint, frameworks, sharding
from rankseg_jax.outputs import PixelOutput, QueryOutput
from rankseg_jax.selector import Choice, num_ranks

# Config groups that determine the variables' names and shapes, besides K.
DECISIVE = ('model', 'rankseg', 'augment', 'ema')


def build(config: ConfigDict, num_classes: int) -> nn.Module:
    """The Flax module of `config.model.framework`, a module of rankseg_jax/frameworks.

    Raises:
      ValueError: no framework or dtype has this name, κ lies outside 1..K, or layer norms over
        ranks would see other numbers of them in training and prediction; or as the framework's
        `build`.
    """
    names = frameworks.names()
    name = config.model.framework
    if name not in names:
        raise ValueError(
            f'config.model.framework = {name!r} is unknown; use one of {", ".join(names)}'
        )
    if config.model.dtype not in ('float32', 'bfloat16'):
        raise ValueError(
            f"config.model.dtype = {config.model.dtype!r} is unknown; use 'float32' or 'bfloat16'"
        )
    if config.rankseg and not 1 <= config.rankseg.num_selected <= num_classes:
        raise ValueError(
            f'config.rankseg.num_selected (κ) = {config.rankseg.num_selected} must be at least 1 '
            f'and at most the number of categories, K = {num_classes}'
        )
    if (
        config.rankseg
        and config.rankseg.temperature == 'layer_norm'
        and num_ranks(config.rankseg, num_classes) != config.rankseg.num_selected
    ):
        raise ValueError(
            "config.rankseg.temperature = 'layer_norm' normalizes over the ranks, as many in "
            'training as in prediction: set config.rankseg.train_selected = 0, not '
            f'{config.rankseg.train_selected}'
        )
    return importlib.import_module(f'rankseg_jax.frameworks.{name}').build(config, num_classes)


def carries(config: ConfigDict) -> bool:
    """Whether the model goes through a video from clip to clip, keeping what it knows of it.

    Such a model has a method `memory(count)`: the `outputs.Memory` of as many videos before their
    first frame.
    """
    module = importlib.import_module(f'rankseg_jax.frameworks.{config.model.framework}')
    return getattr(module, 'CARRIES', False)


def init(model: nn.Module, num_classes: int, seed: int, image_shape: tuple[int, int]) -> dict:
    """Fresh variables {'params', 'batch_stats'} of a model for images of (height, width)."""
    images = jnp.zeros((1, *image_shape, 3))
    choice = Choice(presence=jnp.zeros((1, num_classes), bool))
    variables = model.init(jax.random.key(seed), images, train=False, choice=choice)
    return {'batch_stats': {}} | flax.core.unfreeze(variables)


def apply(
    model: nn.Module,
    variables: dict,
    images: jax.Array,
    choice: Choice,
    *,
    train: bool,
    rngs: dict[str, jax.Array] | None = None,
) -> tuple[PixelOutput | QueryOutput, Mapping[str, Any]]:
    """Applies a model to images, or to clips frame by frame.

    Args:
      images: normalized [B · views, H, W, 3], or clips [B · views, t, H, W, 3].

    Returns:
      A PixelOutput or QueryOutput, and the variables that training updates.
    """
    length = images.shape[1:-3]  # (t,) of clips
    if length:
        choice = dataclasses.replace(choice, frames=length[0])
        images = images.reshape(-1, *images.shape[2:])  # [B · views · t, H, W, 3]
    mutable = ['batch_stats'] if train else []
    output, updates = model.apply(
        variables, images, train=train, choice=choice, rngs=rngs, mutable=mutable
    )
    return output.by_clip(*length) if length else output, updates


def forward(
    model: nn.Module, variables: dict, images: jax.Array, choice: Choice
) -> PixelOutput | QueryOutput:
    """The model's output for prediction, from averaged parameters where there are some.

    Args:
      images: see `apply`.
    """
    params = variables.get('ema', variables['params'])
    variables = {'params': params, 'batch_stats': variables['batch_stats']}
    return apply(model, variables, images, choice=choice, train=False)[0]


def restore(run: checkpoint.SavedRun, model: nn.Module, config: ConfigDict, mesh: Mesh) -> dict:
    """The variables {'params', 'batch_stats'[, 'ema']} of a run's checkpoint, on the mesh.

    Raises:
      DamagedCheckpoint: the checkpoint cannot be read.
      ValueError: `config` describes another model.
    """

    def fresh():
        variables = init(
            model, len(run.class_names), seed=config.seed, image_shape=config.augment.crop_size
        )
        return variables | ({'ema': variables['params']} if config.ema else {})

    if all(config[key] == run.config[key] for key in DECISIVE):
        shapes = run.shapes()  # tracing the model takes seconds
    else:
        shapes = jax.eval_shape(fresh)
    shardings = sharding.state_shardings(mesh, shapes, shapes['params'], rules=config.sharding)
    expected = sharding.place(shapes, shardings)
    return checkpoint.restore(run.manager, run.step, model=expected)['model']
