"""--mode=analyze: what the data hold, or which κ a model needs and what it gets wrong."""

from rankseg_jax import checkpoint, storage
from rankseg_jax.analysis import dataset, model


def run(config, workdir, output=None) -> dict:
    """Analyzes a checkpoint of `workdir`, or the data as long as there is none.

    Prints the essentials and writes analysis.json and charts into the folder `output`; None: one in
    `workdir`.

    Returns:
      The contents of analysis.json.

    Raises:
      ValueError: there is nothing to analyze.
      OSError: the folder cannot be written.
    """
    workdir = storage.path(workdir)
    manager = checkpoint.open_checkpoints(workdir) if (workdir / 'checkpoints').is_dir() else None
    if manager is None or not manager.all_steps():
        with storage.written(output or workdir / 'analysis_data') as folder:
            return dataset.run(config, folder)
    saved = checkpoint.open_run(workdir, config.eval.checkpoint)
    place = workdir / f'analysis_{saved.stem(config.data.eval_split)}'
    with storage.written(output or place) as folder:
        return model.run(config, saved, folder)
