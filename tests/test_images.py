"""Images of every kind are read as Pillow shows them, whether from a path or opened."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from configs import common
from rankseg_jax.data import CorruptExample, images

ORIENTATION = 274
rng = np.random.default_rng(0)
RGB = rng.integers(0, 256, (6, 8, 3), np.uint8)
GRAY = RGB[..., 0]


def turned(orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


@pytest.fixture
def log(monkeypatch):
    """What is written to the log."""
    lines = []
    monkeypatch.setattr(
        images.logging, 'log_first_n', lambda level, text, n, *args: lines.append(text % args)
    )
    return lines


@pytest.mark.parametrize('suffix', ['png', 'tif', 'webp'])
@pytest.mark.parametrize('orientation', [3, 6, 9, 65535])
def test_opened_images_are_upright_like_their_files(tmp_path, suffix, orientation):
    path = tmp_path / f'a.{suffix}'
    Image.fromarray(RGB).save(path, exif=turned(orientation), lossless=True)
    expected = np.rot90(RGB, {3: 2, 6: 3}.get(orientation, 0))  # others mean nothing
    np.testing.assert_array_equal(images.read_image(path), expected)
    with Image.open(path) as image:
        np.testing.assert_array_equal(images.read_image(image), expected)
    assert images.read_size(path) == expected.shape[:2]


def test_uncompressed_gray_is_upright(tmp_path):
    """Pillow would turn it wrongly by its path, since it maps such files into memory."""
    for gray in (GRAY, GRAY.astype(np.uint16) * 256):
        Image.fromarray(gray).save(tmp_path / 'a.tif', exif=turned(6))
        np.testing.assert_array_equal(images.read_values(tmp_path / 'a.tif'), np.rot90(gray, 3))
        expected = np.rot90(gray >> 8 * (gray.dtype.itemsize - 1), 3)
        np.testing.assert_array_equal(images.read_image(tmp_path / 'a.tif')[..., 0], expected)


@pytest.mark.parametrize('bits', [1, 2, 4])
def test_labels_of_few_bits_are_read_as_stored(tmp_path, bits):
    """A gray PNG, row by row, as its specification says; Pillow itself writes none of 2 or 4."""
    values = np.random.default_rng(0).integers(0, 2**bits, (5, 16))
    rows = np.unpackbits(values.astype(np.uint8)[..., None], axis=-1)[..., 8 - bits :]
    rows = np.packbits(rows.reshape(5, -1), axis=-1)
    lines = b''.join(b'\0' + row.tobytes() for row in rows)

    def chunk(kind, content):
        checksum = zlib.crc32(kind + content)
        return struct.pack('>I', len(content)) + kind + content + struct.pack('>I', checksum)

    header = struct.pack('>IIBBBBB', 16, 5, bits, 0, 0, 0, 0)
    parts = (b'IHDR', header), (b'IDAT', zlib.compress(lines)), (b'IEND', b'')
    path = tmp_path / 'a.png'
    path.write_bytes(b'\x89PNG\r\n\x1a\n' + b''.join(chunk(*part) for part in parts))
    np.testing.assert_array_equal(images.read_values(path), values)


def test_labels_are_upright_too(tmp_path):
    Image.fromarray(GRAY).save(tmp_path / 'a.png', exif=turned(6))
    np.testing.assert_array_equal(images.read_values(tmp_path / 'a.png'), np.rot90(GRAY, 3))


@pytest.mark.parametrize('mode', ['1', 'L', 'LA', 'P', 'PA', 'RGBA', 'CMYK', 'YCbCr', 'LAB', 'HSV'])
def test_modes_become_the_colors_that_pillow_gives_them(mode):
    image = Image.fromarray(RGB)
    image = image.convert('L').convert(mode) if 'A' in mode[1:2] else image
    image = image if image.mode == mode or mode == 'LAB' else image.convert(mode)
    expected = np.asarray(image.convert('RGB'))
    np.testing.assert_array_equal(images.read_image(image), expected)


def test_palettes_with_transparency(tmp_path):
    image = Image.fromarray(GRAY).convert('P')
    image.save(tmp_path / 'a.png', transparency=bytes(range(256)))
    expected = Image.open(tmp_path / 'a.png').convert('RGBA').convert('RGB')
    np.testing.assert_array_equal(images.read_image(tmp_path / 'a.png'), expected)


@pytest.mark.parametrize('suffix', ['gif', 'tif', 'png'])
def test_the_first_of_several_frames_is_read(tmp_path, suffix):
    frames = [Image.new('RGB', (8, 6), color) for color in ('red', 'blue')]
    frames[0].save(tmp_path / f'a.{suffix}', save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(
        images.read_image(tmp_path / f'a.{suffix}'), np.full((6, 8, 3), [255, 0, 0])
    )


@pytest.mark.parametrize('suffix', ['png', 'tif', 'ppm'])
def test_16_bit_gray_keeps_its_upper_8_bits(tmp_path, suffix, log):
    values = rng.integers(0, 65536, (6, 8)).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / f'a.{suffix}')
    expected = np.repeat(values[..., None] // 256, 3, -1)
    np.testing.assert_array_equal(images.read_image(tmp_path / f'a.{suffix}'), expected)
    assert not log


def tiff_of_12_bits(path, values):
    """Writes uint16 [H, W], W even, as a TIFF file that packs two values into three bytes."""
    first, second = values[:, ::2], values[:, 1::2]
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], -1)
    data = packed.astype(np.uint8).tobytes()
    rows, columns = values.shape
    tags = {256: columns, 257: rows, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: rows}
    tags[279] = len(data)
    entries = b''.join(struct.pack('<HHII', tag, 4, 1, value) for tag, value in tags.items())
    header = struct.pack('<2sHI', b'II', 42, 8 + len(data))
    directory = struct.pack('<H', len(tags)) + entries + struct.pack('<I', 0)
    path.write_bytes(header + data + directory)


def test_bits_that_a_file_declares_are_all_there_are(tmp_path, log):
    values = rng.integers(0, 4096, (6, 8)).astype(np.uint16)
    tiff_of_12_bits(tmp_path / 'a.tif', values)
    expected = np.repeat(values[..., None] // 16, 3, -1)
    np.testing.assert_array_equal(images.read_image(tmp_path / 'a.tif'), expected)
    assert not log


def test_16_bit_images_with_fewer_bits_are_named(tmp_path, log):
    values = rng.integers(0, 4096, (6, 8)).astype(np.uint16)
    values[0, 0] = 4095
    Image.fromarray(values).save(tmp_path / 'a.png')
    images.read_image(tmp_path / 'a.png')
    with Image.open(tmp_path / 'a.png') as image:
        images.read_image(image)
    assert len(log) == 2
    for line in log:
        assert str(tmp_path / 'a.png') in line and 'only 12 bits' in line and '16 of 256' in line
    images.read_image(Image.fromarray(GRAY // 16))  # dark, but of 8 bits
    images.read_image(Image.fromarray(values * np.uint16(16)))
    assert len(log) == 2


@pytest.mark.parametrize('suffix', ['png', 'tif'])
def test_16_bit_colors_with_fewer_bits_are_named(tmp_path, log, suffix):
    cv2 = pytest.importorskip('cv2')
    cv2.imwrite(str(tmp_path / f'a.{suffix}'), RGB.astype(np.uint16) * 16)
    images.read_image(tmp_path / f'a.{suffix}')
    assert 'only 12 bits' in log[0]


@pytest.mark.parametrize(
    'values',
    [np.float32([[0.5, 1]]), np.int32([[-1, 5]]), np.int32([[0, 70_000]])],
    ids=['float', 'negative', 'large'],
)
def test_values_without_a_range_are_refused(tmp_path, values):
    Image.fromarray(values).save(tmp_path / 'a.tif')
    with pytest.raises(CorruptExample, match=r'a\.tif: .* not supported: save 8 or 16 bits'):
        images.read_image(tmp_path / 'a.tif')
    with pytest.raises(CorruptExample, match='image: .* not supported'):
        images.read_image(Image.fromarray(values))


@pytest.mark.parametrize('suffix', ['png', 'tif', 'webp', 'gif'])
def test_the_limit_of_pixels_is_ours(tmp_path, suffix, monkeypatch):
    path = tmp_path / f'a.{suffix}'
    Image.fromarray(GRAY).save(path)
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 10)  # Pillow refuses twice as many
    with pytest.raises(Image.DecompressionBombError):
        Image.open(path)
    assert images.read_image(path).shape == (6, 8, 3)
    assert images.read_size(path, 48) == (6, 8)
    if suffix != 'webp':
        assert images.read_values(path, 48).shape == (6, 8)
    for read in (images.read_image, images.read_size, images.read_values):
        with pytest.raises(CorruptExample, match=r'8 x 6 pixels .* config.data.max_pixels = 47'):
            read(path, 47)
    assert Image.MAX_IMAGE_PIXELS == 10
    assert images.MAX_PIXELS == common.get_config().data.max_pixels


def test_files_are_found_in_subfolders_and_behind_links(tmp_path):
    for name in (
        'b.jpg',
        'a/c.PNG',
        'a/d/e.tif',
        '._b.jpg',
        '.hidden/f.jpg',
        'a/.DS_Store',
        'Thumbs.db',
        'a/notes.txt',
    ):
        (tmp_path / 'top' / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / 'top' / name).touch()
    (tmp_path / 'elsewhere').mkdir()
    (tmp_path / 'elsewhere/g.jpg').touch()
    (tmp_path / 'top/link').symlink_to(tmp_path / 'elsewhere')
    (tmp_path / 'top/a/loop').symlink_to(tmp_path / 'top')
    found = [
        path.relative_to(tmp_path / 'top').as_posix() for path in images.find(tmp_path / 'top')
    ]
    assert found == ['a/c.PNG', 'a/d/e.tif', 'b.jpg', 'link/g.jpg']


def test_folders_behind_links_do_not_depend_on_the_order(tmp_path):
    for name in 'abc':
        (tmp_path / name).mkdir()
        (tmp_path / name / f'{name}.jpg').touch()
    for link, target in (('a/link', 'b'), ('c/link', 'b'), ('b/back', 'a')):
        (tmp_path / link).symlink_to(tmp_path / target)
    names = 'a/a a/link/b b/b b/back/a c/c c/link/b c/link/back/a'
    assert images.find(tmp_path) == sorted(tmp_path / f'{name}.jpg' for name in names.split())


@pytest.mark.parametrize('suffix', images.IMAGE_SUFFIXES)
def test_images_of_every_suffix_are_read(tmp_path, suffix):
    path, kind = tmp_path / f'a{suffix}', Image.registered_extensions()[suffix]
    Image.fromarray(np.full((16, 24, 3), 200, np.uint8)).save(path, kind)
    assert images.find(tmp_path) == [path]
    np.testing.assert_allclose(images.read_image(path), 200, atol=56)  # .pbm has but two values
    assert images.read_size(path) == (16, 24)


def test_published_data_are_read_as_stored():
    """Their label maps ignore orientations."""
    image = Image.fromarray(RGB)
    image.getexif()[ORIENTATION] = 6
    np.testing.assert_array_equal(images.to_rgb(image, upright=False), RGB)
    np.testing.assert_array_equal(images.to_rgb(image), ImageOps.exif_transpose(image))
