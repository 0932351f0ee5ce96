"""Label maps and tracks over their images, with the names of what is there."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageOps
from scipy import ndimage

from rankseg_jax.visualize.colors import PAPER, numbered, palette
from rankseg_jax.visualize.names import LEGEND_NAMES, TEXT, Tag, legend_picture
from rankseg_jax.visualize.painting import (
    CELL,
    checked_image,
    checked_regions,
    paint_mask,
    paint_regions,
    picture_size,
    resized,
)


def overlay(
    image: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str],
    alpha: float = 0.5,
    legend: bool = True,
    segments: np.ndarray | None = None,
) -> Image.Image:
    """Paints a label map over its image, with outlines and the names of what is in it.

    Args:
      image: uint8 [H, W, 3].
      labels: [H, W] integers; where they are outside 0..K-1 the image shows through.
      class_names: K names in label order.
      alpha: weight of the colors, 0 to 1.
      legend: whether to list names below the picture, largest area first, with the number of
        segments of each class that has several.
      segments: [H, W] integers, a panoptic prediction's number of each segment, 0 for void, where
        the image shows through. Each segment is outlined, and several segments of one class get
        different shades of its color.

    Returns:
      The picture, RGB; an image smaller than 384 pixels is enlarged by a whole factor.

    Raises:
      ValueError: image is not uint8 [H, W, 3], or labels or segments have another size.
    """
    image, regions = checked_regions(image, labels, segments)
    width, height = size = picture_size(image)
    board = Image.new('RGB', size, PAPER)
    if legend:
        text = max(TEXT, max(size) // 40)
        room = max(width, CELL)
        names = legend_picture(regions, class_names, width=room - 2 * (text // 2), text=text)
        names = ImageOps.expand(names, text // 2, PAPER)
        board = Image.new('RGB', (max(room, names.width), height + names.height), PAPER)
        board.paste(names, (0, height))
    bold = segments is not None
    paint_regions(board, image, regions, class_names=class_names, alpha=alpha, size=size, bold=bold)
    return board


def track_overlay(
    image: np.ndarray,
    masks: np.ndarray,
    ids: Sequence[int] | np.ndarray,
    names: Sequence[str],
    scores: Sequence[float] | np.ndarray | None = None,
    alpha: float = 0.5,
) -> Image.Image:
    """Paints tracks over a frame of their video, each with an outline and a tag: name, id, score.

    A track has the color of its id in all frames.

    Args:
      image: uint8 [H, W, 3].
      masks: bool [N, H, W]; they may overlap, the smaller lies on top. Empty ones are not drawn.
      ids: N integers.
      names: N names of classes.
      scores: N numbers, if the tags should have them.
      alpha: weight of the colors, 0 to 1.

    Returns:
      The picture, RGB. Its size depends on that of the image alone: one smaller than 384 pixels is
      enlarged by a whole factor.

    Raises:
      ValueError: an argument has another shape or type.
    """
    image, masks = checked_image(image), np.asarray(masks)
    if masks.dtype != bool or masks.shape[1:] != image.shape[:2]:
        raise ValueError(
            f'masks are {masks.dtype} {masks.shape}, not bool [N, H, W] with the size of the '
            f'image, {image.shape[:2]}'
        )
    lengths = [len(x) for x in (masks, ids, names, ids if scores is None else scores)]
    if len(set(lengths)) > 1:
        raise ValueError('{} masks, {} ids, {} names and {} scores'.format(*lengths))
    board = Image.fromarray(resized(image, picture_size(image)))
    areas, colors = np.array([np.count_nonzero(mask) for mask in masks]), numbered(ids)
    tags, shown = [], [n for n in np.argsort(-areas, kind='stable') if areas[n]]
    for n in shown:
        color = tuple(colors[n].tolist())
        ends = paint_mask(board, masks[n], color, alpha=alpha, factor=board.width // image.shape[1])
        note = f' {ids[n]}' + ('' if scores is None else f' {scores[n]:.2f}')
        tags.append((Tag(board, names[n], note, color=color), ends))
    taken = []
    for tag, ((top_x, top), (bottom_x, bottom)) in tags:  # over all masks
        above, below = top_x - tag.width // 2, bottom_x - tag.width // 2  # lefts
        spots = [(above, top - tag.height), (below, bottom), (above, top)]
        tag.draw(spots, taken, always=True)
    return board


def frame_overlay(
    image: np.ndarray, labels: np.ndarray, class_names: Sequence[str], alpha: float = 0.5
) -> Image.Image:
    """Paints a label map over a frame of a video, with names on its larger regions.

    As `overlay`, but without a legend, whose height would differ from frame to frame.

    Args:
      image: uint8 [H, W, 3].
      labels: [H, W] integers; where they are outside 0..K-1 the image shows through.
      class_names: K names in label order.
      alpha: weight of the colors, 0 to 1.

    Returns:
      The picture, RGB, of the size of `track_overlay`'s.

    Raises:
      ValueError: image is not uint8 [H, W, 3], or labels have another size.
    """
    image, regions = checked_regions(image, labels, None)
    board = Image.new('RGB', picture_size(image))
    paint_regions(
        board, image, regions, class_names=class_names, alpha=alpha, size=board.size, bold=False
    )
    step = -(-max(regions.shape) // 160)  # a coarse map is enough to find the middle of a region
    coarse = np.asarray(labels)[::step, ::step]  # [h, w]
    known = (regions.classes >= 0) & (regions.classes < len(class_names))
    largest = np.argsort(-regions.areas * known, kind='stable')[: min(known.sum(), LEGEND_NAMES)]
    colors, taken = palette(len(class_names)), []
    for c in regions.classes[largest]:
        row, column, reach = _middle(coarse == c)
        tag = Tag(board, class_names[c], '', color=tuple(colors[c].tolist()))
        scale = step * board.width / image.shape[1]
        if 2 * reach * scale > tag.height:
            spot = column * scale - tag.width / 2, row * scale - tag.height / 2
            tag.draw([spot], taken)
    return board


def _middle(mask):
    """The middle of the largest circle in a mask [H, W]: row, column, radius, 0 if it is empty."""
    distance = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    reach = distance.max()
    spots = np.argwhere(distance > reach - 1)  # [n, 2]; long regions have many such circles
    row, column = spots[((spots - spots.mean(0)) ** 2).sum(1).argmin()]
    return row, column, reach
