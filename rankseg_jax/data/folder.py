"""Anyone's own data: pictures and label PNGs that share their names.

    <data.dir>/
      classes.txt             one name a line, in label order
      images/<split>/a.jpg    any format that Pillow reads
      labels/<split>/a.png    8 or 16 bit, grey or palette: a pixel's value is its class

`data.ignore_label` is the value of pixels that don't count. With `data.reduce_zero_label` the
value 0 doesn't count either, and value v means class v - 1.
"""

import dataclasses
from collections import Counter
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps
from tqdm import tqdm

from rankseg_jax.data import IGNORE_LABEL, CorruptExample

IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.webp', '.tif', '.tiff', '.ppm', '.gif')


@dataclasses.dataclass(frozen=True)
class PairedFiles:
    """A source of picture files with a label file each.

    Attributes:
      class_names: K names in label order.
      pairs: (picture, label) paths.
      ignore_label: value on disk of pixels that don't count.
      reduce_zero_label: value 0 on disk doesn't count, and v means class v - 1.
      unmatched: files without a partner.
    """

    class_names: tuple[str, ...]
    pairs: tuple[tuple[Path, Path], ...]
    ignore_label: int
    reduce_zero_label: bool = False
    unmatched: tuple[Path, ...] = ()

    def __len__(self):
        return len(self.pairs)

    @property
    def ids(self):
        return [image.name for image, _ in self.pairs]

    @property
    def label_values(self):
        """The values on disk of the classes."""
        return range(self.reduce_zero_label, len(self.class_names) + self.reduce_zero_label)

    def load(self, index):
        """Reads {'image': uint8 [H, W, 3], 'label': int32 [H, W]}.

        Raises:
          CorruptExample: a file cannot be read, or the two differ in size.
          ValueError: a label value is out of range, or the label is not a map of values.
        """
        image_path, label_path = self.pairs[index]
        image = read_image(image_path)
        label = self.read_label(label_path)
        if image.shape[:2] != label.shape:
            raise CorruptExample(size_mismatch(image_path, image.shape[:2], label.shape))
        return {'image': image, 'label': label}

    def read_label(self, path):
        """Reads a label file as int32 [H, W] in 0..K-1 or IGNORE_LABEL; raises as `load`."""
        values = read_values(path)
        ignored = values == self.ignore_label
        label = values
        if self.reduce_zero_label:
            ignored |= values == 0
            label = values - 1
        wrong = ~ignored & ((label < 0) | (label >= len(self.class_names)))
        if wrong.any():
            first = self.reduce_zero_label
            raise ValueError(
                f'{path}: label value {values[wrong].min()} is outside '
                f'{first:d}..{len(self.class_names) - 1 + first} (K = {len(self.class_names)} '
                f'classes, ignore_label = {self.ignore_label}, reduce_zero_label = '
                f'{self.reduce_zero_label}). Name every class in classes.txt, set '
                'config.data.ignore_label if the value means "don\'t count", or correct the file.'
            )
        return np.where(ignored, IGNORE_LABEL, label)


def size_mismatch(image_path, image_size, label_size):
    return (
        f'{image_path}: the picture has {image_size[0]} x {image_size[1]} pixels (rows x columns, '
        f'turned by its EXIF orientation), its label {label_size[0]} x {label_size[1]}'
    )


def read_image(path):
    """Reads a picture of any kind as uint8 RGB [H, W, 3].

    The EXIF orientation is applied, to pictures and labels alike, as viewers and labelling tools
    do; transparency is dropped; 16-bit grey keeps its upper 8 bits.

    Raises:
      CorruptExample: the file cannot be read.
    """
    image = _decode(path)
    if image.mode == 'F':
        raise CorruptExample(f'{path}: pictures of floating-point pixels are not supported')
    return to_rgb(image)


def to_rgb(image):
    """A PIL image of any kind as uint8 RGB [H, W, 3]; see `read_image`."""
    if image.mode.startswith('I'):
        upper = np.clip(np.asarray(image, np.int32) >> 8, 0, 255)
        image = Image.fromarray(upper.astype(np.uint8))
    return np.array(image.convert('RGB'))


def read_values(path):
    """Reads the values of a label file, palette indices included, as int32 [H, W].

    Raises:
      CorruptExample: the file cannot be read.
      ValueError: its pixels are colours, not values.
    """
    image = _decode(path)
    values = np.asarray(image)
    if values.ndim != 2 or values.dtype.kind not in 'bui':
        raise ValueError(
            f'{path}: a label needs one value a pixel (8- or 16-bit grey, or palette), but its '
            f'mode is {image.mode}; convert its colours to class indices'
        )
    return values.astype(np.int32)


def _decode(path):
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image)
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error, …
        raise CorruptExample(f'{path}: {type(error).__name__}: {error}') from error


class LabelWriter:
    """Writes label maps as the label files of a data set: <folder>/<name of the image>.png, 16-bit where values need it.

    The values are the source's `label_values`, else 0..K-1; IGNORE_LABEL becomes 0 if no class has that value, else 255 or 65535.
    """

    def __init__(self, folder, source):
        self.folder = Path(folder)
        values = list(getattr(source, 'label_values', range(len(source.class_names))))
        dtype = np.uint8 if max(values) < 255 else np.uint16
        self.values = np.array(
            [*values, np.iinfo(dtype).max if 0 in values else 0], dtype
        )  # [K + 1]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def write(self, name: str, labels):
        """One image of `source.ids`; labels int [H, W] in 0..K-1 or IGNORE_LABEL, which is -1."""
        stem, suffix = name.rpartition('.')[::2]
        path = self.folder / f'{stem if f".{suffix}".lower() in IMAGE_SUFFIXES else name}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(self.values[labels]).save(path)


def match_files(image_dir, label_dir, layout):
    """Pairs the pictures of a folder with the PNGs of the same names in another.

    Returns:
      pairs, a tuple of (picture, label) paths in order of name, and the files left without a
      partner.

    Raises:
      FileNotFoundError: a folder is missing; the message ends in `layout`.
      ValueError: two pictures of one name.
    """
    for folder in (image_dir, label_dir):
        if not folder.is_dir():
            raise FileNotFoundError(f'no folder {folder}. {layout}')
    images = _files(image_dir, IMAGE_SUFFIXES)
    labels = _files(label_dir, ('.png',))
    stems = Counter(path.stem for path in images)
    if twice := [path.name for path in images if stems[path.stem] > 1]:
        raise ValueError(f'{image_dir} has pictures of the same name: {", ".join(twice[:4])}')
    label_of = {path.stem: path for path in labels}
    pairs = tuple((path, label_of[path.stem]) for path in images if path.stem in label_of)
    unmatched = [path for path in images if path.stem not in label_of]
    unmatched += [path for path in labels if path.stem not in stems]
    return pairs, tuple(unmatched)


def _files(folder, suffixes):
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in suffixes and not path.name.startswith('.')
    )


def check_num_classes(num_classes, class_names, origin):
    if num_classes not in (0, len(class_names)):
        raise ValueError(
            f'config.data.num_classes = {num_classes}, but {origin} names {len(class_names)} '
            'classes; set it to 0 to take theirs'
        )


@dataclasses.dataclass
class Report:
    """What `check` found.

    Attributes:
      class_names: K names.
      num_examples: pairs checked, N.
      problems: reasons not to train.
      warnings: what training would live with.
      pixels: int64 [K], labelled pixels of each class.
      images: int64 [K], label files that hold the class.
      categories: int64 [N'], categories in each label file that could be read.
      ignored: share of pixels that don't count, 0..1.
    """

    class_names: tuple[str, ...]
    num_examples: int
    problems: list[str]
    warnings: list[str]
    pixels: np.ndarray
    images: np.ndarray
    categories: np.ndarray
    ignored: float

    def __str__(self):
        lines = [f'{self.num_examples} examples, {len(self.class_names)} classes']
        if len(self.categories):
            low, middle, p99, high = np.percentile(self.categories, (0, 50, 99, 100))
            lines.append(
                f'categories an image: min {low:.0f}, median {middle:g}, '
                f'mean {self.categories.mean():.1f}, p99 {p99:g}, max {high:.0f}; '
                f'{self.ignored:.1%} of the pixels are ignored'
            )
        lines += [f'PROBLEM: {problem}' for problem in self.problems]
        lines += [f'warning: {warning}' for warning in self.warnings]
        never = [name for name, n in zip(self.class_names, self.images, strict=True) if not n]
        if never and len(self.categories):
            lines.append('warning: ' + _listed(f'{len(never)} classes never seen', never))
        return '\n'.join(lines)


def check(source, max_corrupt=None):
    """Reads every label file and every picture's header before training does.

    Args:
      source: a PairedFiles.
      max_corrupt: more unreadable or mismatched pairs than this, or no other pairs, are a problem, not a warning.

    Returns:
      A Report; training should not start if it has `problems`.
    """
    pixels, images = (
        np.zeros(len(source.class_names) + 1, np.int64) for _ in range(2)
    )  # [K + 1], the ignored last
    categories, faults = [], {'wrong': [], 'corrupt': []}
    with ThreadPool() as pool:
        found = pool.imap(lambda pair: _check_pair(source, *pair), source.pairs)
        for held, counts, fault, message in tqdm(
            found, 'Checking', len(source), unit=' files', delay=3, mininterval=3
        ):
            if fault:
                faults[fault].append(message)
                continue
            pixels[held] += counts
            images[held] += 1
            categories.append(np.count_nonzero(held < len(source.class_names)))
    wrong, corrupt = faults.values()
    problems, warnings = [], []
    if not source.pairs:
        problems.append(
            'no picture has a label file of its name' if source.unmatched else 'no pictures'
        )
    if wrong:
        problems.append(_listed(f'{len(wrong)} label files with wrong values', wrong))
    if corrupt:
        limit = ''
        if len(corrupt) == len(source.pairs):
            limit = ', which is all of them'
        elif max_corrupt is not None and len(corrupt) > max_corrupt:
            limit = f', more than config.data.max_corrupt = {max_corrupt}'
        listed = _listed(f'{len(corrupt)} pairs that cannot be used{limit}', corrupt)
        (problems if limit else warnings).append(listed)
    if source.unmatched:
        files = [str(path) for path in source.unmatched]
        warnings.append(_listed(f'{len(files)} files without a partner', files))
    ignored = source.ignore_label - source.reduce_zero_label
    if 0 <= ignored < len(source.class_names):
        warnings.append(
            f'the value {source.ignore_label} is config.data.ignore_label and also the class '
            f'{source.class_names[ignored]!r}, whose pixels will not count; if that is not meant, '
            'choose a value that no class has, such as 65535'
        )
    return Report(
        class_names=source.class_names,
        num_examples=len(source),
        problems=problems,
        warnings=warnings,
        pixels=pixels[:-1],
        images=images[:-1],
        categories=np.array(categories, np.int64),
        ignored=pixels[-1] / max(pixels.sum(), 1),
    )


def _check_pair(source, image_path, label_path):
    """Returns the values of a label [n], K for the ignored, their pixels [n], the kind of fault or None, and its message."""
    try:
        label = source.read_label(label_path)
        size = _header_size(image_path)
        if size != label.shape:
            raise CorruptExample(size_mismatch(image_path, size, label.shape))
    except CorruptExample as error:
        return None, None, 'corrupt', str(error)
    except ValueError as error:
        return None, None, 'wrong', str(error)
    num_classes = len(source.class_names)
    counts = np.bincount(np.where(label == IGNORE_LABEL, num_classes, label).ravel())
    held = np.flatnonzero(counts)
    return held, counts[held], None, ''


def _header_size(path):
    try:
        with Image.open(path) as image:
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
            return image.size if turned else image.size[::-1]
    except Exception as error:  # as in _decode
        raise CorruptExample(f'{path}: {type(error).__name__}: {error}') from error


def _listed(title, items, limit=5):
    more = [f'… and {len(items) - limit} more'] if len(items) > limit else []
    return '\n    '.join([f'{title}:', *items[:limit], *more])


def get_source(data_config, split):
    """Opens `images/<split>` and `labels/<split>` below `data_config.dir`.

    Raises:
      FileNotFoundError: a folder or `classes.txt` is missing.
      ValueError: a class without a name; `num_classes` differs from `classes.txt`.
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
        raise ValueError(f'{classes} is not UTF-8 text ({error}); save it as such') from error
    if '' in names:
        raise ValueError(f'{classes}: line {names.index("") + 1} has no name')
    check_num_classes(data_config.num_classes, names, classes)
    return PairedFiles(
        names, pairs, data_config.ignore_label, data_config.reduce_zero_label, unmatched
    )
