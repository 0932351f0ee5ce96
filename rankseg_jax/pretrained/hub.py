"""Runs as folders for the Hugging Face hub, which --mode=publish writes.

    model.safetensors   the parameters, averaged ones if there are any: named as in a checkpoint,
                        params/…, batch_stats/…, or in Hugging Face's format as there
    config.json         the run: its config, class names, things, and the step it was trained to
    rankseg_jax.json    the same, where config.json is Hugging Face's

`hf.locate` finds such a folder, or downloads it.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util
from safetensors.numpy import save

from rankseg_jax.pretrained import hf

LIBRARY = 'rankseg_jax'
BESIDE = 'rankseg_jax.json'
DESCRIPTIONS = ('config.json', BESIDE)
WEIGHTS = 'model.safetensors'


def write(folder: Path, run: dict[str, Any], variables: dict, theirs: Any = None) -> None:
    """Writes the files above, those that describe the run last.

    Args:
      run: 'config', 'class_names', 'things' and 'step'.
      variables: {'params', 'batch_stats'}, on the host.
      theirs: config.json and arrays by name in Hugging Face's format; None: in our own.
    """
    run = {'library_name': LIBRARY} | run
    config, arrays = theirs or (run, traverse_util.flatten_dict(variables, sep='/'))
    # Arrays are stored as they lie in memory, and transformers asks whose tensors they are.
    arrays = {name: np.asarray(x, order='C') for name, x in arrays.items()}
    content = save(arrays, {'format': 'pt' if theirs else 'flax'})
    (folder / WEIGHTS).write_bytes(content)  # `save_file` hides that a disk is full
    if theirs:
        write_json(folder / BESIDE, run)
    write_json(folder / 'config.json', config)


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False), 'utf-8')


def read_run(folder: Path) -> hf.Keys | None:
    """What a folder says of the run in it; None if it is not of this library.

    Raises:
      ValueError: a file is not JSON, or class names and things do not fit together.
    """
    for path in (folder / 'config.json', folder / BESIDE):
        if path.is_file() and (run := hf.read_json(path)).get('library_name') == LIBRARY:
            break
    else:
        return None
    lacking = {'config', 'class_names', 'things'} - run.keys()
    if lacking:
        raise ValueError(f'{path} describes no run: it lacks {", ".join(sorted(lacking))}')
    names, things = run['class_names'], run['things']
    if not isinstance(names, list) or not names or not all(isinstance(x, str) for x in names):
        raise ValueError(f'{path}: class_names must be a list of names')
    if not isinstance(things, list) or len(things) not in (0, len(names)):
        raise ValueError(f'{path}: things must be a list of {len(names)} values, or empty')
    return run


def read_variables(folder: Path) -> dict:
    """Variables {'params'[, 'batch_stats']} of a folder in our format or Hugging Face's.

    Raises:
      FileNotFoundError, ValueError: as `hf.read_folder`.
    """
    if hf.read_json(folder / 'config.json').get('library_name') == LIBRARY:
        arrays = hf.read_weights(folder)
        return {'batch_stats': {}} | traverse_util.unflatten_dict(arrays, sep='/')
    return hf.variables(*hf.read_folder(folder))
