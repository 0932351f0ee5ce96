"""The disk that results go to: whether a folder can be written, and whether the disk is full."""

import errno
import tempfile
from collections.abc import Iterator
from pathlib import Path

FULL = ('No space left on device', 'Disk quota exceeded')  # as orbax and TensorFlow say it, too


def make_folder(folder: str | Path, flag: str = '--output') -> Path:
    """Makes a folder for results unless it exists, before the work that leads to them.

    Args:
      flag: which chooses another folder, for the message.

    Raises:
      OSError: it cannot be written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b'0')
    except OSError as error:
        raise OSError(
            f'cannot write to {folder} ({error.strerror}): choose another folder with {flag}'
        ) from error
    return folder


def is_full(error: BaseException) -> bool:
    """Whether an error, or one that led to it, says that a disk or a quota is used up."""
    return any(
        (isinstance(e, OSError) and e.errno in (errno.ENOSPC, errno.EDQUOT))
        or any(text in str(e) for text in FULL)
        for e in causes(error)
    )


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, what led to it, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
