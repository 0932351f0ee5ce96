"""What a training run says while it runs: to the terminal, TensorBoard and metrics.jsonl."""

import collections
import json
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rankseg_jax import evaluate, optimizers, sharding, storage

AHEAD = 2  # steps that the host runs ahead of the device at most


def drop_rows(path: Path, step: int) -> None:
    """Drops the rows of a metrics.jsonl after `step`, which come again, and one that was cut short.

    The file is replaced as a whole, or not at all.
    """

    def stays(line: str) -> bool:
        try:
            return json.loads(line)['step'] <= step
        except (KeyError, TypeError, ValueError):
            return False

    new = path.with_suffix('.tmp')
    new.write_text(''.join(f'{x}\n' for x in path.read_text().splitlines() if stays(x)))
    new.replace(path)


class Progress:
    """Metrics since the last report: to the terminal, TensorBoard and metrics.jsonl.

    Only the first host writes. Metrics stay on the device until the host is `AHEAD` steps ahead.

    Objects in a bucket cannot be appended to: there, the files are written in a temporary folder,
    and each time all of them are copied.
    """

    def __init__(self, setup: Any, workdir: Path, start: int):
        """Reports from step `start` on; `setup` is a `train.Setup`."""
        self.config = config = setup.config
        self.batch_ids = setup.batch_ids  # the names of a step's examples
        self.num_devices = setup.mesh.size
        self.unit = 'clips' if setup.task.takes_clips else 'img'
        self.schedule = optimizers.make_schedule(config.optimizer, config.steps)
        self.rows, self.time, self.step, self.saved = [], time.time(), start, start
        self.pending = collections.deque()
        from tensorboard.summary import Writer  # imports TensorFlow if that is installed

        first = jax.process_index() == 0
        self.workdir = self.folder = workdir
        if storage.is_remote(workdir):
            self.folder = storage.temporary_folder(self)
        rows, kept = self.folder / 'metrics.jsonl', workdir / 'metrics.jsonl'
        if first and kept.exists():
            if kept != rows:
                storage.download(workdir, [rows.name], self.folder)
            drop_rows(rows, start)
        self.writer = Writer(str(self.folder)) if first else None
        self.file = rows.open('a') if first else None

    def close(self) -> None:
        """Closes the files."""
        if self.writer and self.file:
            self.writer.close()
            self.file.close()

    def add(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Adds the metrics of a step."""
        self.pending.append((step, metrics))
        self.settle(AHEAD)

    def settle(self, leave: int = 0) -> None:
        """Fetches metrics from the device, all but the newest `leave`.

        Raises:
          FloatingPointError: one is not finite; it names the step and its examples.
        """
        while len(self.pending) > leave:
            step, metrics = self.pending.popleft()
            row = {k: float(v) for k, v in jax.device_get(metrics).items()}
            if not np.isfinite(list(row.values())).all():
                saved = f'The last checkpoint, after step {self.saved}, is older. '
                raise FloatingPointError(
                    f'the loss or a norm is not finite at step {step}; its batch: '
                    f'{", ".join(self.batch_ids(step))}; {row}. {saved if self.saved else ""}'
                    'Lower config.optimizer.learning_rate, set config.optimizer.clip_norm, or '
                    'look at these examples.'
                )
            self.rows.append(row)

    def write(self, step: int, scalars: dict) -> None:
        """Writes scalars under the number of a step."""
        if self.writer and self.file:
            for name, value in scalars.items():
                self.writer.add_scalar(name, value, step)
            self.writer.flush()
            row = evaluate.without_nan({k: float(v) for k, v in scalars.items()})
            self.file.write(json.dumps({'step': step} | row) + '\n')
            self.file.flush()
            if self.folder != self.workdir:
                storage.upload(self.folder, self.workdir)

    def report(self, step: int) -> None:
        """Reports the means since the last report; `step` steps are done."""
        seconds, steps = time.time() - self.time, step - self.step
        means = {f'train/{k}': np.mean([row[k] for row in self.rows]) for k in self.rows[0]}
        rate = steps * self.config.batch_size / seconds
        speed = {
            'steps/s': steps / seconds,
            f'{self.unit}/s': rate,
            f'{self.unit}/s/device': rate / self.num_devices,
        }
        self.write(step, means | speed | {'learning_rate': self.schedule(step - 1)})
        left = int((self.config.steps - step) * seconds / steps)
        prefix = 'train/loss_'
        parts = [
            f'{k.removeprefix(prefix)} {v:.3f}' for k, v in means.items() if k.startswith(prefix)
        ]
        sharding.print_once(
            f'step {step}/{self.config.steps}  loss {means["train/loss"]:.3f} '
            f'({" ".join(parts)})  {rate:.1f} {self.unit}/s  ETA {left // 60}:{left % 60:02d}'
        )
        self.rows = []

    def report_scores(self, step: int, scores: dict[str, Any]) -> None:
        """Reports the scores of an evaluation after `step` steps."""
        self.write(step, {f'eval/{k}': v for k, v in evaluate.totals(scores).items()})
        sharding.print_once(
            f'step {step}/{self.config.steps}  {self.config.data.eval_split}: '
            f'{evaluate.one_line(scores)}'
        )

    def restart_clock(self, step: int) -> None:
        """Excludes the time since the last step, spent on something else, from the rates."""
        self.time, self.step = time.time(), step
