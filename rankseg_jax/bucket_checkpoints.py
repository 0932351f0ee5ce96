"""Checkpoints in buckets that orbax cannot write to, such as s3://, through a temporary folder.

    <workdir>/checkpoints/<step>/
      model/ optimizer/ run/ …   as orbax writes them to a disk
      uploaded.json              the bytes of each of these files; written last, removed first

A checkpoint without uploaded.json was not uploaded as a whole, and counts as missing.
"""

import concurrent.futures
import json
from collections.abc import Iterable
from typing import Any

import orbax.checkpoint as ocp
from absl import logging

from rankseg_jax import storage

UPLOADED = 'uploaded.json'


class DamagedCheckpoint(OSError):
    """A checkpoint that cannot be read, since files are missing, cut short or changed."""


class BucketManager(ocp.CheckpointManager):
    """Saves in a temporary folder and copies whole checkpoints into the bucket, in the background.

    What is read is copied from the bucket first, see `fetch`. One process writes.

    Attributes:
      folder: in the bucket; `directory` is the temporary one.
    """

    def __init__(self, folder: Any, **options: Any):
        """Opens the checkpoints in a folder of a bucket.

        Args:
          folder: in the bucket.
          options: see `ocp.CheckpointManager`.
        """
        self.folder, self._local = folder, storage.temporary_folder(self)
        self._files = {}  # of each whole checkpoint: names and bytes
        self._pool = concurrent.futures.ThreadPoolExecutor(1)
        self._upload = None
        for step in steps_in(folder):
            uploaded = folder / str(step) / UPLOADED
            if not uploaded.exists():
                logging.error('Left out: %s/%d was not uploaded as a whole', folder, step)
                continue
            self._files[step] = json.loads(uploaded.read_text())
            # What orbax reads when it opens them: that they exist, and the scores.
            self.fetch(step, ['metrics'])
        super().__init__(self._local, **options)

    def fetch(self, step: int, items: Iterable[str]) -> None:
        """Copies items of a checkpoint to this machine, unless they are there.

        Raises:
          DamagedCheckpoint: a file is missing or has not the size that was uploaded.
        """
        files, local = self._files.get(step, {}), self._local / str(step)
        items = {name.split('/')[0] for name in files if '/' not in name} | set(items)
        wanted = {
            name: size
            for name, size in files.items()
            if name.split('/')[0] in items and not (local / name).exists()
        }
        if not wanted:
            return
        found = storage.sizes(self.folder / str(step))
        for name, size in wanted.items():
            if found.get(name) != size:
                raise DamagedCheckpoint(
                    f'checkpoint {self.folder}/{step} is damaged ({name} has '
                    f'{found.get(name, 0)} of {size} bytes); those before it may be whole'
                )
        storage.download(self.folder / str(step), wanted, local)

    def save(self, step: int, *arguments: Any, **options: Any) -> bool:
        saved = super().save(step, *arguments, **options)  # waits for the one before
        self._upload = self._pool.submit(self._finish)
        return saved

    def wait_until_finished(self) -> None:
        upload, self._upload = self._upload, None
        if upload:
            upload.result()
        super().wait_until_finished()

    def close(self) -> None:
        self.wait_until_finished()
        self._pool.shutdown()
        super().close()

    def _finish(self) -> None:
        """Makes the bucket hold the checkpoints that the temporary folder holds."""
        super().wait_until_finished()
        kept = set(map(int, steps_in(self._local)))
        for step in kept - self._files.keys():
            local, folder = self._local / str(step), self.folder / str(step)
            if folder.is_dir():  # of an upload that was cut short
                folder.rmtree()
            names = storage.upload(local, folder)
            self._files[step] = {name: (local / name).stat().st_size for name in names}
            (folder / UPLOADED).write_text(json.dumps(self._files[step], indent=1))
        for step in self._files.keys() - kept:
            folder = self.folder / str(step)
            (folder / UPLOADED).unlink(missing_ok=True)
            folder.rmtree(missing_ok=True)
            del self._files[step]


def steps_in(folder: Any) -> list[int]:
    """The numbers among the names in a folder; none if it is missing."""
    return [int(x.name) for x in folder.iterdir() if x.name.isdigit()] if folder.is_dir() else []
