"""How closely a converted checkpoint matches Hugging Face's own pipeline, on photos.

    python benchmarks/hf_agreement.py --photos=<folder>

A small Mask2Former and a small MaskFormer of Hugging Face are trained on six photos of different
shapes, since random weights hide errors. Their targets are regions of similar color. With each way
to preprocess images they are saved and converted, and both sides segment the photos: Hugging Face
by its processor (through Pillow and through torchvision), its model and its post-processing, ours
by `predict.load`. The figures are the shares of pixels with the same result, of the photo that
agrees least.

semantic   `post_process_semantic_segmentation` and our label map
panoptic   `post_process_panoptic_segmentation` with its defaults, and our segments: the same
           number and category
instance   `post_process_instance_segmentation` with its defaults, and our objects: of each pixel's
           best one, its place by score and its category

Rows that the file of results holds are kept; delete it to start again.

A panoptic result of Hugging Face in which two segments have one number, as may happen after stuff
was fused, is left out.
"""

import json
import os
import sys
import tempfile
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests import FAST_COMPILATION
from tests.helpers import mend_torchvision

mend_torchvision()
os.environ.setdefault('XLA_FLAGS', FAST_COMPILATION)  # there are hundreds of programs

import numpy as np
import torch
import transformers
from absl import app, flags
from PIL import Image, ImageFilter
from scipy import ndimage
from scipy.cluster import vq

from benchmarks.helpers import save
from configs import common
from rankseg_jax import convert, predict
from rankseg_jax.backbones import swin

_PHOTOS = flags.DEFINE_string('photos', None, 'Folder of photos, of which six are taken.')
_STEPS = flags.DEFINE_integer('steps', 1500, 'Steps to train each model for.')
_OUT = flags.DEFINE_string(
    'out', 'benchmarks/results/hf_agreement.json', 'JSON file of the results.'
)
flags.mark_flag_as_required('photos')

TASKS = ('semantic', 'panoptic', 'instance')
NUM_CLASSES, REGIONS, WIDTH = 10, 6, 64
THINGS = [0, 2, 4, 6, 8]
EDGES = {'shortest_edge': 256, 'longest_edge': 426}
# Options of the processor; None: no file, so that defaults hold.
PROCESSORS = {
    'stretched to 384 × 384': {'size': {'height': 384, 'width': 384}},
    'stretched to 256 × 384': {'size': {'height': 256, 'width': 384}},
    'edges 256 to 426': {'size': EDGES},
    'edges, no multiple': {'size': EDGES, 'size_divisor': 0},
    'edges as two keys': {'size': 256, 'max_size': 426},
    'edges, nearest': {'size': EDGES, 'resample': 0},
    'edges, Lanczos': {'size': EDGES, 'resample': 1},
    'edges, bicubic': {'size': EDGES, 'resample': 3},
    'edges, not rescaled': {
        'size': EDGES,
        'do_rescale': False,
        'image_mean': [123.675, 116.28, 103.53],
        'image_std': [58.395, 57.12, 57.375],
    },
    'not resized': {'do_resize': False},
    'no file': None,
}
swin.VARIANTS['swin_small'] = partial(
    swin.Swin, width=24, depths=(1, 1, 2, 1), num_heads=(1, 2, 4, 8), window=8
)


def backbone() -> transformers.SwinConfig:
    return transformers.SwinConfig(
        embed_dim=24,
        depths=[1, 1, 2, 1],
        num_heads=[1, 2, 4, 8],
        window_size=8,
        out_features=[f'stage{i}' for i in range(1, 5)],
        drop_path_rate=0.0,
    )


def mask2former():
    config = transformers.Mask2FormerConfig(
        backbone_config=backbone(),
        feature_size=WIDTH,
        mask_feature_size=WIDTH,
        hidden_dim=WIDTH,
        encoder_feedforward_dim=4 * WIDTH,
        dim_feedforward=8 * WIDTH,
        num_attention_heads=4,
        encoder_layers=2,
        decoder_layers=4,
        num_queries=20,
        num_labels=NUM_CLASSES,
        train_num_points=1024,
    )
    return transformers.Mask2FormerForUniversalSegmentation(config)


def maskformer():
    decoder = transformers.DetrConfig(
        d_model=WIDTH,
        decoder_layers=3,
        decoder_attention_heads=4,
        decoder_ffn_dim=8 * WIDTH,
        num_queries=20,
        encoder_layers=0,
        dropout=0.0,
    )
    config = transformers.MaskFormerConfig(
        fpn_feature_size=WIDTH,
        mask_feature_size=WIDTH,
        backbone_config=backbone(),
        decoder_config=decoder,
        num_labels=NUM_CLASSES,
    )
    return transformers.MaskFormerForInstanceSegmentation(config)


def choose_photos(folder) -> list[Path]:
    """Six photos of different shapes, from the tallest of the folder to the widest."""
    ratios = {}
    for path in sorted(Path(folder).glob('*.jpg')):
        with Image.open(path) as image:
            ratios[path] = np.log(image.width / image.height)
    chosen = []
    for ratio in np.linspace(min(ratios.values()), max(ratios.values()), 6):
        chosen.append(min(ratios, key=lambda path: abs(ratios[path] - ratio)))
        del ratios[chosen[-1]]
    return chosen


def regions(image: Image.Image) -> np.ndarray:
    """A map of REGIONS regions of similar color and place, at a quarter of the size."""
    small = image.filter(ImageFilter.GaussianBlur(4)).resize((image.width // 4, image.height // 4))
    colors = np.asarray(small, float) / 40
    rows, columns = np.indices(colors.shape[:2])
    places = np.stack([3 * rows / len(colors), 3 * columns / colors.shape[1]], -1)
    pixels = np.concatenate([colors, places], -1).reshape(-1, 5)
    _, labels = vq.kmeans2(pixels, REGIONS, minit='++', rng=np.random.default_rng(0))
    return ndimage.median_filter(labels.reshape(colors.shape[:2]), 9)


def targets(labels: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Masks and classes of a map of classes, in which connected parts of things are apart."""
    masks, classes = [], []
    for label in np.unique(labels):
        parts, count = labels == label, 1
        if label in THINGS:
            parts, count = ndimage.label(parts)
        for number in range(1, count + 1):
            if (parts == number).sum() > 60:
                masks.append(parts == number)
                classes.append(label)
    return torch.tensor(np.stack(masks[:18])).float(), torch.tensor(classes[:18]).long()


def train(model, images: list[Image.Image], steps: int):
    """Trains a model on the images, one a step, at several sizes."""
    rng = np.random.default_rng(0)
    maps = [(regions(image) + 3 * i) % NUM_CLASSES for i, image in enumerate(images)]
    processor = transformers.Mask2FormerImageProcessorPil(do_resize=False)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, steps)
    model.train()
    for step in range(steps):
        i = rng.integers(len(images))
        size = [(160, 160), (160, 224), (224, 160), (128, 192), (192, 128)][step % 5]
        labels = Image.fromarray(maps[i].astype(np.uint8)).resize(size, Image.Resampling.NEAREST)
        masks, classes = targets(np.asarray(labels))
        output = model(
            pixel_values=processor(images[i].resize(size), return_tensors='pt')['pixel_values'],
            mask_labels=[masks],
            class_labels=[classes],
        )
        optimizer.zero_grad()
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model.eval()


def theirs(model, processor, image: Image.Image) -> dict[str, np.ndarray | None]:
    """What Hugging Face says of an image: maps by task."""
    size = [(image.height, image.width)]
    with torch.inference_mode():
        output = model(**processor(image, return_tensors='pt'))
    stuff = set(range(NUM_CLASSES)) - set(THINGS)

    def segments():
        (found,) = processor.post_process_panoptic_segmentation(
            output, target_sizes=size, label_ids_to_fuse=stuff
        )
        infos = found['segments_info']
        category = {info['id']: info['label_id'] for info in infos}
        distinct = {
            (info['id'], info['label_id'], 'stuff' if info['was_fused'] else n)
            for n, info in enumerate(infos)
        }
        if len(distinct) > len(category):
            return None
        return numbered(found['segmentation'].numpy(), list(category.values()))

    def objects():
        (found,) = processor.post_process_instance_segmentation(
            output, target_sizes=size, return_binary_maps=True
        )
        infos = sorted(found['segments_info'], key=lambda info: -info['score'])
        ids = np.zeros(size[0], int)
        for number, info in reversed(list(enumerate(infos, 1))):
            ids[found['segmentation'][info['id']].numpy() == 1] = number
        return numbered(ids, [info['label_id'] for info in infos])

    return {
        'semantic': processor.post_process_semantic_segmentation(output, size)[0].numpy(),
        'panoptic': segments(),
        'instance': objects(),
    }


def numbered(ids: np.ndarray, categories: list[int]) -> np.ndarray:
    """Number and category of each pixel's segment or object in one integer; 0 is void."""
    table = np.array([0, *(NUM_CLASSES * i + c for i, c in enumerate(categories, 1))])
    return table[np.maximum(ids, 0).astype(int)]


def ours(folder: Path, images: list[Image.Image]) -> list[dict[str, np.ndarray]]:
    """What the converted checkpoint says of the images."""
    all_maps = [{} for _ in images]
    with tempfile.TemporaryDirectory() as workdir:
        for task, things in (('panoptic', list(map(str, THINGS))), ('instance', None)):
            options = {'as_is': True, 'task': task, 'things': things}
            convert.run(folder, f'{workdir}/{task}', common.get_config(), **options)
            predictor = predict.load(f'{workdir}/{task}')
            for image, maps in zip(images, all_maps, strict=True):
                result = predictor(np.asarray(image))
                found = result.segments if task == 'panoptic' else result.objects
                maps[task] = numbered(result.segment_ids, [label for label, _ in found])
                if task == 'panoptic':
                    maps['semantic'] = result.labels
    return all_maps


def agreement(model, name: str, options: dict | None, images: list[Image.Image]) -> dict:
    """By backend of the processor, by task: the share of pixels of the least similar photo."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        processors = {
            'Pillow': getattr(transformers, f'{name}ImageProcessorPil')(**options or {}),
            'torchvision': getattr(transformers, f'{name}ImageProcessor')(**options or {}),
        }
        if options is not None:
            processors['torchvision'].save_pretrained(folder)
        found = ours(Path(folder), images)
    row = {}
    for backend, processor in processors.items():
        expected = [theirs(model, processor, image) for image in images]
        row[backend] = {
            task: min(
                float((a[task] == b[task]).mean())
                for a, b in zip(found, expected, strict=True)
                if b[task] is not None
            )
            for task in TASKS
        }
        row[backend]['segments'] = [
            None if maps['panoptic'] is None else len(np.unique(maps['panoptic']))
            for maps in expected
        ]
    return row


def main(_):
    torch.set_num_threads(1)
    images = [Image.open(path).convert('RGB') for path in choose_photos(_PHOTOS.value)]
    out = Path(_OUT.value)
    results = json.loads(out.read_text()) if out.exists() else {}
    backends = ('Pillow', 'torchvision')
    print(f'photos: {", ".join(f"{image.width} × {image.height}" for image in images)}')
    print(f'| model | processor | {" | ".join(f"{t}, {b}" for b in backends for t in TASKS)} |')
    print('|---' * 8 + '|')
    for build, name in ((mask2former, 'Mask2Former'), (maskformer, 'MaskFormer')):
        rows = results.setdefault(name, {})
        if rows.keys() != PROCESSORS.keys():
            torch.manual_seed(0)
            model = train(build(), images, _STEPS.value)
        for title, options in PROCESSORS.items():
            if title not in rows:
                rows[title] = agreement(model, name, options, images)
                save(results, _OUT.value)
            cells = ' | '.join(f'{rows[title][b][t]:.4f}' for b in backends for t in TASKS)
            print(f'| {name} | {title} | {cells} |', flush=True)


if __name__ == '__main__':
    app.run(main)
