"""Mask2Former on one image, compared with Hugging Face's in PyTorch. CPU, float32, same weights.

    python benchmarks/mask2former_forward.py --out=benchmarks/results/mask2former_forward.json

Measures the model up to the backbone, up to the pixel decoder, and as a whole. Weights are random.
The two take turns. Ours is jitted; Hugging Face's runs eagerly in inference mode. Both use all
cores, their default. Beside our time: the share of the peak, that of a large float32 matrix product
measured in the same run, that the matrix products of the part reach (flops.py).
"""

import statistics
import sys
from pathlib import Path

import jax
import torch
from absl import app, flags

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.flops import product_flops
from benchmarks.helpers import (
    hugging_face_swin_t,
    machine,
    peak_shares,
    random_images,
    ratio,
    save,
    take_turns,
)
from tests.helpers import relative_error

_OUT = flags.DEFINE_string(
    'out', 'benchmarks/results/mask2former_forward.json', 'JSON file of the results.'
)
_ROUNDS = flags.DEFINE_integer('rounds', 7, 'Timed runs per model.')
_SIZE = flags.DEFINE_integer('size', 512, 'Height and width of the image.')

THEIRS, OURS = 'Hugging Face, PyTorch eager', 'RankSeg-JAX, jitted'


def make_forwards():
    """{part: ({name: function without arguments → arrays}, FLOPs)}; the last is the whole."""
    theirs, model, variables = hugging_face_swin_t()
    theirs.eval()
    images = random_images(1, _SIZE.value)
    tensor = torch.tensor(images).permute(0, 3, 1, 2).contiguous()

    def to_backbone(model, images):
        return model.backbone(images, train=False)[32]

    def to_pixel_decoder(model, images):
        return model.pixel_decoder(model.backbone(images, train=False), train=False)[1]

    def whole(model, images):
        output = model(images, train=False)
        return output.class_logits, output.mask_logits

    def their_whole(images):
        output = theirs(images)
        return output.class_queries_logits, output.masks_queries_logits

    pixel_level = theirs.model.pixel_level_module
    parts = {
        'backbone': (
            to_backbone,
            lambda x: pixel_level.encoder(x).feature_maps[-1].permute(0, 2, 3, 1),
        ),
        'pixel decoder': (
            to_pixel_decoder,
            lambda x: pixel_level(x).decoder_last_hidden_state.permute(0, 2, 3, 1),
        ),
        'whole': (whole, their_whole),
    }

    def pair(ours, theirs):
        forward = jax.jit(lambda variables, images: model.apply(variables, images, method=ours))

        def run():
            with torch.inference_mode():
                return theirs(tensor)

        forwards = {THEIRS: run, OURS: lambda: jax.block_until_ready(forward(variables, images))}
        return forwards, product_flops(forward, variables, images)

    return {part: pair(*functions) for part, functions in parts.items()}


def main(_):
    results = {'machine': machine()}
    print(
        f'{results["machine"]}\n\n| Mask2Former, Swin-T, {_SIZE.value} x {_SIZE.value}, up to '
        '| Hugging Face s | RankSeg-JAX s | ratio | share of peak | difference |'
    )
    print('|---|---|---|---|---|---|')
    for part, (forwards, flops) in make_forwards().items():
        outputs = (jax.tree.leaves(forwards[name]()) for name in (OURS, THEIRS))
        difference = max(relative_error(*pair) for pair in zip(*outputs, strict=True))
        seconds = take_turns(forwards, _ROUNDS.value)
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        shares = peak_shares(medians, flops, results['machine'])
        results[part] = {
            'seconds': seconds,
            'ratio': ratio(seconds, OURS, THEIRS),
            'gflop': flops / 1e9,
            'share_of_peak': shares,
            'difference': float(difference),
        }
        print(
            f'| {part} | {medians[THEIRS]:.3f} | {medians[OURS]:.3f} '
            f'| {results[part]["ratio"]:.2f} | {shares[OURS]:.0%} | {difference:.1e} |',
            flush=True,
        )
    save(results, _OUT.value)


if __name__ == '__main__':
    app.run(main)
