"""--mode=analyze: what the data hold, or which κ a model needs and what it gets wrong."""

from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from rankseg_jax import checkpoint, storage
from rankseg_jax.analysis import dataset, model


def run(
    config: ConfigDict,
    workdir: str | Path,
    output: str | Path | None = None,
    compare: Sequence = (),
) -> dict:
    """Analyzes a checkpoint of `workdir`, or the data as long as there is none.

    Prints the essentials and writes analysis.json, charts and, of a checkpoint, a report into the
    folder `output`; None: one in `workdir`.

    Args:
      compare: workdirs of other runs, which the report shows beside this one.

    Returns:
      The contents of analysis.json.

    Raises:
      ValueError: there is nothing to analyze, or another run saw other data.
      OSError: the folder cannot be written, or there is no report of a run to compare.
    """
    workdir = storage.path(workdir)
    manager = checkpoint.open_checkpoints(workdir) if (workdir / 'checkpoints').is_dir() else None
    if manager is None or not manager.all_steps():
        if compare:
            raise ValueError(
                f'--compare compares trained runs, and {workdir} has no checkpoint yet'
            )
        with storage.written(output or workdir / 'analysis_data') as folder:
            return dataset.run(config, folder)
    saved = checkpoint.open_run(workdir, config.eval.checkpoint)
    place = workdir / f'analysis_{saved.stem(config.data.eval_split)}'
    with storage.written(output or place) as folder:
        return model.run(config, saved, workdir, output=folder, compare=compare)
