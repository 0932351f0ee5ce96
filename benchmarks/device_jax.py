"""The rows of benchmarks/device.py that JAX computes.

A row is a function of `small` (see `device.py`) that compiles and returns a function that measures.
The latter returns entries: {'name', 'seconds' of one call in each repeat, …}.
"""

import dataclasses
import functools
import importlib
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.flops import product_flops
from benchmarks.helpers import random_images, random_targets, seconds_per_call
from rankseg_jax import inference, matching, models, optimizers, tasks, train_step
from rankseg_jax.decoders import pixel_decoder
from rankseg_jax.layers import attend
from rankseg_jax.selector import Choice

NUM_CLASSES, NUM_TARGETS, BATCH = 150, 20, 8
LOWER: list[str] = []  # platforms to lower for instead of compiling
CHAIN = 10  # calls of a part that one program makes, so that launching it does not count


# Recipes


@dataclasses.dataclass
class Recipe:
    """A recipe's model, task and optimizer, and the shapes of its state.

    Attributes:
      config: of the recipe.
      num_classes: K.
      small: whether the model is made tiny, and images with it.
    """

    config: Any
    num_classes: int
    small: bool

    def __post_init__(self):
        config = self.config
        config.task, config.model.dtype, config.batch_size = 'semantic', 'bfloat16', BATCH
        if self.small:
            shrink(config)
        self.side = config.augment.crop_size[0]
        self.task = tasks.build(config, [str(label) for label in range(self.num_classes)])
        self.model = models.build(config, self.num_classes)
        if self.small:
            backbone = self.model.backbone.clone(**TINY[config.model.framework])
            self.model = self.model.clone(backbone=backbone)
        self.optimizer = optimizers.make_optimizer(config.optimizer, config.steps)
        self.shapes = jax.eval_shape(
            lambda: train_step.create_state(self.model, self.optimizer, config, self.num_classes)
        )

    @functools.cached_property
    def image_flops(self) -> int:
        """FLOPs of the products in a forward pass of the network for one image, without a loss."""
        image = jax.ShapeDtypeStruct((1, self.side, self.side, 3), jnp.float32)
        forward = functools.partial(models.forward, self.model)
        return product_flops(
            lambda *arguments: jax.tree.leaves(forward(*arguments, Choice())),
            self.shapes.model,
            image,
        )


TINY = {
    'segmenter': {'num_layers': 2},
    'eomt': {'num_layers': 5},
    'mask2former': {'width': 24, 'depths': (1,) * 4, 'num_heads': (1, 2, 3, 6), 'window': 4},
}


def shrink(config) -> None:
    """Makes all but the backbone of a recipe's model tiny."""
    config.batch_size = 2
    config.augment.crop_size = config.eval.size = (64, 64)
    if config.model.framework == 'segmenter':
        config.model.update(backbone='vit_ti16', channels=192, decoder_heads=3, decoder_layers=2)
        config.eval.window = config.eval.stride = (64, 64)
        return
    if config.model.framework == 'eomt':
        config.model.update(backbone='dinov2_reg_s14', num_queries=25)
    else:
        config.model.update(backbone='swin_t7', pixel_layers=1, decoder_layers=3, num_queries=25)
    config.loss.num_points = 256
    config.data.max_targets = 25


@functools.cache
def build(recipe: str, small: bool, num_classes: int = NUM_CLASSES) -> Recipe:
    """The recipe '<file in configs/>:<name>', or the model of benchmarks/flat_in_k.py."""
    if recipe == 'flat_in_k':
        from benchmarks import flat_in_k

        return Recipe(flat_in_k.make_config('RankSeg'), num_classes, small)
    file, name = recipe.split(':')
    config = importlib.import_module(f'configs.{file}').get_config(name)
    return Recipe(config, num_classes, small)


def random_variables(shapes):
    """Variables of these shapes that keep activations in range, from numbers that repeat.

    Faster than compiling the model's own initialization, or drawing hundreds of millions.
    """
    numbers = np.random.default_rng(0).normal(size=1 << 20).astype(np.float32)

    @functools.cache
    def normal(shape, scale):
        return np.resize(numbers * np.float32(scale), shape)

    def draw(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator='/').rsplit('/', 1)[-1]
        if name in ('scale', 'var'):
            return np.ones(leaf.shape, leaf.dtype)
        if name in ('bias', 'mean') or not np.issubdtype(leaf.dtype, np.floating):
            return np.zeros(leaf.shape, leaf.dtype)
        return normal(leaf.shape, np.prod(leaf.shape[:-1]) ** -0.5 if name == 'kernel' else 0.02)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def compile_(function, *shapes, donate_argnums=()):
    """`function` compiled for arguments of these shapes, and what that took and tells.

    Under `--lower` it is lowered for those platforms instead.
    """
    jitted = jax.jit(function, donate_argnums=donate_argnums)
    if LOWER:
        for platform in LOWER:
            jitted.trace(*shapes).lower(lowering_platforms=(platform,))
        return None, {'xla_flops': None}
    start = time.perf_counter()
    lowered = jitted.lower(*shapes)
    traced = time.perf_counter()
    compiled = lowered.compile()
    facts = {'trace_s': traced - start, 'compile_s': time.perf_counter() - traced}
    memory = compiled.memory_analysis()
    if memory is not None:
        sizes = [getattr(memory, f'{x}_size_in_bytes') for x in ('argument', 'output', 'temp')]
        facts['memory'] = sum(sizes) - memory.alias_size_in_bytes
    analysis = compiled.cost_analysis() or {}
    analysis = analysis[0] if isinstance(analysis, list) else analysis
    return compiled, facts | {'xla_flops': analysis.get('flops')}


def shapes_of(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def train_row(recipe: str, small: bool):
    """Steps of `train_step.make_train_step`, each from the state that the one before returned."""
    own = build(recipe, small)
    step = train_step.make_train_step(own.model, own.optimizer, own.config, own.task)
    size = own.config.batch_size
    targets = random_targets(size, own.side, NUM_TARGETS, NUM_CLASSES)
    label = np.take_along_axis(targets.labels, targets.segments.reshape(size, -1), 1)
    batch = {
        'image': random_images(size, own.side),
        'label': label.reshape(targets.segments.shape),
        'mask': np.ones(size, bool),
    }
    compiled, facts = compile_(step, own.shapes, shapes_of(batch), donate_argnums=0)
    flops = 3 * size * own.image_flops

    def measure():
        zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), own.shapes)
        state = jax.device_put(zeros.replace(model=random_variables(own.shapes.model)))
        arrays, losses = jax.device_put(batch), []

        def call():
            nonlocal state
            state, metrics = compiled(state, arrays)
            losses.append(metrics['loss'])
            return losses[-1]

        seconds = seconds_per_call(call, jax.block_until_ready, small)
        ends = {'first_loss': float(losses[0]), 'last_loss': float(losses[-1])}
        return [entry('step', seconds, flops=flops, images=size, **facts, **ends)]

    return measure


def predict_row(recipe: str, small: bool, batch_sizes=(1, BATCH), num_classes=NUM_CLASSES):
    """From normalized images on the device to label maps there, as prediction computes them."""
    own = build(recipe, small, num_classes)
    side, config = own.side, own.config

    def labels(variables, image):
        size = jnp.full((len(image), 2), side)
        views = ({'image': image, 'content': size},)
        prediction = inference.segment(
            own.model, variables, views, size, config, own.task, canvas=(side, side)
        )
        return prediction.maps['labels']

    made = []
    for size in batch_sizes:
        images = random_images(size, side)
        compiled, facts = compile_(labels, own.shapes.model, shapes_of(images))
        made.append((images, compiled, facts | {'flops': size * own.image_flops}))

    def measure():
        variables = jax.device_put(random_variables(own.shapes.model))
        entries = []
        for images, compiled, facts in made:
            array = jax.device_put(images)
            call = functools.partial(compiled, variables, array)
            seconds = seconds_per_call(call, jax.block_until_ready, small)
            entries.append(entry(f'batch {len(images)}', seconds, images=len(images), **facts))
        return entries

    return measure


def entry(name: str, seconds: list[float], **facts) -> dict:
    return {'name': name, 'seconds': seconds, **facts}


# Parts


def chained(function, carry, *rest):
    """`function(carry, *rest)`, whose result is like `carry`, `CHAIN` times one after another."""
    return jax.lax.fori_loop(0, CHAIN, lambda _, carry: function(carry, *rest), carry)


def parts_row(variants: dict[str, tuple[Callable, tuple, int]], small: bool):
    """Times functions (arguments → something like the first) by name; one may fail.

    Args:
      variants: name → (function, arguments, FLOPs or 0).
    """

    made = {}
    for name, (function, arguments, flops) in variants.items():
        try:
            compiled, facts = compile_(
                functools.partial(chained, function), *map(shapes_of, arguments)
            )
        except Exception as error:  # such as a kernel that does not take these shapes
            if LOWER:
                raise
            made[name] = {'name': name, 'error': f'{type(error).__name__}: {error}'[:300]}
            continue
        facts.pop('xla_flops')
        made[name] = compiled, arguments, facts | {'flops': flops}

    def measure_one(name, compiled, arguments, facts):
        call = functools.partial(compiled, *jax.device_put(arguments))
        seconds = seconds_per_call(call, jax.block_until_ready, small)
        return entry(name, [x / CHAIN for x in seconds], **facts)

    def measure():
        return [x if isinstance(x, dict) else measure_one(name, *x) for name, x in made.items()]

    return measure


def matmul_row(small: bool):
    """Square products, the peak in practice: bfloat16, float32 as set by default, float32 exact."""
    side = 512 if small else 8192
    x = np.random.default_rng(0).normal(size=(side, side), scale=side**-0.5).astype(np.float32)
    kinds = {
        'bfloat16': ('bfloat16', None),
        'float32, default precision': ('float32', 'default'),
        'float32, highest precision': ('float32', 'highest'),
    }
    variants = {}
    for name, (dtype, precision) in kinds.items():
        product = functools.partial(jnp.matmul, precision=precision)
        variants[name] = product, (jnp.asarray(x, dtype),) * 2, 2 * side**3
    return parts_row(variants, small)


def backward(function):
    """(inputs, towards, *rest) → the inputs, moved a little along the gradient."""

    def step(inputs, towards, *rest):
        out, pull = jax.vjp(lambda *inputs: function(*inputs, *rest), *inputs)
        moves = pull(towards.astype(out.dtype))
        return jax.tree.map(lambda x, move: x + jnp.asarray(1e-3, x.dtype) * move, inputs, moves)

    return step


def attention_row(small: bool, masked: bool = False):
    """`layers.attend` beside JAX's own, at ViT-L's tokens or at the masked decoder's.

    cuDNN's backward pass takes even numbers of tokens only, so one more is measured as well.
    """
    batch, targets, sources, heads, depth = (
        (8, 100, 4096, 8, 32) if masked else (8, 1025, 0, 16, 64)
    )
    lengths = [(targets, sources)] if masked else [(targets, targets), (targets - 1, targets - 1)]
    if small:
        batch, heads, lengths = 2, 2, [(n // 8, m // 8) for n, m in lengths]
    rng, variants = np.random.default_rng(0), {}
    for targets, sources in lengths:
        q, k, v = (
            jnp.asarray(rng.normal(size=(batch, length, heads, depth)), jnp.bfloat16)
            for length in (targets, sources, sources)
        )
        mask = jnp.asarray(rng.random((batch, targets, sources)) < 0.5) if masked else None
        flops = 4 * batch * heads * targets * sources * depth
        for name, function in attentions(mask).items():
            name = f'{name}, {targets} × {sources}'
            variants[f'{name}, forward'] = function, (q, k, v), flops
            variants[f'{name}, forward and backward'] = (
                backward(function),
                ((q, k, v), q),
                3 * flops,
            )
    return parts_row(variants, small)


def attentions(mask) -> dict[str, Callable]:
    """(query, key, value) → result, by name."""
    theirs = functools.partial(
        jax.nn.dot_product_attention, mask=None if mask is None else mask[:, None]
    )
    found = {
        'layers.attend': functools.partial(attend, mask=mask),
        "JAX's, XLA": functools.partial(theirs, implementation='xla'),
    }
    if jax.default_backend() == 'gpu':
        found["JAX's, cuDNN"] = functools.partial(theirs, implementation='cudnn')
    return found


def matching_row(small: bool):
    """`matching.assign` of ten layers' predictions, and SciPy's on the host, fetch included."""
    from scipy.optimize import linear_sum_assignment

    layers, batch, queries = (2, 2, 20) if small else (10, BATCH, 100)
    rng, made = np.random.default_rng(0), []
    cases = [(20, 20), (20, 5)] if small else [(20, 20), (100, 100), (100, 20)]
    for slots, targets in cases:
        costs = rng.uniform(0, 10, (layers, batch, queries, slots)).astype(np.float32)
        valid = np.broadcast_to(np.arange(slots) < targets, (batch, slots))
        compiled, facts = compile_(matching.assign, shapes_of(costs), shapes_of(valid))
        facts.pop('xla_flops')
        name = f'{targets} targets' + (f' in {slots} slots' if slots > targets else '')
        made.append((name, costs, valid, compiled, facts))

    def measure():
        entries = []
        for name, costs, valid, compiled, facts in made:
            device = jax.device_put((costs, valid))
            call = functools.partial(compiled, *device)
            seconds = seconds_per_call(call, jax.block_until_ready, small)
            entries.append(entry(name, seconds, **facts))
            targets = valid[0].sum()

            @jax.jit
            def fresh(costs):
                return costs + 0  # an array that the host has no copy of yet

            def host(costs=device[0], targets=targets, fresh=fresh):
                fetched = np.asarray(fresh(costs))[..., :targets]
                return [linear_sum_assignment(x) for x in fetched.reshape(-1, *fetched.shape[2:])]

            entries.append(entry(f"{name}, SciPy's", seconds_per_call(host, lambda x: x, small)))
        return entries

    return measure


def deformable_row(small: bool):
    """`pixel_decoder.sample` at the levels of images of 512 × 512."""
    side, batch, heads, width, num_points = (64, 1, 2, 8, 4) if small else (512, BATCH, 8, 32, 4)
    shapes = tuple((side // stride, side // stride) for stride in pixel_decoder.STRIDES)
    num_cells = sum(height * width for height, width in shapes)
    rng = np.random.default_rng(0)
    value = jnp.asarray(rng.normal(size=(batch, num_cells, heads, width)), jnp.bfloat16)
    layout = (batch, num_cells, heads, len(shapes), num_points)
    weights = rng.random(layout).astype(np.float32) / (len(shapes) * num_points)
    centers = np.asarray(pixel_decoder.centers(shapes))[:, None, :, None]
    points = (centers + rng.normal(0, 3, (*layout, 2))).astype(np.float32)

    def sample(value, points, weights):
        return pixel_decoder.sample(value, points, weights, shapes)

    variants = {
        'forward': (sample, (value, points, weights), 0),
        'forward and backward': (backward(sample), ((value, points, weights), value), 0),
    }
    return parts_row(variants, small)


def flat_in_k_row(num_classes: int, small: bool):
    return predict_row('flat_in_k', small, batch_sizes=(BATCH,), num_classes=num_classes)


ROWS = {
    'matrix products': matmul_row,
    'attention, ViT-L/16': attention_row,
    'attention, masked decoder': functools.partial(attention_row, masked=True),
    'matching, 10 layers': matching_row,
    'deformable sampling': deformable_row,
    **{
        f'train {recipe}': functools.partial(train_row, recipe)
        for recipe in (
            'segmenter:ade20k_b16',
            'segmenter:ade20k_b16_rankseg',
            'segmenter:ade20k_l16',
            'segmenter:ade20k_l16_rankseg',
            'mask2former:ade20k_swin_t',
            'mask2former:ade20k_swin_b',
            'mask2former:ade20k_swin_b_rankseg',
            'mask2former:ade20k_swin_l',
            'eomt:coco_panoptic_l',
        )
    },
    **{
        f'predict {recipe}': functools.partial(predict_row, recipe)
        for recipe in (
            'segmenter:ade20k_l16',
            'segmenter:ade20k_l16_rankseg',
            'mask2former:ade20k_swin_t',
            'mask2former:ade20k_swin_b',
            'mask2former:ade20k_swin_l',
            'eomt:coco_panoptic_l',
        )
    },
    **{
        f'predict Segmenter with RankSeg, K = {k:,}': functools.partial(flat_in_k_row, k)
        for k in (150, 20_000)
    },
}


def environment() -> dict:
    return {'device': jax.devices()[0].device_kind, 'jax': jax.__version__}
