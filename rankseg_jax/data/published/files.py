"""Finds and parses the files of published data sets."""

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path


def listing(path: Path) -> set[str]:
    """The names in a folder except hidden ones (macOS adds ._a.jpg to a.jpg); empty if missing."""
    if not path.is_dir():
        return set()
    return {entry.name for entry in os.scandir(path) if not entry.name.startswith('.')}


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
