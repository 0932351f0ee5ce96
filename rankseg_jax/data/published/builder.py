"""TFDS builders of published data sets: how the official files become examples and records."""

import abc
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from ml_collections import ConfigDict

from rankseg_jax.data import CorruptExample, Source, folder, images
from rankseg_jax.data.published import LISTED, codecs, files, preparation
from rankseg_jax.data.published.label_maps import read_classes
from rankseg_jax.data.published.source import (
    PublishedPanopticSource,
    PublishedSource,
    PublishedVideoSource,
)


class Builder(tfds.core.ShardBasedBuilder, skip_registration=True):
    """Base of the data sets; a subclass fills in the attributes, `find` and `read`.

    Attributes:
      CLASSES: name of the JSON file in `classes/`.
      FOLDER: name of the official folder.
      MARKERS: paths in it of which at least one exists.
      LAYOUT: its files, as messages show them.
      PUBLISHED: number of examples of each split, None where it is not stated.
      HOMEPAGE, LICENSE: of the data.
      SOURCE: class of the sources that `get_source` returns.
      LABEL_VALUES: K values of the classes in label files; None: the ids of CLASSES.
      PREDICTION_VALUES: those in label files that the benchmark takes; None: LABEL_VALUES.
    """

    VERSION = tfds.core.Version('1.0.0')
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        'See docs/datasets.md for where to get the files and the folder that they belong in.'
    )
    CLASSES: str
    FOLDER: str
    MARKERS: tuple[str, ...]
    LAYOUT: str
    PUBLISHED: dict[str, int | None]
    HOMEPAGE: str
    LICENSE: str
    SOURCE = PublishedSource
    LABEL_VALUES = None
    PREDICTION_VALUES = None

    # array_record can be read in any order.
    def __init__(self, *, file_format: str | None = 'array_record', **kwargs: Any):
        super().__init__(file_format=file_format, **kwargs)

    @classmethod
    @abc.abstractmethod
    def find(cls, root: Path, split: str) -> list[tuple]:
        """Finds the examples of a split, in order: (file_name, whatever `read` needs, …).

        Raises:
          FileNotFoundError: files are missing; the message names them.
        """

    @classmethod
    @abc.abstractmethod
    def read(cls, entry: tuple) -> dict[str, Any]:
        """Reads one example.

        Returns:
          'image' as encoded bytes, 'labels', 'original_size', and others that `features` has.

        Raises:
          CorruptExample: a file cannot be read.
          ValueError: a value in it is out of range.
        """

    @classmethod
    def has_annotations(cls, entries: list[tuple]) -> bool:
        """Whether examples that `find` found have ground truth; by default they have."""
        return True

    @classmethod
    def splits(cls, root: Path) -> tuple[str, ...]:
        """The splits to prepare from a folder: all, unless a subclass allows some to be missing."""
        return tuple(cls.PUBLISHED)

    # File name → id in the data set's own files.
    image_id: Callable[[str], int | str] = staticmethod(str)

    @classmethod
    def features(cls) -> dict[str, tfds.features.FeatureConnector]:
        """The TFDS features of an example."""
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
    def find_root(cls, path: Path) -> Path:
        """Finds the official folder: `path`, or FOLDER or its last part in it.

        Raises:
          FileNotFoundError: it is neither.
        """
        for root in (path / cls.FOLDER, path / Path(cls.FOLDER).name, path):
            if any((root / marker).exists() for marker in cls.MARKERS):
                return root
        raise FileNotFoundError(
            f'{path} does not hold {cls.name}: neither {" nor ".join(cls.MARKERS)} exists there '
            f'or in {cls.FOLDER} below it. Set config.data.dir (TFDS: --manual_dir) to the folder '
            f'that holds\n{cls.LAYOUT}\nsee docs/datasets.md'
        )

    @classmethod
    def missing(cls, split: str, paths: list, wanted: int) -> FileNotFoundError:
        """The error that names missing files, out of `wanted` in all."""
        names = ', '.join(map(str, paths[:LISTED]))
        more = f', … and {len(paths) - LISTED} more' if len(paths) > LISTED else ''
        return FileNotFoundError(
            f'{cls.name}, split {split!r}: {len(paths)} of {wanted} files are missing: '
            f'{names}{more}. There must be\n{cls.LAYOUT}\nsee docs/datasets.md for where to get '
            'them'
        )

    @classmethod
    def pairs(
        cls,
        split: str,
        image_dir: Path,
        label_dir: Path,
        suffix: str = '.png',
        names: list[str] | None = None,
    ) -> list[tuple[str, Path, Path]]:
        """Pairs JPEGs with label files of the same name.

        Args:
          suffix: of the label files.
          names: without suffixes; None: all in the two folders.

        Returns:
          (name, image, label file) of each.

        Raises:
          FileNotFoundError: one of the two is missing for some name, or there are no names.
          ValueError: a name is listed twice.
        """
        found, labels = files.listing(image_dir), files.listing(label_dir)
        if names is None:
            names = sorted(
                {name.removesuffix('.jpg') for name in found if name.endswith('.jpg')}
                | {name.removesuffix(suffix) for name in labels if name.endswith(suffix)}
            )
        if len(set(names)) < len(names):
            repeated, _ = Counter(names).most_common(1)[0]
            raise ValueError(
                f'{cls.name}, split {split!r}: images are listed twice, {repeated} among them'
            )
        missing = [image_dir / f'{name}.jpg' for name in names if f'{name}.jpg' not in found]
        missing += [
            label_dir / f'{name}{suffix}' for name in names if f'{name}{suffix}' not in labels
        ]
        if not names:
            missing = [image_dir / '*.jpg', label_dir / f'*{suffix}']
        if missing:
            raise cls.missing(split, missing, 2 * max(len(names), 1))
        return [(name, image_dir / f'{name}.jpg', label_dir / f'{name}{suffix}') for name in names]

    def _example_writer(self):
        self._parts = preparation.Parts(self)
        return self._parts

    def _shard_iterators_per_split(self, dl_manager):
        root = self.find_root(Path(dl_manager.manual_dir))
        entries = {split: self.find(root, split) for split in self.splits(root)}
        # Refuse the files of another data set before anything is written.
        for found in entries.values():
            self.record(found[0])
            for entry in found:
                self.image_id(entry[0])
        self.info.metadata['file_names'] = {
            split: [entry[0] for entry in found] for split, found in entries.items()
        }
        return self._parts.prepare(root, entries)

    def _post_download_and_prepare_hook(self):
        self._parts.remove()

    @classmethod
    def record(cls, entry: tuple) -> dict[str, Any]:
        """Reads and checks an example for TFDS to write.

        Returns:
          As `read`, with maps as PNG bytes, and 'pixels', int [K]: pixels of each class.
        """
        example = cls.read(entry)
        size = codecs.decode_image(example['image'], entry[0]).shape[:2]
        if size != example['labels'].shape:
            raise CorruptExample(images.size_mismatch(entry[0], size, example['labels'].shape))
        maps = {
            name: codecs.encode_png(example[name])
            for name in ('labels', 'panoptic_ids')
            if name in example
        }
        num_classes = len(read_classes(cls.CLASSES)['names'])
        pixels = np.bincount(example['labels'].ravel(), minlength=num_classes)[:num_classes]
        return example | maps | {'file_name': entry[0], 'pixels': pixels}

    @classmethod
    def prepare(cls, path: Path, records: str | Path) -> Path:
        """Writes records of the official folder `path` into `records`; returns their folder.

        Plain TFDS: `download_and_prepare`.
        """
        cls.find_root(path)  # before anything is written
        builder = cls(data_dir=records)
        if builder.data_path.exists():
            print(f'{builder.data_path} exists already; remove that folder to prepare it again')
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=path))
        return Path(builder.data_path)

    @classmethod
    def get_source(cls, data_config: ConfigDict, split: str) -> Source:
        """Opens a split of the records in `data_config.dir`, or else of the official folder.

        Raises:
          FileNotFoundError: the folder is neither, or files are missing.
          ValueError: the split does not exist, or `num_classes` is another number.
        """
        if split not in cls.PUBLISHED:
            raise ValueError(
                f'{cls.name} has no split {split!r}; the splits are {", ".join(cls.PUBLISHED)}'
            )
        folder.check_num_classes(
            data_config.num_classes, read_classes(cls.CLASSES)['names'], cls.name
        )
        path = data_config.dir or tfds.core.constants.DATA_DIR
        return cls.open_split(files.records_folder(path, cls.name), split)

    @classmethod
    def open_split(cls, path: Path, split: str) -> PublishedSource:
        """As `get_source`, for a split that should exist."""
        with preparation.reading(path / cls.name):
            builder = cls(data_dir=path, file_format=None)  # None: that of the records
        if not builder.data_path.exists():
            entries = cls.find(cls.find_root(path), split)
            source = cls.SOURCE(cls, split, entries, ids=[entry[0] for entry in entries])
            source.annotated = cls.has_annotations(entries)
            return source
        if split not in builder.info.splits:
            raise ValueError(
                f'{builder.data_path} was prepared without the split {split!r}; remove it to '
                'prepare it again'
            )
        skip = {
            name: tfds.decode.SkipDecoding()
            for name, feature in builder.info.features.items()
            if isinstance(feature, tfds.features.Image)
        }
        with preparation.reading(builder.data_path):
            records = builder.as_data_source(split, decoders=skip)
            source = cls.SOURCE(cls, split, records, ids=builder.info.metadata['file_names'][split])
            source.annotated = any(builder.info.metadata['pixels'][split])
        return source


class PanopticBuilder(Builder, skip_registration=True):
    """Base of the data sets with segments.

    `read` also returns 'panoptic_ids', uint8 [H, W, 3], ids as colors in COCO's format, and
    'segments', dicts with 'id', 'category_id' in 0..K-1, 'iscrowd', 'area' and 'bbox' (left, top,
    width, height).
    """

    SOURCE = PublishedPanopticSource

    @classmethod
    def features(cls) -> dict[str, tfds.features.FeatureConnector]:
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


class VideoBuilder(Builder, skip_registration=True):
    """Base of the data sets of videos.

    An example is a frame, its file_name '<video>/<frame>'. `find` keeps the frames of a video
    together.

    Attributes:
      PUBLISHED_VIDEOS: number of videos of each split; PUBLISHED counts frames, which are not
        stated.
    """

    SOURCE = PublishedVideoSource
    PUBLISHED = dict.fromkeys(('train', 'validation', 'test'))
    PUBLISHED_VIDEOS: dict[str, int]
