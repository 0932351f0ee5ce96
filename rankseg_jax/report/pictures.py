"""Pictures of the gallery: image, truth, prediction and errors, each a small data URL."""

import base64
import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from rankseg_jax.data import IGNORE_LABEL, CorruptExample, Source
from rankseg_jax.predict import Predictor, nearest
from rankseg_jax.visualize.colors import palette, shades

LONG_SIDE = 320  # pixels
FRAMES = 24  # of a video that are shown
RANKED = 12  # categories that are listed
# Okabe & Ito's colors, which differ for everyone: wrong; wrong since the class was not selected.
WRONG, NOT_SELECTED = (213, 94, 0), (86, 180, 233)
BUDGET = 16 * 2**20  # bytes of all pictures


def draw(places: Sequence[int], predictor: Predictor, source: Source) -> dict[int, dict[str, Any]]:
    """The pictures and categories of some images, or videos of a task that takes clips.

    Args:
      places: in the source, those to draw first come first.
      source: of the images.

    Returns:
      By place, those that can be read and fit into `BUDGET`: 'frames', for each one data URLs of
      'image', 'truth', 'prediction' and 'errors'; 'classes', the names, colors and whereabouts of
      what is drawn; 'ranked', the best categories with their confidence and whether they are there;
      'missed', those there that are not among the κ best; and 'tracks' of videos.
    """
    found, spent = {}, 0
    draw_some = drawn_videos if predictor.task.takes_clips else drawn_images
    for place, item in draw_some(places, predictor, source):
        spent += sum(len(url) for frame in item['frames'] for url in frame.values())
        if spent > BUDGET:
            break
        found[place] = item
    return found


def drawn_images(
    places: Sequence[int], predictor: Predictor, source: Source
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (place, item) of images, see `draw`."""
    labels = {}

    def examples():
        for place in places:
            try:
                example = source.load(place)
            except CorruptExample:
                continue
            labels[place] = example['label']
            yield predictor.example(example['image']) | {'label': example['label'], 'index': place}

    for place, result in predictor.results(examples(), predictor.batch_size):
        yield place, described([(result, labels.pop(place))], predictor.class_names)


def drawn_videos(
    places: Sequence[int], predictor: Predictor, source: Source
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (place, item) of videos, see `draw`; some frames of each, evenly spaced."""
    options = predictor.task.config
    if options.rankseg and options.rankseg.oracle:
        return  # which needs the truth of whole clips
    for place in places:
        _, indices = source.videos[place]
        chosen = np.linspace(0, len(indices) - 1, min(len(indices), FRAMES)).round().astype(int)
        video = predictor.video(source.load(index)['image'] for index in indices)
        try:
            kept = [
                (result, source.load(indices[number])['label'])
                for number, result in enumerate(video)
                if number in chosen
            ]
        except CorruptExample:
            continue
        colors = palette(len(predictor.class_names))
        tracks = [
            {
                'name': track['category'],
                'id': track['id'],
                'score': track['score'],
                'color': css(shades(colors[[track['category_id']]], np.array([track['id']]))[0]),
                'frames': [bool(track['segmentations'][number]) for number in chosen],
            }
            for track in video.content().get('tracks', [])
        ]
        yield place, described(kept, predictor.class_names) | {'tracks': tracks}


def described(
    results: Sequence[tuple[Any, np.ndarray]], class_names: Sequence[str]
) -> dict[str, Any]:
    """An item, see `draw`, of the results and true label maps of an image or of frames."""
    confidences: dict[str, float] = {}
    selected, frames = set(), []
    true, drawn = np.zeros(0, int), np.zeros(0, int)
    for result, label in results:
        for name, confidence in result.categories:
            confidences[name] = max(confidence, confidences.get(name, 0.0))
        selected |= {name for name, _ in result.categories}
        frames.append(layers(result, label))
        true = np.union1d(true, label[label >= 0])
        labels = result.segment_labels()
        drawn = np.union1d(drawn, labels[labels >= 0])
    present = {class_names[c] for c in true.astype(int)}
    ranked = sorted(confidences.items(), key=lambda item: -item[1])
    colors = palette(len(class_names))
    return {
        'frames': frames,
        'classes': [
            {
                'name': class_names[c],
                'color': css(colors[c]),
                'true': bool(c in true),
                'predicted': bool(c in drawn),
            }
            for c in np.union1d(true, drawn).astype(int)
        ],
        'ranked': [
            {'name': name, 'score': round(score, 4), 'present': name in present}
            for name, score in ranked[:RANKED]
        ],
        'missed': sorted(present - selected) if ranked else [],
        'tracks': [],
    }


def layers(result: Any, label: np.ndarray) -> dict[str, str]:
    """The four pictures of one image or frame."""
    height, width = result.image.shape[:2]
    scale = min(1, LONG_SIDE / max(height, width))
    size = max(1, round(height * scale)), max(1, round(width * scale))
    image = Image.fromarray(result.image).resize(size[::-1], Image.Resampling.LANCZOS)
    colors = palette(len(result.class_names))
    segments = None if result.segment_ids is None else nearest(result.segment_ids, size)
    label, labels, drawn = (
        nearest(np.asarray(x), size) for x in (label, result.labels, result.segment_labels())
    )
    wrong = np.where((label != IGNORE_LABEL) & (label != labels), 0, IGNORE_LABEL)  # [h, w]
    if result.categories:
        selected = [result.class_names.index(name) for name, _ in result.categories]
        wrong[(wrong == 0) & ~np.isin(label, selected)] = 1
    return {
        'image': data_url(image, 'JPEG', quality=82),
        'truth': painted(label, None, colors),
        'prediction': painted(drawn, segments, colors),
        'errors': painted(wrong, None, np.array([WRONG, NOT_SELECTED], np.uint8)),
    }


def painted(labels: np.ndarray, segments: np.ndarray | None, colors: np.ndarray) -> str:
    """A map [h, w] in colors [K, 3], several segments of a class in shades; else transparent."""
    segments = np.zeros_like(labels) if segments is None else segments
    codes = np.where(labels < 0, -1, labels.astype(np.int64) << 32 | segments)
    values, places, counts = np.unique(codes, return_inverse=True, return_counts=True)
    kept = np.argsort(np.where(values < 0, 0, -counts), kind='stable')[:255]
    kept = kept[values[kept] >= 0]
    table = np.full(len(values), len(kept), np.uint8)
    table[kept] = np.arange(len(kept))
    shown = shades(colors[values[kept] >> 32], values[kept] & 0xFFFFFFFF)  # [regions, 3]
    picture = Image.fromarray(table[places.reshape(labels.shape)])
    picture.putpalette([*shown.round().astype(np.uint8).ravel().tolist(), 0, 0, 0])
    return data_url(picture, 'PNG', transparency=len(kept), optimize=True)


def data_url(picture: Image.Image, kind: str, **options: Any) -> str:
    """A picture as the address that a page can hold."""
    file = io.BytesIO()
    picture.save(file, kind, **options)
    text = base64.b64encode(file.getvalue()).decode()
    return f'data:image/{kind.lower()};base64,{text}'


def css(color: Sequence[float] | np.ndarray) -> str:
    """A color [3] for style sheets."""
    return '#{:02x}{:02x}{:02x}'.format(*np.asarray(color).round().astype(int).tolist())
