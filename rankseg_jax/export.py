"""A trained model as files that serve it without this package.

    <output>/
      model.jax_export   compiled for CPU, TPU and GPU when loaded, any batch size, see `serve`
      params/            its parameters, an orbax checkpoint
      labels.json        category names in label order, task, input size and filter, κ
      example.py         loads these and segments one image

`predict.load` reads the folder, too.
"""

import inspect
import json
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax import export

from rankseg_jax import checkpoint, inference, models, sharding, storage, tasks
from rankseg_jax.data import fitting
from rankseg_jax.data.images import to_rgb
from rankseg_jax.postprocessing import covered

ARTIFACT = 'model.jax_export'
PLATFORMS = ('cpu', 'tpu', 'cuda')

COPIED = (  # into example.py
    to_rgb,
    fitting.fitted_size,
    fitting.resize,
    fitting.blend,
    fitting.filtered,
    fitting.filter_weights,
    fitting.fit,
)
EXAMPLE = '''"""Segments one image: python example.py photo.jpg

Needs jax, orbax-checkpoint, numpy and pillow.
"""
import json, sys
from pathlib import Path
import jax, jax.export, numpy as np, orbax.checkpoint as ocp
from PIL import Image, ImageOps

FUNCTIONS
folder = Path(__file__).absolute().parent
about = json.loads((folder / 'labels.json').read_text())
params = ocp.StandardCheckpointer().restore(folder / 'params')
segment = jax.jit(jax.export.deserialize((folder / 'model.jax_export').read_bytes()).call)
photo = to_rgb(Image.open(sys.argv[1]))
image, content = fit(photo, about['size'], about['antialias'], about['resample'], about['stretch'])
found = segment(params, image[None], content[None])
if 'labels' not in found:
    sys.exit(f'no label map to draw; the model returned {found}')
labels = np.asarray(found['labels'])[0, :content[0], :content[1]]
for label, count in zip(*np.unique(labels, return_counts=True)):
    print(f'{about["labels"][label]}: {count / labels.size:.1%} of the pixels')
Image.fromarray(labels.astype(np.uint16)).save('labels.png')
'''.replace('FUNCTIONS', '\n\n'.join(map(inspect.getsource, COPIED)))


def serve(model, config, task: tasks.Task) -> Callable:
    """The function that is exported: (variables, images, sizes) → dict.

    It takes images uint8 [b, *eval.size, 3], RGB, each at the top left, and the rows and columns
    that they fill, int32 [b, 2]. It returns what `inference.served` says, at eval.size; labels are
    -1 beyond the image.
    """

    def segment(variables, images, sizes):
        inside = covered(sizes, config.eval.size)  # [b, H, W]
        mean, std = (jnp.array(x, jnp.float32) for x in (config.data.mean, config.data.std))
        normalized = (images.astype(jnp.float32) - mean) / std  # [b, H, W, 3]
        views = ({'image': jnp.where(inside[..., None], normalized, 0.0), 'content': sizes},)
        prediction = inference.segment(
            model, variables, views, sizes, config, task, canvas=config.eval.size
        )
        return inference.served(prediction, config)

    return segment


def check(config, output: Path) -> None:
    """Raises a ValueError if `config` needs labels or not one size, or `output` is taken."""
    if config.rankseg and config.rankseg.oracle:
        raise ValueError(
            'an oracle selects by the ground truth, which is not there when a model serves: '
            'export with --config.rankseg.oracle=False'
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


def run(config, workdir, output) -> Path:
    """--mode=export: writes checkpoint `config.eval.checkpoint` of `workdir` as the files above.

    Returns:
      The folder.

    Raises:
      FileNotFoundError: there is no such checkpoint.
      ValueError: as `check`, or `config` describes another model.
    """
    output = Path(output).absolute()
    check(config, output)
    storage.make_folder(output)
    saved = checkpoint.open_run(workdir, config.eval.checkpoint)
    task = tasks.build(config, saved.class_names, saved.things)
    model = models.build(config, task.num_classes)
    variables = models.restore(saved, model, config, sharding.make_mesh(1))
    variables = {
        'params': variables.get('ema', variables['params']),
        'batch_stats': variables['batch_stats'],
    }

    size = tuple(config.eval.size)
    (b,) = export.symbolic_shape('b')
    served = export.export(jax.jit(serve(model, config, task)), platforms=PLATFORMS)
    artifact = served(
        jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), variables),
        jax.ShapeDtypeStruct((b, *size, 3), jnp.uint8),
        jax.ShapeDtypeStruct((b, 2), jnp.int32),
    )
    (output / ARTIFACT).write_bytes(artifact.serialize())
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(output / 'params', variables, force=True)
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
    (output / 'labels.json').write_text(json.dumps(about, indent=1))
    (output / 'example.py').write_text(EXAMPLE)
    return output
