"""Panels: image · ground truth · prediction · ranked categories, side by side; grids of them."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from rankseg_jax.visualize.colors import FAINT, IGNORED, INK, PAPER, palette
from rankseg_jax.visualize.names import TEXT, fit, legend_picture
from rankseg_jax.visualize.painting import CELL, checked_regions, paint_regions, resized

RULE, TRACK, TICK = (228, 228, 228), (243, 244, 246), (24, 150, 72)
CHART = 424  # pixels, width of the bar chart
TITLE, ROW, GAP = 19, 26, 20  # pixels


def panel(
    image: np.ndarray,
    prediction: np.ndarray,
    categories: Sequence[tuple[str, float]],
    class_names: Sequence[str],
    label: np.ndarray | None = None,
    segments: np.ndarray | None = None,
    label_segments: np.ndarray | None = None,
) -> Image.Image:
    """Shows image · ground truth · prediction · ranked categories, side by side.

    Args:
      image: uint8 [H, W, 3].
      prediction: [H, W] integers, predicted labels.
      categories: (name, score) of the chosen categories, best first, scores from 0 to 1; empty
        for a model without a multi-label head, which leaves the chart out.
      class_names: K names in label order.
      label: [H, W] integers, ground truth if there is any; categories in it get a tick.
      segments: [H, W] integers, predicted segments, as for `overlay`.
      label_segments: those of the ground truth.

    Raises:
      ValueError: an image or a label map of another shape or type, or a score outside 0..1.
    """
    for name, score in categories:
        if not 0 <= score <= 1:
            raise ValueError(
                f'score of category {name!r} is {score}, not a confidence in 0..1; '
                'apply a sigmoid to the presence logits first'
            )
    maps = {'Prediction': (prediction, segments)}
    if label is not None:
        maps = {'Ground truth': (label, label_segments)} | maps
    checked = {title: checked_regions(image, *arrays) for title, arrays in maps.items()}
    image = checked['Prediction'][0]
    height, width = image.shape[:2]
    scale = CELL / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    cell = max(size[0], CELL // 2)  # room for the legend of a narrow image

    small = resized(image, size)
    cells = [_column([_title('Image', cell), Image.fromarray(small)])]
    for title, (_, regions) in checked.items():
        picture = Image.new('RGB', size)
        bold = maps[title][1] is not None
        paint_regions(
            picture, small, regions, class_names=class_names, alpha=0.6, size=size, bold=bold
        )
        names = legend_picture(regions, class_names, width=cell, text=TEXT)
        cells.append(_column([_title(title, cell), picture, names]))
    height = max(cell.height for cell in cells)
    if categories:
        present = None
        if label is not None:
            classes = checked['Ground truth'][1].classes
            present = {class_names[c] for c in classes if 0 <= c < len(class_names)}
        height = max(height, 10 * ROW)
        cells.append(_ranking(categories, class_names, present, height=height))

    board = Image.new('RGB', (sum(c.width + GAP for c in cells) + GAP, height + 2 * GAP), PAPER)
    left = GAP
    for cell in cells:
        board.paste(cell, (left, GAP))
        left += cell.width + GAP
    return board


def grid(panels: Sequence[Image.Image]) -> Image.Image:
    """Stacks panels vertically, with thin rules between them."""
    board = Image.new('RGB', (max(p.width for p in panels), sum(p.height for p in panels)), PAPER)
    draw, top = ImageDraw.Draw(board), 0
    for i, p in enumerate(panels):
        board.paste(p, (0, top))
        if i:
            draw.line([GAP, top, board.width - GAP, top], RULE)
        top += p.height
    return board


def _ranking(categories, class_names, present, height):
    """Bar chart of the categories; those in `present` get a tick, unless it is None (unknown)."""
    board = Image.new('RGB', (CHART, height), PAPER)
    title = _title('Ranked categories', CHART)
    board.paste(title)
    draw, font = ImageDraw.Draw(board), ImageFont.load_default(TEXT)
    if present is not None:
        note = 'in ground truth'
        draw.text((CHART, TITLE // 2), note, FAINT, font, anchor='rm')
        _tick(draw, CHART - font.getlength(note) - 22, TITLE // 2)
    colors = dict(zip(class_names, map(tuple, palette(len(class_names)).tolist()), strict=True))
    names = 34 if present is None else 52  # left edges of the columns
    bar, bar_end = 232, CHART - 46
    room = (height - title.height) // ROW
    shown = categories if len(categories) <= room else categories[: room - 1]
    middle = title.height + ROW // 2
    for rank, (name, score) in enumerate(shown, 1):
        ink = INK if present is None or name in present else FAINT
        draw.text((22, middle), str(rank), FAINT, font, anchor='rm')
        if present and name in present:
            _tick(draw, 29, middle)
        text, name_font, _ = fit(name, TEXT, bar - names - 8)
        draw.text((names, middle), text, ink, name_font, anchor='lm')
        draw.rectangle([bar, middle - 7, bar_end, middle + 7], TRACK)
        end = bar + round(score * (bar_end - bar))
        draw.rectangle([bar, middle - 7, end, middle + 7], colors.get(name, IGNORED))
        draw.text((CHART, middle), f'{score:.2f}', INK, font, anchor='rm')
        middle += ROW
    if len(shown) < len(categories):
        rest = f'+{len(categories) - len(shown)} more'
        draw.text((names, middle), rest, FAINT, font, anchor='lm')
    return board


def _tick(draw, left, middle):
    points = [(left, middle), (left + 5, middle + 5), (left + 14, middle - 6)]
    draw.line(points, TICK, 3, 'curve')


def _title(text, width):
    board = Image.new('RGB', (width, TITLE + 10), PAPER)
    font = ImageFont.load_default(TITLE)
    ImageDraw.Draw(board).text((0, TITLE // 2), text, INK, font, anchor='lm')
    return board


def _column(pictures, gap=6):
    """Pictures below each other, aligned left."""
    height = sum(p.height for p in pictures) + gap * (len(pictures) - 1)
    board = Image.new('RGB', (max(p.width for p in pictures), height), PAPER)
    top = 0
    for picture in pictures:
        board.paste(picture, (0, top))
        top += picture.height + gap
    return board
