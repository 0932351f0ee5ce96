"""Makes examples on all cores, in order.

The workers are fresh interpreters: forking is unsafe with TensorFlow and JAX loaded, and
multiprocessing's spawn would import the caller's main module, and both of them, again.
"""

import json
import os
import pickle
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType
from typing import IO, Any, cast


def generate(
    make: FunctionType, *arguments: int | str, count: int, per_worker: int, what: str
) -> Iterator[Any]:
    """Yields make(*arguments, index) for each index in 0..count-1, in order.

    Args:
      make: a function of a module that imports quickly.
      *arguments: its first arguments.
      count: number of results.
      per_worker: fewer results than this are not worth starting a process.
      what: one result in words, for the message of an error.

    Raises:
      RuntimeError: a worker ended early.
    """
    workers = min(os.cpu_count() or 1, count // per_worker)
    if workers < 2:
        for index in range(count):
            yield make(*arguments, index)
        return
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, [root, os.environ.get('PYTHONPATH')]))
    name = f'{make.__module__}:{make.__qualname__}'
    processes = [
        subprocess.Popen(
            [
                *(sys.executable, '-m', 'rankseg_jax.data.workers'),
                json.dumps([name, arguments, first, count, workers]),
            ],
            stdout=subprocess.PIPE,
            env={**os.environ, 'PYTHONPATH': path},
        )
        for first in range(workers)
    ]
    streams = [cast(IO[bytes], process.stdout) for process in processes]
    try:
        for index in range(count):
            try:
                yield pickle.load(streams[index % workers])
            except (EOFError, pickle.UnpicklingError) as error:
                raise RuntimeError(
                    f'the worker that makes {what} {index} ended early; its message is above'
                ) from error
    finally:
        for process, stream in zip(processes, streams, strict=True):
            process.terminate()
            stream.close()
            process.wait()


def _work(task: str) -> None:
    name, arguments, first, count, step = json.loads(task)
    make = pkgutil.resolve_name(name)
    for index in range(first, count, step):
        pickle.dump(make(*arguments, index), sys.stdout.buffer)
        sys.stdout.flush()


if __name__ == '__main__':
    _work(sys.argv[1])
