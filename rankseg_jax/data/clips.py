"""Which frames of a video a clip takes.

Frames are numbers in 0..length of the video - 1, as `official.VideoSource.clip` takes them.
"""

import numpy as np


def sample(length: int, num_frames: int, reach: int, rng: np.random.Generator) -> np.ndarray:
    """Frames to train on: a random one, and others at most `reach` before or after it.

    Args:
      length: of the video, at least 1.
      num_frames: T.
      reach: 20 in the published recipes.
      rng: what is drawn follows from its state and the other arguments alone.

    Returns:
      int64 [T], ascending. None is there twice if there are T so near to each other; else all that are near are there, each as
      often as any other or once more.
    """
    reference = rng.integers(length)
    near = np.arange(max(reference - reach, 0), min(reference + reach + 1, length))
    others = rng.permutation(near[near != reference])
    return np.sort(np.resize([reference, *others], num_frames))


def chunks(length: int, size: int = 20) -> list[range]:
    """All frames of a video in pieces of `size`, the last perhaps shorter: what published models see of VSPW at once."""
    return [range(start, min(start + size, length)) for start in range(0, length, size)]
