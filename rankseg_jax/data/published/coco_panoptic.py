"""COCO panoptic: the images of COCO 2017 with segments (Kirillov et al., CVPR 2019).

The 133 classes are 80 things and 53 stuff.

    coco/
      train2017/000000000009.jpg             val2017/…
      panoptic_train2017/000000000009.png    panoptic_val2017/…   (here or in annotations/)
      annotations/panoptic_train2017.json    annotations/panoptic_val2017.json

The colors of a PNG are segment ids, 0 is void; the JSON file has the category of each. `labels`
follow from them.

Records that TFDS itself prepared, as `coco/2017_panoptic` in the format array_record, are read as
well.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from rankseg_jax.data import coco
from rankseg_jax.data.published import LISTED, codecs, files
from rankseg_jax.data.published.builder import PanopticBuilder
from rankseg_jax.data.published.coco_stuff164k import FOLDERS
from rankseg_jax.data.published.label_maps import read_classes, segment_labels
from rankseg_jax.data.published.source import PublishedPanopticSource, PublishedSource

TFDS_NAME = 'coco/2017_panoptic'


class CocoPanoptic(PanopticBuilder):
    """COCO panoptic."""

    CLASSES = 'coco_panoptic'
    FOLDER = 'coco'
    MARKERS = tuple(f'annotations/panoptic_{name}.json' for name in FOLDERS.values())
    LAYOUT = (
        '  coco/{train2017,val2017}/*.jpg\n'
        '  coco/annotations/panoptic_{train2017,val2017}.json\n'
        '  coco/panoptic_{train2017,val2017}/*.png or '
        'coco/annotations/panoptic_{train2017,val2017}/*.png\n'
        f'or the records of {TFDS_NAME}, prepared by TFDS'
    )
    PUBLISHED = {'train': 118_287, 'validation': 5_000}
    HOMEPAGE = 'https://cocodataset.org'
    LICENSE = 'Images: terms of use of Flickr; annotations: CC BY 4.0'

    image_id = staticmethod(coco.image_number)

    @classmethod
    def find(cls, root: Path, split: str) -> list[tuple]:
        name = f'panoptic_{FOLDERS[split]}'
        path = root / f'annotations/{name}.json'
        if not path.is_file():
            raise cls.missing(split, [path], 1)
        rows = read_json(path, read_classes(cls.CLASSES))
        maps = files.first_existing(root / name, path.parent / name)
        pairs = cls.pairs(split, root / FOLDERS[split], maps, names=sorted(rows))
        return [(*pair, rows[pair[0]]) for pair in pairs]

    @classmethod
    def read(cls, entry: tuple) -> dict[str, Any]:
        _, image, path, rows = entry
        colors = codecs.decode_image(codecs.read_bytes(path), path)  # [H, W, 3]
        return make_example(codecs.read_bytes(image), colors, rows, path=path)

    @classmethod
    def open_split(cls, path: Path, split: str) -> PublishedSource:
        if (path / TFDS_NAME).exists() and not (path / cls.name).exists():
            records = tfds.builder(TFDS_NAME, data_dir=path)
            if records.data_path.exists():
                return TfdsSource(cls, split, records)
        return super().open_split(path, split)


def read_json(path: Path, classes: dict[str, list]) -> dict[str, np.ndarray]:
    """Reads the segments of each image from a JSON file.

    Returns:
      Name → int32 [N, 8]: id, class in 0..K-1, iscrowd, area, left, top, width, height.

    Raises:
      ValueError: the file is broken, or of another kind.
    """

    # The segments of an image as an array: as dicts, all images would need half a gigabyte.
    def keep(value):
        if 'bbox' in value:
            numbers = (value[key] for key in ('id', 'category_id', 'iscrowd', 'area'))
            return (*numbers, *value['bbox'])
        if 'segments_info' in value:
            rows = np.array(value['segments_info'], np.int32).reshape(-1, 8)
            return value | {'segments_info': rows}
        return value

    segments = {}
    with files.parsing(path, 'JSON file of COCO panoptic'):
        content = json.loads(path.read_text('utf-8'), object_hook=keep)
        found = {
            (category['id'], category['name'], category['isthing'])
            for category in content['categories']
        }
        wanted = set(zip(classes['ids'], classes['names'], classes['isthing'], strict=True))
        if found != wanted:
            raise ValueError(
                f'it lists {len(found)} categories, not the {len(wanted)} of COCO panoptic; they '
                f'differ in {sorted(found ^ wanted)[:LISTED]}'
            )
        labels = {category: label for label, category in enumerate(classes['ids'])}
        for annotation in content['annotations']:
            name, rows = Path(annotation['file_name']).stem, annotation['segments_info']  # [N, 8]
            if int(name) != annotation['image_id']:
                raise ValueError(f'the image {annotation["image_id"]} has the file {name}')
            rows[:, 1] = [labels[category] for category in rows[:, 1].tolist()]
            segments[name] = rows
    return segments


def make_example(
    image: bytes, colors: np.ndarray, rows: np.ndarray, path: str | Path
) -> dict[str, Any]:
    """Makes an example as `Builder.read` returns it.

    Args:
      colors: uint8 [H, W, 3], ids as in COCO's format.
      rows: [N, 8], the segments as `read_json` returns them.
      path: named in errors.

    Raises:
      ValueError: an id has no segment, or a segment has no pixels.
    """
    segments = [
        {'id': i, 'category_id': label, 'iscrowd': crowd, 'area': area, 'bbox': box}
        for i, label, crowd, area, *box in rows.tolist()
    ]
    ids = coco.rgb_to_ids(colors)  # [H, W]
    labels = segment_labels(ids, segments, path)
    if absent := [segment['id'] for segment in segments if not (ids == segment['id']).any()]:
        raise ValueError(
            f'{path}: ids {absent[:LISTED]} are among its segments in the JSON file but not in '
            'the image'
        )
    return {
        'image': image,
        'labels': labels,
        'original_size': labels.shape,
        'panoptic_ids': colors,
        'segments': segments,
    }


class TfdsSource(PublishedPanopticSource):
    """A split of the records that TFDS prepared.

    Raises:
      ValueError: they do not support random access, or have other categories.
    """

    def __init__(self, builder: type[CocoPanoptic], split: str, prepared: tfds.core.DatasetBuilder):
        path, skip = prepared.data_path, tfds.decode.SkipDecoding()
        try:
            records = prepared.as_data_source(
                split, decoders={'image': skip, 'panoptic_image': skip}
            )
        except NotImplementedError as error:
            version = prepared.info.version
            raise ValueError(
                f'{path} holds records in the format {prepared.info.file_format.value}, which has '
                'no random access. Prepare them in another folder: '
                f"tfds.builder('{TFDS_NAME}', data_dir=<folder>, file_format='array_record')"
                '.download_and_prepare(download_dir=<where the downloads are>); or convert them '
                f'with `tfds convert_format --dataset_version_dir={path} '
                f'--out_file_format=array_record --out_dir=<folder>/{TFDS_NAME}/{version}`, which '
                'needs apache-beam'
            ) from error
        found = prepared.info.features['panoptic_objects']['label'].names
        if found != read_classes(builder.CLASSES)['names']:
            raise ValueError(
                f'{path} has other categories than COCO panoptic: {", ".join(found[:LISTED])}, …'
            )
        super().__init__(builder, split, Mapped(records, read_record), ids=())
        self.ids = Mapped(records, record_name)
        self.image_ids = Mapped(self.ids, builder.image_id)


class Mapped(Sequence):
    """A sequence whose elements are those of another, mapped on access."""

    def __init__(self, elements: Sequence, function: Callable[[Any], Any]):
        self._elements, self._function = elements, function

    def __len__(self) -> int:
        return len(self._elements)

    def __getitem__(self, index: Any) -> Any:
        return self._function(self._elements[range(len(self))[index]])


def record_name(record: dict) -> str:
    return Path(record['image/filename'].decode()).stem


def read_record(record: dict) -> dict[str, Any]:
    """As `Builder.read`, from a record of TFDS.

    Its boxes are fractions of the size: top, left, bottom, right.
    """
    name, objects = record_name(record), record['panoptic_objects']
    colors = codecs.decode_image(record['panoptic_image'], name)  # [H, W, 3]
    height, width, _ = colors.shape
    boxes = np.reshape(objects['bbox'], (-1, 4))  # [N, 4]; TFDS has an empty list for N = 0
    boxes = np.rint(boxes * [height, width, height, width]).astype(int)
    top, left, bottom, right = boxes.T  # [N] each
    numbers = (objects[key] for key in ('id', 'label', 'is_crowd', 'area'))
    rows = np.stack([*numbers, left, top, right - left, bottom - top], axis=1)  # [N, 8]
    return make_example(record['image'], colors, rows, path=name) | {'file_name': name}
