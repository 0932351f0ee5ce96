"""The processes of a run, mostly one a host: how they find each other, wait, and end."""

import importlib.util
import itertools
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn

import jax
from orbax.checkpoint import multihost

# JAX's runtime ends all processes when one of them has given no sign of life for so long, …
HEARTBEAT_SECONDS = 30
# … and lets one that is done wait so long for the others.
SHUTDOWN_SECONDS = 30
LONGEST_SECONDS = 7 * 24 * 3600
_waits = itertools.count()

# How each flag of main.py is called in the environment.
VARIABLES = {
    'coordinator': 'JAX_COORDINATOR_ADDRESS',
    'num_processes': 'JAX_NUM_PROCESSES',
    'process_id': 'JAX_PROCESS_ID',
}
LOST = (
    'error: another process of this run has ended or has not been started; start the same command '
    'again on all of them'
)
# The runtime ends a process by abort(), with a stack trace. This leaves one line of what it prints.
FILTER = f"""
import os, signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the last words matter
while text := os.read(0, 1 << 16):
    if b'coordination_service' in text or b'JAX distributed service' in text:
        os.write(2, {LOST.encode()!r} + b'\\n')
        while os.read(0, 1 << 16):
            pass
        break
    os.write(2, text)
"""


def start(**flags: Any) -> None:
    """Joins the other processes of the run; runs alone where nothing tells of any.

    Without flags, the variables of `VARIABLES` tell, or else the cluster: Cloud TPU, SLURM, Open
    MPI, or an indexed job of Kubernetes, such as a JobSet's.

    Args:
      flags: `coordinator`, host:port of process 0; `num_processes`; `process_id`. None is unset.

    Raises:
      ImportError: a Kubernetes job needs a package.
      OSError: the others cannot be found or reached.
      ValueError: the flags or variables cannot be right.
    """
    given = coordinates(flags)
    if not given and is_lone_pod():
        return
    unfilter = filter_runtime()
    try:
        jax.distributed.initialize(
            *given,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=SHUTDOWN_SECONDS,
        )
    except ValueError:
        unfilter()  # JAX sees no cluster
        return
    except RuntimeError as error:
        reason = ' '.join(str(error).split())
        raise OSError(f'cannot join the other processes of this run: {reason}') from error
    if is_first():
        print(f'{jax.process_count()} processes joined, with {jax.device_count()} devices')


def coordinates(flags: dict) -> tuple:
    """(host:port of process 0, number of processes, own number), or () where none is given.

    Raises:
      ValueError: only some are given, or they cannot be right.
    """
    values, names = [], []
    for flag, variable in VARIABLES.items():
        unset = flags[flag] is None
        values.append(os.environ.get(variable) if unset else flags[flag])
        names.append(variable if unset and variable in os.environ else f'--{flag}')
    missing = [name for name, value in zip(names, values, strict=True) if value is None]
    if len(missing) == len(values):
        return ()
    if missing:
        raise ValueError(
            f'{", ".join(x for x in names if x not in missing)} without {", ".join(missing)}: give '
            'all three on each process, or none on a cluster that JAX recognizes'
        )
    address, count, number = values
    if not re.fullmatch(r'.+:\d+', address):
        raise ValueError(f'{names[0]}={address} must be host:port of process 0')
    for name, value in zip(names[1:], (count, number), strict=True):
        if not re.fullmatch(r'\d+', str(value)):
            raise ValueError(f'{name}={value} must be a whole number of at least 0')
    if int(number) >= int(count):
        raise ValueError(
            f'{names[2]}={number} must be less than {names[1]}={count}: processes count from 0'
        )
    return address, int(count), int(number)


def is_lone_pod() -> bool:
    """Whether this is a Kubernetes pod of no indexed job, in which JAX's own search would fail.

    Raises:
      ImportError: it is one of an indexed job, and the package that JAX asks with is missing.
    """
    signs = os.environ.keys() & {'TPU_WORKER_HOSTNAMES', 'SLURM_STEP_NODELIST'}
    if 'KUBERNETES_SERVICE_HOST' not in os.environ or signs:
        return False
    if 'JOB_COMPLETION_INDEX' not in os.environ:
        return True
    if importlib.util.find_spec('kubernetes') is None:
        raise ImportError(
            'this is a pod of an indexed Kubernetes job, whose pods find each other with the '
            'package kubernetes: pip install "jax[k8s]", or give --coordinator, --num_processes '
            'and --process_id'
        )
    return False


def filter_runtime() -> Callable[[], None]:
    """Sends what the runtime prints through `FILTER`; Python goes on to print directly.

    Returns:
      What undoes it.
    """
    stderr, direct = sys.stderr, os.dup(2)
    output, text = os.pipe()
    subprocess.Popen([sys.executable, '-c', FILTER], stdin=output, start_new_session=True)
    sys.stderr = open(os.dup(2), 'w', buffering=1)
    os.dup2(text, 2)
    os.close(text)
    os.close(output)

    def undo():
        sys.stderr = stderr
        os.dup2(direct, 2)
        os.close(direct)

    return undo


def is_first() -> bool:
    """Whether this is the process that does what one of them must do."""
    return jax.process_index() == 0


def wait() -> None:
    """Waits until all processes are here, however long they take; a collective waits seconds."""
    if jax.process_count() > 1:
        everyone = set(range(jax.process_count()))
        name = f'wait_{next(_waits)}'  # the same for all, since they wait in the same order
        multihost.sync_global_processes(name, timeout=LONGEST_SECONDS, processes=everyone)


def end() -> None:
    """Ends when the others do."""
    if jax.distributed.is_initialized():
        wait()
        jax.distributed.shutdown()


def leave(error: BaseException, message: str) -> NoReturn:
    """Ends the process at once after an error, with a message.

    Threads of orbax would wait minutes for a save that failed, and JAX for the other processes,
    which the runtime ends in turn. If they ended first, and the error is about that, the runtime
    says so.
    """
    lost = isinstance(error, jax.errors.JaxRuntimeError) or 'Gloo' in str(error)
    if lost and jax.distributed.is_initialized():
        time.sleep(2 * HEARTBEAT_SECONDS)
    sys.stdout.flush()
    sys.stderr.flush()
    os.write(2, f'{message}\n'.encode())  # through `FILTER`: nothing if the runtime has said it all
    os._exit(1)
