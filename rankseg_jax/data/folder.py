"""User data: images and label PNGs that share their names.

    <data.dir>/
      classes.txt             one name per line, in label order
      images/<split>/a.jpg    any format that Pillow reads
      labels/<split>/a.png    8 or 16 bit, gray or palette: the value of a pixel is its class

Pixels with the value `data.ignore_label` are ignored. With `data.reduce_zero_label` the value 0 is
ignored as well, and the value v means class v - 1.
"""

from collections import Counter
from pathlib import Path

import numpy as np

from rankseg_jax.data import IGNORE_LABEL, CorruptExample, Source, check, images
from rankseg_jax.data.report import Report


class PairedFiles(Source):
    """A source of image files with one label file each.

    Attributes:
      class_names: K names in label order.
      pairs: (image, label) paths.
      ignore_label: value on disk of ignored pixels.
      reduce_zero_label: value 0 on disk is ignored, and v means class v - 1.
      unmatched: files without a partner.
    """

    def __init__(
        self,
        class_names: tuple[str, ...],
        pairs: tuple[tuple[Path, Path], ...],
        ignore_label: int,
        reduce_zero_label: bool = False,
        unmatched: tuple[Path, ...] = (),
    ):
        self.class_names, self.pairs, self.unmatched = class_names, pairs, unmatched
        self.ignore_label, self.reduce_zero_label = ignore_label, reduce_zero_label
        self.ids = [image.name for image, _ in pairs]
        first = int(reduce_zero_label)
        self.label_values = range(first, first + len(class_names))

    def load(self, index: int) -> dict[str, np.ndarray]:
        """See `Source.load`.

        Raises:
          CorruptExample: a file cannot be read, or the two differ in size.
          ValueError: a label value is out of range, or the label file has no single values.
        """
        image_path, label_path = self.pairs[index]
        image = images.read_image(image_path)  # [H, W, 3]
        label = self.read_label(label_path)  # [H, W]
        if image.shape[:2] != label.shape:
            raise CorruptExample(images.size_mismatch(image_path, image.shape[:2], label.shape))
        return {'image': image, 'label': label}

    def read_label(self, path: Path) -> np.ndarray:
        """Reads a label file as int32 [H, W] in 0..K-1 or IGNORE_LABEL; raises as `load`."""
        values = images.read_values(path)  # [H, W]
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


def match_files(
    image_dir: Path, label_dir: Path, layout: str
) -> tuple[tuple[tuple[Path, Path], ...], tuple[Path, ...]]:
    """Pairs the images of a folder with the PNGs of the same names in another.

    Args:
      layout: how the folders should look; ends the message of a missing folder.

    Returns:
      (image, label) paths in the order of their names, and the files without a partner.

    Raises:
      FileNotFoundError: a folder is missing.
      ValueError: two images have the same name.
    """
    for folder in (image_dir, label_dir):
        if not folder.is_dir():
            raise FileNotFoundError(f'no folder {folder}. {layout}')
    image_paths = _files(image_dir, images.IMAGE_SUFFIXES)
    label_paths = _files(label_dir, ('.png',))
    stems = Counter(path.stem for path in image_paths)
    if repeated := [path.name for path in image_paths if stems[path.stem] > 1]:
        raise ValueError(f'{image_dir} has images with the same name: {", ".join(repeated[:4])}')
    label_of = {path.stem: path for path in label_paths}
    pairs = tuple((path, label_of[path.stem]) for path in image_paths if path.stem in label_of)
    unmatched = [path for path in image_paths if path.stem not in label_of]
    unmatched += [path for path in label_paths if path.stem not in stems]
    return pairs, tuple(unmatched)


def _files(folder, suffixes):
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in suffixes and not path.name.startswith('.')
    )


def check_num_classes(num_classes: int, class_names, origin: str | Path) -> None:
    """Raises a ValueError if the config asks for another number of classes than the data have."""
    if num_classes not in (0, len(class_names)):
        raise ValueError(
            f'config.data.num_classes = {num_classes}, but {origin} names {len(class_names)} '
            'classes; set it to 0 to use that number'
        )


def get_source(data_config, split: str) -> PairedFiles:
    """Opens `images/<split>` and `labels/<split>` below `data_config.dir`.

    Raises:
      FileNotFoundError: a folder or `classes.txt` is missing.
      ValueError: a class has no name, or `num_classes` differs from `classes.txt`.
    """
    root = Path(data_config.dir).expanduser()
    layout = (
        f'config.data.dir = {data_config.dir!r} must hold images/{split}/*, labels/{split}/*.png '
        'and classes.txt'
    )
    pairs, unmatched = match_files(root / 'images' / split, root / 'labels' / split, layout)
    classes = root / 'classes.txt'
    if not classes.is_file():
        raise FileNotFoundError(f'no file {classes}. {layout}')
    try:
        names = tuple(line.strip() for line in classes.read_text('utf-8-sig').rstrip().split('\n'))
    except UnicodeDecodeError as error:
        raise ValueError(f'{classes} is not UTF-8 text ({error}); save it as UTF-8') from error
    if '' in names:
        raise ValueError(f'{classes}: line {names.index("") + 1} has no name')
    check_num_classes(data_config.num_classes, names, classes)
    return PairedFiles(
        class_names=names,
        pairs=pairs,
        ignore_label=data_config.ignore_label,
        reduce_zero_label=data_config.reduce_zero_label,
        unmatched=unmatched,
    )
