"""Which frames make a video or a clip; `VideoSource.clip` reads them."""

from collections.abc import Sequence
from itertools import groupby

import numpy as np


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


def chunks(length: int, size: int = 20) -> list[range]:
    """All frames in pieces of `size`, the last perhaps shorter.

    The published models process VSPW in pieces of 20.
    """
    return [range(start, min(start + size, length)) for start in range(0, length, size)]


def group(ids: Sequence[str]) -> list[tuple[str, range]]:
    """The videos of frames named '<video>/<frame>', in order: (name, range of places in `ids`)."""
    found, start = [], 0
    for name, frames in groupby(frame.rpartition('/')[0] for frame in ids):
        stop = start + len(list(frames))
        found.append((name, range(start, stop)))
        start = stop
    return found
