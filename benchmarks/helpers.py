"""Functions shared by the benchmarks."""

import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from configs import common
from rankseg_jax import models, train
from rankseg_jax.decoders.query_classifier import QueryClasses
from rankseg_jax.multilabel import build_head
from rankseg_jax.selector import COSINE_TAU, Choice, RankScale, choose
from rankseg_jax.tasks import queries


def take_turns(runs, rounds: int, clock=time.perf_counter) -> dict[str, list[float]]:
    """Seconds per round of each function in `runs`, which take turns.

    The functions must block until they are done. Each runs once beforehand, to compile.

    Args:
      clock: `time.process_time` counts the CPU seconds of all threads instead.
    """
    for run in runs.values():
        run()
    seconds = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = clock()
            run()
            seconds[name].append(clock() - start)
    return seconds


def seconds_per_call(call, wait, small: bool = False) -> list[float]:
    """Seconds of one `call()` in each repeat, in which as many follow each other as fill a moment.

    Args:
      wait: blocks until the result of a call is there; it does so once a repeat.
      small: one call in one repeat.
    """
    wait(call())  # whatever happens once
    if small:
        start = time.perf_counter()
        wait(call())
        return [time.perf_counter() - start]
    start = time.perf_counter()
    wait(call())
    single, total = time.perf_counter() - start, 0.0
    calls = min(200, max(2, math.ceil(0.3 / single)))
    seconds = []
    while len(seconds) < 5 and (len(seconds) < 2 or total < 4):
        start = time.perf_counter()
        for _ in range(calls):
            result = call()
        wait(result)
        total += time.perf_counter() - start
        seconds.append((time.perf_counter() - start) / calls)
    return seconds


def run(function, *arguments):
    """A function that calls `function(*arguments)` and blocks until the result is there."""
    return lambda: jax.block_until_ready(function(*arguments))


def ratio(seconds, name: str, base: str) -> float:
    """The time of `name` relative to `base`: the median over rounds, robust against slow phases."""
    return statistics.median(
        own / other for own, other in zip(seconds[name], seconds[base], strict=True)
    )


def compile_for(function, *arguments, donate_argnums=()):
    """`function` compiled for these arguments, and its temporary memory in MB."""
    compiled = jax.jit(function, donate_argnums=donate_argnums).lower(*arguments).compile()
    return compiled, compiled.memory_analysis().temp_size_in_bytes / 1e6


def save(results, out: str):
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(results, indent=1))


class Runs:
    """The finished runs of a benchmark that trains: a file with a line of JSON for each."""

    def __init__(self, path: str):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.touch()  # fails now rather than after hours

    def read(self) -> list[dict]:
        return [json.loads(line) for line in self.path.read_text().splitlines()]

    def add(self, row: dict):
        with self.path.open('a') as file:
            file.write(json.dumps(row) + '\n')


def train_and_score(config, folder: Path | None = None) -> dict:
    """Trains a run, by default in a temporary folder: its seconds, its scores that are numbers."""
    start = time.time()
    with nullcontext(folder) if folder else tempfile.TemporaryDirectory() as workdir:
        scores = train.train(config, workdir)
    if scores is None:
        sys.exit('Stopped; the same command starts this run again.')
    return {'seconds': round(time.time() - start, 1), 'scores': numbers(scores)}


def numbers(scores: dict) -> dict:
    """The scores that are numbers."""
    return {name: value for name, value in scores.items() if np.isscalar(value)}


def score_table(runs: dict[str, list[dict]], columns: Sequence[str]) -> str:
    """A Markdown table: mean ± sample standard deviation over seeds, in percent.

    Args:
      runs: the scores of each seed, by variant.
      columns: names of scores, which variants may lack.
    """
    lines = ['| variant | seeds | ' + ' | '.join(columns) + ' |', '|---' * (len(columns) + 2) + '|']
    for variant, seeds in runs.items():
        cells = [spread([scores[name] for scores in seeds if name in scores]) for name in columns]
        lines.append(f'| {variant} | {len(seeds)} | ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines)


def spread(values: Sequence[float]) -> str:
    if not values:
        return ''
    mean = f'{100 * np.mean(values):.1f}'
    return f'{mean} ± {100 * np.std(values, ddof=1):.1f}' if len(values) > 1 else mean


def random_images(batch: int, size: int):
    return np.random.default_rng(0).normal(size=(batch, size, size, 3)).astype(np.float32)


def random_targets(batch: int, size: int, num_targets: int, num_classes: int) -> queries.Targets:
    """Targets of images that contain `num_targets` categories, each in some of 16 x 16 squares."""
    rng = np.random.default_rng(0)
    labels = np.stack([rng.permutation(num_classes)[:num_targets] for _ in range(batch)]).astype(
        np.int32
    )
    squares = np.stack(
        [rng.permutation(256).reshape(16, 16) % num_targets for _ in range(batch)]
    ).astype(np.int32)
    side = -(-size // 16)
    return queries.Targets(
        labels, squares.repeat(side, 1).repeat(side, 2)[:, :size, :size], np.zeros(batch, np.int32)
    )


def predictions(output):
    """(class_logits, mask_logits) before the first decoder layer and after each layer."""
    return *output.auxiliary, (output.class_logits, output.mask_logits)


def prediction(model, variables, images):
    """(class_logits, mask_logits, selection) of images or clips."""
    output = models.forward(model, variables, images, Choice())
    return output.class_logits, output.mask_logits, output.selection


def head_alone(decoder, params, tokens):
    """Presence logits of the multi-label head of `QueryDecoder`."""
    head = build_head(decoder.rankseg, decoder.num_classes, jnp.float32)
    return head.apply({'params': params['head']}, tokens, train=False)  # [B, K]


def class_layer_alone(decoder, params, queries, presence_logits):
    """The class layer of `QueryDecoder`, with selection: [B, predictions, Q, κ + 1 or K + 1]."""
    options, selection = decoder.rankseg, None
    if options is not None:
        _, selection = choose(options, presence_logits, Choice(), train=False)
    classes = QueryClasses(decoder.num_classes, queries.shape[-1], decoder.cosine)
    logits = classes.apply({'params': params['classes']}, queries, selection)
    tau = COSINE_TAU if decoder.cosine else 1.0
    if selection is None:
        return logits / tau
    return RankScale(options, decoder.num_classes, tau, no_object=True).apply(
        {'params': params['rank']}, logits, selection
    )


def make_train_step(model, rest, optimizer: optax.GradientTransformation, num_classes: int):
    """(params, optimizer state, key, images, targets) -> new params, new state, and the loss.

    Args:
      rest: the model's variables besides 'params'.
    """
    config = common.get_config()

    def step(params, state, key, images, targets):
        mask = jnp.ones(len(images), bool)
        visible = queries.visible_targets(targets.labels, targets.segments, targets.left_out)

        def total(params):
            variables, rngs = {'params': params, **rest}, {'dropout': key}
            output = model.apply(variables, images, train=True, rngs=rngs)
            parts, _ = queries.loss(
                key, output, visible, mask=mask, config=config, num_classes=num_classes
            )
            return sum(part.value for part in parts.values())

        loss, gradient = jax.value_and_grad(total)(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, loss

    return step


def machine() -> dict:
    """The processor, its cores, and the GFLOP/s of a float32 matrix product, its peak in practice.

    A time as a share of this peak travels between machines; a ratio to another library does not.
    """
    import re

    found = re.search(r'model name\s*: (.*)', Path('/proc/cpuinfo').read_text())
    x = jnp.ones((2048, 2048))
    product = jax.jit(jnp.matmul)
    seconds = take_turns({'matmul': lambda: jax.block_until_ready(product(x, x))}, 9)['matmul']
    return {
        'processor': found[1] if found else 'unknown',
        'device': jax.devices()[0].device_kind,
        'cores': os.cpu_count(),
        'matmul_gflops': 2 * 2048**3 / statistics.median(seconds) / 1e9,
    }


def peak_shares(seconds: dict[str, float], flops: int, computer: dict) -> dict[str, float]:
    """The shares of the GFLOP/s that `machine()` found which `flops` in these times reach."""
    return {
        name: flops / (value * 1e9 * computer['matmul_gflops']) for name, value in seconds.items()
    }
