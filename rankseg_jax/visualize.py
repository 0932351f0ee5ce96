"""Pictures of label maps, segments and tracks: overlays with names, panels of a prediction."""

import math
from collections import Counter
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps
from scipy import ndimage

from rankseg_jax import fonts

IGNORED = (128, 128, 128)
PAPER, INK, FAINT = (255, 255, 255), (32, 33, 36), (125, 129, 135)
RULE, TRACK, TICK = (228, 228, 228), (243, 244, 246), (24, 150, 72)
CELL = 384  # pixels, longer side of a picture in a panel, and the least of an overlay
CHART = 424  # pixels, width of the bar chart
TEXT, TITLE, ROW, GAP = 16, 19, 26, 20  # pixels
LEGEND_NAMES = 12
BAND = 2**20  # pixels that are worked on at once, so that memory does not grow with the image


def palette(num_classes: int) -> np.ndarray:
    """Colors of K classes, uint8 [K, 3]: all different, none gray or black.

    A class has the same color whatever K is. The colors follow an additive sequence in
    hue, saturation and value, whose steps were searched for far-apart colors at 12 to 847 classes.
    """
    return _colors(np.arange(num_classes))


def _colors(numbers) -> np.ndarray:
    """The colors of the palette with these numbers [n], uint8 [n, 3]."""
    steps = np.asarray(numbers)[:, None] * [0.61803399, 0.4846, 0.4455]  # [n, 3]
    hue, saturation, value = ((steps + [0.58, 0.4, 0.8]) % 1).T  # [n] each
    saturation, value = 0.35 + 0.45 * saturation, 0.5 + 0.45 * value
    sector = (hue[:, None] * 6 + [5, 3, 1]) % 6  # [n, 3]
    dip = np.clip(np.minimum(sector, 4 - sector), 0, 1)
    return np.round(255 * value[:, None] * (1 - saturation[:, None] * dip)).astype(np.uint8)


def colorize(labels, palette) -> np.ndarray:
    """Label map [H, W] -> colors uint8 [H, W, 3]; labels outside 0..K-1 are gray."""
    labels = np.asarray(labels)
    colors = np.concatenate([palette, [IGNORED]]).astype(np.uint8)  # [K + 1, 3]
    known = (labels >= 0) & (labels < len(palette))
    return colors[np.where(known, labels, len(palette))]


def overlay(
    image, labels, class_names, alpha: float = 0.5, legend: bool = True, segments=None
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
    image, regions = _checked(image, labels, segments)
    width, height = size = _picture_size(image)
    board = Image.new('RGB', size, PAPER)
    if legend:
        text = max(TEXT, max(size) // 40)
        room = max(width, CELL)
        names = _legend(regions, class_names, width=room - 2 * (text // 2), text=text)
        names = ImageOps.expand(names, text // 2, PAPER)
        board = Image.new('RGB', (max(room, names.width), height + names.height), PAPER)
        board.paste(names, (0, height))
    bold = segments is not None
    _paint(board, image, regions, class_names, alpha=alpha, size=size, bold=bold)
    return board


def track_overlay(image, masks, ids, names, scores=None, alpha: float = 0.5) -> Image.Image:
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
    image, masks = _checked_image(image), np.asarray(masks)
    if masks.dtype != bool or masks.shape[1:] != image.shape[:2]:
        raise ValueError(
            f'masks are {masks.dtype} {masks.shape}, not bool [N, H, W] with the size of the '
            f'image, {image.shape[:2]}'
        )
    lengths = [len(x) for x in (masks, ids, names, ids if scores is None else scores)]
    if len(set(lengths)) > 1:
        raise ValueError('{} masks, {} ids, {} names and {} scores'.format(*lengths))
    board = Image.fromarray(_resized(image, _picture_size(image)))
    areas, colors = np.array([np.count_nonzero(mask) for mask in masks]), _colors(ids)
    tags, shown = [], [n for n in np.argsort(-areas, kind='stable') if areas[n]]
    for n in shown:
        color = tuple(colors[n].tolist())
        ends = _paint_mask(board, masks[n], color, alpha, factor=board.width // image.shape[1])
        note = f' {ids[n]}' + ('' if scores is None else f' {scores[n]:.2f}')
        tags.append((_Tag(board, names[n], note, color), ends))
    taken = []
    for tag, ((top_x, top), (bottom_x, bottom)) in tags:  # over all masks
        above, below = top_x - tag.width // 2, bottom_x - tag.width // 2  # lefts
        spots = [(above, top - tag.height), (below, bottom), (above, top)]
        tag.draw(spots, taken, always=True)
    return board


def frame_overlay(image, labels, class_names, alpha: float = 0.5) -> Image.Image:
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
    image, regions = _checked(image, labels, None)
    board = Image.new('RGB', _picture_size(image))
    _paint(board, image, regions, class_names, alpha=alpha, size=board.size, bold=False)
    step = -(-max(regions.shape) // 160)  # a coarse map is enough to find the middle of a region
    coarse = np.asarray(labels)[::step, ::step]  # [h, w]
    known = (regions.classes >= 0) & (regions.classes < len(class_names))
    largest = np.argsort(-regions.areas * known, kind='stable')[: min(known.sum(), LEGEND_NAMES)]
    colors, taken = palette(len(class_names)), []
    for c in regions.classes[largest]:
        row, column, reach = _middle(coarse == c)
        tag = _Tag(board, class_names[c], '', tuple(colors[c].tolist()))
        scale = step * board.width / image.shape[1]
        if 2 * reach * scale > tag.height:
            spot = column * scale - tag.width / 2, row * scale - tag.height / 2
            tag.draw([spot], taken)
    return board


def panel(
    image, prediction, categories, class_names, label=None, segments=None, label_segments=None
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
    checked = {title: _checked(image, *arrays) for title, arrays in maps.items()}
    image = checked['Prediction'][0]
    height, width = image.shape[:2]
    scale = CELL / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    cell = max(size[0], CELL // 2)  # room for the legend of a narrow image

    small = _resized(image, size)
    cells = [_column([_title('Image', cell), Image.fromarray(small)])]
    for title, (_, regions) in checked.items():
        picture = Image.new('RGB', size)
        bold = maps[title][1] is not None
        _paint(picture, small, regions, class_names, alpha=0.6, size=size, bold=bold)
        names = _legend(regions, class_names, width=cell, text=TEXT)
        cells.append(_column([_title(title, cell), picture, names]))
    height = max(cell.height for cell in cells)
    if categories:
        present = None
        if label is not None:
            classes = checked['Ground truth'][1].classes
            present = {class_names[c] for c in classes if 0 <= c < len(class_names)}
        height = max(height, 10 * ROW)
        cells.append(_ranking(categories, class_names, present, height))

    board = Image.new('RGB', (sum(c.width + GAP for c in cells) + GAP, height + 2 * GAP), PAPER)
    left = GAP
    for cell in cells:
        board.paste(cell, (left, GAP))
        left += cell.width + GAP
    return board


def grid(panels) -> Image.Image:
    """Stacks panels vertically, with thin rules between them."""
    board = Image.new('RGB', (max(p.width for p in panels), sum(p.height for p in panels)), PAPER)
    draw, top = ImageDraw.Draw(board), 0
    for i, p in enumerate(panels):
        board.paste(p, (0, top))
        if i:
            draw.line([GAP, top, board.width - GAP, top], RULE)
        top += p.height
    return board


def _checked_image(image):
    """The image as an array."""
    image = np.asarray(image)
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f'image is {image.dtype} {image.shape}, not uint8 [H, W, 3]')
    return image


def _checked(image, labels, segments):
    """The image as an array, and its regions."""
    image, labels = _checked_image(image), np.asarray(labels)
    segments = None if segments is None else np.asarray(segments)
    for name, array in (('label map', labels), ('map of segments', segments)):
        if array is not None and array.shape != image.shape[:2]:
            raise ValueError(
                f'{name} is {array.shape}, but its image is {image.shape[:2]}; '
                'resize it (nearest) to the size of the image'
            )
    return image, _Regions(labels, segments)


class _Regions:
    """The regions of a label map: the pixels of one class and segment, and all ignored pixels.

    Attributes:
      shape: (H, W).
      classes: [n], sorted; -1 for the ignored pixels.
      places: [n], each region's number among those of its class.
      areas: [n], in pixels.
    """

    def __init__(self, labels, segments):
        self.labels, self.segments, self.shape = labels, segments, labels.shape
        areas = Counter()
        for top, bottom in _bands(*self.shape):
            codes, lengths = self._runs(slice(top, bottom), slice(None))
            found, index = np.unique(codes, return_inverse=True)
            counts = np.bincount(index, lengths).astype(int)
            areas.update(dict(zip(found.tolist(), counts.tolist(), strict=True)))
        self.codes = np.array(sorted(areas), np.int64)
        self.areas = np.array([areas[code] for code in self.codes.tolist()])
        self.classes = self.codes >> 32
        self.places = np.arange(len(self.codes)) - np.searchsorted(self.classes, self.classes)

    def numbers(self, rows, columns) -> np.ndarray:
        """The number of the region, 0..n-1, where rows and columns meet: [len(rows), columns]."""
        codes, lengths = self._runs(rows, columns)
        return np.repeat(np.searchsorted(self.codes, codes), lengths).reshape(len(rows), -1)

    def _runs(self, rows, columns):
        """Runs of pixels of one region, row after row: their codes, and their lengths."""
        labels = self.labels[rows][:, columns].astype(np.int64)
        segments = 1
        if self.segments is not None:
            segments = self.segments[rows][:, columns]
            labels[segments <= 0] = -1
        codes = (labels << 32 | np.where(labels < 0, 0, segments)).ravel()
        ends = np.flatnonzero(codes[1:] != codes[:-1])
        edges = np.concatenate([[-1], ends, [codes.size - 1]])
        return codes[edges[1:]], np.diff(edges)


def _bands(height: int, width: int) -> Iterator[tuple[int, int]]:
    """The first row of each band of rows, and the one after its last."""
    rows = max(1, BAND // width)
    return ((top, min(top + rows, height)) for top in range(0, height, rows))


def _resized(image, size):
    if size == image.shape[1::-1]:
        return image
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))


def _paint(board, image, regions, class_names, *, alpha, size, bold):
    """Blends image and colors at `size` (width, height) and outlines regions, visibly if `bold`.

    The picture goes to the top left of `board`.
    """
    width, height = size
    image = _resized(image, size)
    rows = np.arange(height) * regions.shape[0] // height
    columns = np.arange(width) * regions.shape[1] // width
    known = (regions.classes >= 0) & (regions.classes < len(class_names))
    weight = (alpha * known)[:, None, None]  # [n, 1, 1]
    colors = _shades(colorize(regions.classes, palette(len(class_names))), regions.places)  # [n, 3]
    values = np.arange(256.0)
    blended = values * (1 - weight) + weight * colors[..., None]  # [n, 3, 256]
    blended = blended.round().astype(np.uint8).transpose(1, 0, 2).reshape(3, -1)  # [3, n * 256]
    dark, light = (x.round().astype(np.uint8) for x in (0.35 * values, 0.3 * values + 0.7 * 255))
    for top, bottom in _bands(height, width):
        above, below = max(top - 2, 0), min(bottom + 1, height)  # outlines reach as far
        numbers = regions.numbers(rows[above:below], columns)  # [rows, width]
        edge = np.zeros(numbers.shape, bool)
        edge[:, 1:] |= numbers[:, 1:] != numbers[:, :-1]
        edge[1:] |= numbers[1:] != numbers[:-1]
        inside = slice(top - above, bottom - above)
        places = numbers[inside] << 8
        picture = np.empty((bottom - top, width, 3), np.uint8)
        for channel, table in enumerate(blended):
            picture[..., channel] = table[places + image[top:bottom, :, channel]]
        if bold:
            grown = _grown(edge)[inside]
            picture[grown] = dark[picture[grown]]
        edge = edge[inside]
        picture[edge] = light[picture[edge]]
        board.paste(Image.fromarray(picture), (0, top))


def _picture_size(image) -> tuple[int, int]:
    """(width, height) of an overlay: a whole multiple of the image's, at least CELL or the same."""
    factor = -(-CELL // max(image.shape[:2]))
    return image.shape[1] * factor, image.shape[0] * factor


def _paint_mask(board, mask, color, alpha, factor):
    """Blends a color with the pixels of a mask, enlarged by a factor, and outlines it.

    Returns:
      (x, y) of the middle of the mask's first row and of its last one, on the board.
    """
    line = max(1, max(board.size) // 640)  # pixels
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    first, last, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    for top, bottom in _bands(last - first, (right - left) * factor**2):
        top, bottom = first + top, first + bottom
        above, below = max(top - line, 0), min(bottom + line, len(mask))  # outlines reach as far
        padding = ((line - top + above, line + bottom - below), (line, line))
        part = np.pad(mask[above:below, left:right], padding)
        part = part.repeat(factor, 0).repeat(factor, 1)
        outside = ~part
        for _ in range(line):
            outside = _grown(outside)
        weights = np.where(outside, np.uint8(255), np.uint8(round(255 * alpha))) * part
        weights = weights[line * factor : -line * factor, line * factor : -line * factor]
        board.paste(color, (int(left * factor), int(top * factor)), Image.fromarray(weights))
    ends = [
        (np.flatnonzero(mask[row]).mean() + 0.5, y) for row, y in ((first, first), (last - 1, last))
    ]
    return [(int(x * factor), int(y * factor)) for x, y in ends]


def _middle(mask):
    """The middle of the largest circle in a mask [H, W]: row, column, radius, 0 if it is empty."""
    distance = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    reach = distance.max()
    spots = np.argwhere(distance > reach - 1)  # [n, 2]; long regions have many such circles
    row, column = spots[((spots - spots.mean(0)) ** 2).sum(1).argmin()]
    return row, column, reach


class _Tag:
    """A name and a note on a colored ground.

    Attributes:
      width, height: in pixels.
    """

    def __init__(self, board, name, note, color):
        self._board, self._note, self._color = board, note, color
        text = max(14, max(board.size) // 56)
        self._plain, self._margin = ImageFont.load_default(text), text // 4
        room = min(board.width, max(board.width // 2, 12 * text)) - 2 * self._margin
        note_width = self._plain.getlength(note)
        self._name, self._font, self._name_width = _fit(name, text, room - note_width)
        self.width = math.ceil(self._name_width + note_width) + 2 * self._margin
        self.height = round(1.4 * text)

    def draw(self, spots, taken, always=False):
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


def _shades(colors, places):
    """Colors [regions, 3], lighter or darker by place.

    The first of a class keeps its color; successive ones differ most.
    """
    shift = 0.9 * ((0.61803399 * places[:, None] + 0.5) % 1 - 0.5)  # [regions, 1]
    return colors + np.abs(shift) * (np.where(shift > 0, 255.0, 0.0) - colors)


def _grown(mask):
    """A mask [H, W] and the pixels that touch it."""
    padded = np.pad(mask, 1)
    wide = padded[:, :-2] | padded[:, 1:-1] | padded[:, 2:]
    return wide[:-2] | wide[1:-1] | wide[2:]


def _legend(regions, class_names, *, width, text):
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
        name, font, name_width = _fit(name, text, width - chip - note_width)
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
        text, name_font, _ = _fit(name, TEXT, bar - names - 8)
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


def _fit(name, size, width):
    """A name shortened to `width` pixels in a font of `size`, its font, and the width it takes."""
    name, font = fonts.fitting(name, size)
    short = name
    while name and font.getlength(short) > width:
        name = name[:-1]
        short = name.rstrip(' ,;(_-') + '…'
    return short, font, font.getlength(short)
