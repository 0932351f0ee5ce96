"""Which frames make a video or a clip; `VideoSource.clip` reads them."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np

from rankseg_jax.data import IGNORE_LABEL, Source, TrackSource, VideoSource


def sample(length: int, num_frames: int, reach: int, rng: np.random.Generator) -> np.ndarray:
    """Chooses frames to train on: a random one, and others at most `reach` before or after it.

    Args:
      length: of the video, at least 1.
      num_frames: t.
      reach: 20 in the published recipes.
      rng: the result is a function of its state and the other arguments.

    Returns:
      int64 [t], ascending, without repetition if t frames lie within reach. Otherwise all that do
      are there, each as often as any other or once more.
    """
    reference = rng.integers(length)
    near = np.arange(max(reference - reach, 0), min(reference + reach + 1, length))
    others = rng.permutation(near[near != reference])
    return np.sort(np.resize([reference, *others], num_frames))


def padded_length(length: int, most: int) -> int:
    """The number of frames that a clip is padded to: powers of two, so that few are compiled."""
    return min(1 << (length - 1).bit_length(), most)


def pad(clip: dict[str, np.ndarray], length: int) -> dict[str, np.ndarray]:
    """Pads a clip in time: its last frame is repeated, without labels.

    Args:
      clip: {'image': [t, H, W, 3]} and perhaps 'label' [t, H, W].
      length: in frames, at least t.

    Returns:
      The same, and 'shown', bool [length], the frames that are not padding.
    """
    padded = dict(clip)
    frames = np.minimum(np.arange(length), len(clip['image']) - 1)
    shown = np.arange(length) < len(clip['image'])
    padded['image'] = clip['image'][frames]
    if 'label' in clip:
        padded['label'] = np.where(shown[:, None, None], clip['label'][frames], IGNORE_LABEL)
    return padded | {'shown': shown}


class Samples(Source):
    """The videos of a source as examples to train on, each a few frames of it."""

    unit = 'videos'

    def __init__(self, source: VideoSource):
        self.source, self.class_names, self.things = source, source.class_names, source.things
        self.ids = [name for name, _ in source.videos]

    def load(self, index: int) -> dict[str, np.ndarray]:
        """All frames of a video; training asks `source` for some."""
        return self.source.clip(index, range(len(self.source.videos[index][1])))


class Window(NamedTuple):
    """Some frames of a video that a model sees at once.

    Attributes:
      video: place in `VideoSource.videos`.
      frames: of the video.
      first_new: the first of them that no earlier window holds.
    """

    video: int
    frames: range
    first_new: int


class Windows(Source):
    """The videos of a source in clips of a fixed length, in order.

    Attributes:
      windows: N windows.
    """

    unit = 'clips'

    def __init__(self, source: VideoSource, length: int, overlap: int):
        """Cuts the videos.

        Args:
          length: of a clip, in frames.
          overlap: frames that a clip shares with the one before.
        """
        self.source, self.class_names, self.things = source, source.class_names, source.things
        self.length = length
        self.windows = [
            Window(video, frames, first_new)
            for video, (_, found) in enumerate(source.videos)
            for frames, first_new in windows(len(found), length, overlap)
        ]
        self.ids = [
            f'{source.videos[video][0]}, frames {frames[0]} to {frames[-1]}'
            for video, frames, _ in self.windows
        ]

    def share(self, place: int, count: int) -> list[int]:
        """The windows of every count-th video."""
        return [i for i, window in enumerate(self.windows) if window.video % count == place]

    def place(self, index: int, number: int) -> int:
        """See `Source.place`."""
        video, frames, _ = self.windows[index]
        return self.source.videos[video][1][frames[number]]

    def lanes(self, places: Iterable[int], count: int) -> list[list[int]]:
        """Divides windows into `count` lists of similar length; all of a video are in one of them,
        in order."""
        by_video = groupby(places, lambda place: self.windows[place].video)
        lanes = [[] for _ in range(count)]
        for video in sorted((list(group) for _, group in by_video), key=len, reverse=True):
            min(lanes, key=len).extend(video)
        return lanes

    def load(self, index: int) -> dict[str, np.ndarray]:
        """A clip, padded to a power of two of frames; see `pad` and `counted`."""
        video, frames, first_new = self.windows[index]
        clip = pad(self.source.clip(video, frames), padded_length(len(frames), self.length))
        new = np.arange(len(clip['shown'])) >= first_new - frames[0]
        return clip | {'counted': clip['shown'] & new}


def windows(length: int, size: int, overlap: int) -> Iterator[tuple[range, int]]:
    """Cuts a video into windows, and says which frame of each is the first new one.

    Args:
      length: of the video, in frames.
      size: of a window; the last may be shorter.
      overlap: frames that a window shares with the one before, less than `size`.
    """
    start = 0
    while True:
        yield range(start, min(start + size, length)), start + overlap if start else 0
        if start + size >= length:
            return
        start += size - overlap


def stream_windows(
    frames: Iterable[np.ndarray], size: int, overlap: int
) -> Iterator[tuple[Window, list[np.ndarray]]]:
    """As `windows`, of a video whose length is not known; at most `size` frames are kept."""
    held, start = [], 0

    def window():
        first_new = start + overlap if start else 0
        return Window(0, range(start, start + len(held)), first_new), held

    for frame in frames:
        if len(held) == size:
            yield window()
            held, start = held[size - overlap :], start + size - overlap
        held = [*held, frame]
    if held:
        yield window()


def group(ids: Sequence[str]) -> list[tuple[str, range]]:
    """The videos of frames named '<video>/<frame>', in order: (name, range of places in `ids`)."""
    found, start = [], 0
    for name, frames in groupby(frame.rpartition('/')[0] for frame in ids):
        stop = start + len(list(frames))
        found.append((name, range(start, stop)))
        start = stop
    return found


class Part(TrackSource):
    """Some videos of a source."""

    def __init__(self, source: TrackSource, chosen: Sequence[int]):
        """`chosen` are places in `source.videos`."""
        self.source, self.chosen = source, chosen
        self.class_names, self.things = source.class_names, source.things
        self.category_ids, self.label_values = source.category_ids, source.label_values
        self.annotated = source.annotated
        self.indices = [index for video in chosen for index in source.videos[video][1]]
        self.ids = [source.ids[index] for index in self.indices]
        self.videos = group(self.ids)

    def load(self, index: int) -> dict[str, np.ndarray]:
        """See `Source.load`."""
        return self.source.load(self.indices[index])

    def tracks(self, video: int, frames: Sequence[int] | None = None) -> list[dict[str, Any]]:
        """See `TrackSource.tracks`."""
        return self.source.tracks(self.chosen[video], frames)

    def video_id(self, video: int) -> int:
        """See `TrackSource.video_id`."""
        return self.source.video_id(self.chosen[video])

    def size(self, video: int) -> tuple[int, int]:
        """See `TrackSource.size`."""
        return self.source.size(self.chosen[video])
