"""Speed of the published data sets: reading folders, preparing and reading records, batching.

    python benchmarks/datasets.py --out=benchmarks/results/datasets.json

Creates folders in the official formats, at the data sets' usual image sizes, with smooth random
images whose JPEG files are about as large as those of photos. Rates are images (or frames of
videos) per second. Run it on an otherwise idle machine.
"""

import json
import os
import sys
import tempfile
import time
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
from absl import app, flags
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from configs import segmenter
from rankseg_jax import data, tasks
from rankseg_jax.data import coco, pipeline
from rankseg_jax.data.published.label_maps import read_classes

_OUT = flags.DEFINE_string('out', 'benchmarks/results/datasets.json', 'JSON file of the results.')
_COUNT = flags.DEFINE_integer('count', 400, 'Training images per data set.')
_ONLY = flags.DEFINE_list('only', None, 'Names of data sets; default: all of them.')

SIZES = {
    'ade20k_full': (1536, 2048),
    'vspw': (480, 853),
    'youtube_vis_2019': (720, 1280),
    'pascal_context60': (375, 500),
}
USUAL = (480, 640)  # rows and columns of all others
SEGMENTS = 12  # per image


def random_image(rng, size) -> Image.Image:
    """A smooth random image with some grain."""
    rows, columns = size
    smooth = Image.fromarray(rng.integers(0, 256, (rows // 16, columns // 16, 3), np.uint8)).resize(
        (columns, rows)
    )
    grain = rng.integers(-9, 10, (rows, columns, 1))
    return Image.fromarray(np.clip(np.asarray(smooth) + grain, 0, 255).astype(np.uint8))


def regions(rng, size) -> np.ndarray:
    """Voronoi cells of random points, at a quarter of the resolution: int [H, W] < SEGMENTS."""
    rows, columns = size
    points = rng.uniform(0, (rows / 4, columns / 4), (SEGMENTS, 2))  # [n, 2]
    grid = np.stack(np.mgrid[: -(-rows // 4), : -(-columns // 4)], -1)[..., None, :]  # [h, w, 1, 2]
    nearest = ((grid - points) ** 2).sum(-1).argmin(-1)  # [h, w]
    return nearest.repeat(4, 0).repeat(4, 1)[:rows, :columns]


def save(image, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **({'quality': 90} if path.suffix == '.jpg' else {}))


def polygon(mask):
    """The outline [x, y, x, y, …] of a mask, as an annotator would click it."""
    rows = np.flatnonzero(mask.any(1))[:: max(1, np.count_nonzero(mask.any(1)) // 20)]
    left, right = mask[rows].argmax(1), mask.shape[1] - 1 - mask[rows, ::-1].argmax(1)
    return [
        float(x)
        for point in [*zip(left, rows, strict=True), *zip(right[::-1], rows[::-1], strict=True)]
        for x in point
    ]


def run_lengths(mask) -> dict:
    flat = np.concatenate([[False], mask.ravel('F'), [False]])
    bounds = np.flatnonzero(flat[1:] != flat[:-1])
    counts = np.diff(np.concatenate([[0], bounds, [mask.size]])).tolist()
    return {'counts': counts[:-1] if counts[-1] == 0 else counts, 'size': list(mask.shape)}


def write_folder(name: str, root: Path, count: int):
    """Writes a folder in the official format: `count` training images, one validation image."""
    size = SIZES.get(name, USUAL)
    classes = read_classes(data.builder_class(name).CLASSES)
    documents = {}

    def write(index):
        rng = np.random.default_rng(index)
        training = index < count
        image, areas = random_image(rng, size), regions(rng, size)
        labels = rng.choice(len(classes['ids']), SEGMENTS, replace=False)  # [segments] classes
        values = np.array(classes['ids'])[labels]  # [segments] their numbers in the files
        if name in ('ade20k', 'ade20k_panoptic'):
            split, prefix = ('training', 'train') if training else ('validation', 'val')
            path = f'{split}/ADE_{prefix}_{index:08}'
            save(image, root / f'images/{path}.jpg')
            save(
                Image.fromarray((labels + 1)[areas].astype(np.uint8)),
                root / f'annotations/{path}.png',
            )
            red = rng.integers(1, 101, SEGMENTS)
            colors = np.stack([red[areas], areas + 1, 0 * areas], -1).astype(np.uint8)
            save(Image.fromarray(colors), root / f'annotations_instance/{path}.png')
        elif name == 'ade20k_full':
            path = (
                f'images/ADE/{"training" if training else "validation"}/urban/street/ADE_{index:08}'
            )
            save(image, root / f'{path}.jpg')
            colors = np.stack([values[areas] // 256 * 10, values[areas] % 256, areas], -1)
            save(Image.fromarray(colors.astype(np.uint8)), root / f'{path}_seg.png')
        elif name == 'pascal_context60':
            save(image, root / f'JPEGImages/{index:06}.jpg')
            save(
                Image.fromarray(labels[areas].astype(np.uint8)),
                root / f'SegmentationClassContext/{index:06}.png',
            )
            documents[training, index] = f'{index:06}'
        elif name == 'vspw':
            path = f'data/{index // 70 if training else "last"}'
            save(image, root / f'{path}/origin/{index:08}.jpg')
            save(
                Image.fromarray(values[areas].astype(np.uint8)),
                root / f'{path}/mask/{index:08}.png',
            )
            documents[training, index] = path.removeprefix('data/')
        elif name == 'coco_stuff10k':
            place = 'train' if training else 'test'
            save(image, root / f'images/{place}2014/COCO_{index:012}.jpg')
            converted = Image.fromarray((labels + 1)[areas].astype(np.uint8))
            save(converted, root / f'annotations/{place}2014/COCO_{index:012}_labelTrainIds.png')
        elif name == 'youtube_vis_2019':
            place, video = ('train', index // 30) if training else ('valid', 'last')
            save(image, root / f'{place}/JPEGImages/{video}/{index:05}.jpg')
            documents[training, index] = video, [run_lengths(areas == i) for i in range(3)]
        else:
            place = 'train2017' if training else 'val2017'
            save(image, root / f'{place}/{index:012}.jpg')
            if name == 'coco_panoptic':
                ids = areas * 1000 + 7
                save(
                    Image.fromarray(coco.ids_to_rgb(ids)),
                    root / f'panoptic_{place}/{index:012}.png',
                )
                segments = [
                    info | {'id': (info['id'] - 1) * 1000 + 7}
                    for info in coco.segments_info(areas + 1, values, range(values.max() + 1))
                ]
                documents[training, index] = segments
            else:
                raw = rng.integers(91, 182, SEGMENTS) if name == 'coco_lvis' else values - 1
                save(
                    Image.fromarray(raw[areas].astype(np.uint8)),
                    root / f'stuffthingmaps/{place}/{index:012}.png',
                )
                found = [i for i in range(SEGMENTS) if np.count_nonzero((areas == i).any(1)) > 20]
                documents[training, index] = [
                    (polygon(areas == i), int(rng.integers(1, 1204))) for i in found
                ]

    with ThreadPool() as pool:
        pool.map(write, range(count + 1))
    finish_folder(name, root, documents, classes, size)


def finish_folder(name, root, documents, classes, size):
    """Writes split lists and JSON files; `documents` holds the entries of each image."""
    rows, columns = size
    for training in (True, False):
        mine = {
            index: documents[key]
            for key in sorted(documents)
            if key[0] == training
            for index in [key[1]]
        }
        place = 'train' if training else 'val'
        categories = [
            {'id': i, 'name': text, 'isthing': thing}
            for i, text, thing in zip(
                classes['ids'],
                classes['names'],
                classes.get('isthing', [1] * len(classes['ids'])),
                strict=True,
            )
        ]
        if name == 'pascal_context60':
            path = root / f'ImageSets/SegmentationContext/{place}.txt'
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text('\n'.join(mine.values()))
        elif name == 'vspw':
            (root / f'{place}.txt').write_text('\n'.join(dict.fromkeys(mine.values())))
        elif name == 'coco_panoptic':
            path = root / f'annotations/panoptic_{place}2017.json'
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(
                json.dumps(
                    {
                        'images': [
                            {'id': i, 'file_name': f'{i:012}.jpg', 'height': rows, 'width': columns}
                            for i in mine
                        ],
                        'annotations': [
                            {'image_id': i, 'file_name': f'{i:012}.png', 'segments_info': x}
                            for i, x in mine.items()
                        ],
                        'categories': categories,
                    }
                )
            )
        elif name == 'coco_lvis':
            annotations = [
                {'image_id': i, 'category_id': label, 'segmentation': [points]}
                for i, x in mine.items()
                for points, label in x
            ]
            (root / f'lvis_v1_{place}.json').write_text(
                json.dumps(
                    {
                        'images': [{'id': i, 'coco_url': f'{place}2017/{i:012}.jpg'} for i in mine],
                        'annotations': annotations,
                        'categories': categories[:1203],
                    }
                )
            )
        elif name == 'youtube_vis_2019':
            frames = {}
            for index, (video, masks) in mine.items():
                frames.setdefault(video, []).append((f'{video}/{index:05}.jpg', masks))
            videos = [
                {'id': i, 'height': rows, 'width': columns, 'file_names': [file for file, _ in x]}
                for i, x in enumerate(frames.values(), 1)
            ]
            tracks = [
                {
                    'id': 3 * i + k,
                    'video_id': i,
                    'category_id': k + 1,
                    'iscrowd': 0,
                    'segmentations': [m[k] for _, m in x],
                }
                for i, x in enumerate(frames.values(), 1)
                for k in range(3)
            ]
            (root / f'{"train" if training else "valid"}.json').write_text(
                json.dumps(
                    {
                        'videos': videos,
                        'categories': categories,
                        'annotations': tracks if training else None,
                    }
                )
            )


def read_rate(source) -> float:
    """Examples per second, with as many threads as cores."""
    with ThreadPool(os.cpu_count()) as pool:
        pool.map(source.load, range(8))
        start = time.perf_counter()
        pool.map(source.load, range(len(source)), chunksize=1)
        return len(source) / (time.perf_counter() - start)


def batch_rate(config) -> float:
    """Images per second in training batches."""
    source = data.get_source(config.data, 'train')
    task = tasks.from_source(config, source)
    batches = pipeline.train_batches(source, config, task, start_step=0)
    next(batches)  # traces the pipeline
    start = time.perf_counter()
    images = 0
    while time.perf_counter() - start < 8:
        images += len(next(batches)['mask'])
    rate = images / (time.perf_counter() - start)
    batches.close()
    return rate


def measure(name: str, folder: Path, count: int) -> dict:
    root = folder / name
    write_folder(name, root, count)
    config = segmenter.get_config('ade20k_b16_rankseg')  # augmentation to 512 × 512
    config.data.name, config.data.dir = name, str(root)
    start = time.perf_counter()
    source = data.get_source(config.data, 'train')
    opened = time.perf_counter() - start
    row = {
        'images': len(source),
        'open': opened,
        'folder': read_rate(source),
        'batches_folder': batch_rate(config),
    }
    start = time.perf_counter()
    records = data.prepare(config.data, folder / 'records')
    row['prepare'] = (count + 1) / (time.perf_counter() - start)
    row['bytes'] = sum(path.stat().st_size for path in Path(records).iterdir()) / (count + 1)
    config.data.dir = str(folder / 'records')
    return row | {
        'records': read_rate(data.get_source(config.data, 'train')),
        'batches_records': batch_rate(config),
    }


def main(_):
    names = _ONLY.value or [
        'ade20k',
        'ade20k_full',
        'ade20k_panoptic',
        'coco_stuff10k',
        'coco_stuff164k',
        'coco_panoptic',
        'coco_lvis',
        'pascal_context60',
        'youtube_vis_2019',
        'vspw',
    ]
    rows = {}
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            rows[name] = row = measure(name, Path(folder), _COUNT.value)
        print(
            f'| {name} | {row["folder"]:.0f} | {row["prepare"]:.0f} | {row["records"]:.0f} | '
            f'{row["batches_folder"]:.0f} | {row["batches_records"]:.0f} | '
            f'{row["bytes"] / 1e3:.0f} kB |',
            flush=True,
        )
    Path(_OUT.value).write_text(json.dumps(rows, indent=1))


if __name__ == '__main__':
    app.run(main)
