"""Mask2Former on clips of 360 × 640: Swin-T, K = 40, 100 queries, float32, CPU.

    python benchmarks/video_forward.py --out=benchmarks/results/video_forward.json

Frames are padded to 384 × 640. For each length T of a clip it measures:
  clip     the forward pass of a clip of T frames, relative to that of T images in one batch. The
           target is at most 1.10.
  RankSeg  the forward pass of the clip with the released multi-label head at κ = 10 and κ = K,
           relative to the baseline, and the parts that RankSeg adds or changes alone. The target is
           an overhead of at most 1 %.
  decoder  the query decoder of the baseline on the clip's maps, relative to the released one in
           eager PyTorch (torch_video_decoder.py) with the same weights. The target is at most 0.8.
Weights are random. What is compared takes turns; ratios are medians over the rounds. Forward passes
are measured in CPU seconds of the process, which other programs change less than seconds; decoders
in seconds on all cores, and in CPU seconds with one thread of PyTorch, whose threads spin while
they wait.
"""

import statistics
import sys
import time
from functools import partial
from pathlib import Path

import jax
import numpy as np
import torch
from absl import app, flags

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.helpers import (
    class_layer_alone,
    head_alone,
    machine,
    prediction,
    ratio,
    run,
    save,
    take_turns,
)
from benchmarks.torch_video_decoder import VideoDecoder
from configs import mask2former_video
from rankseg_jax import models
from rankseg_jax.decoders.query_decoder import QueryDecoder
from rankseg_jax.selector import Choice
from tests import released
from tests.helpers import numpy_state, random_like, relative_error

_OUT = flags.DEFINE_string(
    'out', 'benchmarks/results/video_forward.json', 'JSON file of the results.'
)
_PARTS = flags.DEFINE_multi_enum(
    'parts', ['forward', 'decoder'], ['forward', 'decoder'], 'Tables to measure.'
)
_LENGTHS = flags.DEFINE_multi_integer('lengths', [2, 5], 'T, frames of a clip.')
_ROUNDS = flags.DEFINE_integer('rounds', 9, 'Timed runs per row.')

NUM_CLASSES, SIZE = 40, (384, 640)
IMAGES, BASELINE = 'images, baseline', 'clip, baseline'
THEIRS, OURS = 'PyTorch eager', 'RankSeg-JAX, jitted'


def make_model(num_selected: int | None):
    """The model with κ selected categories or, for None, the baseline; and its variables."""
    config = mask2former_video.get_config('youtubevis_2019_swin_t')
    if num_selected:
        rankseg = mask2former_video.get_config('youtubevis_2019_swin_l_rankseg')
        config.model.cosine, config.rankseg = True, rankseg.rankseg
        config.rankseg.num_selected = num_selected
    model = models.build(config, NUM_CLASSES)
    shapes = jax.eval_shape(lambda: models.init(model, NUM_CLASSES, 0, (64, 64)))
    return model, jax.device_put(random_like(shapes))


def forward(length: int) -> dict:
    """CPU seconds of the forward passes, and their ratios to the baseline's on the clip."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(length, *SIZE, 3)).astype(np.float32)
    queries = rng.normal(size=(1, 10, 100, 256)).astype(np.float32)  # [B, predictions, Q, D]
    presence_logits = rng.normal(size=(1, NUM_CLASSES)).astype(np.float32)
    runs = {}
    for num_selected in (None, 10, NUM_CLASSES):
        model, variables = make_model(num_selected)
        decoder, params = model.decoder, variables['params']['decoder']
        predict = jax.jit(partial(prediction, model))
        name = f'clip, κ = {num_selected}' if num_selected else BASELINE
        if not num_selected:
            runs[IMAGES] = run(predict, variables, images)
        runs[name] = run(predict, variables, images[None])
        layer = jax.jit(partial(class_layer_alone, decoder))
        runs[f'{name}: class layer alone'] = run(layer, params, queries, presence_logits)
        if num_selected:
            head = jax.jit(partial(head_alone, decoder))
            runs[f'{name}: head alone'] = run(head, params, queries[:, 3])
    seconds = take_turns(runs, _ROUNDS.value, time.process_time)
    ratios = {name: ratio(seconds, name, BASELINE) for name in runs}
    ratios['clip / images'] = ratio(seconds, BASELINE, IMAGES)
    print(f'\n| forward, T = {length} | CPU ms | of the baseline |\n|---|---|---|')
    for name, values in seconds.items():
        print(f'| {name} | {1e3 * statistics.median(values):.2f} | {100 * ratios[name]:.2f} % |')
    print(f'clip / images: {ratios["clip / images"]:.2f}', flush=True)
    return {'seconds': seconds, 'ratios': ratios}


def decoders(length: int) -> dict:
    """Times of both query decoders, their ratios, and how far their outputs differ."""
    torch.manual_seed(0)
    theirs = VideoDecoder(NUM_CLASSES).eval()
    ours = QueryDecoder(NUM_CLASSES)
    variables = jax.device_put({'params': released.query_decoder(numpy_state(theirs), 8)})
    rng = np.random.default_rng(0)

    def random_map(stride):
        shape = length, *(side // stride for side in SIZE), ours.channels
        return rng.normal(size=shape).astype(np.float32)

    maps, pixels = {stride: random_map(stride) for stride in (32, 16, 8)}, random_map(4)
    # The released decoder takes [B · T, D, h, w].
    *their_maps, their_pixels = (
        torch.tensor(x).permute(0, 3, 1, 2).contiguous() for x in (*maps.values(), pixels)
    )

    @jax.jit
    def decode(variables, maps, pixels):
        output = ours.apply(variables, maps, pixels, train=False, choice=Choice(frames=length))
        return output.class_logits, output.mask_logits

    def their_decode():
        with torch.inference_mode():
            return theirs(their_maps, their_pixels, length)[-1]

    runs = {THEIRS: their_decode, OURS: run(decode, variables, maps, pixels)}
    pairs = zip(runs[OURS](), runs[THEIRS](), strict=True)
    difference = max(relative_error(*pair) for pair in pairs)
    seconds = take_turns(runs, _ROUNDS.value)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    cpu_seconds = take_turns(runs, _ROUNDS.value, time.process_time)
    torch.set_num_threads(threads)
    print(f'\n| decoder, T = {length} | PyTorch ms | RankSeg-JAX ms | ratio |\n{"|---" * 4}|')
    ratios = {}
    for name, values in (('all cores', seconds), ('CPU time', cpu_seconds)):
        theirs_ms, ours_ms = (1e3 * statistics.median(values[x]) for x in (THEIRS, OURS))
        ratios[name] = ratio(values, OURS, THEIRS)
        print(f'| {name} | {theirs_ms:.0f} | {ours_ms:.0f} | {ratios[name]:.2f} |', flush=True)
    return {
        'seconds': seconds,
        'cpu_seconds': cpu_seconds,
        'ratios': ratios,
        'difference': float(difference),
    }


def main(_):
    results = machine()
    for name, measure in (('decoder', decoders), ('forward', forward)):
        if name in _PARTS.value:
            results[name] = {}
            for length in _LENGTHS.value:
                results[name][length] = measure(length)
                save(results, _OUT.value)


if __name__ == '__main__':
    app.run(main)
