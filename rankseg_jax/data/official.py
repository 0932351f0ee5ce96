"""Published data sets, read from the folder of their official download or from records that TFDS prepared of it.

A data set is a TFDS builder in a module of its own. It says where the files of a split lie (`find`) and what one of its
examples holds (`read`). Training straight from the folder calls these two; preparing writes what they return:

    config.data.dir = '/data/ADEChallengeData2016'    # straight from the folder, nothing is written
    config.data.dir = '/records'                      # once main.py --mode=prepare, or plain TFDS, has written them there

Every example has 'image' (JPEG, as downloaded), 'labels' (uint16 [H, W] in 0..K-1, or IGNORED), 'file_name' and 'original_size'
(rows, columns before any resizing); see docs/datasets.md for the data sets.
"""

import abc
import io
import json
import os
from collections import Counter
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from rankseg_jax.data import IGNORE_LABEL, CorruptExample, coco, folder, preparation

IGNORED = 65535  # in uint16 labels: pixels that don't count
LISTED = 5  # files named in a message


@cache
def read_classes(name: str) -> dict:
    """names, ids (those of the data set's own files) and perhaps isthing, K each, in label order."""
    return json.loads((Path(__file__).parent / f'classes/{name}.json').read_text(encoding='utf-8'))


def to_labels(values, ids, ignored, path) -> np.ndarray:
    """Values of a label file [H, W] -> uint16 [H, W]: places in `ids`, or IGNORED.

    Args:
      values: integers, at least 0.
      ids: K values, those of the classes.
      ignored: values that don't count; None: all that are not in `ids`.
      path: named in errors.

    Raises:
      ValueError: a value is neither a class nor ignored.
    """
    unknown = IGNORED if ignored is None else IGNORED - 1
    table = np.full(max(values.max(initial=0), *ids, *(ignored or ())) + 1, unknown, np.uint16)
    table[list(ignored or ())] = IGNORED
    table[list(ids)] = np.arange(len(ids))
    labels = table[values]
    if (labels == IGNORED - 1).any():
        wrong = np.unique(values[labels == IGNORED - 1])[:LISTED].tolist()
        raise ValueError(
            f'{path}: label values {wrong} are no class of this data set ({len(ids)} classes, values {min(ids)}..'
            f'{max(ids)}) and not among those that do not count ({", ".join(map(str, ignored)) or "none"}): is it a '
            'file of another data set, or one that was converted?'
        )
    return labels


def read_bytes(path) -> bytes:
    """The content of a file; CorruptExample if it cannot be read."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise CorruptExample(f'{path}: {error}') from error


def decode_image(content: bytes, path) -> np.ndarray:
    """uint8 [H, W, 3] as stored: the labels of these data sets are not turned by EXIF; CorruptExample if it cannot be read."""
    try:
        return folder.to_rgb(Image.open(io.BytesIO(content)))
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error, …
        message = str(error).partition(' <_io.BytesIO')[0]  # cannot identify image file <…>
        raise CorruptExample(f'{path}: {type(error).__name__}: {message}') from error


def read_colours(path) -> np.ndarray:
    """uint8 [H, W, 3] of a PNG whose colours are numbers.

    Raises:
      CorruptExample: the file cannot be read.
      ValueError: it has no colours.
    """
    content = read_bytes(path)
    colours = decode_image(content, path)
    if (mode := Image.open(io.BytesIO(content)).mode) != 'RGB':
        raise ValueError(f'{path}: its colours should be numbers, but it has none (mode {mode})')
    return colours


def decode_map(values) -> np.ndarray:
    """A map of a record as array: uint16 [H, W] or uint8 [H, W, 3]; one read from the folder is one already."""
    return np.array(Image.open(io.BytesIO(values))) if isinstance(values, bytes) else values


def encode_png(values) -> bytes:
    """uint8 [H, W, 3] or uint16 [H, W] as PNG."""
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, 'png', compress_level=3)
    return stream.getvalue()


def listing(path) -> set[str]:
    """Names in a folder, but for hidden ones (a Mac adds ._a.jpg to a.jpg); none if there is no such folder."""
    return (
        {entry.name for entry in os.scandir(path) if not entry.name.startswith('.')}
        if Path(path).is_dir()
        else set()
    )


def rows(values) -> list[dict]:
    """A sequence of dicts; that of a record is a dict, which holds for each key the values of all."""
    if not isinstance(values, dict):
        return values
    columns = [
        np.asarray(column).tolist() for column in values.values()
    ]  # lists with text among them, or of none
    return [dict(zip(values, row, strict=True)) for row in zip(*columns, strict=True)]


def first_of(*paths: Path) -> Path:
    """The first of the places that is there; if none is, the first."""
    return next((path for path in paths if path.exists()), paths[0])


@contextmanager
def parsing(path, kind: str):
    """For code that takes a file apart: its errors become a ValueError that names the file."""
    try:
        yield
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(
            f'{path} is broken, or no {kind}: {type(error).__name__}: {error}'
        ) from error


class Source:
    """Random access to a split; see `rankseg_jax.data.get_source`.

    Attributes:
      class_names: K names; category_ids, label_values: what the classes are in the data set's own files, and in its label maps.
      ids: N file names; image_ids: N ids of the images in the data set's own files.
      published: how many examples the split should have; None: not stated.
    """

    def __init__(self, builder, split, examples, ids):
        classes = read_classes(builder.CLASSES)
        self.class_names, self.category_ids = tuple(classes['names']), tuple(classes['ids'])
        self.label_values = tuple(builder.LABEL_VALUES or classes['ids'])
        self.ids, self.image_ids = ids, [builder.image_id(name) for name in ids]
        self.published = builder.PUBLISHED[split]
        self._builder, self._examples = builder, examples

    def __len__(self):
        return len(self.ids)

    def example(self, index: int) -> dict:
        """As `Builder.features` says, where images may still be encoded; CorruptExample, ValueError as `Builder.read`."""
        try:
            entry = self._examples[index]
        except RuntimeError as error:  # of array_record
            raise CorruptExample(
                f'{self.ids[index]}: its record cannot be read: {error}'
            ) from error
        return (
            self._builder.read(entry) | {'file_name': entry[0]}
            if isinstance(entry, tuple)
            else entry
        )

    def load(self, index: int) -> dict:
        """image uint8 [H, W, 3] and label int32 [H, W] in 0..K-1 or IGNORE_LABEL; CorruptExample, ValueError as `Builder.read`."""
        return self._decode(self.example(index))

    def _decode(self, example):
        name = os.fsdecode(example['file_name'])  # bytes in a record
        image = decode_image(example['image'], name)  # [H, W, 3]
        label = decode_map(example['labels']).astype(np.int32)  # [H, W]
        if image.shape[:2] != label.shape:
            raise CorruptExample(folder.size_mismatch(name, image.shape[:2], label.shape))
        label[label == IGNORED] = IGNORE_LABEL
        return {'image': image, 'label': label}


class PanopticSource(Source):
    """Also has `things`, K bools, and the segments of each example."""

    def __init__(self, builder, *arguments):
        super().__init__(builder, *arguments)
        self.things = tuple(map(bool, read_classes(builder.CLASSES)['isthing']))

    def segments(self, index: int) -> tuple[np.ndarray, list[dict]]:
        """ids int32 [H, W], 0 for void, and dicts as of COCO's format but with 'category_id' in 0..K-1."""
        example = self.example(index)
        return coco.rgb_to_ids(decode_map(example['panoptic_ids'])), rows(example['segments'])


class Builder(tfds.core.ShardBasedBuilder, skip_registration=True):
    """What the data sets share; a subclass fills in the attributes, `find` and `read`.

    Attributes:
      CLASSES: file of data/classes.
      FOLDER: what the official folder is called.
      MARKERS: paths in it, one of which at least is there.
      LAYOUT: the files in it, as messages show them.
      PUBLISHED: splits and the number of examples that each has, None where it is not stated.
      HOMEPAGE, LICENSE: of the data.
      SOURCE: class of what `get_source` returns.
      LABEL_VALUES: K values of the classes in label files; None: the ids of CLASSES.
    """

    VERSION = tfds.core.Version('1.0.0')
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        'See docs/datasets.md: where to get the files, and the folder they must lie in.'
    )
    CLASSES: str
    FOLDER: str
    MARKERS: tuple[str, ...]
    LAYOUT: str
    PUBLISHED: dict[str, int | None]
    HOMEPAGE: str
    LICENSE: str
    SOURCE = Source
    LABEL_VALUES = None

    def __init__(self, *, file_format='array_record', **kwargs):  # which can be read in any order
        super().__init__(file_format=file_format, **kwargs)

    @classmethod
    @abc.abstractmethod
    def find(cls, root: Path, split: str) -> list[tuple]:
        """The examples of a split in order: (file_name, and what `read` needs).

        Raises:
          FileNotFoundError: files are missing; they are named.
        """

    @classmethod
    @abc.abstractmethod
    def read(cls, entry: tuple) -> dict:
        """One example: 'image' as encoded bytes, 'labels', 'original_size', and more as `features` says.

        Raises:
          CorruptExample: a file cannot be read.
          ValueError: a value in it is out of range.
        """

    @classmethod
    def splits(cls, root: Path) -> tuple[str, ...]:
        """What preparing takes of a folder: all splits, unless a subclass says that some may be missing."""
        return tuple(cls.PUBLISHED)

    image_id = staticmethod(str)  # of a file name, in the data set's own files

    @classmethod
    def features(cls) -> dict:
        return {
            'image': tfds.features.Image(shape=(None, None, 3), encoding_format='jpeg'),
            'labels': tfds.features.Image(
                shape=(None, None, 1), dtype=np.uint16, encoding_format='png'
            ),
            'file_name': tfds.features.Text(),
            'original_size': tfds.features.Tensor(shape=(2,), dtype=np.int32),
        }

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            features=tfds.features.FeaturesDict(self.features()),
            homepage=self.HOMEPAGE,
            license=self.LICENSE,
            metadata=tfds.core.MetadataDict(read_classes(self.CLASSES)),
        )

    @classmethod
    def find_root(cls, path) -> Path:
        """The official folder: `path`, or FOLDER in it.

        Raises:
          FileNotFoundError: it is neither.
        """
        for root in (Path(path) / cls.FOLDER, Path(path)):
            if any((root / marker).exists() for marker in cls.MARKERS):
                return root
        raise FileNotFoundError(
            f'{path} holds no {cls.name}: neither {" nor ".join(cls.MARKERS)} is there, or in {cls.FOLDER} there. '
            f'Set config.data.dir (TFDS: --manual_dir) to the folder that holds\n{cls.LAYOUT}\nsee docs/datasets.md'
        )

    @classmethod
    def missing(cls, split: str, files: list, wanted: int) -> FileNotFoundError:
        """The error that names missing files, of `wanted` that there should be."""
        names = ', '.join(map(str, files[:LISTED])) + (
            f', … and {len(files) - LISTED} more' if len(files) > LISTED else ''
        )
        return FileNotFoundError(
            f'{cls.name}, split {split!r}: {len(files)} of {wanted} files are missing: {names}. '
            f'There must be\n{cls.LAYOUT}\nsee docs/datasets.md for where to get them'
        )

    @classmethod
    def pairs(
        cls, split, image_dir, label_dir, suffix='.png', names=None
    ) -> list[tuple[str, Path, Path]]:
        """(name, image, label) of the JPEGs of a folder, or of `names`, and the label files that go with them.

        Raises:
          FileNotFoundError: one of the two is missing for some name, or there is none at all.
        """
        images, labels = listing(image_dir), listing(label_dir)
        if names is None:
            names = sorted(
                {name.removesuffix('.jpg') for name in images if name.endswith('.jpg')}
                | {name.removesuffix(suffix) for name in labels if name.endswith(suffix)}
            )
        if len(set(names)) < len(names):
            twice, _ = Counter(names).most_common(1)[0]
            raise ValueError(
                f'{cls.name}, split {split!r}: images are listed twice, {twice} among them'
            )
        missing = [image_dir / f'{name}.jpg' for name in names if f'{name}.jpg' not in images]
        missing += [
            label_dir / f'{name}{suffix}' for name in names if f'{name}{suffix}' not in labels
        ]
        if missing or not names:
            raise cls.missing(
                split,
                missing or [image_dir / '*.jpg', label_dir / f'*{suffix}'],
                2 * max(len(names), 1),
            )
        return [(name, image_dir / f'{name}.jpg', label_dir / f'{name}{suffix}') for name in names]

    def _example_writer(self):
        self._parts = preparation.Parts(self)
        return self._parts

    def _shard_iterators_per_split(self, dl_manager):
        root = self.find_root(dl_manager.manual_dir)
        entries = {split: self.find(root, split) for split in self.splits(root)}
        for found in entries.values():
            self.record(
                found[0]
            )  # files of another data set are refused before anything is written
            for entry in found:
                self.image_id(entry[0])
        self.info.metadata['file_names'] = {
            split: [entry[0] for entry in found] for split, found in entries.items()
        }
        return self._parts.prepare(root, entries)

    def _post_download_and_prepare_hook(self):
        self._parts.remove()

    @classmethod
    def record(cls, entry) -> dict:
        """`read`, checked and with its maps as PNG bytes, for TFDS to write; and 'pixels', int [K], those of each class."""
        example = cls.read(entry)
        size = decode_image(example['image'], entry[0]).shape[:2]
        if size != example['labels'].shape:
            raise CorruptExample(folder.size_mismatch(entry[0], size, example['labels'].shape))
        maps = {
            name: encode_png(example[name])
            for name in ('labels', 'panoptic_ids')
            if name in example
        }
        num_classes = len(read_classes(cls.CLASSES)['names'])
        pixels = np.bincount(example['labels'].ravel(), minlength=num_classes)[:num_classes]
        return example | maps | {'file_name': entry[0], 'pixels': pixels}

    @classmethod
    def prepare(cls, path: Path, records) -> Path:
        """Plain TFDS: `download_and_prepare` of the official folder `path` into the folder `records`; returns where they lie."""
        cls.find_root(path)  # before anything is written
        builder = cls(data_dir=records)
        if builder.data_path.exists():
            print(f'{builder.data_path} is there already; remove that folder to prepare it anew')
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=path))
        return Path(builder.data_path)

    @classmethod
    def get_source(cls, data_config, split: str):
        """Opens a split: of the records in `data_config.dir` if TFDS prepared them there, else of the official folder.

        Raises:
          FileNotFoundError: it is neither, or files of it are missing.
          ValueError: no such split, or `num_classes` is another number.
        """
        if split not in cls.PUBLISHED:
            raise ValueError(
                f'{cls.name} has no split {split!r}; the splits are {", ".join(cls.PUBLISHED)}'
            )
        folder.check_num_classes(
            data_config.num_classes, read_classes(cls.CLASSES)['names'], cls.name
        )
        return cls.open_split(
            Path(data_config.dir or tfds.core.constants.DATA_DIR).expanduser(), split
        )

    @classmethod
    def open_split(cls, path: Path, split: str):
        """What `get_source` returns, for a split that there should be."""
        with preparation.reading(path / cls.name):
            builder = cls(data_dir=path, file_format=None)  # that of the records
        if not builder.data_path.exists():
            entries = cls.find(cls.find_root(path), split)
            return cls.SOURCE(cls, split, entries, [entry[0] for entry in entries])
        if split not in builder.info.splits:
            raise ValueError(
                f'{builder.data_path} was prepared without the split {split!r}; remove it to prepare it again'
            )
        skip = {
            name: tfds.decode.SkipDecoding()
            for name, feature in builder.info.features.items()
            if isinstance(feature, tfds.features.Image)
        }
        with preparation.reading(builder.data_path):
            records, names = (
                builder.as_data_source(split, decoders=skip),
                builder.info.metadata['file_names'][split],
            )
        return cls.SOURCE(cls, split, records, names)


class PanopticBuilder(Builder, skip_registration=True):
    """Data sets with segments.

    `read` also gives 'panoptic_ids', uint8 [H, W, 3], colours that are ids as in COCO's format, and 'segments', dicts with 'id',
    'category_id' in 0..K-1, 'iscrowd', 'area' and 'bbox' (left, top, width, height).
    """

    SOURCE = PanopticSource

    @classmethod
    def features(cls):
        number = tfds.features.Scalar(np.int32)
        segment = {
            'id': number,
            'category_id': number,
            'iscrowd': number,
            'area': number,
            'bbox': tfds.features.Tensor(shape=(4,), dtype=np.int32),
        }
        return super().features() | {
            'panoptic_ids': tfds.features.Image(shape=(None, None, 3), encoding_format='png'),
            'segments': tfds.features.Sequence(segment),
        }


def segment_labels(ids, segments, path) -> np.ndarray:
    """The label map uint16 [H, W] of ids [H, W] and dicts with 'id' and 'category_id' in 0..K-1; IGNORED where the id is 0.

    Raises:
      ValueError: an id has no segment, or two.
    """
    label = {0: IGNORED} | {segment['id']: segment['category_id'] for segment in segments}
    if len(label) <= len(segments):
        raise ValueError(
            f'{path}: two of its segments in the JSON file have the same id, or one has the id 0, which is void'
        )
    known = np.array(sorted(label))
    places = np.searchsorted(
        known[:-1], ids
    )  # [H, W]; several times faster than to ask which ids there are
    unknown = known[places] != ids
    if unknown.any():
        wrong = np.unique(ids[unknown])[:LISTED].tolist()
        raise ValueError(
            f'{path}: ids {wrong} are in the picture but not among its segments in the JSON file'
        )
    return np.array([label[i] for i in known.tolist()], np.uint16)[places]
