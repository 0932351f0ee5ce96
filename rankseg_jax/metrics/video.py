"""Video consistency VC_n of VSPW (Miao et al., CVPR 2021): do labels flicker where nothing changes?

A window is n frames that follow each other. Its score is the share of the pixels whose true value
stays the same over the window for which the predicted class stays the same too, right or not. As in
VSPW's script, the last window of a video is left out, and with it videos of n frames or fewer. VC_n
is the mean over the windows of all videos in which any true value stays the same.

Some evaluators collect the windows of both lengths in one list and print its mean as VC16, which
therefore differs from this one.
"""

import numpy as np
from flax import struct

LENGTHS = (8, 16)  # n


@struct.dataclass
class ConsistencyMetric:
    """Sums of the scores of windows, on the host.

    The state is additive: over several hosts, the sum of each field is that of the whole data set.

    Attributes:
      scores: float64 [len(lengths)], the sums over the windows.
      windows: int64 [len(lengths)], their numbers.
      lengths: n of each.
    """

    scores: np.ndarray
    windows: np.ndarray
    lengths: tuple[int, ...] = struct.field(pytree_node=False)

    @classmethod
    def empty(cls, lengths: tuple[int, ...] = LENGTHS) -> 'ConsistencyMetric':
        return cls(np.zeros(len(lengths)), np.zeros(len(lengths), np.int64), tuple(lengths))

    def merge(self, other: 'ConsistencyMetric') -> 'ConsistencyMetric':
        """Adds up two states.

        Raises:
          ValueError: they are for different lengths of windows.
        """
        if self.lengths != other.lengths:
            raise ValueError(
                f'cannot merge metrics of windows of {self.lengths} and of {other.lengths} frames'
            )
        return ConsistencyMetric(
            self.scores + other.scores, self.windows + other.windows, self.lengths
        )

    def compute(self) -> dict[str, float]:
        """VC8 and VC16, or whatever the lengths are, as fractions; nan without any window."""
        return {
            f'VC{n}': float(score / windows) if windows else float('nan')
            for n, score, windows in zip(self.lengths, self.scores, self.windows, strict=True)
        }


class ConsistencyStream:
    """Scores one video, whose frames come one by one and in order; it keeps the last one.

    Args:
      lengths: n of the windows.
    """

    def __init__(self, lengths: tuple[int, ...] = LENGTHS):
        self.lengths = tuple(lengths)
        self._frame: tuple[np.ndarray, ...] = ()  # codes and labels of the last frame
        # For how many frames each pixel has had its true value, and its predicted one.
        self._ages: tuple[np.ndarray, ...] = ()

    def add(self, codes: np.ndarray, labels: np.ndarray) -> ConsistencyMetric:
        """Takes the next frame; returns the metric of the windows that end at the frame before.

        So the last window of a video is never counted.

        Args:
          codes: integers [H, W], true values; each is a value like any other, ignored ones too, see
            `data.VideoSource.codes`.
          labels: integers [H, W], predicted classes.

        Raises:
          ValueError: codes and labels, or the frames of the video, differ in size.
        """
        if codes.shape != labels.shape:
            raise ValueError(
                f'the truth is {codes.shape}, but the prediction is {labels.shape}; '
                'resize the prediction to the size of the truth'
            )
        if self._frame and (before := self._frame[0].shape) != codes.shape:
            raise ValueError(f'a frame of {codes.shape} follows one of {before} in one video')
        frame, metric = (codes, labels), ConsistencyMetric.empty(self.lengths)
        if not self._frame:
            self._ages = tuple(np.ones(codes.shape, np.int32) for _ in frame)  # [H, W] each
        else:
            metric = self._windows()
            self._ages = tuple(
                np.where(values == last, age + 1, 1)
                for values, last, age in zip(frame, self._frame, self._ages, strict=True)
            )
        self._frame = frame
        return metric

    def _windows(self):
        """The windows that end at the last frame taken."""
        true_age, age = self._ages
        scores, windows = np.zeros(len(self.lengths)), np.zeros(len(self.lengths), np.int64)
        for place, n in enumerate(self.lengths):
            constant = true_age >= n  # [H, W]
            if constant.any():
                scores[place] = (age[constant] >= n).mean()
                windows[place] = 1
        return ConsistencyMetric(scores, windows, self.lengths)
