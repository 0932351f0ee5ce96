"""From a config to a model and its variables, for training, evaluation and prediction alike."""

import importlib

import flax
import jax
import jax.numpy as jnp

from rankseg_jax import checkpoint, frameworks


def build(config, num_classes: int):
    """The Flax module of `config.model.framework`, a module of rankseg_jax/frameworks.

    Raises:
      ValueError: no framework or dtype has this name, or κ lies outside 1..K.
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
            f'config.rankseg.num_selected (κ) = {config.rankseg.num_selected} must be at least 1 and at most '
            f'the number of categories, K = {num_classes}'
        )
    return importlib.import_module(f'rankseg_jax.frameworks.{name}').build(config, num_classes)


def init(model, num_classes: int, seed: int, image_shape) -> dict:
    """Fresh variables {'params', 'batch_stats'} of a model for images of `image_shape` (height, width)."""
    images = jnp.zeros((1, *image_shape, 3))
    variables = model.init(
        jax.random.key(seed), images, train=False, presence=jnp.zeros((1, num_classes), bool)
    )
    return {'batch_stats': {}} | flax.core.unfreeze(variables)


def forward(model, variables, images, **choice):
    """The model's output for prediction, from averaged parameters where there are some; `choice` as for the model."""
    params = variables.get('ema', variables['params'])
    return model.apply(
        {'params': params, 'batch_stats': variables['batch_stats']}, images, train=False, **choice
    )


def restore(manager, step: int, model, config, num_classes: int, placement) -> dict:
    """The variables {'params', 'batch_stats'[, 'ema']} of a checkpoint, placed by the sharding `placement`."""

    def shapes():
        variables = init(model, num_classes, config.seed, config.augment.crop_size)
        return variables | ({'ema': variables['params']} if config.ema else {})

    expected = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placement), jax.eval_shape(shapes)
    )
    return checkpoint.restore(manager, step, model=expected).model
