"""A trained model as files that serve it without this package.

    <output>/
      model.jax_export   compiled for CPU, TPU and GPU when loaded, any batch size, see `serve`
      params/            its parameters, an orbax checkpoint
      labels.json        category names in label order, task, input size and filter, κ; of videos,
                         the length and overlap of clips
      example.py         loads these and segments one image, or a video

`predict.load` reads the folder, too.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from flax import linen as nn
from jax import export
from ml_collections import ConfigDict

from rankseg_jax import checkpoint, export_example, inference, models, sharding, storage, tasks
from rankseg_jax.data.fitting import padding_color
from rankseg_jax.postprocessing import covered

ARTIFACT = 'model.jax_export'
ABOUT = 'labels.json'
PLATFORMS = ('cpu', 'tpu', 'cuda')

# Keys of `config.eval` that matter after the model: to results of objects, and of videos.
OBJECT_OPTIONS = ('threshold', 'max_objects')
CLIP_OPTIONS = ('clip_length', 'clip_overlap')


def serve(model: nn.Module, config: ConfigDict, task: tasks.Task) -> Callable:
    """The function that is exported: (variables, images, sizes[, lengths]) → dict.

    It takes images uint8 [b, *eval.size, 3], RGB, each at the top left, and the rows and columns
    that they fill, int32 [b, 2]. It returns what `inference.served` says, at eval.size; labels are
    -1 beyond the image.

    If the task takes clips, it takes uint8 [b, eval.clip_length, *eval.size, 3], and the number of
    frames that each holds, int32 [b]; what follows these is padding, which changes nothing. What is
    returned of a frame is [b, eval.clip_length, …], the categories of a clip are [b, κ].
    """

    def segment(variables, images, sizes, lengths=None):
        inside = covered(sizes, config.eval.size)  # [b, H, W]
        shown = None
        if lengths is not None:
            inside = inside[:, None]  # [b, 1, H, W]
            shown = jnp.arange(config.eval.clip_length) < lengths[:, None]  # [b, t]
        mean, std = (jnp.array(x, jnp.float32) for x in (config.data.mean, config.data.std))
        normalized = (images.astype(jnp.float32) - mean) / std  # [b, (t,) H, W, 3]
        padded = jnp.where(inside[..., None], normalized, padding_color(config))
        views = ({'image': padded, 'content': sizes},)
        prediction = inference.segment(
            model,
            variables,
            views,
            size=sizes,
            config=config,
            task=task,
            canvas=config.eval.size,
            shown=shown,
        )
        return inference.served(prediction, config)

    return segment


def check(config: ConfigDict, output: Path) -> None:
    """Raises a ValueError for a config that cannot be exported, and an `output` that is taken."""
    if config.rankseg and config.rankseg.oracle:
        raise ValueError(
            'an oracle selects by the ground truth, which is not there when a model serves: '
            'export with --config.rankseg.oracle=False'
        )
    if models.carries(config) and tasks.task_class(config.task).takes_clips:
        raise ValueError(
            f'config.model.framework = {config.model.framework!r} goes on from clip to clip, which '
            'an exported function cannot: predict videos with --mode=predict'
        )
    if not any(config.eval.size):
        raise ValueError(
            'config.eval.size = (0, 0): a model is exported for one size, such as '
            "--config.eval.size='(512,512)'"
        )
    if tuple(config.eval.scales) != (1.0,):
        raise ValueError(
            f'config.eval.scales = {config.eval.scales}: a model is exported for one size, '
            "config.eval.size; set --config.eval.scales='(1.0,)'"
        )
    if output.is_dir() and any(output.iterdir()) and not (output / ARTIFACT).is_file():
        raise ValueError(
            f'--output={output} holds other files than an exported model; choose another folder'
        )


def run(config: ConfigDict, workdir: str | os.PathLike, output: str | os.PathLike) -> Path:
    """--mode=export: writes checkpoint `config.eval.checkpoint` of `workdir` as the files above.

    Returns:
      The folder.

    Raises:
      FileNotFoundError: there is no such checkpoint.
      ValueError: as `check`, or `config` describes another model.
    """
    output = storage.path(output)
    check(config, output)
    storage.make_folder(output)
    saved = checkpoint.open_run(workdir, config.eval.checkpoint)
    task = tasks.build(config, saved.class_names, saved.things)
    model = models.build(config, task.num_classes)
    variables = models.restore(saved, model, config=config, mesh=sharding.one_device())
    variables = {
        'params': variables.get('ema', variables['params']),
        'batch_stats': variables['batch_stats'],
    }

    size = tuple(config.eval.size)
    (b,) = export.symbolic_shape('b')
    clip = (config.eval.clip_length,) if task.takes_clips else ()
    arguments = [
        jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), variables),
        jax.ShapeDtypeStruct((b, *clip, *size, 3), jnp.uint8),
        jax.ShapeDtypeStruct((b, 2), jnp.int32),
        *[jax.ShapeDtypeStruct((b,), jnp.int32) for _ in clip],
    ]
    artifact = export.export(jax.jit(serve(model, config, task)), platforms=PLATFORMS)(*arguments)
    about = {
        'labels': task.class_names,
        'task': config.task,
        'things': task.things,
        'size': size,
        'antialias': config.data.antialias,
        'resample': config.eval.resample,
        'stretch': config.eval.stretch and not any(config.eval.base_size),
        'num_selected': config.rankseg.num_selected if config.rankseg else None,
    }
    finds_objects = 'masks' in task.maps
    options = OBJECT_OPTIONS if finds_objects else ()
    options += CLIP_OPTIONS if task.takes_clips else ()
    about |= {name: config.eval[name] for name in options}
    program = export_example.program(clips=task.takes_clips, objects=finds_objects)
    alone = checkpoint.alone()
    if (output / ABOUT).is_file():
        (output / ABOUT).unlink()  # and written last: a folder that lacks it was cut off
    with storage.written(output) as folder:
        (folder / ARTIFACT).write_bytes(artifact.serialize())
        with ocp.StandardCheckpointer(multiprocessing_options=alone) as checkpointer:
            checkpointer.save(folder.absolute() / 'params', jax.device_get(variables), force=True)
        (folder / 'example.py').write_bytes(program.encode())  # UTF-8 in any locale
        (folder / ABOUT).write_text(json.dumps(about, indent=1))
    return output
