"""A train step of Mask2Former, compared with Hugging Face's. CPU, float32, same random weights.

    python benchmarks/mask2former_train.py --out=benchmarks/results/mask2former_train.json

A step consists of the forward pass, the loss of all ten predictions at 12,544 points, its
gradient, and AdamW. Both see the same images and targets but draw their own points, so the losses
of the first step differ slightly. The two take turns. Ours is jitted; Hugging Face's runs in eager
PyTorch. Both use all cores, their default. `memory` is the temporary memory that XLA reports for
our program.
"""

import statistics
import sys
from pathlib import Path

import jax
import optax
import torch
from absl import app, flags

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.helpers import (
    compile_for,
    hugging_face_swin_t,
    make_train_step,
    random_images,
    random_targets,
    ratio,
    save,
    take_turns,
)

_OUT = flags.DEFINE_string(
    'out', 'benchmarks/results/mask2former_train.json', 'JSON file of the results.'
)
_ROUNDS = flags.DEFINE_integer('rounds', 5, 'Timed steps per model.')
_SIZE = flags.DEFINE_integer('size', 512, 'Height and width of the images.')
_BATCH = flags.DEFINE_integer('batch', 1, 'Images per step.')
_TARGETS = flags.DEFINE_integer('targets', 10, 'Targets per image.')

NUM_CLASSES = 150
THEIRS, OURS = 'Hugging Face, PyTorch eager', 'RankSeg-JAX, jitted'
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


def make_ours(model, params, images, targets):
    """A function that takes one step and returns the loss before it, and its memory in MB."""
    optimizer = optax.adamw(1e-4, **ADAMW)
    state = params, jax.jit(optimizer.init)(params)
    batch = jax.random.key(0), *jax.device_put((images, targets))
    compiled, memory = compile_for(
        make_train_step(model, optimizer, NUM_CLASSES), *state, *batch, donate_argnums=(0, 1)
    )

    def step():
        nonlocal state
        *state, loss = compiled(*state, *batch)
        return float(loss)

    return step, memory


def main(_):
    theirs, model, variables = hugging_face_swin_t(NUM_CLASSES)
    batch = (
        random_images(_BATCH.value, _SIZE.value),
        random_targets(_BATCH.value, _SIZE.value, _TARGETS.value, NUM_CLASSES),
    )
    step, memory = make_ours(model, variables['params'], *batch)
    steps = {THEIRS: make_theirs(theirs, *batch), OURS: step}
    losses = {name: step() for name, step in steps.items()}
    seconds = take_turns(steps, _ROUNDS.value)
    results = {
        'seconds': seconds,
        'ratio': ratio(seconds, OURS, THEIRS),
        'memory': memory,
        'first_losses': losses,
        **{flag.name: flag.value for flag in (_SIZE, _BATCH, _TARGETS)},
    }
    theirs, ours = (statistics.median(seconds[name]) for name in (THEIRS, OURS))
    print(
        f'| Mask2Former, Swin-T, {_SIZE.value} x {_SIZE.value}, batch {_BATCH.value}, '
        f'{_TARGETS.value} targets | Hugging Face | RankSeg-JAX |\n|---|---|---|'
    )
    print(f'| train step, s | {theirs:.2f} | {ours:.2f} ({results["ratio"]:.2f} x) |')
    print(f'| memory MB | – | {memory:.0f} |')
    print(
        '| loss of the first step | ' + ' | '.join(f'{loss:.2f}' for loss in losses.values()) + ' |'
    )
    save(results, _OUT.value)


if __name__ == '__main__':
    app.run(main)
