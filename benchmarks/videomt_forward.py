"""VidEoMT on a clip, compared with EoMT on its frames and with Hugging Face's in PyTorch.

    python benchmarks/videomt_forward.py --out=benchmarks/results/videomt_forward.json

CPU, float32, random weights, the same for all where they have the same parts. EoMT sees all frames
as a batch, without masks in attention, as a finished one does. The three take turns. Ours are
jitted; Hugging Face's runs eagerly in inference mode. All use all cores, their default.
"""

import statistics
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np
import torch
from absl import app, flags

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.helpers import machine, random_images, ratio, run, save, take_turns
from rankseg_jax import models
from rankseg_jax.frameworks.eomt import EoMT
from rankseg_jax.pretrained import load_hf
from rankseg_jax.selector import Choice
from tests.helpers import mend_torchvision, relative_error

_OUT = flags.DEFINE_string(
    'out', 'benchmarks/results/videomt_forward.json', 'JSON file of the results.'
)
_ROUNDS = flags.DEFINE_integer('rounds', 7, 'Timed runs per model.')
_SIZE = flags.DEFINE_integer('size', 320, 'Height and width of a frame, a multiple of 16.')
_FRAMES = flags.DEFINE_integer('frames', 4, 'Frames of the clip.')
_WIDTH = flags.DEFINE_integer('width', 384, 'Channels: 384, 768 or 1024, a ViT-S, B or L.')

THEIRS, EOMT, OURS = 'VidEoMT, Hugging Face', 'EoMT, RankSeg-JAX', 'VidEoMT, RankSeg-JAX'


def hugging_face():
    """VidEoMT on a DINOv2: Hugging Face's model, ours, and our variables."""
    mend_torchvision()
    import transformers

    torch.manual_seed(0)
    layers = 24 if _WIDTH.value == 1024 else 12
    config = transformers.VideomtConfig(
        hidden_size=_WIDTH.value,
        num_hidden_layers=layers,
        num_attention_heads=_WIDTH.value // 64,
        num_blocks=4 if layers == 24 else 3,
        image_size=_SIZE.value,
        num_labels=40,
    )
    theirs = transformers.VideomtForUniversalSegmentation(config).eval()
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        model, variables = load_hf(folder)
    return theirs, model, jax.device_put({'batch_stats': {}} | variables)


def make_forwards():
    """{name: function without arguments → class and mask logits of frames}."""
    theirs, model, variables = hugging_face()
    frames = random_images(_FRAMES.value, _SIZE.value)
    tensor = torch.tensor(frames).permute(0, 3, 1, 2)[None].contiguous()
    image_model = EoMT(
        backbone=model.backbone,
        num_classes=model.num_classes,
        num_queries=model.num_queries,
        num_joint=model.num_joint,
    )
    params = {name: x for name, x in variables['params'].items() if name != 'update'}
    statistics_ = {'mask_probability': np.zeros(model.num_joint, np.float32)}

    @jax.jit
    def video(variables, frames):
        choice = Choice(average_over='frame')
        output = models.forward(model, variables, frames[None], choice)
        return output.class_logits[0], output.mask_logits[0].swapaxes(0, 1)

    @jax.jit
    def image(variables, frames):
        output = models.forward(image_model, variables, frames, Choice())
        return output.class_logits, output.mask_logits

    def their_video():
        with torch.inference_mode():
            output = theirs(tensor)
        return output.class_queries_logits, output.masks_queries_logits

    return {
        THEIRS: their_video,
        EOMT: run(image, {'params': params, 'batch_stats': statistics_}, frames),
        OURS: run(video, variables, frames),
    }


def main(_):
    forwards = make_forwards()
    results = {'machine': machine()}
    pairs = zip(forwards[OURS](), forwards[THEIRS](), strict=True)
    results['difference'] = float(max(relative_error(*pair) for pair in pairs))
    seconds = results['seconds'] = take_turns(forwards, _ROUNDS.value)
    for name in (EOMT, THEIRS):
        # Frames a second relative to the other's.
        results[f'speed relative to {name}'] = ratio(seconds, name, OURS)
    print(
        f'{results["machine"]}\n\n{_FRAMES.value} frames of {_SIZE.value} x {_SIZE.value}, '
        f'{_WIDTH.value} channels; ours and theirs differ by {results["difference"]:.1e}\n\n'
        '| model | frames/s | speed of ours relative to it |\n|---|---|---|'
    )
    for name, values in seconds.items():
        relative = results.get(f'speed relative to {name}', 1.0)
        print(f'| {name} | {_FRAMES.value / statistics.median(values):.2f} | {relative:.2f} |')
    save(results, _OUT.value)


if __name__ == '__main__':
    app.run(main)
