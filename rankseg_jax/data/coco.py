"""COCO's panoptic format: a JSON file, and for each image a PNG whose colors are segment ids.

<folder>/predictions.json             {'images': …, 'annotations': …, 'categories': …}
<folder>/predictions/<name>.png       id = red + 256 · green + 65536 · blue; 0: void
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage

from rankseg_jax.data import Source


def image_number(file_name: str) -> int:
    """The id of an image of COCO: the digits at the end of its name; ValueError without any."""
    digits = file_name.rpartition('_')[2]
    if not digits.isdecimal():
        raise ValueError(
            f"{file_name} is not the name of a COCO image, which ends in the image's number: "
            'remove files that are not from COCO'
        )
    return int(digits)


def ids_to_rgb(ids: np.ndarray) -> np.ndarray:
    """[H, W] ids below 2 ** 24 → uint8 [H, W, 3]."""
    rgb = np.empty((*ids.shape, 3), np.uint8)
    for channel in range(3):
        rgb[..., channel] = ids >> 8 * channel & 255
    return rgb


def rgb_to_ids(rgb: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] → int32 [H, W]."""
    return rgb.astype(np.int32) @ np.array([1, 256, 65536], np.int32)


def categories(source: Source) -> list[dict[str, Any]]:
    """The categories of a panoptic source as COCO's files list them."""
    return [
        {'id': i, 'name': name, 'isthing': int(thing)}
        for i, name, thing in zip(
            source.category_ids, source.class_names, source.things, strict=True
        )
    ]


def segments_info(
    ids: np.ndarray, labels: Sequence[int], category_ids: Sequence[int]
) -> list[dict[str, Any]]:
    """Describes the segments that have pixels in a map, as COCO's files do.

    Args:
      ids: int [H, W], 1 + place in `labels`; 0: void.
      labels: class of each segment.
      category_ids: K ids of the classes in the data set.
    """
    areas = np.zeros(len(labels) + 1, int)
    for row in ids:  # not all at once, where they would be copied as 64-bit integers
        areas += np.bincount(row, minlength=len(areas))
    places = ndimage.find_objects(ids, len(labels))
    return [
        {
            'id': i,
            'category_id': int(category_ids[label]),
            'iscrowd': 0,
            'area': int(area),
            'bbox': box(*place),
        }
        for i, (label, area, place) in enumerate(zip(labels, areas[1:], places, strict=True), 1)
        if area
    ]


def box(rows: slice, columns: slice) -> list[int]:
    """(left, top, width, height) of rows and columns."""
    return [columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start]


class Writer:
    """Writes predictions image by image; leaving its `with` block writes the JSON file.

    A file of before is removed first, since it would not fit the images, and after an error none is
    written.
    `write` may be called from several threads; the JSON file has the order of the file names.

    Args:
      path: of the JSON file; the PNGs go into the folder of that name without the suffix.
      categories: as in COCO's files, dicts with 'id', 'name' and 'isthing' in the order of the
        classes 0..K-1.
    """

    def __init__(self, path: str | Path, categories: list[dict[str, Any]]):
        self.path, self.categories = Path(path), categories
        self.folder = self.path.with_suffix('')
        self.written = []  # (annotation, image) of each image

    def __enter__(self) -> 'Writer':
        self.folder.mkdir(parents=True, exist_ok=True)
        self.path.unlink(missing_ok=True)
        return self

    def write(self, image_id: int | str, name: str, ids: np.ndarray, labels: Sequence[int]) -> None:
        """Writes one image.

        Args:
          image_id: as in the file of the ground truth.
          name: of the PNG, without its suffix.
          ids: int [H, W], 1 + place in `labels`; 0: void.
          labels: class in 0..K-1 of each segment; segments without pixels are left out.
        """
        file_name = f'{name}.png'
        Image.fromarray(ids_to_rgb(ids)).save(self.folder / file_name)
        infos = segments_info(ids, labels, [category['id'] for category in self.categories])
        annotation = {'image_id': image_id, 'file_name': file_name, 'segments_info': infos}
        height, width = ids.shape
        image = {'id': image_id, 'file_name': file_name, 'height': height, 'width': width}
        self.written.append((annotation, image))

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if error is not None:
            return
        written = sorted(self.written, key=lambda pair: pair[0]['file_name'])
        content = {
            'images': [image for _, image in written],
            'annotations': [annotation for annotation, _ in written],
            'categories': self.categories,
        }
        self.path.write_text(json.dumps(content))
