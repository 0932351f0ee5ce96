"""What predicting an image or a clip costs."""

import time

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from rankseg_jax import inference, models, tasks
from rankseg_jax.tasks.semantic import Semantic


def prediction_cost(config: ConfigDict, num_classes: int, num_selected: int) -> dict:
    """Time and memory of predicting an image, or a clip, on one device.

    It has `eval.size`, or `augment.crop_size` if images keep their own sizes.

    Args:
      num_classes: K.
      num_selected: κ.

    Returns:
      num_selected, the median of milliseconds, and temporary_bytes.
    """
    config = config.copy_and_resolve_references()
    config.rankseg.update(num_selected=num_selected, select=True, oracle=False)
    if config.rankseg.temperature == 'layer_norm':  # over as many ranks as in training
        config.rankseg.train_selected = 0
    model = models.build(config, num_classes)
    shapes = jax.eval_shape(
        lambda: models.init(model, num_classes, config.seed, image_shape=config.augment.crop_size)
    )
    # The time does not depend on the values.
    variables = jax.device_put(jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes))
    canvas = tuple(config.eval.size if any(config.eval.size) else config.augment.crop_size)
    size = jnp.array([canvas])  # [1, 2]
    clip = (config.eval.clip_length,) if tasks.task_class(config.task).takes_clips else ()
    views = ({'image': jnp.zeros((1, *clip, *canvas, 3)), 'content': size},)
    task = Semantic(config, [str(label) for label in range(num_classes)])

    def segment(variables, views, size):
        found = inference.segment(
            model, variables, views, size=size, config=config, task=task, canvas=canvas
        )
        return found.maps

    compiled = jax.jit(segment).lower(variables, views, size).compile()
    memory = compiled.memory_analysis()
    assert memory is not None  # CPUs, GPUs and TPUs tell it
    seconds = []
    while len(seconds) < 6 or sum(seconds) < 0.5:
        start = time.perf_counter()
        jax.block_until_ready(compiled(variables, views, size))
        seconds.append(time.perf_counter() - start)
    return {
        'num_selected': num_selected,
        'milliseconds': 1e3 * float(np.median(seconds[1:])),
        'temporary_bytes': memory.temp_size_in_bytes,
    }
