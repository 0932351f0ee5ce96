"""Writes the records of a data set in parallel, reads them back, and resumes after a kill.

Until all are written, they lie beside the place of the finished data set, each under the name that
TFDS will give it:

    <data_dir>/<name>/<version>.parts/
      plan.json                                     identifies what these are the parts of
      <name>-train.array_record-00000-of-00040
      <name>-train.array_record-00000-of-00040.json counts of each class in this part

metadata.json, which TFDS writes beside the records, also holds for each split the 'pixels' and the
'images' of each class.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import pickle
import shutil
import zlib
from collections.abc import Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_data_source import ArrayRecordDataSource
from tensorflow_datasets.core import example_serializer, file_adapters
from tqdm import tqdm

if TYPE_CHECKING:
    from rankseg_jax.data.published.builder import Builder

SHARD = 512  # examples in a part


class Parts(tfds.core.ExampleWriter):
    """Replaces TFDS's writer: writes the parts itself, and moves each when TFDS asks for it."""

    def __init__(self, builder: Builder):
        super().__init__(file_format=builder.info.file_format)
        self.builder = builder
        self.folder = Path(builder.data_path).parent / f'{builder.version}.parts'
        self.lock = None

    def write(self, path: str | os.PathLike, examples: Iterable) -> None:
        os.replace(self.folder / Path(path).name, path)

    def remove(self) -> None:
        """Removes the folder of the parts, once all are moved."""
        shutil.rmtree(self.folder)
        self.lock.close()

    def prepare(self, root: Path, entries: dict[str, list]) -> dict[str, list]:
        """Writes all parts that do not exist yet.

        Args:
          root: the official folder.
          entries: of each split, as `Builder.find` returns them.

        Returns:
          For each split, what TFDS iterates over to count the examples in its shards.

        Raises:
          ValueError: another process is preparing the same; a record does not read back as it was
            written; or as `Builder.read`.
          CorruptExample: as `Builder.read`.
        """
        self._take_over(root, entries)
        parts = {split: list(self._split(split, found)) for split, found in entries.items()}
        todo = [part for found in parts.values() for part in found if not part[0].exists()]
        total, left = sum(map(len, entries.values())), sum(len(part) for _, part in todo)
        with (
            tqdm(
                total=total, initial=total - left, desc=self.builder.name, unit=' examples'
            ) as progress,
            ThreadPoolExecutor() as pool,
        ):
            try:
                for path, part in todo:
                    self._write_part(path, part, pool=pool, progress=progress)
            except BaseException:  # an error or Ctrl-C: finished parts stay for the next time
                pool.shutdown(cancel_futures=True)
                self.lock.close()
                raise
        for key in ('pixels', 'images'):
            self.builder.info.metadata[key] = {
                split: np.sum(
                    [json.loads(_counts(path).read_text())[key] for path, _ in found], 0
                ).tolist()
                for split, found in parts.items()
            }
        return {
            split: [partial(iter, [(entry[0], None) for entry in part]) for _, part in found]
            for split, found in parts.items()
        }

    def _split(self, split, entries):
        """(path, entries) of each part of a split."""
        template = self.builder._get_filename_template(split_name=split)
        count = -(-len(entries) // SHARD)
        for shard in range(count):
            path = template.sharded_filepath(shard_index=shard, num_shards=count)
            yield self.folder / Path(path).name, entries[shard * SHARD : (shard + 1) * SHARD]

    def _take_over(self, root, entries):
        """Locks the folder and removes what killed processes left, except parts of this plan."""
        self.folder.mkdir(parents=True, exist_ok=True)
        # Held until it is closed, at the latest when the process ends.
        self.lock = (self.folder / 'lock').open('w')
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.lock.close()
            raise ValueError(
                f'another process is preparing {self.folder}; wait for it, or end it'
            ) from None
        digest = hashlib.sha256()
        for split, found in entries.items():
            for entry in found:
                digest.update(pickle.dumps((split, entry)))  # includes the content of JSON files
        plan = json.dumps(
            {
                'folder': str(root.resolve()),
                'shard': SHARD,
                'format': self.file_format.value,
                'examples': digest.hexdigest(),
            }
        )
        path = self.folder / 'plan.json'
        same = path.exists() and path.read_text() == plan
        for file in self.folder.iterdir():
            if file.name not in ('lock', 'plan.json') and (file.suffix == '.tmp' or not same):
                file.unlink()
        path.write_text(plan)
        unfinished = Path(self.builder.data_path)  # TFDS's temporary folder
        for other in unfinished.parent.glob(
            f'{tfds.core.constants.INCOMPLETE_PREFIX}*_{self.builder.version}'
        ):
            if other != unfinished:
                shutil.rmtree(other)

    def _write_part(self, path, entries, pool, progress):
        """Writes one part under another name, reads it back, and renames it."""
        features = self.builder.info.features
        serializer = example_serializer.ExampleSerializer(features.get_serialized_info())
        written, pixels = [], []  # a checksum and [K] for each example

        def encode(entry):
            example = self.builder.record(entry)
            counts = example.pop('pixels')  # [K]
            return counts, serializer.serialize_example(features.encode_example(example))

        def records():
            for entry, (counts, record) in zip(entries, pool.map(encode, entries), strict=True):
                pixels.append(counts)
                written.append(zlib.crc32(record))
                yield entry[0], record
                progress.update()

        temporary = path.with_name(f'{path.name}.tmp')
        adapter = file_adapters.ADAPTER_FOR_FORMAT[self.file_format]
        try:
            adapter.write_examples(temporary, records())
            if self.file_format is file_adapters.FileFormat.ARRAY_RECORD:
                source = ArrayRecordDataSource([str(temporary)])
                read = (source[i] for i in range(len(source)))
            else:
                read = adapter.make_tf_data(str(temporary)).as_numpy_iterator()
            found = list(map(zlib.crc32, read))
        except RuntimeError as error:  # of array_record
            raise OSError(f'{temporary} cannot be written or read back: {error}') from error
        if found != written:
            raise ValueError(
                f'{temporary} does not read back as it was written; is the disk full or failing?'
            )
        counts = {
            'pixels': np.sum(pixels, 0).tolist(),
            'images': np.count_nonzero(pixels, 0).tolist(),
        }
        _counts(path).write_text(json.dumps(counts))
        temporary.rename(path)


@contextmanager
def reading(path: str | Path) -> Generator[None]:
    """Turns the errors of the code inside, which opens records, into one that says what to do."""
    try:
        yield
    except Exception as error:  # TFDS and array_record raise RuntimeError, KeyError, ParseError, …
        raise ValueError(
            f'{path} holds records that are broken, incomplete, or not in the format array_record; '
            f'remove that folder and prepare it again ({type(error).__name__}: {error})'
        ) from error


def _counts(path):
    """The file with the counts of each class in a part."""
    return path.with_name(f'{path.name}.json')
