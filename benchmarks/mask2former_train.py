"""How long does a train step of Mask2Former take, beside Hugging Face's in PyTorch? CPU, float32, the same random weights.

    python benchmarks/mask2former_train.py --out=benchmarks/results/mask2former_train.json

A step is the forward pass, the loss of all ten predictions at 12,544 points, its gradient, and AdamW. Images and targets are the
same, points each one's own, so that the first step's losses differ a little. The two take turns. Ours is jitted, theirs runs
eagerly; both use all cores, as they do by default. `memory` is what XLA's analysis says our program needs besides parameters, the
optimiser's state and the batch.
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

_OUT = flags.DEFINE_string('out', 'benchmarks/results/mask2former_train.json', 'The figures.')
_ROUNDS = flags.DEFINE_integer('rounds', 5, 'Turns of each.')
_SIZE = flags.DEFINE_integer('size', 512, 'Height and width of the images.')
_BATCH = flags.DEFINE_integer('batch', 1, 'Images a step.')
_TARGETS = flags.DEFINE_integer('targets', 10, 'Targets an image.')

NUM_CLASSES = 150
THEIRS, OURS = 'Hugging Face, PyTorch eager', 'RankSeg-JAX, jitted'
ADAMW = {'weight_decay': 0.05}


def make_theirs(model, images, targets):
    """A function that takes a step and returns the loss before it."""
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
    """The same, and the program's MB."""
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
        f'| Mask2Former, Swin-T, {_SIZE.value} x {_SIZE.value}, batch {_BATCH.value}, {_TARGETS.value} targets | Hugging Face '
        '| RankSeg-JAX |\n|---|---|---|'
    )
    print(f'| train step, s | {theirs:.2f} | {ours:.2f} ({results["ratio"]:.2f} x) |')
    print(f'| memory MB | – | {memory:.0f} |')
    print(
        '| loss of the first step | ' + ' | '.join(f'{loss:.2f}' for loss in losses.values()) + ' |'
    )
    save(results, _OUT.value)


if __name__ == '__main__':
    app.run(main)
