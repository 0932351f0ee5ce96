"""Names on pictures: tags on a colored ground, and legends."""

import math
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from rankseg_jax import fonts
from rankseg_jax.visualize.colors import FAINT, INK, PAPER, palette
from rankseg_jax.visualize.painting import Regions

TEXT = 16  # pixels
LEGEND_NAMES = 12


class Tag:
    """A name and a note on a colored ground.

    Attributes:
      width, height: in pixels.
    """

    def __init__(self, board: Image.Image, name: str, note: str, color: tuple[int, ...]):
        self._board, self._note, self._color = board, note, color
        text = max(14, max(board.size) // 56)
        self._plain, self._margin = ImageFont.load_default(text), text // 4
        room = min(board.width, max(board.width // 2, 12 * text)) - 2 * self._margin
        note_width = self._plain.getlength(note)
        self._name, self._font, self._name_width = fit(name, text, room - note_width)
        self.width = math.ceil(self._name_width + note_width) + 2 * self._margin
        self.height = round(1.4 * text)

    def draw(
        self,
        spots: Iterable[Sequence[float]],
        taken: list[tuple[float, float, float, float]],
        always: bool = False,
    ) -> None:
        """Draws the tag at the first (left, top) of `spots` that is free, moved into the picture.

        Args:
          taken: boxes of the tags that are there; gets that of this one.
          always: draw it at the first spot if none is free.
        """
        spots = [
            tuple(
                max(0, min(round(start), whole - own))
                for start, own, whole in zip(
                    spot, (self.width, self.height), self._board.size, strict=True
                )
            )
            for spot in spots
        ]
        boxes = [(x, y, x + self.width, y + self.height) for x, y in spots]
        free = [box for box in boxes if not any(_overlap(box, other) for other in taken)]
        if not free and not always:
            return
        box = (free or boxes)[0]
        taken.append(box)
        draw, (left, top, right, bottom) = ImageDraw.Draw(self._board), box
        draw.rectangle([left, top, right - 1, bottom - 1], self._color)
        brightness = np.dot(self._color, [0.299, 0.587, 0.114])
        ink = INK if brightness > 128 else PAPER
        left, middle = left + self._margin, (top + bottom) // 2
        draw.text((left, middle), self._name, ink, self._font, anchor='lm')
        draw.text((left + self._name_width, middle), self._note, ink, self._plain, anchor='lm')


def _overlap(a, b):
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def legend_picture(
    regions: Regions, class_names: Sequence[str], *, width: int, text: int
) -> Image.Image:
    """Color, name and number of segments of each class, in rows of at most `width` pixels."""
    classes = regions.classes
    present = [
        (-regions.areas[classes == c].sum(), c, (classes == c).sum())
        for c in np.unique(classes)
        if 0 <= c < len(class_names)
    ]
    colors, plain = palette(len(class_names)), ImageFont.load_default(text)
    entries: list[tuple[str, str, tuple[int, ...] | None]] = [
        (class_names[c], f'  x {count}' if count > 1 else '', tuple(colors[c].tolist()))
        for _, c, count in sorted(present)[:LEGEND_NAMES]
    ]
    if len(present) > LEGEND_NAMES:
        entries.append(('', f'+{len(present) - LEGEND_NAMES} more', None))

    left, top, row, spots = 0, 0, round(text * 1.5), []
    for name, note, color in entries:
        chip = round(text * 1.3) if color else 0
        note_width = plain.getlength(note)
        name, font, name_width = fit(name, text, width - chip - note_width)
        right = left + chip + name_width + note_width
        if left and right > width:
            left, top, right = 0, top + row, right - left
        spots.append((left, top, chip, name, font, left + chip + name_width, note, color))
        left = right + text
    board = Image.new('RGB', (width, top + row if spots else 1), PAPER)
    draw = ImageDraw.Draw(board)
    for left, top, chip, name, font, end, note, color in spots:
        middle = top + row // 2
        if color:
            draw.rectangle([left, middle - text // 2, left + text - 1, middle + text // 2], color)
        draw.text((left + chip, middle), name, INK, font, anchor='lm')
        draw.text((end, middle), note, FAINT, plain, anchor='lm')
    return board


def fit(
    name: str, size: int, width: float
) -> tuple[str, ImageFont.FreeTypeFont | ImageFont.ImageFont, float]:
    """A name shortened to `width` pixels in a font of `size`, its font, and the width it takes."""
    name, font = fonts.fitting(name, size)
    short = name
    while name and font.getlength(short) > width:
        name = name[:-1]
        short = name.rstrip(' ,;(_-') + '…'
    return short, font, font.getlength(short)
