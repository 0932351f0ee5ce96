"""Are runs lost when something breaks? Kills, damaged checkpoints and bad disks, over and over.

    python benchmarks/faults.py --workdir=/tmp/faults

Each trial trains a tiny model, which is disturbed at random moments, started again by the same
command, and must end with the parameters of an undisturbed run, bit for bit. Each finished trial is
a line of JSON in --out; when started again, the drill goes on from there. `--table` prints the
finished trials and starts nothing. Disks that fill up or become read-only are mounted in memory,
which takes root on Linux; otherwise they are left out.
"""

import contextlib
import functools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from absl import app, flags

sys.path.insert(0, str(Path(__file__).parents[1]))

from rankseg_jax import checkpoint
from tests.helpers import finish_processes, start_processes

_WORKDIR = flags.DEFINE_string('workdir', '/tmp/faults', 'Folder of the runs and their data.')
_OUT = flags.DEFINE_string('out', 'benchmarks/results/faults.jsonl', 'Finished trials, one a line.')
_TABLE = flags.DEFINE_bool('table', False, 'Print the table of the finished trials and stop.')

STEPS = 40
KEPT = 3  # checkpoints
SECONDS = 60  # that survivors may take to end
CONFIG = """
from tests import tiny

def get_config():
    return tiny.config(
        {data!r}, steps={steps}, mesh__data=-1, log_every=1, eval_every={steps}, checkpoint_every=2,
        keep_checkpoints={kept}, num_pictures=0, compilation_cache={cache!r},
    )
"""


class Run:
    """A run of `count` processes that can be started again and again.

    Attributes:
      faults: what was wrong so far, in words.
      text: that the last start printed.
      seconds: that processes took to end after each disturbance.
    """

    def __init__(self, count: int, workdir: Path):
        self.count, self.workdir, self.text = count, workdir, ''
        self.faults, self.seconds = [], []
        for folder in (workdir / 'checkpoints', workdir):  # of a drill that was killed
            command = ['umount', '--lazy', folder]
            while subprocess.run(command, capture_output=True).returncode == 0:
                pass
        self.clear()

    def clear(self) -> None:
        """Removes all that earlier runs left."""
        self.workdir.mkdir(parents=True, exist_ok=True)
        for path in self.workdir.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def start(self) -> list[subprocess.Popen]:
        command = f'--config={_WORKDIR.value}/run.py', f'--workdir={self.workdir}'
        return start_processes(self.count, 'main.py', *command)

    def expect(self, right: bool, fault: str) -> None:
        """Notes a fault unless something is right."""
        if not right:
            self.faults.append(fault)

    def steps(self) -> list[int]:
        """The steps of the checkpoints, whole or not."""
        folder = self.workdir / 'checkpoints'
        found = folder.iterdir() if folder.is_dir() else ()
        return sorted(int(path.name) for path in found if path.name.isdigit())

    def has_reported(self, since: float) -> bool:
        """Whether a step was reported after a time, so that all processes have joined."""
        rows = self.workdir / 'metrics.jsonl'
        return rows.is_file() and rows.stat().st_mtime > since

    def moment(self, at_least: int = 1) -> list[subprocess.Popen]:
        """The processes of a run at a random moment, when there are `at_least` checkpoints.

        If there must be some, the last one of the run is still to come. Several processes have
        found each other: before, each waits five minutes for those that may be slow to start.
        """
        while True:
            begin, processes = time.time(), self.start()
            end = begin + random.uniform(0, reference(self.count)[1])
            while all(process.poll() is None for process in processes):
                steps = self.steps()
                ready = len(steps) >= at_least and not (at_least and STEPS in steps)
                ready &= self.count == 1 or self.has_reported(since=begin)
                if time.time() > end and ready:
                    return processes
                time.sleep(0.02)
            finish_processes(processes)  # it was done before
            self.clear()

    def ended(self, processes, *, sent: dict[int, int] | None = None, word: str = '') -> list:
        """Waits for processes that a disturbance ends: soon, and each with one line.

        Args:
          sent: the signal that each one was ended by.
          word: a part of one of the lines.
        """
        begin, before, sent = time.time(), self.steps(), sent or {}
        results = finish_processes(processes)
        self.seconds.append(round(time.time() - begin, 1))
        self.expect(self.seconds[-1] <= SECONDS, f'ended after {self.seconds[-1]} s')
        for place, (code, _, stderr) in enumerate(results):
            if place in sent:
                self.expect(code == -sent[place], f'process {place} ended with {code}')
                continue
            lines = [x for x in stderr.splitlines() if not x.startswith('(--verbosity')]
            one_line = len(lines) == 1 and lines[0].startswith('error: ')
            self.expect(
                code != 0 and one_line, f'process {place} ended with {code}: {stderr[-400:]}'
            )
        self.expect(any(word in stderr for _, _, stderr in results), f'no {word!r} in {results}')
        lost = [step for step in before[-1:] if step not in self.steps()]
        self.expect(not lost, f'checkpoint {lost} was lost')
        return results

    def finish(self) -> None:
        """Starts the run once more and compares it with an undisturbed one."""
        results = finish_processes(self.start())
        codes = [code for code, _, _ in results]
        self.expect(not any(codes), f'the last start ended with {codes}: {results[0][2][-400:]}')
        self.text = ''.join(out + err for _, out, err in results)
        if any(codes):
            return
        expected, _ = reference(self.count)
        same = jax.tree.map(np.array_equal, final_state(self.workdir), final_state(expected))
        self.expect(all(jax.tree.leaves(same)), 'the final state differs')
        rows = (self.workdir / 'metrics.jsonl').read_text().splitlines()
        steps = [json.loads(row)['step'] for row in rows]
        self.expect(steps == [*range(1, STEPS + 1), STEPS], f'metrics.jsonl has steps {steps}')


def final_state(workdir: Path):
    """Model and optimizer at the end, as NumPy arrays."""
    manager = checkpoint.open_checkpoints(workdir)
    shapes = {
        name: jax.tree.map(
            lambda x: np.empty(x.shape, x.dtype), checkpoint.shapes_of(manager, STEPS, name)
        )
        for name in ('model', 'optimizer')
    }
    restored = checkpoint.restore(manager, STEPS, **shapes)
    return {name: restored[name] for name in shapes}


def reference(count: int) -> tuple[Path, float]:
    """The workdir of an undisturbed run of `count` processes, and the seconds that it lasted."""
    workdir = Path(_WORKDIR.value, f'reference_{count}')
    seconds = workdir / 'seconds'
    if not seconds.is_file():
        for _ in range(2):  # the first one also generates the data and compiles
            run, begin = Run(count, workdir), time.time()
            results = finish_processes(run.start())
            assert not any(code for code, _, _ in results), results
        seconds.write_text(str(time.time() - begin))
    return workdir, float(seconds.read_text())


def killed(run: Run, kills: int) -> None:
    """SIGKILL of one process at random moments."""
    for _ in range(kills):
        processes, victim = run.moment(at_least=0), random.randrange(run.count)
        processes[victim].kill()
        run.ended(processes, sent={victim: signal.SIGKILL})
    run.finish()


def terminated(run: Run) -> None:
    """SIGTERM to one process: all save the same step and end."""
    processes = run.moment()
    processes[random.randrange(run.count)].terminate()
    begin = time.time()
    results = finish_processes(processes)
    run.seconds.append(round(time.time() - begin, 1))
    run.expect(not any(code for code, _, _ in results), f'ended with {results}')
    run.expect(f'saved after step {run.steps()[-1]};' in results[0][1], 'another step is saved')
    run.finish()


def damaged(run: Run) -> None:
    """SIGKILL, after which files of the newest checkpoint are cut short or removed."""
    processes = run.moment(at_least=2)
    processes[0].kill()
    run.ended(processes, sent={0: signal.SIGKILL})
    newest = run.workdir / 'checkpoints' / str(run.steps()[-1])
    files = [path for path in newest.glob('model/**/*') if path.is_file() and path.stat().st_size]
    for path in random.sample(files, random.randint(1, len(files))):
        if random.random() < 0.5:
            path.unlink()
        else:
            os.truncate(path, random.randrange(path.stat().st_size))
    run.finish()
    # Not all files are needed: such as those that say how arrays were split.
    used = f'{newest} is damaged' in run.text or f'after step {newest.name}\n' in run.text
    run.expect(used, f'{newest} is not named in {run.text[-400:]}')


def vanished(run: Run) -> None:
    """The workdir is renamed, and comes back before the next start."""
    processes = run.moment()
    away = run.workdir.with_name(f'{run.workdir.name}_away')
    shutil.rmtree(away, ignore_errors=True)
    run.workdir.rename(away)
    steps = sorted(int(x.name) for x in (away / 'checkpoints').iterdir() if x.name.isdigit())
    run.ended(processes)
    shutil.rmtree(run.workdir, ignore_errors=True)
    away.rename(run.workdir)
    run.expect(steps == run.steps(), f'checkpoints {steps} became {run.steps()}')
    run.finish()


def full(run: Run) -> None:
    """The disk fills up."""
    with memory_disk(run.workdir):
        processes = run.moment()
        ballast = run.workdir / 'ballast'
        with contextlib.suppress(OSError), ballast.open('wb', buffering=0) as file:
            while True:
                file.write(bytes(4096))
        run.ended(processes, word='no space left')
        ballast.unlink()
        run.finish()


def read_only(run: Run) -> None:
    """The folder of the checkpoints becomes read-only."""
    processes = run.moment()
    folder = run.workdir / 'checkpoints'
    subprocess.run(['mount', '--bind', folder, folder], check=True)
    try:
        subprocess.run(['mount', '-o', 'remount,ro,bind', folder], check=True)
        run.ended(processes, word='Read-only file system')
    finally:
        subprocess.run(['umount', '--lazy', folder], check=True)
    run.finish()


@contextlib.contextmanager
def memory_disk(folder: Path) -> Iterator[None]:
    """A disk of 4 MiB in place of a folder."""
    subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=4m', 'tmpfs', folder], check=True)
    try:
        yield
    finally:
        subprocess.run(['umount', '--lazy', folder], check=True)


# What is disturbed → number of trials, processes of the run, how, and whether that takes root.
TRIALS = {
    'one process: SIGKILL, five times': (20, 1, functools.partial(killed, kills=5), False),
    'one of two processes: SIGKILL, twice': (10, 2, functools.partial(killed, kills=2), False),
    'one of two processes: SIGTERM': (5, 2, terminated, False),
    'newest checkpoint cut short or with files missing': (10, 1, damaged, False),
    'workdir renamed': (5, 1, vanished, False),
    'disk full': (5, 1, full, True),
    'folder of the checkpoints read-only': (5, 1, read_only, True),
    'disk full, two processes': (3, 2, full, True),
    'folder of the checkpoints read-only, two processes': (3, 2, read_only, True),
}


def table(rows: list[dict]) -> str:
    """The finished trials in Markdown."""
    lines = [
        '| disturbance | trials | disturbances | longest time to end | passed |',
        '|---|---|---|---|---|',
    ]
    for name in TRIALS:
        found = [row for row in rows if row['name'] == name]
        if found:
            seconds = [x for row in found for x in row['seconds']]
            passed = sum(not row['faults'] for row in found)
            lines.append(
                f'| {name} | {len(found)} | {len(seconds)} | {max(seconds):.0f} s | {passed} |'
            )
    return '\n'.join(lines)


def main(_):
    out = Path(_OUT.value)
    rows = [json.loads(line) for line in out.read_text().splitlines()] if out.is_file() else []
    workdir = Path(_WORKDIR.value)
    if not _TABLE.value:
        workdir.mkdir(parents=True, exist_ok=True)
        cache = str(workdir / 'compiled')
        (workdir / 'run.py').write_text(
            CONFIG.format(data=str(workdir / 'data'), steps=STEPS, kept=KEPT, cache=cache)
        )
        turns = [(i, name) for name, (count, *_) in TRIALS.items() for i in range(count)]
        for number, name in sorted(turns, key=lambda turn: turn[0]):
            _, count, disturb, root = TRIALS[name]
            done = sum(row['name'] == name for row in rows)
            if number < done or (root and os.geteuid()):
                continue
            run = Run(count, workdir / 'run')
            disturb(run)
            rows.append({'name': name, 'seconds': run.seconds, 'faults': run.faults})
            with out.open('a') as file:
                file.write(json.dumps(rows[-1]) + '\n')
            print(json.dumps(rows[-1]), flush=True)
    print(table(rows))


if __name__ == '__main__':
    app.run(main)
