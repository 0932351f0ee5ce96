"""A train step of Mask2Former and EoMT, compared with Hugging Face's. CPU, float32, same weights.

    python benchmarks/hf_train.py

A step consists of the forward pass, the loss of all predictions at 12,544 points, its gradient, and
AdamW. EoMT's masks are half annealed: every query draws whether it uses its mask. Weights are
random, images are 512 x 512, K = 150. Both see the same images and targets but draw their own
points, so the losses of the first step differ slightly. The two take turns. Ours is jitted; Hugging
Face's runs in eager PyTorch. Both use all cores, their default. `memory` is the temporary memory
that XLA reports for our program.
"""

import json
import statistics
import sys
from pathlib import Path

import jax
import optax
import torch
from absl import app, flags

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import hugging_face
from benchmarks.helpers import (
    compile_for,
    machine,
    make_train_step,
    random_images,
    random_targets,
    ratio,
    save,
    take_turns,
)
from benchmarks.hugging_face import NUM_CLASSES, OURS, SIDE, THEIRS

_MODELS = flags.DEFINE_list('models', ['Mask2Former Swin-T', 'EoMT-B'], 'Models to measure.')
_OUT = flags.DEFINE_string('out', 'benchmarks/results/hf_train.json', 'JSON file of the results.')
_ROUNDS = flags.DEFINE_integer('rounds', 5, 'Timed steps per model.')
_BATCH = flags.DEFINE_integer('batch', 1, 'Images per step.')
_TARGETS = flags.DEFINE_integer('targets', 10, 'Targets per image.')

ADAMW = {'weight_decay': 0.05}


def make_theirs(model, images, targets):
    """A function that takes one step and returns the loss before it."""
    images = torch.tensor(images).permute(0, 3, 1, 2).contiguous()
    masks = list(
        (
            torch.tensor(targets.segments)[:, None] == torch.arange(_TARGETS.value)[:, None, None]
        ).float()
    )
    classes = list(torch.tensor(targets.labels).long())
    optimizer = torch.optim.AdamW(model.train().parameters(), 1e-4, **ADAMW)

    def step():
        optimizer.zero_grad()
        loss = model(images, mask_labels=masks, class_labels=classes).loss
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def make_ours(model, variables, images, targets):
    """A function that takes one step and returns the loss before it, and its memory in MB."""
    optimizer, rest = optax.adamw(1e-4, **ADAMW), dict(variables)
    params = rest.pop('params')
    state = params, jax.jit(optimizer.init)(params)
    batch = jax.random.key(0), *jax.device_put((images, targets))
    compiled, memory = compile_for(
        make_train_step(model, rest, optimizer, NUM_CLASSES), *state, *batch, donate_argnums=(0, 1)
    )

    def step():
        nonlocal state
        *state, loss = compiled(*state, *batch)
        return float(loss)

    return step, memory


def measure(name: str) -> dict:
    theirs, model, variables = hugging_face.build(name, masks=0.5)
    batch = (
        random_images(_BATCH.value, SIDE),
        random_targets(_BATCH.value, SIDE, _TARGETS.value, NUM_CLASSES),
    )
    step, memory = make_ours(model, variables, *batch)
    steps = {THEIRS: make_theirs(theirs, *batch), OURS: step}
    losses = {name: step() for name, step in steps.items()}
    seconds = take_turns(steps, _ROUNDS.value)
    return {
        'machine': machine(),
        'seconds': seconds,
        'median': {name: statistics.median(values) for name, values in seconds.items()},
        'ratio': ratio(seconds, OURS, THEIRS),
        'memory': memory,
        'first_losses': losses,
        **{flag.name: flag.value for flag in (_BATCH, _TARGETS)},
    }


def main(_):
    out = Path(_OUT.value)
    results = json.loads(out.read_text()) if out.exists() else {}
    for name in _MODELS.value:
        results[name] = measure(name)
        save(results, _OUT.value)
    print(
        '| train step | eager, s | RankSeg-JAX, s | ratio | memory MB | losses of the first step |'
    )
    print('|---' * 6 + '|')
    for name, row in results.items():
        theirs, ours = (row['median'][x] for x in (THEIRS, OURS))
        losses = ', '.join(f'{row["first_losses"][x]:.2f}' for x in (THEIRS, OURS))
        cells = f'{theirs:.2f} | {ours:.2f} | {row["ratio"]:.2f} × | {row["memory"]:.0f}'
        print(f'| {name} | {cells} | {losses} |')


if __name__ == '__main__':
    app.run(main)
