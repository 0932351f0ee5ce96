"""Config files, one per family. `--config=configs/<file>.py:<argument>` calls its `get_config`."""


def check_argument(file: str, argument: str, known) -> None:
    """Refuses an argument of a config file that is not among the `known` ones; '' means none.

    Raises:
      ValueError: it lists what can be given instead.
    """
    if argument not in known:
        names = ', '.join(name or '(nothing)' for name in known)
        raise ValueError(f'configs/{file}.py:{argument} is unknown; use one of {names}')
