"""Finds and parses the files of published data sets."""

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from rankseg_jax import storage


def listing(path: Path) -> set[str]:
    """The names in a folder except hidden ones (macOS adds ._a.jpg to a.jpg); empty if missing."""
    if not path.is_dir():
        return set()
    return {entry.name for entry in os.scandir(path) if not entry.name.startswith('.')}


def records_folder(data_dir: str | Path, name: str) -> Path:
    """The folder in which TFDS finds the records of a data set, of which some may be missing.

    array_record reads from disks: records in a bucket are copied to this machine.

    Raises:
      FileNotFoundError: a bucket does not hold them.
      ImportError, OSError, ValueError: as `storage.path`.
    """
    folder = storage.path(data_dir)
    if not storage.is_remote(folder):
        return folder
    if not (folder / name).is_dir():
        raise FileNotFoundError(
            f'config.data.dir = {str(folder)!r} holds no folder {name} of records. Those alone are '
            f'read from a bucket: make them on a disk and copy the folder {name} there'
        )
    return storage.copied(folder / name).parent


def first_existing(*paths: Path) -> Path:
    """The first of the paths that exists; if none does, the first."""
    return next((path for path in paths if path.exists()), paths[0])


@contextmanager
def parsing(path: Path, kind: str) -> Generator[None]:
    """Turns the errors of the code inside, which parses a file, into a ValueError that names it."""
    try:
        yield
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(
            f'{path} is broken or not a {kind}: {type(error).__name__}: {error}'
        ) from error
