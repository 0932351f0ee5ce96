"""COCO instances: the images of COCO 2017 with masks of 80 classes (Lin et al., ECCV 2014).

    coco/
      train2017/000000000009.jpg                val2017/…
      annotations/instances_train2017.json      annotations/instances_val2017.json

Masks are polygons, those of crowds run lengths; all become run lengths. In `labels`, a pixel has
the class of the smallest object that covers it; all other pixels are ignored.

A record holds the run lengths of the objects. (TFDS's own `coco/2017` has boxes alone.)
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from rankseg_jax.data import InstanceSource, coco, rle
from rankseg_jax.data.published import LISTED, codecs, files
from rankseg_jax.data.published.builder import Builder
from rankseg_jax.data.published.coco_lvis import compact
from rankseg_jax.data.published.coco_stuff164k import FOLDERS
from rankseg_jax.data.published.label_maps import read_classes
from rankseg_jax.data.published.source import PublishedSource
from rankseg_jax.data.tracks import paint


class CocoInstanceSource(PublishedSource, InstanceSource):
    """Images and their objects."""

    def instances(self, index: int) -> list[dict[str, Any]]:
        """See `InstanceSource.instances`; 'id' and 'area' are those of the JSON file."""
        example = self.example(index)
        size = [int(side) for side in example['original_size']]
        return [
            {
                'id': instance['id'],
                'category_id': instance['category_id'],
                'iscrowd': instance['iscrowd'],
                'area': float(instance['area']),
                'segmentation': {'size': size, 'counts': instance['counts'].decode()},
            }
            for instance in codecs.decode_rows(example['instances'])
        ]


class CocoInstance(Builder):
    """COCO, instances; a record holds the run lengths of all objects."""

    CLASSES = 'coco_instance'
    FOLDER = 'coco'
    MARKERS = tuple(f'annotations/instances_{name}.json' for name in FOLDERS.values())
    LAYOUT = (
        '  coco/{train2017,val2017}/*.jpg\n  coco/annotations/instances_{train2017,val2017}.json'
    )
    PUBLISHED = {'train': 118_287, 'validation': 5_000}
    HOMEPAGE = 'https://cocodataset.org'
    LICENSE = 'Images: terms of use of Flickr; annotations: CC BY 4.0'
    SOURCE = CocoInstanceSource

    image_id = staticmethod(coco.image_number)

    @classmethod
    def find(cls, root: Path, split: str) -> list[tuple]:
        path = root / f'annotations/instances_{FOLDERS[split]}.json'
        if not path.is_file():
            raise cls.missing(split, [path], 1)
        images, image_dir = read_json(path, read_classes(cls.CLASSES)), root / FOLDERS[split]
        found = files.listing(image_dir)
        if missing := [image_dir / name for name in sorted(images) if name not in found]:
            raise cls.missing(split, missing, len(images))
        return [(Path(name).stem, image_dir / name, *images[name], path) for name in sorted(images)]

    @classmethod
    def read(cls, entry: tuple) -> dict[str, Any]:
        name, image, size, annotations, path = entry
        instances = []
        for i, label, crowd, area, segmentation in annotations:
            mask = segmentation
            if isinstance(segmentation, list):
                mask = rle.from_polygons(segmentation, size)
            if tuple(mask['size']) != size:
                raise ValueError(
                    f'{path}: the annotation {i} has a mask of {mask["size"]} pixels (rows, '
                    f'columns), but its image {name} has {list(size)}'
                )
            instances.append(
                {
                    'id': i,
                    'category_id': label,
                    'iscrowd': crowd,
                    'area': str(area),
                    'counts': mask['counts'].encode(),
                }
            )
        return {
            'image': codecs.read_bytes(image),
            'labels': paint(instances, size).astype(np.uint16),  # IGNORE_LABEL becomes IGNORED
            'original_size': size,
            'instances': instances,
        }

    @classmethod
    def features(cls) -> dict[str, tfds.features.FeatureConnector]:
        number = tfds.features.Scalar(np.int64)
        instance = {
            'id': number,
            'category_id': number,
            'iscrowd': number,
            'area': tfds.features.Text(),  # records hold numbers in single precision
            'counts': tfds.features.Text(),
        }
        return super().features() | {'instances': tfds.features.Sequence(instance)}


def read_json(path: Path, classes: dict[str, list]) -> dict[str, tuple[tuple[int, int], list]]:
    """Reads the objects of each image from a JSON file; images may have none.

    Returns:
      File name → its (rows, columns), and a list of (id, class in 0..K-1, iscrowd, area,
      segmentation), the last as `coco_lvis.compact` returns it. Polygons of fewer than three points
      or half a point are left out, as in detectron2, and counted in the log.

    Raises:
      ValueError: the file is broken, or of another kind.
    """

    # Only the needed keys of an annotation, its numbers as arrays, as all fit into memory only so.
    def keep(value):
        if 'segmentation' not in value:
            return value
        segmentation = value['segmentation']
        if isinstance(segmentation, list):
            kept = [p for p in segmentation if len(p) >= 6 and len(p) % 2 == 0]
            left_out.append(len(segmentation) - len(kept))
            segmentation = compact(kept) if kept else []
        else:
            segmentation = compact(segmentation)
        numbers = (value['id'], value['category_id'], value['iscrowd'], float(value['area']))
        return value['image_id'], *numbers, segmentation

    left_out = []  # polygons of each annotation
    with files.parsing(path, 'JSON file of COCO instances'):
        content = json.loads(path.read_text('utf-8'), object_hook=keep)
        found = {(category['id'], category['name']) for category in content['categories']}
        wanted = set(zip(classes['ids'], classes['names'], strict=True))
        if found != wanted:
            raise ValueError(
                f'it lists {len(found)} categories, not the {len(wanted)} of COCO; they differ in '
                f'{sorted(found ^ wanted)[:LISTED]}'
            )
        labels = {category: label for label, category in enumerate(classes['ids'])}
        objects = {image['id']: [] for image in content['images']}
        if not objects:
            raise ValueError('it lists no images')
        for image_id, i, category, crowd, area, segmentation in content['annotations']:
            if image_id not in objects or category not in labels:
                raise ValueError(
                    f'the annotation {i} has the image {image_id} and the category {category}, one '
                    'of which it does not list'
                )
            objects[image_id].append((i, labels[category], crowd, area, segmentation))
        for image in content['images']:
            if coco.image_number(Path(image['file_name']).stem) != image['id']:
                raise ValueError(f'the image {image["id"]} has the file {image["file_name"]}')
        if any(left_out):
            logging.warning(
                '%s: %d polygons that are not three points or more are left out',
                path,
                sum(left_out),
            )
        return {
            image['file_name']: ((image['height'], image['width']), objects[image['id']])
            for image in content['images']
        }
