"""Videos: examples are their frames, one after the other, and clips are some frames of one of them."""

from itertools import groupby

import numpy as np

from rankseg_jax.data import CorruptExample, official


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


class VideoSource(official.Source):
    """Frames of videos, those of a video in its order and one after the other.

    A frame is an example like any other: `for index in source.videos[v][1]: source.load(index)` goes through a video of any
    length, one frame in memory at a time.

    Attributes:
      videos: V of (name, range of its frames' indices).
      published_videos: how many the split should have.
    """

    def __init__(self, builder, split, examples, ids):
        super().__init__(builder, split, examples, ids)
        self.published_videos = builder.PUBLISHED_VIDEOS[split]
        self.videos, start = [], 0
        for name, frames in groupby(frame.rpartition('/')[0] for frame in ids):
            stop = start + len(list(frames))
            self.videos.append((name, range(start, stop)))
            start = stop

    def clip(self, video: int, frames) -> dict:
        """Some frames of a video, of which nothing else is read.

        Args:
          video: place in `videos`.
          frames: T numbers in 0..length of the video - 1; `sample` and `chunks` choose some.

        Returns:
          frames uint8 [T, H, W, 3] and labels int32 [T, H, W] in 0..K-1 or IGNORE_LABEL.

        Raises:
          CorruptExample: they differ in size; as `load`.
          ValueError: as `load`.
        """
        indices = [self.videos[video][1][frame] for frame in frames]
        return self._stack(indices, [self.example(index) for index in indices])

    def _stack(self, indices, examples):
        loaded = [self._decode(example) for example in examples]
        size = loaded[0]['label'].shape
        for index, frame in zip(indices, loaded, strict=True):
            if frame['label'].shape != size:
                raise CorruptExample(
                    f'{self.ids[index]} has {frame["label"].shape} pixels, {self.ids[indices[0]]} {size}; '
                    'the frames of a clip need one size'
                )
        return {
            'frames': np.stack([frame['image'] for frame in loaded]),
            'labels': np.stack([frame['label'] for frame in loaded]),
        }


class VideoBuilder(official.Builder, skip_registration=True):
    """Data sets of videos: an example is a frame, its file_name '<video>/<frame>'; `find` keeps the frames of a video together.

    Attributes:
      PUBLISHED_VIDEOS: splits and the number of videos that each has; PUBLISHED counts frames, which are not stated.
    """

    SOURCE = VideoSource
    PUBLISHED = dict.fromkeys(('train', 'validation', 'test'))
    PUBLISHED_VIDEOS: dict[str, int]
