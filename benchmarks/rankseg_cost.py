"""The cost of RankSeg and of matching: Mask2Former with Swin-T, EoMT-B. CPU, float32.

    python benchmarks/rankseg_cost.py --out=benchmarks/results/rankseg_cost.json

Measures four tables, or those named by `--parts`, for one image of 512 x 512, with 100 queries and
κ = 50; all but `eomt` for Mask2Former:
  forward     RankSeg's forward pass and its parts, relative to the baseline at K = 150. The
              target is an overhead of at most 3 %.
  eomt        The same for a finished EoMT, with the parts after one prediction. The target is 1 %.
  matching    Matching all ten predictions, relative to the whole train step. Weights are as at
              the start of training, when targets compete for the same queries. The target is at
              most 5 % of the step.
  categories  From the image to its label map at full size, and the label map alone, for
              K = 60 to 1,284.
Weights are random. The rows of a table take turns; ratios are medians over the rounds. `memory` is
the temporary memory that XLA reports for the compiled program.
"""

import json
import statistics
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import hugging_face
from benchmarks.helpers import (
    class_layer_alone,
    compile_for,
    head_alone,
    make_train_step,
    prediction,
    predictions,
    random_images,
    random_targets,
    ratio,
    run,
    save,
    take_turns,
)
from configs import common
from rankseg_jax import losses, matching, models, postprocessing, windows
from rankseg_jax.decoders.query_classifier import QueryClassifier
from rankseg_jax.outputs import QueryOutput
from rankseg_jax.postprocessing import View
from rankseg_jax.ranking import from_ranks
from tests.helpers import random_variables

_OUT = flags.DEFINE_string(
    'out', 'benchmarks/results/rankseg_cost.json', 'JSON file of the results.'
)
_PARTS = flags.DEFINE_multi_enum(
    'parts',
    ['forward', 'eomt', 'matching', 'categories'],
    ['forward', 'eomt', 'matching', 'categories'],
    'Tables to measure.',
)
_ROUNDS = flags.DEFINE_integer('rounds', 9, 'Timed runs per row.')
_SIZE = flags.DEFINE_integer('size', 512, 'Height and width of the image.')

BASELINE, RELEASED, DEFAULT = (
    'baseline',
    'RankSeg, encoder head as released',
    'RankSeg, log-sum-exp head',
)
HEADS = {
    RELEASED: dict(head='encoder', hidden=512, num_heads=8, mlp_dim=2048),
    DEFAULT: dict(head='log_sum_exp'),
}
NUM_POINTS, WEIGHTS = 12_544, (2.0, 5.0, 5.0)


MASK2FORMER = dict(
    framework='mask2former',
    backbone='swin_t7',
    channels=256,
    decoder_layers=9,
    decoder_heads=8,
    cosine=True,
)
EOMT = dict(framework='eomt', backbone='dinov2_reg_b16', joint_blocks=3)


def make_model(variant: str, num_classes: int, options=MASK2FORMER):
    """The model of a variant, and its variables.

    Args:
      options: of the model.
    """
    config = common.get_config()
    config.model.update(options)
    if variant == BASELINE:
        config.rankseg = None
    else:
        config.rankseg.update(num_selected=50, **HEADS[variant])
        config.rankseg.layer = 3 if options is MASK2FORMER else 0
        config.rankseg.stride = 16
    config.augment.crop_size = (_SIZE.value, _SIZE.value)
    model = models.build(config, num_classes)
    variables = random_variables(model, random_images(1, 64))
    # The norms of Mask2Former's backbone have no statistics; those of EoMT are its masks: none.
    statistics = jax.tree.map(np.zeros_like, dict(variables.get('batch_stats', {})))
    return model, jax.device_put(variables | {'batch_stats': statistics})


def forward(num_classes=150, options=MASK2FORMER):
    rng, images, runs = np.random.default_rng(0), random_images(1, _SIZE.value), {}
    # What the class layer sees: [B, predictions, Q, D], and the head.
    shape = (1, 10, 100, 256) if options is MASK2FORMER else (1, 1, 100, 768)
    queries = rng.normal(size=shape).astype(np.float32)
    side = _SIZE.value // 16
    seen = queries[:, 3] if options is MASK2FORMER else rng.normal(size=(1, side, side, 768))
    presence_logits = rng.normal(size=(1, num_classes)).astype(np.float32)
    for variant in (BASELINE, *HEADS):
        model, variables = make_model(variant, num_classes, options)
        params = variables['params']['decoder']
        decoder = (
            model.decoder
            if options is MASK2FORMER
            else QueryClassifier(num_classes, queries.shape[-1], rankseg=model.rankseg)
        )
        runs[variant] = run(jax.jit(partial(prediction, model)), variables, images)
        if variant != BASELINE:
            runs[f'{variant}: head alone'] = run(
                jax.jit(partial(head_alone, decoder)), params, np.float32(seen)
            )
        layer = jax.jit(partial(class_layer_alone, decoder))
        runs[f'{variant}: class layer alone'] = run(layer, params, queries, presence_logits)
    seconds = take_turns(runs, _ROUNDS.value)
    ratios = {name: ratio(seconds, name, BASELINE) for name in runs}
    print(f'\n| {options["framework"]}, K = {num_classes} | ms | of the baseline |\n|---|---|---|')
    for name, values in seconds.items():
        print(f'| {name} | {1e3 * statistics.median(values):.1f} | {100 * ratios[name]:.1f} % |')
    return {'seconds': seconds, 'ratios': ratios}


def all_costs(key, layers, targets):
    """Matching costs as in `losses.query_losses`: [predictions, B, Q, N].

    Args:
      layers: class_logits [predictions, B, Q, K + 1] and mask_logits [predictions, B, Q, h, w].
    """
    points = jax.random.uniform(key, (NUM_POINTS, 2))
    truth = losses.sample_segments(targets.segments, targets.labels.shape[1], points)  # [B, N, P]
    return jax.lax.map(
        lambda layer: matching.costs(
            class_logits=layer[0],
            mask_logits=losses.sample(layer[1], points),
            labels=targets.labels,
            masks=truth,
            weights=WEIGHTS,
        ),
        layers,
    )


def match(key, layers, targets):
    return matching.assign(all_costs(key, layers, targets), targets.labels >= 0)


def matchings():
    num_classes = hugging_face.NUM_CLASSES
    _, model, variables = hugging_face.build('Mask2Former Swin-T')
    key, images, optimizer = jax.random.key(0), random_images(1, _SIZE.value), optax.adamw(1e-4)
    arguments = variables['params'], jax.jit(optimizer.init)(variables['params']), key, images

    @jax.jit
    def stacked(variables, images):
        return jax.tree.map(
            lambda *x: jnp.stack(x), *predictions(model.apply(variables, images, train=True))
        )

    layers = stacked(variables, images)
    step, runs = jax.jit(make_train_step(model, {}, optimizer, num_classes)), {}
    for num_targets in (10, 40, 100):
        targets = jax.device_put(random_targets(1, _SIZE.value, num_targets, num_classes))
        costs = jax.jit(all_costs)(key, layers, targets)
        runs |= {
            f'step {num_targets}': run(step, *arguments, targets),
            f'match {num_targets}': run(jax.jit(match), key, layers, targets),
            f'assign {num_targets}': run(jax.jit(matching.assign), costs, targets.labels >= 0),
        }
    seconds = take_turns(runs, _ROUNDS.value)
    shares = {name: ratio(seconds, name, f'step {name.split()[1]}') for name in runs}
    print(
        '\n| targets | train step s | assignment ms | of the step | with its costs ms '
        '| of the step |\n' + '|---' * 6 + '|'
    )
    for num_targets in (10, 40, 100):
        cells = [
            f'{1e3 * statistics.median(seconds[name]):.1f} | {100 * shares[name]:.2f} %'
            for name in (f'assign {num_targets}', f'match {num_targets}')
        ]
        step = statistics.median(seconds[f'step {num_targets}'])
        print(f'| {num_targets} | {step:.2f} | {cells[0]} | {cells[1]} |')
    return {'seconds': seconds, 'shares': shares}


def label_map(outputs):
    class_logits, mask_logits, selection = outputs
    batch, _, *cells = mask_logits.shape
    whole = jnp.full(batch, _SIZE.value)
    rows, columns = (
        windows.interpolation(
            length=_SIZE.value,
            size=whole,
            content=whole,
            starts=jnp.zeros((batch, 1), int),
            window=_SIZE.value,
            stride=_SIZE.value,
            cells=n,
            mirror=False,
        )
        for n in cells
    )
    view = View(QueryOutput(class_logits, mask_logits), rows, columns)
    ranks = postprocessing.best_ranks([view], jnp.full((batch, 2), _SIZE.value))  # [B, H, W]
    return ranks if selection is None else from_ranks(ranks, selection)


def categories(all_num_classes=(60, 150, 847, 1284)):
    images, runs, memory = random_images(1, _SIZE.value), {}, {}
    for variant in (BASELINE, *HEADS):
        for num_classes in all_num_classes:
            model, variables = make_model(variant, num_classes)
            forward = partial(prediction, model)
            whole, memory[f'{variant} {num_classes}'] = compile_for(
                lambda *x, forward=forward: label_map(forward(*x)), variables, images
            )
            runs[f'{variant} {num_classes}'] = run(whole, variables, images)
            outputs = jax.tree.map(
                lambda x: jnp.ones(x.shape, x.dtype), jax.eval_shape(forward, variables, images)
            )
            alone, memory[f'{variant} {num_classes} label map'] = compile_for(label_map, outputs)
            runs[f'{variant} {num_classes} label map'] = run(alone, outputs)
    seconds = take_turns(runs, _ROUNDS.value)
    print(
        '\n| image to label map: s, MB (label map alone: s, MB) | '
        + ' | '.join(map('K = {:,}'.format, all_num_classes))
        + ' |'
    )
    print('|---' * (1 + len(all_num_classes)) + '|')

    def cell(name):
        return f'{statistics.median(seconds[name]):.2f}, {memory[name]:.0f}'

    for variant in (BASELINE, *HEADS):
        cells = [
            f'{cell(f"{variant} {k}")} ({cell(f"{variant} {k} label map")})'
            for k in all_num_classes
        ]
        print(f'| {variant} | ' + ' | '.join(cells) + ' |')
    return {'seconds': seconds, 'memory': memory}


def main(_):
    measure = {
        'forward': forward,
        'eomt': partial(forward, options=EOMT),
        'matching': matchings,
        'categories': categories,
    }
    out = Path(_OUT.value)
    results = json.loads(out.read_text()) if out.exists() else {}
    save(results | {part: measure[part]() for part in _PARTS.value}, _OUT.value)


if __name__ == '__main__':
    app.run(main)
