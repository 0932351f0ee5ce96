"""Config files, one per family. `--config=configs/<file>.py:<argument>` calls its `get_config`."""


def check_argument(file: str, argument: str, known) -> None:
    """Refuses an argument of a config file that is not among the `known` ones; '' means none.

    Raises:
      ValueError: it lists what can be given instead.
    """
    if argument not in known:
        names = ', '.join(name or '(nothing)' for name in known)
        raise ValueError(f'configs/{file}.py:{argument} is unknown; use one of {names}')


def use_vspw(config):
    """Sets the data and the task of a per-pixel framework to VSPW: label maps of clips."""
    config.task = 'video_semantic'
    config.data.name = 'vspw'
    config.batch_size = 8  # clips of two frames
    config.augment.crop_size = config.eval.size = (480, 480)
    config.augment.base_size = config.eval.base_size = (480, 1920)
    config.eval.batch_size = 1
