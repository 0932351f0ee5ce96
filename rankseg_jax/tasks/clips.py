"""What the tasks on videos share: clips to train on, windows to predict, the order of frames."""

import collections
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from rankseg_jax.data import Source, VideoSource, videos


class Clips:
    """Makes a task of images one of clips; to be named before it among the bases."""

    config: Any
    takes_clips = True
    start = 'an image model trained on COCO instances'

    def protocol(self) -> str:
        """See `tasks.Task.protocol`."""
        options = self.config.eval
        return f'clips of {options.clip_length} frames, {options.clip_overlap} of them shared'

    def samples(self, source: Source) -> videos.Samples:
        """Its videos; training draws `data.clip_frames` frames from each."""
        return videos.Samples(video_source(self.config, source))

    def examples(self, source: Source) -> videos.Windows:
        """Its videos in clips of `eval.clip_length` frames."""
        options = self.config.eval
        return videos.Windows(
            video_source(self.config, source), options.clip_length, options.clip_overlap
        )

    def sample(self, samples: videos.Samples, video: int, rng) -> np.ndarray:
        """The frames of a video to train on, see `videos.sample`."""
        length, data = len(samples.source.videos[video][1]), self.config.data
        return videos.sample(length, data.clip_frames, data.clip_reach, rng)


def video_source(config, source: Source) -> VideoSource:
    """The source; ValueError if it has no videos."""
    if not isinstance(source, VideoSource):
        raise ValueError(
            f'config.task = {config.task!r} needs videos, which {config.data.name} does not have'
        )
    return source


def in_order(
    examples: videos.Windows, items: Iterable
) -> Iterator[tuple[int, list[dict[str, Any]], bool]]:
    """The windows of each video in order, though batches may mix them.

    Args:
      items: see `tasks.Task.join`.

    Yields:
      The place of a window in `examples`, what is found in its frames, and whether it is the last
      of its video. A window that could not be read is left out.
    """
    arriving, waiting = collections.defaultdict(list), {}  # window → what is found in its frames
    following, last = {}, {}  # video → its next window, its last one
    for place, window in enumerate(examples.windows):
        following.setdefault(window.video, place)
        last[window.video] = place

    def ready(video):
        while following[video] in waiting:
            place = following[video]
            following[video] += 1
            yield place, waiting.pop(place), place == last[video]

    for place, _, found in items:
        window = examples.windows[place]
        arriving[place].append(found)
        if len(arriving[place]) == len(window.frames):
            waiting[place] = arriving.pop(place)
            yield from ready(window.video)
    # What follows a window that could not be read.
    for place in sorted(waiting):
        yield place, waiting.pop(place), place == last[examples.windows[place].video]
