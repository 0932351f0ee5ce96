"""--mode=publish: a run as a folder for the Hugging Face hub.

    <output>/
      model.safetensors          of a Mask2Former or an EoMT without RankSeg in Hugging Face's
      config.json                format, which `transformers` loads; of others in that of
                                 `pretrained.hub`
      preprocessor_config.json   in the former, how images are resized and normalized
      README.md                  the model card
      grid.png                   drawings of the evaluation split, if the run has some

--mode=convert makes it a run again.
"""

import os
from pathlib import Path
from typing import Any

import jax
from flax import linen as nn
from ml_collections import ConfigDict

from rankseg_jax import checkpoint, model_card, models, sharding, storage, tasks
from rankseg_jax.pretrained import hub, processor, to_hf

FILES = {*hub.DESCRIPTIONS, hub.WEIGHTS, processor.FILE, 'README.md', 'grid.png'}


def run(config: ConfigDict, workdir: str | os.PathLike, output: str | os.PathLike) -> Path:
    """Writes checkpoint `config.eval.checkpoint` of `workdir` as the files above.

    Returns:
      The folder.

    Raises:
      FileNotFoundError: there is no such checkpoint.
      OSError: `output` cannot be written.
      ValueError: `output` holds other files, or `config` describes another model.
    """
    workdir, output = storage.path(workdir), storage.path(output)
    files = {path.name for path in output.iterdir()} if output.is_dir() else set()
    if not files <= FILES and hub.read_run(output) is None:
        raise ValueError(
            f'--output={output} holds other files than a published run; choose another folder'
        )
    storage.make_folder(output)
    saved = checkpoint.open_run(workdir, config.eval.checkpoint)
    task = tasks.build(config, saved.class_names, saved.things)
    model = models.build(config, task.num_classes)
    variables = jax.device_get(
        models.restore(saved, model, config=config, mesh=sharding.one_device())
    )
    variables = {
        'params': variables.get('ema', variables['params']),
        'batch_stats': variables['batch_stats'],
    }
    theirs = in_hugging_faces(config, task, model)
    arrays = theirs and (theirs, to_hf.state(theirs, variables))
    inputs, different = processor.described(config, theirs['model_type']) if theirs else ({}, [])
    record = {
        'config': config.to_dict(),
        'class_names': task.class_names,
        'things': task.things,
        'step': saved.step,
    }
    picture = workdir / 'predictions' / 'grid.png'
    card = model_card.text(
        config,
        model_card.found_scores(workdir, config, saved.step),
        num_classes=task.num_classes,
        num_parameters=sum(x.size for x in jax.tree.leaves(variables['params'])),
        step=saved.step,
        license=model_card.license_in(output / 'README.md'),
        picture=picture.name if picture.is_file() else '',
        for_transformers=theirs is not None,
        different=different,
    )
    for name in files & {*hub.DESCRIPTIONS, processor.FILE}:
        (output / name).unlink()  # a folder that lacks them is none, as when this is cut off
    with storage.written(output) as folder:
        hub.write(folder, record, variables, theirs=arrays)
        if theirs:
            hub.write_json(folder / processor.FILE, inputs)
        (folder / 'README.md').write_text(card, 'utf-8')
        if picture.is_file():
            (folder / picture.name).write_bytes(picture.read_bytes())
    return output


def in_hugging_faces(
    config: ConfigDict, task: tasks.Task, model: nn.Module
) -> dict[str, Any] | None:
    """config.json in Hugging Face's format, or None if it has no such model; prints which."""
    try:
        if config.rankseg:
            raise ValueError('RankSeg is known to this library alone')
        if task.takes_clips:
            raise ValueError('it sees clips')
        found = to_hf.describe(model, task.class_names, config.loss)
    except ValueError as error:
        print(f"Format: this library's own, not that of Hugging Face: {error}")
        return None
    print("Format: Hugging Face's, which transformers loads, too")
    return found
