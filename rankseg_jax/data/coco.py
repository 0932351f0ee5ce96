"""COCO's panoptic format: a JSON file, and beside it a PNG for each image whose colours are segment ids.

<folder>/predictions.json             {'images': …, 'annotations': …, 'categories': …}
<folder>/predictions/<name>.png       id = red + 256 · green + 65536 · blue; 0: void
"""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from rankseg_jax.data import IGNORE_LABEL


def image_number(file_name: str) -> int:
    """The id of an image of COCO: the digits at the end of its name; ValueError if there are none."""
    digits = file_name.rpartition('_')[2]
    if not digits.isdecimal():
        raise ValueError(
            f"{file_name} is no name of an image of COCO, which ends in the image's number: remove what is not COCO's"
        )
    return int(digits)


def ids_to_rgb(ids) -> np.ndarray:
    """[H, W] ids below 2 ** 24 -> uint8 [H, W, 3]."""
    return np.stack([ids >> shift & 255 for shift in (0, 8, 16)], -1).astype(np.uint8)


def rgb_to_ids(rgb) -> np.ndarray:
    """uint8 [H, W, 3] -> int32 [H, W]."""
    return rgb.astype(np.int32) @ np.array([1, 256, 65536], np.int32)


def targets(ids, segments, max_targets: int):
    """What queries learn from an image: its segments but for crowds, the largest if there are more than `max_targets`.

    Args:
      ids: [H, W] integers.
      segments: dicts with 'id', 'category_id' in 0..K-1, perhaps 'iscrowd'; an id that none has is void.

    Returns:
      labels [max_targets] int32, IGNORE_LABEL after the last, [H, W] int32 places in them, IGNORE_LABEL for void and crowds, and
      the number of segments that found no place.
    """
    values, index, areas = np.unique(ids, return_inverse=True, return_counts=True)
    area = dict(zip(values.tolist(), areas.tolist(), strict=True))
    held = [segment for segment in segments if segment['id'] in area and not segment.get('iscrowd')]
    chosen = sorted(held, key=lambda segment: -area[segment['id']])[:max_targets]
    labels = np.full(max_targets, IGNORE_LABEL, np.int32)
    labels[: len(chosen)] = [segment['category_id'] for segment in chosen]
    places = np.full(len(values), IGNORE_LABEL, np.int32)
    places[np.searchsorted(values, [segment['id'] for segment in chosen])] = np.arange(len(chosen))
    return labels, places[index.reshape(ids.shape)], len(held) - len(chosen)


def categories(source) -> list[dict]:
    """The categories of a source as COCO's files list them; their ids are its `category_ids`, else 0..K-1."""
    ids = getattr(source, 'category_ids', range(len(source.class_names)))
    return [
        {'id': i, 'name': name, 'isthing': int(thing)}
        for i, name, thing in zip(ids, source.class_names, source.things, strict=True)
    ]


def segments_info(ids, labels, category_ids) -> list[dict]:
    """The segments of a map [H, W] that are in it.

    Args:
      ids: 1 + place in `labels`; 0: void.
      labels: class of each segment.
      category_ids: K ids that the classes have in the data set.
    """
    areas = np.bincount(ids.ravel(), minlength=len(labels) + 1)[1:]
    return [
        {
            'id': i,
            'category_id': int(category_ids[label]),
            'iscrowd': 0,
            'area': int(area),
            'bbox': box(ids == i),
        }
        for i, (label, area) in enumerate(zip(labels, areas, strict=True), 1)
        if area
    ]


def box(mask) -> list[int]:
    """(left, top, width, height) of what is true in [H, W]."""
    (top, bottom), (left, right) = (
        np.flatnonzero(mask.any(axis))[[0, -1]].tolist() for axis in (1, 0)
    )
    return [left, top, right - left + 1, bottom - top + 1]


class Writer:
    """Writes predictions, image by image, and the JSON file at the end of its block.

    Args:
      path: of the JSON file; the PNGs go into the folder of that name without the suffix.
      categories: as in COCO's files: dicts with 'id', 'name', 'isthing'; the classes 0..K-1 are theirs in this order.
    """

    def __init__(self, path, categories):
        self.path, self.categories = Path(path), categories
        self.folder = self.path.with_suffix('')
        self.annotations, self.images = [], []

    def __enter__(self):
        self.folder.mkdir(parents=True, exist_ok=True)
        return self

    def write(self, image_id, name: str, ids, labels):
        """One image.

        Args:
          image_id: as in the file of the truth.
          name: of the PNG, without its suffix.
          ids: [H, W] integers, 1 + place in `labels`; 0: void.
          labels: class in 0..K-1 of each segment; those that have no pixel are left out.
        """
        file_name = f'{name}.png'
        Image.fromarray(ids_to_rgb(ids)).save(self.folder / file_name)
        infos = segments_info(ids, labels, [category['id'] for category in self.categories])
        self.annotations.append(
            {'image_id': image_id, 'file_name': file_name, 'segments_info': infos}
        )
        self.images.append(
            {'id': image_id, 'file_name': file_name, 'height': ids.shape[0], 'width': ids.shape[1]}
        )

    def __exit__(self, *_):
        content = {
            'images': self.images,
            'annotations': self.annotations,
            'categories': self.categories,
        }
        self.path.write_text(json.dumps(content))
