"""Where data are read and results go: folders of disks and of buckets, and disks that are full.

A place is a path, gs://<bucket>/… or s3://<bucket>/…; etils.epath and fsspec read and write these.
Libraries that need files of this machine get copies in temporary folders (see TMPDIR).
"""

import contextlib
import errno
import functools
import importlib.util
import os
import shutil
import tempfile
import uuid
import weakref
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import Any

# Read when epath is first used: it would take TensorFlow, which cannot read s3://.
os.environ.setdefault('EPATH_USE_TF', 'false')

from etils import epath

_removals: list[weakref.finalize] = []
PACKAGES = {'gs': 'gcsfs', 's3': 's3fs'}  # that read these buckets
FULL = ('No space left on device', 'Disk quota exceeded')  # as orbax and TensorFlow say it, too


def path(place: str | os.PathLike) -> Any:
    """The path of a place: a `pathlib.Path`, or in a bucket an `epath.Path`, which is used alike.

    Raises:
      ImportError: the package for this kind of bucket is missing.
      OSError: the bucket does not exist, or cannot be read.
      ValueError: neither a path nor a bucket of a kind that is known.
    """
    return _in_bucket(str(place)) if is_remote(place) else Path(os.path.expanduser(place))


def is_remote(place: str | os.PathLike) -> bool:
    """Whether a place is in a bucket."""
    return '://' in str(place)


@functools.cache  # looks for each place once
def _in_bucket(place: str) -> epath.Path:
    scheme, _, rest = place.partition('://')
    bucket = rest.partition('/')[0]
    if scheme not in PACKAGES or not bucket:
        raise ValueError(f'{place} must be a path, gs://<bucket>/… or s3://<bucket>/…')
    if not importlib.util.find_spec(PACKAGES[scheme]):
        raise ImportError(
            f'{place} needs the package {PACKAGES[scheme]}: pip install {PACKAGES[scheme]}'
        )
    files = _file_system(place)
    try:
        found = files.exists(place) or files.exists(f'{scheme}://{bucket}')
    except Exception as error:  # each library raises its own
        raise _unreachable('read', place, error) from error
    if not found:
        raise FileNotFoundError(
            f'{place}: the bucket {bucket!r} does not exist, or these credentials cannot list it'
        )
    return epath.Path(place)


def _file_system(place: str | os.PathLike) -> Any:
    """The fsspec file system of a place in a bucket, one for the whole process."""
    import fsspec.config

    scheme = str(place).partition('://')[0]
    # Other processes write there, too.
    fsspec.config.conf.setdefault(scheme, {}).setdefault('use_listings_cache', False)
    return fsspec.filesystem(scheme)


def _unreachable(verb: str, place, error: Exception) -> OSError:
    reason = (str(error).splitlines() or [''])[0]
    return OSError(
        f'cannot {verb} {place} ({type(error).__name__}: {reason}): check the bucket, the '
        'credentials and the connection'
    )


def make_folder(folder: str | os.PathLike, flag: str = '--output') -> Any:
    """Makes a folder for results unless it exists, before the work that leads to them.

    Args:
      flag: which chooses another folder, for the message.

    Returns:
      Its path.

    Raises:
      OSError: it cannot be written.
      ImportError, ValueError: as `path`.
    """
    folder = path(folder)
    if is_remote(folder):
        probe = folder / f'.{uuid.uuid4().hex}'
        try:
            probe.write_text('')
            probe.unlink()
        except Exception as error:  # each library raises its own
            raise _unreachable('write to', folder, error) from error
        return folder
    with _refused(folder, flag):
        folder.mkdir(parents=True, exist_ok=True)
    check_writable(folder, flag)
    return folder


def check_writable(folder: Path, flag: str) -> None:
    """Raises an OSError if a folder of a disk cannot be written; `flag` as for `make_folder`."""
    with _refused(folder, flag), tempfile.TemporaryFile(dir=folder) as file:
        file.write(b'0')


@contextlib.contextmanager
def _refused(folder: Path, flag: str) -> Generator[None]:
    try:
        yield
    except OSError as error:
        raise OSError(
            f'cannot write to {folder} ({error.strerror}): choose another folder with {flag}'
        ) from error


def temporary_folder(owner: Any) -> Path:
    """A new folder of this machine that goes with its owner, or when the program ends."""
    folder = Path(tempfile.mkdtemp(prefix='rankseg_jax_'))
    _removals.append(weakref.finalize(owner, shutil.rmtree, folder, ignore_errors=True))
    return folder


def remove_temporary_folders() -> None:
    """Removes those that are left, for programs that end at once; see `processes.leave`."""
    for remove in _removals:
        remove()


@contextlib.contextmanager
def written(folder: str | os.PathLike) -> Generator[Path]:
    """A folder of this machine to write to: `folder`, or a temporary one for a place in a bucket.

    The files of a temporary one are copied there when the block ends, with an error or without.

    Raises:
      OSError: files cannot be written there.
      ImportError, ValueError: as `path`.
    """
    folder = path(folder)
    if not is_remote(folder):
        yield folder
        return
    make_folder(folder)
    with tempfile.TemporaryDirectory(prefix='rankseg_jax_') as local:
        try:
            yield Path(local)
        finally:
            if upload(Path(local), folder):
                print(f'Copied to {folder}')


def upload(local: Path, folder: Any) -> list[str]:
    """Copies the files of a folder of this machine into one of a bucket; returns their names."""
    names = [x.relative_to(local).as_posix() for x in local.rglob('*') if x.is_file()]
    if names:
        _file_system(folder).put(
            [str(local / name) for name in names], [f'{folder}/{name}' for name in names]
        )
    return names


def download(folder: Any, names: Iterable[str], local: Path) -> None:
    """Copies files of a folder of a bucket into one of this machine.

    Args:
      names: of the files, below the folder.
    """
    if names := list(names):
        _file_system(folder).get(
            [f'{folder}/{name}' for name in names], [str(local / name) for name in names]
        )


def sizes(folder: Any) -> dict[str, int]:
    """The files in a folder of a bucket and its subfolders: their names below it, and bytes."""
    found = _file_system(folder).find(str(folder), detail=True)
    start = len(str(folder).partition('://')[2]) + 1
    return {name[start:]: entry['size'] for name, entry in found.items() if name[start:]}


def rename(folder: Any, new: Any) -> None:
    """Renames a folder; in a bucket, its files are copied and removed."""
    if not is_remote(folder):
        folder.rename(new)
        return
    files, names = _file_system(folder), list(sizes(folder))
    files.copy([f'{folder}/{name}' for name in names], [f'{new}/{name}' for name in names])
    files.rm(str(folder), recursive=True)


@functools.cache
def copied(place: Any) -> Path:
    """A file or folder of a bucket, copied to this machine once and kept until the program ends."""
    local = temporary_folder(copied) / place.name
    print(f'Copying {place} to {local}')
    if place.is_dir():
        download(place, sizes(place), local)
    else:
        download(place.parent, [place.name], local.parent)
    return local


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
