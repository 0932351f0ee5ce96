"""Fonts for class names in any script, for pictures and charts alike.

ASCII is drawn in Pillow's own font, which holds nothing else. Any other name is drawn in the first
font with all its characters: matplotlib's DejaVu Sans (Latin with accents, Greek, Cyrillic, Arabic,
Hebrew, …), Noto Sans CJK (Chinese, Japanese, Korean), then the fonts of the system. Characters that
none of them has are written as escapes, such as \\u1780.
"""

import functools
import unicodedata
from collections.abc import Iterable

from PIL import ImageFont

FAMILIES = ('DejaVu Sans', 'Noto Sans CJK SC', 'Noto Sans CJK JP')  # before those of the system


def drawable(name: str) -> str:
    """A name as it is drawn: accents joined to their letters, escapes for what no font has."""
    return _choose(name)[0]


def fitting(name: str, size: int) -> tuple[str, ImageFont.FreeTypeFont | ImageFont.ImageFont]:
    """A name as it is drawn, and its font of this size in pixels."""
    text, font = _choose(name)
    if font is None:
        return text, ImageFont.load_default(size)
    return text, ImageFont.truetype(font.fname, size, index=getattr(font, 'index', 0))


def families(names: Iterable[str]) -> list[str]:
    """The families with the characters of some names, as matplotlib's rc parameter font.family."""
    fonts = (_choose(name)[1] for name in names)
    return list(dict.fromkeys([FAMILIES[0], *(font.name for font in fonts if font)]))


@functools.lru_cache(maxsize=100_000)
def _choose(name):
    """A name as it is drawn, and the matplotlib.font_manager.FontEntry of its font or None."""
    name = ' '.join(unicodedata.normalize('NFC', name).split())
    if name.isascii() and name.isprintable():
        return name, None
    needed = set(name) - {' '}

    def lacking(font):
        return len(needed - _characters(font))

    complete = (font for font in _fonts() if not lacking(font))
    font = next(complete, None) or min(_fonts(), key=lacking)
    held = _characters(font) | {' '}
    return ''.join(c if c in held else _escape(c) for c in name), font


def _escape(character):
    if unicodedata.category(character) == 'Cf':  # has no shape, only joins or separates letters
        return ''
    return character.encode('unicode_escape').decode()


@functools.cache
def _fonts():
    """The fonts to try, of normal weight and style, in this order."""
    import noto_cjk_sans_otc  # here: names are mostly ASCII
    from matplotlib import font_manager

    manager = font_manager.fontManager
    manager.addfont(str(noto_cjk_sans_otc.FONT_PATH))

    def order(font):
        return FAMILIES.index(font.name) if font.name in FAMILIES else len(FAMILIES)

    plain = [
        font
        for font in manager.ttflist
        if font.style == font.variant == font.stretch == 'normal' and font.weight == 400
    ]
    # matplotlib's others are for mathematics, and its last resort shows boxes.
    own = [font for font in plain if 'mpl-data' not in font.fname or font.name == FAMILIES[0]]
    return sorted(own, key=order)


@functools.cache
def _characters(font):
    """The characters of a font; none if it cannot be drawn at any size, as some emoji."""
    from matplotlib import font_manager

    try:
        ImageFont.truetype(font.fname, 16)
        held = map(chr, font_manager.get_font(font.fname).get_charmap())
        return frozenset(c for c in held if unicodedata.category(c) != 'Cc')
    except (OSError, RuntimeError):
        return frozenset()
