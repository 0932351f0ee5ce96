"""Links the objects of overlapping windows of a video to tracks, on the host."""

import dataclasses
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from scipy.optimize import linear_sum_assignment

LEAST_SIMILAR = 0.5  # of two objects that are linked, see `Tracker`


@dataclasses.dataclass
class Track:
    """An object of a video, as far as it has been seen.

    Attributes:
      id: from 1 on.
      probabilities: [K] float64, the sum over the windows it was seen in.
      windows: their number.
      masks: frame → run lengths.
      embedding: [D] of its query in the last window.
    """

    id: int
    probabilities: np.ndarray
    windows: int
    masks: dict[int, dict]
    embedding: np.ndarray

    def scores(self) -> np.ndarray:
        """[K], the mean class probabilities."""
        return self.probabilities / self.windows


class Tracker:
    """Follows the objects of one video through windows that come in order.

    An object of a window continues the track that it resembles most: the mean of the cosine of
    their queries' embeddings (as Huang et al., NeurIPS 2022, link frames) and of the IoU of their
    masks in the frames that both windows hold, or the cosine alone if there are none. Class
    probabilities are averaged over windows. A single window gives what the whole video would.
    Where a model tells objects apart itself, `follow` takes the place of `add`.
    """

    def __init__(self):
        self.tracks: list[Track] = []
        self.followed: dict[int, Track] = {}
        self.current: list[Track] = []  # those of the window before, …
        self.frames = range(0)  # … and its frames

    def add(
        self,
        frames: range,
        masks: list[list[dict | None]],
        probabilities: np.ndarray,
        embeddings: np.ndarray,
    ) -> list[Track]:
        """Adds a window.

        Args:
          frames: of the window.
          masks: for each frame the run lengths of M objects, None where one is not visible.
          probabilities: [M, K].
          embeddings: [M, D].

        Returns:
          The track of each object.
        """
        found = [
            {frame: mask for frame, row in zip(frames, masks, strict=True) if (mask := row[m])}
            for m in range(len(probabilities))
        ]  # frame → run lengths, for each object
        similar = self.similarity(frames, found, embeddings)  # [tracks, M]
        chosen: dict[int, Track] = {}
        for row, column in zip(*linear_sum_assignment(-similar), strict=True):
            if similar[row, column] >= LEAST_SIMILAR:
                chosen[column] = self.current[row]
        window = []
        for m, visible in enumerate(found):
            track = chosen.get(m)
            if track is None:
                empty = np.zeros(len(probabilities[m]))
                track = Track(
                    id=len(self.tracks) + 1,
                    probabilities=empty,
                    windows=0,
                    masks={},
                    embedding=embeddings[m],
                )
                self.tracks.append(track)
            track.probabilities += probabilities[m]
            track.windows += 1
            track.masks = visible | track.masks  # the window before saw what followed, too
            track.embedding = embeddings[m]
            window.append(track)
        self.current, self.frames = window, frames
        return window

    def follow(
        self,
        identities: np.ndarray,
        frame: int,
        masks: list[dict | None],
        probabilities: np.ndarray,
    ) -> list[Track]:
        """Adds a frame of objects that are told apart already.

        Args:
          identities: [M], numbers that stay with the objects.
          frame: its number.
          masks: run lengths of the M objects, None where one is not visible.
          probabilities: [Q, K] of all objects by their numbers, up to this frame.

        Returns:
          The track of each of the M objects.
        """
        for identity, mask in zip(identities.tolist(), masks, strict=True):
            if identity not in self.followed:
                track = Track(
                    id=identity + 1,
                    probabilities=probabilities[identity],
                    windows=1,
                    masks={},
                    embedding=np.zeros(0),
                )
                self.followed[identity] = track
                self.tracks.append(track)
            if mask:
                self.followed[identity].masks[frame] = mask
        for identity, track in self.followed.items():
            track.probabilities = probabilities[identity]
        return [self.followed[identity] for identity in identities.tolist()]

    def similarity(self, frames: range, found: list[dict], embeddings: np.ndarray) -> np.ndarray:
        """[tracks of the window before, M], see the class."""
        if not self.current:
            return np.zeros((0, len(found)))
        before = unit(np.stack([track.embedding for track in self.current]))
        cosines = before @ unit(embeddings).T
        shared = [frame for frame in frames if frame in self.frames]
        overlaps = np.array(
            [[overlap(track.masks, visible, shared) for visible in found] for track in self.current]
        )
        return np.where(np.isnan(overlaps), cosines, (cosines + overlaps) / 2)

    def best(self, most: int) -> list[dict[str, Any]]:
        """The `most` best pairs of track and class, best first, without a threshold.

        A track may come with several classes, as in the released code.

        Returns:
          Dicts with 'id', 'category_id', 'score' and 'masks', frame → run lengths.
        """
        if not self.tracks:
            return []
        scores = np.stack([track.scores() for track in self.tracks])  # [tracks, K]
        order = np.argsort(-scores, axis=None, kind='stable')[:most]
        return [
            {
                'id': self.tracks[place].id,
                'category_id': int(label),
                'score': float(scores[place, label]),
                'masks': self.tracks[place].masks,
            }
            for place, label in zip(*np.unravel_index(order, scores.shape), strict=True)
        ]


def overlap(first: dict[int, dict], second: dict[int, dict], frames: list[int]) -> float:
    """IoU of two objects over some frames; nan if neither is visible there.

    Args:
      first: frame → run lengths of its mask.
      second: likewise.
    """
    common = union = 0.0
    for frame in frames:
        masks = [found[frame] for found in (first, second) if frame in found]
        areas = [float(coco_mask.area(mask)) for mask in masks]
        both = 0.0
        if len(masks) == 2:
            both = float(coco_mask.area(coco_mask.merge(masks, intersect=True)))
        common, union = common + both, union + sum(areas) - both
    return common / union if union else float('nan')


def unit(vectors: np.ndarray) -> np.ndarray:
    """[…, D] scaled to length 1."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
