"""Models on one image, compared with Hugging Face's in PyTorch. CPU, float32, same weights.

    python benchmarks/hf_forward.py                    # skips finished models
    python benchmarks/hf_forward.py --models=EoMT-B    # measures these again

Weights are random; images are 512 x 512, K = 150. Ours is jitted, Hugging Face's runs in inference
mode, eagerly and by torch.compile; they take turns and use all cores, their default. EoMT runs as
when it is finished, without masks. UPerNets do without their auxiliary head. Mask2Former is also
measured up to its backbone and its pixel decoder. Beside our time: the share of the peak, that of a
large float32 matrix product measured in the same run, that the matrix products of the part reach
(flops.py).
"""

import json
import statistics
import sys
from pathlib import Path

import jax
import torch
from absl import app, flags

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import hugging_face
from benchmarks.flops import product_flops
from benchmarks.helpers import machine, peak_shares, random_images, ratio, save, take_turns
from benchmarks.hugging_face import OURS, SIDE, THEIRS
from rankseg_jax.layers import resize
from tests.helpers import relative_error

_MODELS = flags.DEFINE_list('models', None, 'Models to measure; default: those not finished.')
_OUT = flags.DEFINE_string('out', 'benchmarks/results/hf_forward.json', 'JSON file of the results.')
_ROUNDS = flags.DEFINE_integer('rounds', 7, 'Timed runs per model.')

COMPILED = 'Hugging Face, torch.compile'


def make_forwards(name: str):
    """{part: ({name: function without arguments → arrays}, FLOPs)}; the last is the whole."""
    theirs, model, variables = hugging_face.build(name)
    images = random_images(1, SIDE)
    tensor = torch.tensor(images).permute(0, 3, 1, 2).contiguous()

    def whole(model, images):
        output = model(images, train=False)
        if name == 'UPerNet Swin-T':  # whose original resizes too
            return resize(output.logits, (SIDE, SIDE))
        return output.logits if 'UPerNet' in name else (output.class_logits, output.mask_logits)

    compiled = torch.compile(theirs)
    parts = {
        'end': {
            OURS: whole,
            THEIRS: lambda x: hugging_face.outputs(theirs(x)),
            COMPILED: lambda x: hugging_face.outputs(compiled(x)),
        }
    }
    if name.startswith('Mask2Former'):
        pixel_level = theirs.model.pixel_level_module
        parts = {
            'backbone': {
                OURS: lambda model, images: model.backbone(images, train=False)[32],
                THEIRS: lambda x: pixel_level.encoder(x).feature_maps[-1].permute(0, 2, 3, 1),
            },
            'pixel decoder': {
                OURS: lambda model, images: model.pixel_decoder(
                    model.backbone(images, train=False), train=False
                )[1],
                THEIRS: lambda x: pixel_level(x).decoder_last_hidden_state.permute(0, 2, 3, 1),
            },
        } | parts

    def prepare(functions):
        ours = functions.pop(OURS)
        forward = jax.jit(lambda variables, images: model.apply(variables, images, method=ours))

        def in_inference_mode(function):
            def run():
                with torch.inference_mode():
                    return function(tensor)

            return run

        forwards = {OURS: lambda: jax.block_until_ready(forward(variables, images))}
        forwards |= {name: in_inference_mode(f) for name, f in functions.items()}
        return forwards, product_flops(forward, variables, images)

    return {part: prepare(functions) for part, functions in parts.items()}


def measure(name: str) -> dict:
    """The rows of a model by part, with the machine as it was found in the same run."""
    computer, rows = machine(), {}
    for part, (forwards, flops) in make_forwards(name).items():
        results = (jax.tree.leaves(forwards[x]()) for x in (OURS, THEIRS))
        difference = max(relative_error(*pair) for pair in zip(*results, strict=True))
        seconds = take_turns(forwards, _ROUNDS.value)
        medians = {x: statistics.median(values) for x, values in seconds.items()}
        rows[part] = {
            'seconds': seconds,
            'median': medians,
            'ratios': {x: ratio(seconds, OURS, x) for x in seconds if x != OURS},
            'gflop': flops / 1e9,
            'share_of_peak': peak_shares(medians, flops, computer),
            'difference': float(difference),
        }
    return {'machine': computer, 'parts': rows}


def table(results: dict) -> str:
    lines = [
        '| model, up to its | eager, s | torch.compile, s | RankSeg-JAX, s | ratios '
        '| share of peak | difference |',
        '|---' * 7 + '|',
    ]
    for name, found in results.items():
        for part, row in found['parts'].items():
            theirs = [row['median'].get(x) for x in (THEIRS, COMPILED)]
            cells = ['–' if x is None else f'{x:.3f}' for x in (*theirs, row['median'][OURS])]
            ratios = ', '.join(f'{x:.2f} ×' for x in row['ratios'].values())
            lines.append(
                f'| {name}, {part} | {" | ".join(cells)} | {ratios} '
                f'| {row["share_of_peak"][OURS]:.0%} | {row["difference"]:.1e} |'
            )
    return '\n'.join(lines)


def main(_):
    out = Path(_OUT.value)
    results = json.loads(out.read_text()) if out.exists() else {}
    for name in _MODELS.value or [x for x in hugging_face.MODELS if x not in results]:
        results[name] = measure(name)
        save(results, _OUT.value)
    print(table(results))


if __name__ == '__main__':
    app.run(main)
