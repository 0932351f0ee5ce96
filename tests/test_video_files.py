"""Videos made here, by this package, PyAV or Pillow, and what is read from them."""

import subprocess
import sys
import tracemalloc

import av
import numpy as np
import pytest
from PIL import Image

from rankseg_jax.data import CorruptExample, images, video_files
from rankseg_jax.data.video_files import Writer, frame_rate, is_video, number_of_frames, read_frames


def frames_of(number=5, height=32, width=48):
    """A bright square that moves over a colored ramp, uint8 [number, H, W, 3]."""
    rows, columns = np.mgrid[:height, :width]
    ramp = np.stack([60 + rows, 40 + 2 * columns, 150 - rows], -1) * np.array([1, 1, 1])
    video = np.repeat(ramp[None].clip(0, 255).astype(np.uint8), number, 0)
    for t in range(number):
        video[t, 4:14, 3 + 6 * t : 13 + 6 * t] = 230, 200, 40
    return video


def write(path, video, rate=10.0):
    with Writer(path, rate) as writer:
        for frame in video:
            writer.write(frame)
    return path


def write_by_pyav(path, video, codec='mpeg4', rate=10, rotation=0, options=None):
    """A file as another program would write it, its rotation counterclockwise in degrees."""
    with av.open(str(path), 'w', options=options or {}) as container:
        fine = {'qmin': '1', 'qmax': '2'} if codec.startswith('mpeg') else {}
        stream = container.add_stream(codec, rate, fine)
        stream.height, stream.width = video.shape[1:3]
        if rotation:
            stream.set_display_rotation(rotation)
        for frame in video:
            picture = av.VideoFrame.from_ndarray(frame, 'rgb24').reformat(format=stream.pix_fmt)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path


def read(path, **options):
    return np.stack(list(read_frames(path, **options)))


def distance(a, b):
    return np.abs(a.astype(float) - b.astype(float)).mean()


@pytest.mark.parametrize('rate', [1, 10.0, 29.97, 60])
def test_what_is_written_is_read(tmp_path, rate):
    video = frames_of()
    path = write(tmp_path / 'a.mp4', video, rate)
    found = read(path)
    assert found.dtype == np.uint8 and found.shape == video.shape
    assert distance(found, video) < 6
    for t in range(5):  # no frame is closer to another one
        assert np.argmin([distance(found[t], frame) for frame in video]) == t
    assert frame_rate(path) == pytest.approx(rate, rel=1e-4)
    assert number_of_frames(path) == 5 and is_video(path)
    assert [p.name for p in tmp_path.iterdir()] == ['a.mp4']


def test_colors_are_kept(tmp_path):
    """A wrong matrix or range of YUV shifts them by 10 and more."""
    colors = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (200, 90, 40)]
    video = np.stack([np.full((32, 48, 3), color, np.uint8) for color in colors])
    assert np.abs(read(write(tmp_path / 'a.mp4', video)).astype(int) - video).max() <= 4


def test_a_build_without_x264(tmp_path, monkeypatch):
    monkeypatch.setattr(av, 'codecs_available', {'mpeg4'})
    path = write(tmp_path / 'a.mp4', frames_of(), 29.97)
    with av.open(str(path)) as container:
        assert container.streams.video[0].codec_context.name == 'mpeg4'
    assert distance(read(path), frames_of()) < 6


@pytest.mark.parametrize('height, width', [(31, 47), (31, 48), (32, 47), (1, 1), (3, 50)])
def test_odd_sizes_are_padded(tmp_path, height, width):
    video = frames_of(3, height, width)
    found = read(write(tmp_path / 'a.mp4', video))
    assert found.shape == (3, height + height % 2, width + width % 2, 3)
    assert distance(found[:, :height, :width], video) < 8
    if width % 2:
        assert distance(found[:, :, -1], found[:, :, -2]) < 8


@pytest.mark.parametrize(
    'suffix, codec',
    [
        ('mp4', 'mpeg4'),
        ('mov', 'libx264'),
        ('avi', 'mpeg4'),
        ('avi', 'mjpeg'),
        ('mkv', 'libx264'),
        ('webm', 'libvpx-vp9'),
        ('mpg', 'mpeg1video'),
    ],
)
def test_formats_of_other_programs(tmp_path, suffix, codec):
    if codec not in av.codecs_available:
        pytest.skip(f'this build of PyAV has no {codec}')
    video = frames_of()
    with av.open(str(tmp_path / f'a.{suffix}'), 'w') as container:
        stream = container.add_stream(codec, 25)
        stream.height, stream.width = video.shape[1:3]
        stream.pix_fmt = 'yuvj420p' if codec == 'mjpeg' else 'yuv420p'
        stream.bit_rate = 4_000_000
        for frame in video:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, 'rgb24')))
        container.mux(stream.encode())
    path = tmp_path / f'a.{suffix}'
    assert is_video(path) and frame_rate(path) == pytest.approx(25, rel=0.05)
    assert number_of_frames(path) in (5, None)
    found = read(path)
    assert found.shape == video.shape and distance(found, video) < 8


@pytest.mark.parametrize('rotation', [0, 90, 180, -90])
def test_rotation_of_phone_videos(tmp_path, rotation):
    video = frames_of()
    path = write_by_pyav(tmp_path / 'a.mp4', video, rotation=rotation)
    upright = np.stack([np.rot90(frame, rotation // 90) for frame in video])
    found = read(path)
    assert found.shape == upright.shape and distance(found, upright) < 8
    assert found[0].flags.c_contiguous


def test_sound_is_left_out(tmp_path):
    path = tmp_path / 'a.mp4'
    with av.open(str(path), 'w') as container:
        sound = container.add_stream('aac', 44100)
        stream = container.add_stream('mpeg4', 10)
        stream.height, stream.width, stream.pix_fmt = 32, 48, 'yuv420p'
        for frame in frames_of():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, 'rgb24')))
        silence = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), 'fltp', 'stereo')
        silence.sample_rate = 44100
        container.mux(sound.encode(silence))
        container.mux(stream.encode())
        container.mux(sound.encode())
    assert read(path).shape == (5, 32, 48, 3)
    only_sound = tmp_path / 'b.mp4'
    with av.open(str(only_sound), 'w') as container:
        sound = container.add_stream('aac', 44100)
        container.mux(sound.encode(silence))
        container.mux(sound.encode())
    with pytest.raises(CorruptExample, match=r'b\.mp4: there is no video in it'):
        read(only_sound)


def animation(path, video, **options):
    pictures = [Image.fromarray(frame) for frame in video]
    if path.suffix == '.gif':  # few colors, which a palette holds exactly
        pictures = [picture.convert('P', palette=Image.Palette.ADAPTIVE) for picture in pictures]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], **options)
    return path


@pytest.mark.parametrize('suffix', ['gif', 'png', 'webp'])
def test_animations_are_exact(tmp_path, suffix):
    video = np.zeros((4, 20, 30, 3), np.uint8)
    video[:, 5:, 10:] = 200, 100, 0
    for t in range(4):  # Pillow saves only the part that changes
        video[t, 8:12, 4 * t : 4 * t + 6] = 10 * t, 255, 77
    options = {'lossless': True} if suffix == 'webp' else {}
    path = animation(tmp_path / f'a.{suffix}', video, duration=50, **options)
    np.testing.assert_array_equal(read(path), video)
    assert is_video(path) and number_of_frames(path) == 4 and frame_rate(path) == 20


@pytest.mark.parametrize('suffix', ['gif', 'png', 'webp'])
def test_the_rate_of_an_animation_is_an_average(tmp_path, suffix):
    path = animation(tmp_path / f'a.{suffix}', frames_of(3), duration=[1000, 50, 150])
    assert frame_rate(path) == pytest.approx(3 / 1.2)


def test_the_rate_of_a_broken_animation_is_that_of_its_whole_frames(tmp_path):
    durations, found = [200, 50, 50, 50, 50], []
    path = truncated(animation(tmp_path / 'a.gif', frames_of(5), duration=durations), 0.6)
    with pytest.raises(CorruptExample):
        found.extend(read_frames(path))
    assert 0 < len(found) < 5
    assert frame_rate(path) == 1000 * len(found) / sum(durations[: len(found)])


def test_a_frame_for_an_hour(tmp_path):
    with Writer(tmp_path / 'a.mp4', 1 / 3600) as writer:
        for frame in frames_of(2):
            writer.write(frame)
    assert frame_rate(tmp_path / 'a.mp4') == pytest.approx(1 / 1001)


@pytest.mark.parametrize('suffix', ['gif', 'png', 'webp'])
def test_transparent_parts_of_animations_are_white(tmp_path, suffix):
    video = np.zeros((3, 20, 30, 4), np.uint8)
    for t in range(3):
        video[t, 5:15, 4 * t : 4 * t + 9] = 250, 0, 0, 255
    options = {'lossless': True} if suffix == 'webp' else {}
    pictures = [Image.fromarray(frame) for frame in video]
    path = tmp_path / f'a.{suffix}'
    pictures[0].save(path, save_all=True, append_images=pictures[1:], disposal=2, **options)
    expected = np.where(video[..., 3:] > 0, video[..., :3], 255)
    assert np.abs(read(path).astype(int) - expected).max() <= 3


def test_parts_that_stay_of_a_gif(tmp_path):
    """The second frame holds one square, the rest is transparent and shows the first."""
    first = Image.new('P', (30, 20), 0)
    first.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200])
    second = first.copy()
    second.paste(2, (0, 0, 30, 20))
    second.paste(1, (5, 5, 10, 10))
    first.save(
        tmp_path / 'a.gif', save_all=True, append_images=[second], transparency=2, disposal=1
    )
    found = read(tmp_path / 'a.gif')
    assert (found[0] == (200, 0, 0)).all()
    assert (found[1, 5:10, 5:10] == (0, 200, 0)).all()
    assert (found[1, 10:] == (200, 0, 0)).all()


@pytest.mark.parametrize('suffix', ['jpg', 'png', 'gif', 'webp', 'tif'])
def test_an_image_is_a_video_of_one_frame(tmp_path, suffix):
    path = tmp_path / f'a.{suffix}'
    Image.fromarray(frames_of(1)[0]).save(path)
    found = read(path)
    np.testing.assert_array_equal(found, images.read_image(path)[None])
    assert not is_video(path) and number_of_frames(path) == 1
    assert frame_rate(path) == video_files.FRAME_RATE


def test_pages_are_no_frames(tmp_path):
    pages = [Image.fromarray(frame) for frame in frames_of(3)]
    pages[0].save(tmp_path / 'a.tif', save_all=True, append_images=pages[1:])
    assert len(read(tmp_path / 'a.tif')) == number_of_frames(tmp_path / 'a.tif') == 1


def test_a_folder_is_read_in_natural_order(tmp_path):
    names = ['frame1.png', 'frame2.png', 'frame10.png', 'frame011.png', 'x.png']
    for value, name in enumerate(names):
        Image.new('RGB', (6, 4), (value, 0, 0)).save(tmp_path / name)
    (tmp_path / '._frame1.png').write_bytes(b'macOS')
    (tmp_path / 'notes.txt').write_text('')
    assert read(tmp_path)[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]
    assert number_of_frames(tmp_path) == 5 and not is_video(tmp_path)
    assert frame_rate(tmp_path) == video_files.FRAME_RATE


def test_names_are_ordered_by_their_numbers():
    names = ['a', 'a1b', 'a1b2', 'a1b10', 'a2', 'a02', 'a10', 'b1', '2', '10', '10a', '²3', '٣']
    natural = sorted(names, key=images.natural_order)
    assert natural[:5] == ['2', '٣', '10', '10a', 'a']
    assert natural[5:12] == ['a1b', 'a1b2', 'a1b10', 'a02', 'a2', 'a10', 'b1']


def test_folders_that_are_no_video(tmp_path):
    (tmp_path / 'a.mp4').mkdir()
    assert not is_video(tmp_path / 'a.mp4')
    with pytest.raises(CorruptExample, match='there are no images in it'):
        read(tmp_path)
    for value, size in enumerate([(6, 4), (6, 4), (4, 6)]):
        Image.new('RGB', size).save(tmp_path / f'{value}.png')
    with pytest.raises(CorruptExample, match=r'frame 2\.png has 6 x 4 pixels .* before it 4 x 6'):
        read(tmp_path)
    (tmp_path / '1.png').write_bytes(b'')
    with pytest.raises(CorruptExample, match=r'1\.png: '):
        read(tmp_path)


def truncated(path, share):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path


@pytest.mark.parametrize('make', ['missing', 'empty', 'text', 'noise', 'truncated'])
@pytest.mark.parametrize('suffix', ['mp4', 'avi', 'mkv', 'gif', 'webp'])
def test_files_that_cannot_be_read(tmp_path, capfd, suffix, make):
    path = tmp_path / f'a.{suffix}'
    if make == 'truncated':
        if suffix in ('gif', 'webp'):
            truncated(animation(path, frames_of()), 0.3)
        else:
            truncated(write_by_pyav(path, frames_of()), 0.05 if suffix == 'mkv' else 0.6)
    elif make != 'missing':
        noise = np.random.default_rng(0).bytes(3000)
        path.write_bytes({'empty': b'', 'text': b'not a video\n' * 50, 'noise': noise}[make])
    for attempt in (read, number_of_frames, frame_rate):
        if make == 'truncated' and attempt is not read:
            continue  # the header may be whole
        with pytest.raises(CorruptExample) as caught:
            attempt(path)
        assert str(caught.value).startswith(f'{path}: ') and '\n' not in str(caught.value)
    assert is_video(path) == (suffix not in ('gif', 'webp')) or make == 'truncated'
    assert capfd.readouterr() == ('', '')


@pytest.mark.parametrize('share', [0.4, 0.7])
@pytest.mark.parametrize('suffix', ['mp4', 'mkv', 'webm', 'avi'])
def test_a_video_that_ends_too_early(tmp_path, suffix, share):
    """The frames before the end are read."""
    codec = 'libvpx-vp9' if suffix == 'webm' else 'mpeg4'
    video = np.random.default_rng(0).integers(0, 256, (30, 32, 48, 3), np.uint8)
    options = {'movflags': 'faststart'} if suffix == 'mp4' else {}  # the index comes first
    path = write_by_pyav(tmp_path / f'a.{suffix}', video, codec, options=options)
    assert len(read(path)) == 30
    found = []
    with pytest.raises(CorruptExample, match=rf'a\.{suffix}: the file ends'):
        found.extend(read_frames(truncated(path, share)))
    assert 3 < len(found) < 27


def test_a_size_that_changes_is_named(tmp_path):
    """Two videos in one stream."""
    parts = [frames_of(3, 32, 48), frames_of(3, 64, 48)]
    content = b''
    for i, video in enumerate(parts):
        content += write_by_pyav(tmp_path / f'{i}.mpg', video, 'mpeg1video', 25).read_bytes()
    (tmp_path / 'a.mpg').write_bytes(content)
    with pytest.raises(CorruptExample, match=r'a\.mpg: frame [23] has 64 x 48 pixels .* 32 x 48'):
        read(tmp_path / 'a.mpg')


def test_large_frames_name_the_key(tmp_path):
    path = write(tmp_path / 'a.mp4', frames_of())
    assert len(read(path, max_pixels=32 * 48)) == 5
    with pytest.raises(CorruptExample, match='48 x 32 pixels .* config.data.max_pixels = 1535'):
        read(path, max_pixels=32 * 48 - 1)
    path = animation(tmp_path / 'a.gif', frames_of())
    with pytest.raises(CorruptExample, match='config.data.max_pixels = 1535'):
        read(path, max_pixels=32 * 48 - 1)


def test_names_of_any_kind(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ('http:a%03d.mp4', 'ü 道.mp4', 'a?b#c.mp4', '-.mp4'):
        assert len(read(write(name, frames_of()))) == 5


def test_the_writer_leaves_no_half_file(tmp_path):
    path = tmp_path / 'a.mp4'
    with pytest.raises(RuntimeError):
        with Writer(path, 10) as writer:
            for frame in frames_of(60):
                writer.write(frame)
            assert [p.name for p in tmp_path.iterdir()] == ['a.mp4.tmp']
            raise RuntimeError
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match=r'a\.mp4: a video needs at least one frame'):
        with Writer(path, 10):
            pass
    assert not list(tmp_path.iterdir())


def test_a_killed_program_leaves_no_video(tmp_path):
    program = (
        'import os, sys, numpy as np; from rankseg_jax.data.video_files import Writer\n'
        'with Writer(sys.argv[1], 10) as writer:\n'
        '    for _ in range(40): writer.write(np.zeros((32, 48, 3), np.uint8))\n'
        '    os._exit(1)'
    )
    subprocess.run([sys.executable, '-c', program, str(tmp_path / 'a.mp4')])
    assert [p.name for p in tmp_path.iterdir()] == ['a.mp4.tmp']


def test_an_older_file_stays_until_the_new_one_is_there(tmp_path):
    path = write(tmp_path / 'a.mp4', frames_of(2))
    with Writer(path, 10) as writer:
        writer.write(frames_of()[0])
        assert len(read(path)) == 2
    assert len(read(path)) == 1


def test_frames_that_cannot_be_written(tmp_path):
    with Writer(tmp_path / 'a.mp4', 10) as writer:
        writer.write(frames_of()[0])
        with pytest.raises(ValueError, match=r'a\.mp4: frame 1 has \(48, 32\) pixels.*\(32, 48\)'):
            writer.write(frames_of(1, 48, 32)[0])
        with pytest.raises(ValueError, match='frame is float64'):
            writer.write(frames_of()[0] / 255)
    with pytest.raises(OSError):
        write(tmp_path / 'missing/a.mp4', frames_of())
    for rate in (0, -1, float('nan'), float('inf')):
        with pytest.raises(ValueError, match='frames a second'):
            Writer(tmp_path / 'a.mp4', rate)


def test_one_frame_at_a_time(tmp_path):
    path = write(tmp_path / 'a.mp4', frames_of(100, 64, 96))
    tracemalloc.start()
    try:
        assert sum(1 for _ in read_frames(path)) == 100
        assert tracemalloc.get_traced_memory()[1] < 10 * 64 * 96 * 3
    finally:
        tracemalloc.stop()
