"""How fast are training, prediction and their parts on an accelerator, also beside PyTorch?

    python benchmarks/device.py --out=benchmarks/results/device.json
    python benchmarks/device.py --rows='train|matrix' --budget=240 --together=4
    python benchmarks/device.py --small --out=/tmp/device.json   # tiny models, runs on a CPU
    python benchmarks/device.py --lower=cuda,tpu                 # needs no accelerator

Needs only what prediction needs: jax, flax, optax, ml_collections and what orbax brings; PyTorch's
rows need torch, timm and transformers too. Images, labels and weights are random, recipes as in
configs/ but for a batch of 8; networks compute in bfloat16, parameters are float32. Rows come in
the order of what they tell. Each is written when it is finished, rows that are there already are
skipped, and one that fails is written with its error.

`seconds`: of one call, in each repeat; calls follow each other, and the host waits once a repeat.
A train step gets the state that the one before returned.
`flops`: of matrix products and convolutions in the network as it is written down (flops.py), × 3
for a train step, so that what the backward pass computes again does not count. MFU is their share
of the chip's peak in bfloat16 by its data sheet; on a CPU, of the measured matrix product.
`xla_flops`: what XLA says of the compiled program. `memory`: arguments, results and temporary
memory of the compiled program; for PyTorch the peak of what is allocated.
"""

import json
import os
import re
import statistics
import subprocess
import sys
import time
import traceback
from concurrent import futures
from pathlib import Path

from absl import app, flags

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

_OUT = flags.DEFINE_string('out', 'benchmarks/results/device.json', 'JSON file of the results.')
_ROWS = flags.DEFINE_string('rows', '', 'Regular expression found in the names of the rows to run.')
_BUDGET = flags.DEFINE_float('budget', 1e6, 'Seconds after which no further row starts.')
_LIMIT = flags.DEFINE_float('limit', 300, 'Seconds after which a row, or rows together, are ended.')
_TOGETHER = flags.DEFINE_integer('together', 1, 'Rows that are compiled at the same time.')
_SMALL = flags.DEFINE_bool('small', False, 'Tiny models and short runs, to test the benchmark.')
_LOWER = flags.DEFINE_list(
    'lower', [], "Only lower JAX's rows for these platforms, as far as can be without them."
)
_LIST = flags.DEFINE_bool('list', False, 'Print the names of the rows and stop.')
_SHOW = flags.DEFINE_bool('show', False, 'Print the table of the results and stop.')
_LIBRARY = flags.DEFINE_enum('library', None, ['jax', 'torch'], 'For the processes of this script.')

ORDER = (
    ('jax', 'matrix products'),
    ('jax', 'matching, 10 layers'),
    ('jax', 'deformable sampling'),
    ('jax', 'attention, ViT-L/16'),
    ('jax', 'train segmenter:ade20k_l16'),
    ('jax', 'train mask2former:ade20k_swin_t'),
    ('jax', 'predict segmenter:ade20k_l16'),
    ('jax', 'predict mask2former:ade20k_swin_t'),
    ('torch', 'PyTorch, train Mask2Former, Swin-T'),
    ('torch', 'PyTorch, train Segmenter, ViT-L/16'),
    ('torch', 'PyTorch, predict Mask2Former, Swin-T'),
    ('torch', 'PyTorch, predict Segmenter, ViT-L/16'),
    ('torch', 'PyTorch, attention, ViT-L/16'),
    ('torch', 'PyTorch, train Mask2Former, Swin-B'),
    ('torch', 'PyTorch, predict Mask2Former, Swin-B'),
    ('torch', 'PyTorch, train Segmenter, ViT-B/16'),
    ('torch', 'PyTorch, predict Segmenter, ViT-B/16'),
    ('jax', 'train segmenter:ade20k_l16_rankseg'),
    ('jax', 'attention, masked decoder'),
    ('jax', 'train segmenter:ade20k_b16'),
    ('jax', 'train segmenter:ade20k_b16_rankseg'),
    ('jax', 'predict mask2former:ade20k_swin_b'),
    ('jax', 'train mask2former:ade20k_swin_b'),
    ('jax', 'train mask2former:ade20k_swin_b_rankseg'),
    ('jax', 'predict eomt:coco_panoptic_l'),
    ('jax', 'train eomt:coco_panoptic_l'),
    ('jax', 'predict mask2former:ade20k_swin_l'),
    ('jax', 'train mask2former:ade20k_swin_l'),
    ('jax', 'predict segmenter:ade20k_l16_rankseg'),
    ('jax', 'predict Segmenter with RankSeg, K = 150'),
    ('jax', 'predict Segmenter with RankSeg, K = 20,000'),
    ('torch', 'torch.compile, predict Segmenter, ViT-L/16'),
    ('torch', 'torch.compile, predict Mask2Former, Swin-T'),
    ('torch', 'torch.compile, predict Mask2Former, Swin-B'),
    ('torch', 'torch.compile, predict Segmenter, ViT-B/16'),
)
# Dense bfloat16 FLOP/s by data sheet; the first name that is part of the device's counts.
PEAKS = {
    'H100 PCIe': 756e12,
    'H100': 989e12,
    'H200': 989e12,
    'A100': 312e12,
    'L4': 121e12,
    'TPU v4': 275e12,
    'TPU v5 lite': 197e12,
    'TPU v5e': 197e12,
    'TPU v5': 459e12,
    'TPU v6': 918e12,
}
STARTED = 'it did not finish: its process was ended'


def read() -> list[dict]:
    path = Path(_OUT.value)
    return json.loads(path.read_text()) if path.exists() else []


def write(row: dict) -> None:
    """Adds a row to the results, or replaces the one of its name; the file is whole at any time."""
    rows = [other for other in read() if other['row'] != row['row']] + [row]
    path = Path(_OUT.value)
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix('.tmp')
    new.write_text(json.dumps(rows, indent=1))
    new.replace(path)


def pending() -> list[tuple[str, str]]:
    """(library, name) of the rows that are to run."""
    done = {row['row'] for row in read()}
    return [x for x in ORDER if x[1] not in done and re.search(_ROWS.value, x[1])]


# The process of one library


def work(library: str) -> None:
    """Measures the pending rows up to the first of another library."""
    import faulthandler
    import importlib

    module = importlib.import_module(f'benchmarks.device_{library}')
    start, environment = time.perf_counter(), module.environment()
    rows = pending()
    others = [i for i, (other, _) in enumerate(rows) if other != library]
    names = [name for _, name in rows[: min(others, default=len(rows))]]
    size = _TOGETHER.value if library == 'jax' else 1
    for i in range(0, len(names), size):
        if time.perf_counter() - start > _BUDGET.value:
            return
        group = names[i : i + size]
        faulthandler.dump_traceback_later(_LIMIT.value, exit=True)
        for name in group:  # should the process die
            write({'row': name, **environment, 'error': STARTED})
        measure_together(module.ROWS, group, environment)
        faulthandler.cancel_dump_traceback_later()


def measure_together(functions, names: list[str], environment: dict) -> None:
    """Compiles some rows at the same time, then measures one after another."""
    with futures.ThreadPoolExecutor(len(names)) as pool:
        made = {name: pool.submit(timed, functions[name], _SMALL.value) for name in names}
        futures.wait(made.values())
    for name, future in made.items():
        row = {'row': name, **environment, 'together': len(names)}
        try:
            measure, row['prepare_s'] = future.result()
            row['entries'], row['measure_s'] = timed(measure)
        except Exception as error:
            traceback.print_exc()
            row['error'] = f'{type(error).__name__}: {error}'[:1000]
        write(row)
        took = row.get('prepare_s', 0) + row.get('measure_s', 0)
        print(f'{name}: {row.get("error", f"{took:.1f} s")}', flush=True)


def timed(function, *arguments):
    """The result of a function and the seconds that it took."""
    start = time.perf_counter()
    return function(*arguments), time.perf_counter() - start


def lower() -> None:
    """Lowers the rows of JAX for platforms that need not be here; says which cannot be."""
    from benchmarks import device_jax

    device_jax.LOWER[:] = _LOWER.value
    for library, name in ORDER:
        if library != 'jax' or not re.search(_ROWS.value, name):
            continue
        start = time.perf_counter()
        try:
            device_jax.ROWS[name](_SMALL.value)
            found = 'lowered'
        except Exception as error:
            found = f'{type(error).__name__}: {error}'[:300]
        took = time.perf_counter() - start
        print(f'{name}: {found}, {took:.0f} s', flush=True)


# The table


def peak(device: str, rows: list[dict]) -> float | None:
    """FLOP/s of the device, from its data sheet or else as measured."""
    for name, flops in PEAKS.items():
        if name in device:
            return flops
    rates = [
        entry['flops'] / statistics.median(entry['seconds'])
        for row in rows
        if row['row'] == 'matrix products'
        for entry in row.get('entries', [])
        if 'seconds' in entry
    ]
    return max(rates, default=None)


def table(rows: list[dict]) -> str:
    """A Markdown table of all entries."""
    names = ('', 'device', 'ms', 'images/s', 'TFLOP', 'TFLOP/s', 'MFU %', 'GB', 'compile s')
    lines = ['| ' + ' | '.join(names) + ' |', '|' + '---|' * len(names)]
    order = {name: i for i, (_, name) in enumerate(ORDER)}
    for row in sorted(rows, key=lambda row: order.get(row['row'], len(order))):
        if 'error' in row:
            lines.append(f'| {row["row"]} | {row["device"]} | {one_line(row["error"])} |')
        for entry in row.get('entries', []):
            cells = [f'{row["row"]}: {entry["name"]}', row['device'], *figures(row, entry, rows)]
            lines.append('| ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines)


def one_line(text: str) -> str:
    return ' '.join(text.replace('|', '/').split())[:150]


def figures(row: dict, entry: dict, rows: list[dict]) -> list[str]:
    """The cells of an entry after its name and device."""
    if 'error' in entry:
        return [one_line(entry['error'])]
    seconds, flops = statistics.median(entry['seconds']), entry.get('flops')
    speed, most = flops and flops / seconds, peak(row['device'], rows)
    setup = entry.get('compile_s', entry.get('first_s'))
    return [
        f'{1e3 * seconds:.3f}',
        f'{entry["images"] / seconds:.1f}' if 'images' in entry else '',
        f'{flops / 1e12:.3f}' if flops else '',
        f'{speed / 1e12:.1f}' if speed else '',
        f'{100 * speed / most:.1f}' if speed and most else '',
        f'{entry["memory"] / 1e9:.2f}' if 'memory' in entry else '',
        f'{setup:.1f}' if setup else '',
    ]


def main(_):
    if _LIST.value:
        print('\n'.join(name for _, name in ORDER if re.search(_ROWS.value, name)))
        return
    if _LOWER.value:
        lower()
        return
    if _LIBRARY.value:
        work(_LIBRARY.value)
        return
    start = time.perf_counter()
    rows = [] if _SHOW.value else pending()
    while rows and (left := _BUDGET.value - (time.perf_counter() - start)) > 0:
        library = rows[0][0]
        # A process for each library, whose memory is free for the next; one may crash.
        command = [sys.executable, __file__, f'--library={library}', f'--budget={left}']
        flag_values = (_OUT, _ROWS, _LIMIT, _TOGETHER, _SMALL)
        command += [f'--{flag.name}={flag.value}' for flag in flag_values]
        environment = {'PYTHONUNBUFFERED': '1'} | os.environ
        if 'XLA_PYTHON_CLIENT_MEM_FRACTION' not in environment:  # the old name: not both
            environment.setdefault('XLA_CLIENT_MEM_FRACTION', '0.92')
        done = subprocess.run(command, env=environment)
        before, rows = rows, pending()
        if rows == before and time.perf_counter() - start < _BUDGET.value:
            error = f'its process could not start and returned {done.returncode}'
            for _, name in [row for row in rows if row[0] == library]:
                write({'row': name, 'device': '', 'error': error})
            rows = pending()
    print('\n' + table(read()))


if __name__ == '__main__':
    app.run(main)
