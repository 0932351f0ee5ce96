"""Names are drawn with glyphs that their font has, or with escapes."""

import pytest
from PIL import ImageFont

from rankseg_jax import fonts


@pytest.mark.parametrize(
    'name',
    [
        'Straße',
        'Đường phố',
        'дорога',
        'Δρόμος',
        'الطريق',
        'דרך',
        'ქუჩა',
        '道路',
        '道路の車',
        '자동차',
    ],
)
def test_every_character_has_a_glyph(name):
    text, font = fonts.fitting(name, 16)
    assert text == name
    box = bytes(font.getmask('\U0010fffd', 'L'))  # of a character that no font has
    assert all(bytes(font.getmask(character, 'L')) != box for character in set(name) - {' '})


@pytest.mark.parametrize(
    'name, expected',
    [
        ('road', 'road'),
        (' lamp \n shade ', 'lamp shade'),
        ('Cafe\u0301', 'Café'),
        ('می\u200cخواهم', 'می\u200cخواهم'),  # joins no letters where Persian wants none
        ('a\U000e0061b\x7f', 'ab\\x7f'),
        ('road \U0010fffd', 'road \\U0010fffd'),
    ],
)
def test_what_no_font_has_is_escaped(name, expected):
    assert fonts.drawable(name) == expected


def test_ascii_keeps_pillows_font():
    assert fonts.fitting('road', 16)[1].getname() == ImageFont.load_default(16).getname()
    assert fonts.families(['road']) == ['DejaVu Sans']
    assert fonts.families(['дорога', '道路', 'road'])[:1] == ['DejaVu Sans']
    assert fonts.families(['дорога', '道路', 'road'])[1].startswith('Noto Sans CJK')
