"""User data: images and label PNGs that share their names.

    <data.dir>/
      classes.txt             one name per line, in label order
      images/<split>/a.jpg    or any other of `images.IMAGE_SUFFIXES`
      labels/<split>/a.png    8 or 16 bit, gray or palette: the value of a pixel is its class

Both may have subfolders, the same ones: images/<split>/b/c.jpg goes with labels/<split>/b/c.png.
Pixels with the value `data.ignore_label` are ignored. With `data.reduce_zero_label` the value 0 is
ignored as well, and the value v means class v - 1.
"""

import unicodedata
from collections import Counter
from collections.abc import Sized
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from rankseg_jax import storage
from rankseg_jax.data import IGNORE_LABEL, CorruptExample, Source, check, images
from rankseg_jax.data.report import Report


class Matched(NamedTuple):
    """The files of a folder of images and a folder of label files; see `match_files`.

    Attributes:
      ids: the images' paths in their folder.
      pairs: (image, label) paths.
      unmatched: images and label files without a partner.
      other_labels: label files that are not PNGs, which are not read.
      other_images: files with the name of a label file that are not images by their suffix.
    """

    ids: tuple[str, ...]
    pairs: tuple[tuple[Path, Path], ...]
    unmatched: tuple[Path, ...] = ()
    other_labels: tuple[Path, ...] = ()
    other_images: tuple[Path, ...] = ()


class PairedFiles(Source):
    """A source of image files with one label file each.

    Attributes:
      class_names: K names in label order.
      files: what `match_files` found.
      ignore_label: value on disk of ignored pixels.
      reduce_zero_label: value 0 on disk is ignored, and v means class v - 1.
      max_pixels: images and label files with more are not read.
    """

    def __init__(
        self,
        class_names: tuple[str, ...],
        files: Matched,
        ignore_label: int,
        reduce_zero_label: bool = False,
        max_pixels: int = images.MAX_PIXELS,
    ):
        self.class_names, self.files, self.ids = class_names, files, files.ids
        self.ignore_label, self.reduce_zero_label = ignore_label, reduce_zero_label
        self.max_pixels = max_pixels
        first = int(reduce_zero_label)
        self.label_values = range(first, first + len(class_names))

    def load(self, index: int) -> dict[str, np.ndarray]:
        """See `Source.load`.

        Raises:
          CorruptExample: a file cannot be read, or the two differ in size.
          ValueError: a label value is out of range, or the label file has no single values.
        """
        image_path, label_path = self.files.pairs[index]
        image = images.read_image(image_path, self.max_pixels)  # [H, W, 3]
        label = self.read_label(label_path)  # [H, W]
        if image.shape[:2] != label.shape:
            raise CorruptExample(images.size_mismatch(image_path, image.shape[:2], label.shape))
        return {'image': image, 'label': label}

    def read_label(self, path: Path) -> np.ndarray:
        """Reads a label file as int32 [H, W] in 0..K-1 or IGNORE_LABEL; raises as `load`."""
        values = images.read_values(path, self.max_pixels)  # [H, W]
        ignored = values == self.ignore_label
        if self.reduce_zero_label:
            ignored |= values == 0
        first, last = self.label_values[0], self.label_values[-1]
        label = values - first
        wrong = ~ignored & ((label < 0) | (label >= len(self.class_names)))
        if wrong.any():
            raise ValueError(
                f'{path}: label value {values[wrong].min()} is outside '
                f'{first}..{last} (K = {len(self.class_names)} classes, '
                f'ignore_label = {self.ignore_label}, '
                f'reduce_zero_label = {self.reduce_zero_label}). Name every class in classes.txt, '
                'set config.data.ignore_label if the value means "ignore", or correct the file.'
            )
        return np.where(ignored, IGNORE_LABEL, label)

    def check(self, max_corrupt: int | None = None) -> Report:
        """Reads every label file and the header of every image; see `check.check`."""
        return check.check(self, max_corrupt)


def match_files(image_dir: Path, label_dir: Path, layout: str) -> Matched:
    """Pairs the images of a folder with the PNGs of the same names in another.

    Subfolders are searched, and a file's name includes them. Hidden files are left out. Names are
    compared in Unicode's composed form, since macOS takes letters and their accents apart.

    Args:
      layout: how the folders should look; ends the message of a missing folder.

    Returns:
      The files in the order of their names.

    Raises:
      FileNotFoundError: a folder is missing.
      ValueError: two images, or two PNGs, have the same name.
    """
    for folder in (image_dir, label_dir):
        if not folder.is_dir():
            raise FileNotFoundError(f'no folder {folder}. {layout}')

    def named(folder, suffixes):
        return [
            (
                unicodedata.normalize('NFC', path.relative_to(folder).with_suffix('').as_posix()),
                path,
            )
            for path in images.find(folder, suffixes)
        ]

    files, label_names = named(image_dir, ('',)), named(label_dir, images.IMAGE_SUFFIXES)
    image_names = [pair for pair in files if pair[1].suffix.lower() in images.IMAGE_SUFFIXES]
    png_names = [pair for pair in label_names if pair[1].suffix.lower() == '.png']
    image_of = unique(image_dir, 'images', image_names)
    label_of = unique(label_dir, 'label files', png_names)
    pairs = [(path, label_of[key]) for key, path in image_names if key in label_of]
    unmatched = [path for key, path in image_names if key not in label_of]
    unmatched += [path for key, path in png_names if key not in image_of]
    return Matched(
        ids=tuple(path.relative_to(image_dir).as_posix() for path, _ in pairs),
        pairs=tuple(pairs),
        unmatched=tuple(unmatched),
        other_labels=tuple(path for key, path in label_names if key not in label_of),
        other_images=tuple(path for key, path in files if key in label_of and key not in image_of),
    )


def unique(folder: Path, kind: str, names: list[tuple[str, Path]]) -> dict[str, Path]:
    """The paths in a folder by their names; a ValueError if two have the same one."""
    count = Counter(key for key, _ in names)
    if repeated := [path for key, path in names if count[key] > 1]:
        listed = ', '.join(path.relative_to(folder).as_posix() for path in repeated[:4])
        raise ValueError(f'{folder} has {kind} with the same name: {listed}')
    return dict(names)


def read_class_names(path: Path, layout: str) -> tuple[str, ...]:
    """Reads a file of class names, one per line.

    Args:
      layout: how the folder should look; ends the message of a missing file.

    Raises:
      FileNotFoundError: it is missing.
      ValueError: it is not text, or a class has no name or another's.
    """
    if not path.is_file():
        raise FileNotFoundError(f'no file {path}. {layout}')
    try:
        text = path.read_bytes().decode('utf-8-sig')
        names = tuple(line.strip() for line in text.rstrip().split('\n'))
    except UnicodeDecodeError as error:
        raise ValueError(f'{path} is not UTF-8 text ({error}); save it as UTF-8') from error
    if '' in names:
        raise ValueError(f'{path}: line {names.index("") + 1} has no name')
    for line, name in enumerate(names, 1):
        if (first := names.index(name) + 1) < line:
            raise ValueError(
                f'{path}: lines {first} and {line} have the same name {name!r}; give each class '
                'a name of its own'
            )
    return names


def check_num_classes(num_classes: int, class_names: Sized, origin: str | Path) -> None:
    """Raises a ValueError if the config asks for another number of classes than the data have."""
    if num_classes not in (0, len(class_names)):
        raise ValueError(
            f'config.data.num_classes = {num_classes}, but {origin} names {len(class_names)} '
            'classes; set it to 0 to use that number'
        )


def get_source(data_config: ConfigDict, split: str) -> PairedFiles:
    """Opens `images/<split>` and `labels/<split>` below `data_config.dir`.

    Raises:
      FileNotFoundError: a folder or `classes.txt` is missing.
      ValueError: a class has no name or another's, or `num_classes` differs from `classes.txt`.
    """
    root = storage.path(data_config.dir)
    layout = (
        f'config.data.dir = {data_config.dir!r} must hold images/{split}/*, labels/{split}/*.png '
        'and classes.txt'
    )
    files = match_files(root / 'images' / split, root / 'labels' / split, layout)
    names = read_class_names(root / 'classes.txt', layout)
    check_num_classes(data_config.num_classes, names, root / 'classes.txt')
    return PairedFiles(
        class_names=names,
        files=files,
        ignore_label=data_config.ignore_label,
        reduce_zero_label=data_config.reduce_zero_label,
        max_pixels=data_config.max_pixels,
    )
