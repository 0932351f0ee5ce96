"""Reads and writes videos frame by frame: video files, animated images, folders of frames.

One frame is in memory at a time, however long the video is.
"""

import contextlib
import math
from collections.abc import Generator, Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import av
import numpy as np
from PIL import Image

from rankseg_jax.data import CorruptExample, images

VIDEO_SUFFIXES = (
    *('.mp4', '.m4v', '.mov', '.avi', '.mkv', '.webm', '.mpg', '.mpeg', '.wmv', '.flv', '.ogv'),
    *('.3gp', '.mts', '.m2ts'),
)
ANIMATION_SUFFIXES = ('.gif', '.png', '.apng', '.webp')  # may also be plain images
FRAME_RATE = 10.0  # of folders and photos, which have none


def is_video(path: str | Path) -> bool:
    """Whether a file is a video by its suffix, or an animated image by its number of frames.

    Folders are not, nor images that cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        return False
    suffix = path.suffix.lower()
    if suffix in VIDEO_SUFFIXES:
        return True
    try:
        return suffix in ANIMATION_SUFFIXES and (number_of_frames(path) or 0) > 1
    except CorruptExample:
        return False


def number_of_frames(path: str | Path) -> int | None:
    """The number of frames of a video; None if only reading it all would tell.

    Raises:
      CorruptExample: the file cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        return len(images.find_frames(path))
    if _is_image(path):
        with images.opened(path, images.MAX_PIXELS) as image:
            return _animation_length(image)
    with _opened(path) as (_, stream):
        return stream.frames or None


def frame_rate(path: str | Path) -> float:
    """The frames a second of a video, on average; FRAME_RATE if it has none.

    Raises:
      CorruptExample: the file cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        return FRAME_RATE
    if _is_image(path):
        with images.opened(path, images.MAX_PIXELS) as image:
            return _animation_rate(image)
    with _opened(path) as (_, stream):
        return float(stream.average_rate or stream.guessed_rate or FRAME_RATE)


def read_frames(path: str | Path, max_pixels: int = images.MAX_PIXELS) -> Iterator[np.ndarray]:
    """Reads a video, one frame after the other.

    Frames are turned as a phone's rotation metadata say. Transparent parts of an animation are
    white. Any image is a video of one frame.

    Args:
      path: a video file, an image, or a folder of images, read in natural order of their names.
      max_pixels: a video with larger frames is not read.

    Yields:
      uint8 [H, W, 3], all of one size.

    Raises:
      CorruptExample: the video cannot be read, ends too early, has no frames or frames of
        different sizes; possibly after some frames.
    """
    path, files, kind = Path(path), [], 'frames'
    if path.is_dir():
        files, kind = images.find_frames(path), 'images'
        frames = (images.read_image(file, max_pixels) for file in files)
    elif _is_image(path):
        frames = _animation_frames(path, max_pixels)
    else:
        frames = _video_frames(path, max_pixels)
    empty = True
    for frame in check_one_size(frames, path, [file.name for file in files]):
        empty = False
        yield frame
    if empty:
        raise CorruptExample(f'{path}: there are no {kind} in it')


def check_one_size(
    frames: Iterable[np.ndarray], title: str | Path, names: Sequence[str] = ()
) -> Iterator[np.ndarray]:
    """Yields frames [H, W, 3] of one size.

    Args:
      title: of the video.
      names: of the frames, which otherwise go by their numbers.

    Raises:
      CorruptExample: at the first frame of another size.
    """
    size = None
    for place, frame in enumerate(frames):
        if size not in (None, frame.shape[:2]):
            name = names[place] if names else place
            raise CorruptExample(
                f'{title}: frame {name} has {frame.shape[0]} x {frame.shape[1]} pixels (rows x '
                f'columns), those before it {size[0]} x {size[1]}; all frames of a video must '
                'have the same size'
            )
        size = frame.shape[:2]
        yield frame


class Writer:
    """Writes an MP4 file frame by frame; used in a `with` statement.

    The file appears when the statement ends. If it ends with an error there is no file, and if the
    program is killed only one with the suffix .tmp.

    Args:
      path: of the file; its folder must exist.
      rate: frames a second.

    Raises:
      ValueError: the rate is not a positive number, or there is no frame at the end.
    """

    def __init__(self, path: str | Path, rate: float):
        if not (math.isfinite(rate) and rate > 0):
            raise ValueError(f'{path}: a video of {rate} frames a second; it must be more than 0')
        self.path = Path(path)
        # That of 29.97 is 30000 / 1001. Below 1 / 2002 it would be 0.
        self._rate = max(Fraction(rate).limit_denominator(1001), Fraction(1, 1001))
        self._temporary = self.path.with_name(f'{self.path.name}.tmp')
        self._size = self._output = None
        self._count = 0

    def __enter__(self) -> 'Writer':
        return self

    def write(self, frame: np.ndarray) -> None:
        """Appends a frame.

        Sides of an odd length get one more pixel, a copy of the last.

        Args:
          frame: uint8 [H, W, 3].

        Raises:
          ValueError: it is not, or has another size than the first one.
          OSError: the file cannot be written.
        """
        if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
            raise ValueError(f'frame is {frame.dtype} {frame.shape}, not uint8 [H, W, 3]')
        if self._size not in (None, frame.shape[:2]):
            raise ValueError(
                f'{self.path}: frame {self._count} has {frame.shape[:2]} pixels, those before it '
                f'{self._size}; all frames of a video must have the same size'
            )
        self._size = frame.shape[:2]
        frame = np.pad(frame, [*((0, side % 2) for side in self._size), (0, 0)], 'edge')
        if self._output is None:
            self._output = self._open(*frame.shape[:2])
        container, stream = self._output
        picture = av.VideoFrame.from_ndarray(frame, 'rgb24').reformat(
            format='yuv420p', dst_colorspace='ITU709', dst_color_range='MPEG'
        )
        picture.pts, picture.time_base = self._count, 1 / self._rate
        container.mux(stream.encode(picture))
        self._count += 1

    def _open(self, height, width):
        container = av.open(f'file:{self._temporary}', 'w', format='mp4')
        # The first is what a build of FFmpeg without x264 has.
        codec, options = 'mpeg4', {'qmin': '2', 'qmax': '4'}
        if 'libx264' in av.codecs_available:
            codec, options = 'libx264', {'preset': 'veryfast', 'crf': '18'}
        stream = container.add_stream(codec, self._rate, options)
        stream.width, stream.height, stream.pix_fmt = width, height, 'yuv420p'
        context = stream.codec_context
        context.time_base = 1 / self._rate
        # Without these, players guess the colors by the size.
        context.colorspace = context.color_primaries = context.color_trc = 1  # BT.709
        context.color_range = 1  # limited
        return container, stream

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            if self._output is not None:
                with contextlib.suppress(Exception):  # of a file that is given up
                    self._output[0].close()
            self._temporary.unlink(missing_ok=True)

    def _finish(self):
        if self._output is None:
            raise ValueError(f'{self.path}: a video needs at least one frame')
        container, stream = self._output
        container.mux(stream.encode())  # what the encoder still holds
        container.close()
        self._temporary.replace(self.path)


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in images.IMAGE_SUFFIXES


def _animation_length(image: Image.Image) -> int:
    """The number of frames; 1 for the pages of a TIFF, which are no animation."""
    animated = image.format in ('GIF', 'PNG', 'WEBP')
    return getattr(image, 'n_frames', 1) if animated else 1


def _animation_rate(image: Image.Image) -> float:
    """The frames a second, of the frames before the first broken one; FRAME_RATE if it has none."""
    length, durations = _animation_length(image), []  # milliseconds
    try:
        for place in range(length):
            image.seek(place)
            images.load(image)  # only then is the duration of a WebP's frame known
            durations.append(image.info.get('duration', 0))
    except Exception:  # which one, depends on the format
        if not durations:
            raise
    return 1000 * len(durations) / sum(durations) if length > 1 and any(durations) else FRAME_RATE


def _animation_frames(path: Path, max_pixels: int) -> Iterator[np.ndarray]:
    with images.opened(path, max_pixels) as image:
        length = _animation_length(image)
        for place in range(length if length > 1 else 0):
            image.seek(place)  # Pillow completes frames that hold only what has changed
            images.load(image)
            paper = Image.new('RGBA', image.size, 'white')
            yield np.array(Image.alpha_composite(paper, image.convert('RGBA')).convert('RGB'))
    if length == 1:
        yield images.read_image(path, max_pixels)


def _video_frames(path: Path, max_pixels: int) -> Iterator[np.ndarray]:
    with _opened(path) as (container, stream):
        images.check_pixels(stream.width, stream.height, max_pixels)
        stream.thread_type = 'AUTO'
        end = 0.0  # seconds, of all streams: sound may be longer than the video
        for packet in container.demux():
            if packet.pts is not None:
                end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
            if packet.stream is not stream:
                continue
            if packet.is_corrupt:
                raise ValueError('the file ends within a frame')
            for frame in stream.decode(packet):
                pixels = frame.to_ndarray(format='rgb24')  # [H, W, 3]
                yield np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90)))
        # Only these formats state their duration, and it is not always exact.
        if container.duration and container.format.name.startswith(('mov', 'matroska')):
            stated = container.duration / av.time_base  # seconds
            if end < 0.98 * stated - 0.5:
                raise ValueError(f'the file ends after {end:.1f} of {stated:.1f} seconds')


@contextlib.contextmanager
def _opened(path: Path) -> Generator[tuple[av.container.InputContainer, av.VideoStream]]:
    """A video file and its video; whatever goes wrong in the block becomes CorruptExample."""
    try:
        # With `file:`, a name with a colon is no network address.
        with av.open(f'file:{path}', metadata_errors='ignore') as container:
            stream = container.streams.best('video')
            if not isinstance(stream, av.VideoStream):
                raise ValueError('there is no video in it')
            yield container, stream
    except Exception as error:  # FFmpeg's and PyAV's own, and MemoryError
        reason = getattr(error, 'strerror', None) or error
        raise CorruptExample(f'{path}: {reason}') from error
