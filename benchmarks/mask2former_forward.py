"""How long does Mask2Former take on one image, beside Hugging Face's in PyTorch? CPU, float32, the same random weights.

    python benchmarks/mask2former_forward.py --out=benchmarks/results/mask2former_forward.json

The two take turns, up to the backbone, up to the pixel decoder, and whole. Ours is jitted, theirs runs eagerly in inference mode;
both use all cores, as they do by default.
"""

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
import torch
from absl import app, flags

sys.path.insert(0, str(Path(__file__).parents[1]))

from rankseg_jax.pretrained import load_hf
from tests.helpers import mend_torchvision

mend_torchvision()
import transformers

_OUT = flags.DEFINE_string('out', 'benchmarks/results/mask2former_forward.json', 'The figures.')
_ROUNDS = flags.DEFINE_integer('rounds', 7, 'Turns of each.')
_SIZE = flags.DEFINE_integer('size', 512, 'Height and width of the image.')


def make_forwards():
    """Part -> name -> a function that takes no arguments and returns an array; the last part is the whole."""
    torch.manual_seed(0)
    backbone = transformers.SwinConfig(out_features=[f'stage{i}' for i in range(1, 5)])  # Swin-T
    theirs = transformers.Mask2FormerForUniversalSegmentation(
        transformers.Mask2FormerConfig(backbone_config=backbone, num_labels=150)).eval()
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        model, variables = load_hf(folder)
    variables = jax.device_put(variables)
    images = np.random.default_rng(0).normal(size=(1, _SIZE.value, _SIZE.value, 3)).astype(np.float32)
    tensor = torch.tensor(images).permute(0, 3, 1, 2).contiguous()

    def to_backbone(model, images):
        return model.backbone(images, train=False)[32]

    def to_pixel_decoder(model, images):
        return model.pixel_decoder(model.backbone(images, train=False), train=False)[1]

    def whole(model, images):
        return model(images, train=False).mask_logits

    pixel_level = theirs.model.pixel_level_module
    parts = {
        'backbone': (to_backbone, lambda x: pixel_level.encoder(x).feature_maps[-1].permute(0, 2, 3, 1)),
        'pixel decoder': (to_pixel_decoder, lambda x: pixel_level(x).decoder_last_hidden_state.permute(0, 2, 3, 1)),
        'whole': (whole, lambda x: theirs(x).masks_queries_logits),
    }

    def pair(ours, theirs):
        forward = jax.jit(lambda variables, images: model.apply(variables, images, method=ours))

        def run():
            with torch.inference_mode():
                return theirs(tensor).numpy()

        return {'Hugging Face, PyTorch eager': run, 'RankSeg-JAX, jitted': lambda: np.asarray(forward(variables, images))}

    return {part: pair(*functions) for part, functions in parts.items()}


def main(_):
    results = {}
    print(f'| Mask2Former, Swin-T, {_SIZE.value} x {_SIZE.value}, up to | Hugging Face s | RankSeg-JAX s | ratio | difference |')
    print('|---|---|---|---|---|')
    for part, forwards in make_forwards().items():
        theirs, ours = (forward() for forward in forwards.values())  # compiles
        seconds = {name: [] for name in forwards}
        for _ in range(_ROUNDS.value):
            for name, forward in forwards.items():
                start = time.perf_counter()
                forward()
                seconds[name].append(time.perf_counter() - start)
        medians = [statistics.median(values) for values in seconds.values()]
        ratio, difference = medians[1] / medians[0], float(np.abs(ours - theirs).max() / np.abs(theirs).max())
        results[part] = {'seconds': seconds, 'ratio': ratio, 'difference': difference}
        print(f'| {part} | {medians[0]:.3f} | {medians[1]:.3f} | {ratio:.2f} | {difference:.1e} |', flush=True)
    out = Path(_OUT.value)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(results, indent=2))


if __name__ == '__main__':
    app.run(main)
