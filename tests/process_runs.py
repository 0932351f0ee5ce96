"""What a process of tests/test_processes.py runs besides main.py.

    python -m tests.process_runs <workdir> <flags of main.py as JSON, a dict for each mode>

One process runs several modes, since each start takes seconds.
"""

import json
import os
import sys
import time
from pathlib import Path

import jax
from absl import flags

from rankseg_jax import cli, processes, reporting
from rankseg_jax.data import emoji_scenes, images
from tests import tiny  # noqa: F401, whose backbones the runs have


def watch():
    """Names what is read in $READS/<process>, and sends $SIGNAL to process 1 after step $AT."""

    def note(line):
        if 'READS' in os.environ:
            with open(Path(os.environ['READS'], str(jax.process_index())), 'a') as file:
                file.write(f'{line}\n')

    load, read, report = (
        emoji_scenes.EmojiScenesSource.load,
        images.read_image,
        reporting.Progress.report,
    )

    def counted_load(self, index):
        note(self.ids[index])
        return load(self, index)

    def counted_read(image, *args):
        note(image)
        return read(image, *args)

    def interrupted_report(self, step):
        report(self, step)
        if 'AT' in os.environ:
            time.sleep(0.5)  # or the run ends before all know
        if jax.process_index() == 1 and os.environ.get('AT') == str(step):
            os.kill(os.getpid(), int(os.environ['SIGNAL']))

    emoji_scenes.EmojiScenesSource.load = counted_load
    images.read_image = counted_read
    reporting.Progress.report = interrupted_report


if __name__ == '__main__':
    workdir, modes = sys.argv[1:]
    watch()
    flags.FLAGS(['main.py', f'--workdir={workdir}'])
    start, end = processes.start, processes.end
    start(coordinator=None, num_processes=None, process_id=None)
    processes.start, processes.end = lambda **_: None, processes.wait
    for options in json.loads(modes):
        for name in ('mode', 'input', 'output'):
            flags.FLAGS[name].value = options.get(name)
        cli.run(None, Path(workdir))
    end()
