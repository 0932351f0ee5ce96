"""COCO panoptic: the images of COCO 2017 with segments of 133 classes, 80 things and 53 stuff (Kirillov et al., CVPR 2019).

    coco/
      train2017/000000000009.jpg  val2017/…         annotations/panoptic_train2017.json  panoptic_val2017.json
      panoptic_train2017/000000000009.png  panoptic_val2017/…        (or these two in annotations/)

A PNG's colours are ids, 0 is void; the JSON file has the category of each. `labels` follow from them.

Records that TFDS prepared itself, as `coco/2017_panoptic` in the format array_record, are opened as well.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from rankseg_jax.data import coco, official
from rankseg_jax.data.coco_stuff164k import FOLDERS

TFDS_NAME = 'coco/2017_panoptic'


class CocoPanoptic(official.PanopticBuilder):
    """COCO panoptic."""

    CLASSES = 'coco_panoptic'
    FOLDER = 'coco'
    MARKERS = tuple(f'annotations/panoptic_{name}.json' for name in FOLDERS.values())
    LAYOUT = (
        '  coco/{train2017,val2017}/*.jpg\n'
        '  coco/annotations/panoptic_{train2017,val2017}.json\n'
        '  coco/panoptic_{train2017,val2017}/*.png or coco/annotations/panoptic_{train2017,val2017}/*.png\n'
        f'or the records of {TFDS_NAME}, prepared by TFDS'
    )
    PUBLISHED = {'train': 118_287, 'validation': 5_000}
    HOMEPAGE = 'https://cocodataset.org'
    LICENSE = 'Images: terms of use of Flickr; annotations: CC BY 4.0'

    image_id = staticmethod(coco.image_number)

    @classmethod
    def find(cls, root, split):
        name = f'panoptic_{FOLDERS[split]}'
        path = root / f'annotations/{name}.json'
        if not path.is_file():
            raise cls.missing(split, [path], 1)
        rows = read_json(path, official.read_classes(cls.CLASSES))
        pairs = cls.pairs(
            split,
            root / FOLDERS[split],
            official.first_of(root / name, path.parent / name),
            names=sorted(rows),
        )
        return [(*pair, rows[pair[0]]) for pair in pairs]

    @classmethod
    def read(cls, entry):
        _, image, path, rows = entry
        return make_example(
            official.read_bytes(image),
            official.decode_image(official.read_bytes(path), path),
            rows,
            path,
        )

    @classmethod
    def open_split(cls, path, split):
        if (path / TFDS_NAME).exists() and not (path / cls.name).exists():
            records = tfds.builder(TFDS_NAME, data_dir=path)
            if records.data_path.exists():
                return TfdsSource(cls, split, records)
        return super().open_split(path, split)


def read_json(path: Path, classes: dict) -> dict[str, np.ndarray]:
    """The segments of each image in a JSON file: int32 [N, 8], id, class in 0..K-1, iscrowd, area, left, top, width, height.

    Raises:
      ValueError: the file is broken, or of another kind.
    """

    def keep(
        value,
    ):  # the segments of an image as an array: as dicts, those of all images would need half a gigabyte
        if 'bbox' in value:
            return (
                value['id'],
                value['category_id'],
                value['iscrowd'],
                value['area'],
                *value['bbox'],
            )
        if 'segments_info' in value:
            return value | {
                'segments_info': np.array(value['segments_info'], np.int32).reshape(-1, 8)
            }
        return value

    segments = {}
    with official.parsing(path, 'JSON file of COCO panoptic'):
        content = json.loads(path.read_text('utf-8'), object_hook=keep)
        found = {
            (category['id'], category['name'], category['isthing'])
            for category in content['categories']
        }
        if found != (
            wanted := set(zip(classes['ids'], classes['names'], classes['isthing'], strict=True))
        ):
            raise ValueError(
                f'it lists {len(found)} categories, not the {len(wanted)} of COCO panoptic; they differ in '
                f'{sorted(found ^ wanted)[: official.LISTED]}'
            )
        labels = {category: label for label, category in enumerate(classes['ids'])}
        for annotation in content['annotations']:
            name, rows = Path(annotation['file_name']).stem, annotation['segments_info']  # [N, 8]
            if int(name) != annotation['image_id']:
                raise ValueError(f'the image {annotation["image_id"]} has the file {name}')
            rows[:, 1] = [labels[category] for category in rows[:, 1].tolist()]
            segments[name] = rows
    return segments


def make_example(image: bytes, colours, rows, path) -> dict:
    """What `Builder.read` returns.

    Args:
      colours: uint8 [H, W, 3], ids as in COCO's format.
      rows: [N, 8], the segments as of `read_json`.
      path: named in errors.

    Raises:
      ValueError: an id has no segment, or the other way round.
    """
    segments = [
        {'id': i, 'category_id': label, 'iscrowd': crowd, 'area': area, 'bbox': box}
        for i, label, crowd, area, *box in rows.tolist()
    ]
    ids = coco.rgb_to_ids(colours)  # [H, W]
    labels = official.segment_labels(ids, segments, path)
    if absent := [segment['id'] for segment in segments if not (ids == segment['id']).any()]:
        raise ValueError(
            f'{path}: ids {absent[: official.LISTED]} are among its segments in the JSON file but not in the picture'
        )
    return {
        'image': image,
        'labels': labels,
        'original_size': labels.shape,
        'panoptic_ids': colours,
        'segments': segments,
    }


class TfdsSource(official.PanopticSource):
    """A split of the records that TFDS prepared.

    Raises:
      ValueError: they cannot be read in any order, or have other categories.
    """

    def __init__(self, builder, split, prepared):
        path, skip = prepared.data_path, tfds.decode.SkipDecoding()
        try:
            records = prepared.as_data_source(
                split, decoders={'image': skip, 'panoptic_image': skip}
            )
        except NotImplementedError as error:
            raise ValueError(
                f'{path} holds records of the format {prepared.info.file_format.value}, which cannot be read in any order. Prepare '
                f"them in another folder: tfds.builder('{TFDS_NAME}', data_dir=<folder>, file_format='array_record')"
                '.download_and_prepare(download_dir=<where the downloads are>); or convert them by `tfds convert_format '
                f'--dataset_version_dir={path} --out_file_format=array_record --out_dir=<folder>/{TFDS_NAME}/{prepared.version}`, '
                'which needs apache-beam'
            ) from error
        found, names = (
            prepared.info.features['panoptic_objects']['label'].names,
            official.read_classes(builder.CLASSES)['names'],
        )
        if found != names:
            raise ValueError(
                f'{path} has other categories than COCO panoptic: {", ".join(found[: official.LISTED])}, …'
            )
        super().__init__(builder, split, Mapped(records, read_record), ())
        self.ids = Mapped(records, record_name)
        self.image_ids = Mapped(self.ids, builder.image_id)


class Mapped(Sequence):
    """A sequence whose elements are those of another, mapped when they are asked for."""

    def __init__(self, elements, function):
        self._elements, self._function = elements, function

    def __len__(self):
        return len(self._elements)

    def __getitem__(self, index):
        return self._function(self._elements[range(len(self))[index]])


def record_name(record) -> str:
    return Path(record['image/filename'].decode()).stem


def read_record(record: dict) -> dict:
    """As `Builder.read`, of a record of TFDS, whose boxes are shares of the size: top, left, bottom, right."""
    name, objects = record_name(record), record['panoptic_objects']
    colours = official.decode_image(record['panoptic_image'], name)  # [H, W, 3]
    height, width, _ = colours.shape
    boxes = np.reshape(objects['bbox'], (-1, 4))  # of no object, TFDS has an empty list
    top, left, bottom, right = (
        np.rint(boxes * [height, width, height, width]).astype(int).T
    )  # [N] each
    rows = [
        *(objects[key] for key in ('id', 'label', 'is_crowd', 'area')),
        left,
        top,
        right - left,
        bottom - top,
    ]
    return make_example(record['image'], colours, np.stack(rows, 1), name) | {'file_name': name}


get_source = CocoPanoptic.get_source
