"""From an image to its label map on a CPU, with common runtimes. Batch 1, 512 × 512, float32.

    pip install onnx onnxscript onnxruntime openvino
    python benchmarks/cpu_inference.py

Mask2Former (Swin-T, Hugging Face's) and Segmenter (ViT-B/16), random weights, K = 150. PyTorch
eager and compiled, ONNX Runtime and OpenVINO take a normalized image; ours start from the photo:
`predict.Predictor`, as --mode=predict does, and the files of --mode=export. Every cell is a process
of its own, with all cores; finished cells are kept in the results. Prints a table with the share of
pixels whose label equals that of PyTorch eager.
"""

import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from absl import app, flags

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

SIDE, K, ROUNDS = 512, 150, 11
RESULTS = ROOT / 'benchmarks/results/cpu_inference.json'
MEAN, STD = np.float32((123.675, 116.28, 103.53)), np.float32((58.395, 57.12, 57.375))

_CELL = flags.DEFINE_list('cell', None, 'Measures one cell: model,engine,file for its labels.')


def photo() -> np.ndarray:
    """Smooth noise, uint8 [SIDE, SIDE, 3]."""
    from PIL import Image

    coarse = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def mask2former():
    """Hugging Face's model in PyTorch, from an image to its label map."""
    import torch
    import transformers

    torch.manual_seed(0)
    backbone = transformers.SwinConfig(out_features=[f'stage{i}' for i in range(1, 5)])
    model = transformers.Mask2FormerForUniversalSegmentation(
        transformers.Mask2FormerConfig(backbone_config=backbone, num_labels=K)
    ).eval()

    class LabelMap(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x):
            output = self.model(x)
            masks = torch.nn.functional.interpolate(
                output.masks_queries_logits, (SIDE, SIDE), mode='bilinear', align_corners=False
            ).sigmoid()
            classes = output.class_queries_logits.softmax(-1)[..., :-1]
            return torch.einsum('bqk,bqhw->bkhw', classes, masks).argmax(1)

    return LabelMap().eval()


def segmenter():
    """timm's ViT and a mask transformer in PyTorch, from an image to its label map."""
    import torch

    from benchmarks.torch_segmenter import Segmenter

    torch.manual_seed(0)
    model = Segmenter(SIDE, K)

    class LabelMap(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x):
            return self.model(x).argmax(1)

    return LabelMap().eval()


MODELS = {'Mask2Former, Swin-T': mask2former, 'Segmenter, ViT-B/16': segmenter}


def ours(name: str, folder: Path):
    """Our predictor with the weights of the model in PyTorch, and its config and workdir."""
    from configs import common
    from rankseg_jax import checkpoint, convert
    from rankseg_jax.pretrained import released, vit
    from tests.helpers import mend_torchvision, numpy_state

    mend_torchvision()
    theirs = MODELS[name]().model
    config = common.get_config()
    if name.startswith('Mask2Former'):
        theirs.save_pretrained(folder / 'hf')
        convert.run(folder / 'hf', folder / 'run', config, as_is=True)
        config = checkpoint.open_run(folder / 'run').config
    else:
        state = numpy_state(theirs)
        head = {key: value for key, value in state.items() if not key.startswith('vit.')}
        backbone = {
            key.removeprefix('vit.'): value
            for key, value in state.items()
            if key.startswith('vit.')
        }
        variables = {
            'params': {
                'backbone': vit.from_torch(backbone),
                'decoder': released.mask_transformer(head, 12),
            },
            'batch_stats': {},
        }
        config.rankseg, config.data.num_classes = None, K
        config.model.update(framework='segmenter', backbone='vit_b16', channels=768)
        run = {
            'config': config.to_dict(),
            'class_names': [f'c{i}' for i in range(K)],
            'things': [],
            'next_step': 0,
            'score': None,
        }
        with checkpoint.open_checkpoints(folder / 'run', keep=1) as manager:
            checkpoint.save(manager, 0, variables, None, run)
    config.data.update(mean=tuple(map(float, MEAN)), std=tuple(map(float, STD)))
    config.eval.update(
        size=(SIDE, SIDE), base_size=(0, 0), window=(0, 0), stride=(0, 0), batch_size=1
    )
    return config, folder / 'run'


def engine(name: str, kind: str, folder: Path):
    """A function without arguments that returns the label map [SIDE, SIDE] of the photo."""
    image = photo()
    if kind.startswith('RankSeg-JAX'):
        from rankseg_jax import export, predict

        config, workdir = ours(name, folder)
        if kind.endswith('exported'):
            workdir = export.run(config, workdir, folder / 'export')
        predictor = predict.load(workdir, config=config)
        return lambda: predictor(image).labels
    import torch

    from tests.helpers import mend_torchvision

    mend_torchvision()
    model = MODELS[name]()
    tensor = torch.from_numpy((image - MEAN) / STD).permute(2, 0, 1)[None].contiguous()
    if kind.startswith('PyTorch'):
        model = torch.compile(model) if kind.endswith('compile') else model

        def run():
            with torch.inference_mode():
                return model(tensor)[0].numpy()

        return run
    path = folder / 'model.onnx'
    with torch.inference_mode():
        torch.onnx.export(model, (tensor,), path, dynamo=True, input_names=['image'])
    if kind == 'ONNX Runtime':
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
        return lambda: session.run(None, {'image': tensor.numpy()})[0][0]
    import openvino

    options = {'PERFORMANCE_HINT': 'LATENCY', 'INFERENCE_PRECISION_HINT': 'f32'}
    compiled = openvino.Core().compile_model(path, 'CPU', options)
    return lambda: compiled(tensor.numpy())[0][0]


ENGINES = (
    'PyTorch eager',
    'torch.compile',
    'ONNX Runtime',
    'OpenVINO',
    'RankSeg-JAX, predict',
    'RankSeg-JAX, exported',
)


def measure(name: str, kind: str, labels_file: str) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        run = engine(name, kind, Path(folder))
        np.save(labels_file, np.asarray(run()))
        ready = time.perf_counter() - start
        seconds = []
        for _ in range(ROUNDS):
            start = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - start)
    return {'seconds': seconds, 'ready': ready}


def main(_):
    if _CELL.value:
        name, kind, file = (part.replace(';', ',') for part in _CELL.value)
        print(json.dumps(measure(name, kind, file)))
        return
    from benchmarks.helpers import machine

    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {'machine': machine()}
    with tempfile.TemporaryDirectory() as folder:
        for name in MODELS:
            for kind in ENGINES:
                row = results.setdefault(name, {})
                if kind in row:
                    continue
                files = {
                    k: Path(folder) / re.sub(r'[ /,]', '', f'{name}{k}.npy')
                    for k in (kind, ENGINES[0])
                }
                cell = ','.join(x.replace(',', ';') for x in (name, kind, str(files[kind])))
                done = subprocess.run(
                    [sys.executable, __file__, f'--cell={cell}'], capture_output=True, text=True
                )
                if done.returncode:
                    print(name, kind, 'failed:', done.stderr[-800:], flush=True)
                    continue
                row[kind] = json.loads(done.stdout.splitlines()[-1])
                if files[ENGINES[0]].exists():
                    equal = np.load(files[kind]) == np.load(files[ENGINES[0]])
                    row[kind]['agreement'] = float(equal.mean())
                RESULTS.write_text(json.dumps(results, indent=1))
                print(
                    name,
                    kind,
                    statistics.median(row[kind]['seconds']),
                    row[kind].get('agreement'),
                    flush=True,
                )
    print('| seconds | ' + ' | '.join(MODELS) + ' |\n|---|' + '---|' * len(MODELS))
    for kind in ENGINES:
        cells = []
        for name in MODELS:
            row = results[name].get(kind)
            cells.append(
                '–'
                if row is None
                else f'{statistics.median(row["seconds"]):.2f} ({row.get("agreement", 1):.2%})'
            )
        print(f'| {kind} | ' + ' | '.join(cells) + ' |')


if __name__ == '__main__':
    app.run(main)
