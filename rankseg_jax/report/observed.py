"""What evaluation and analysis note of each image for the report, and the figures made of it."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import sparse

from rankseg_jax.data import IGNORE_LABEL
from rankseg_jax.metrics.semantic import SemanticMetric

BINS = 10  # of confidence, of equal width
SAFE = 0.999  # share of the labeled pixels that a safe κ keeps


@dataclasses.dataclass
class Observed:
    """Small counts of each image; the label maps themselves are not kept.

    Attributes:
      num_classes: K.
      pairs: by image or frame, its place in the source: int32 [4, n], one column for each pair of a
        true and a predicted class that meet: true class; predicted class, K for none; number of
        pixels; rank of the true class from 0 on, K without a multi-label head.
      scores: by image or video, its place in the source, what `tasks.Task.image_score` says.
      categories: of each image or clip int32 [3, n]: its categories, their pixels, their ranks.
      bins: float64 [3, BINS] of confidences: their number, their sum, how many of them are right.
    """

    num_classes: int
    pairs: dict[int, np.ndarray] = dataclasses.field(default_factory=dict)
    scores: dict[int, float] = dataclasses.field(default_factory=dict)
    categories: list[np.ndarray] = dataclasses.field(default_factory=list)
    bins: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((3, BINS)))

    def add(
        self,
        place: int,
        label: np.ndarray,
        predicted: np.ndarray,
        presence_logits: np.ndarray | None = None,
    ) -> None:
        """Adds an image or a frame; threads may share the object.

        Args:
          place: in the source.
          label: [H, W] integers, 0..K-1 or IGNORE_LABEL.
          predicted: [H, W] integers, 0..K-1 or IGNORE_LABEL for none.
          presence_logits: [K], whose ties rank the lower class id first; None: the baseline.
        """
        shape = self.num_classes, self.num_classes + 1
        labeled = label != IGNORE_LABEL
        predicted = np.where(predicted == IGNORE_LABEL, self.num_classes, predicted)
        pairs = count(label[labeled], predicted[labeled], shape).tocoo()
        ranks = np.full(pairs.nnz, self.num_classes)
        if presence_logits is not None:
            ranks = class_ranks(presence_logits)[pairs.row]
        self.pairs[place] = np.stack([pairs.row, pairs.col, pairs.data, ranks]).astype(np.int32)

    def add_categories(self, label: np.ndarray, presence_logits: np.ndarray) -> None:
        """Adds what the multi-label head says of an image or a clip, for one thread at a time.

        Args:
          label: [(t,) H, W] integers, 0..K-1 or IGNORE_LABEL.
          presence_logits: [K].
        """
        pixels = np.bincount(label[label != IGNORE_LABEL], minlength=self.num_classes)  # [K]
        held = np.flatnonzero(pixels)
        if not held.size:
            return
        ranks = class_ranks(presence_logits)[held]
        self.categories.append(np.stack([held, pixels[held], ranks]).astype(np.int32))
        confidences = 1 / (1 + np.exp(-np.asarray(presence_logits, np.float64)))  # [K]
        place = np.searchsorted(np.linspace(0, 1, BINS + 1)[1:-1], confidences)
        for row, weights in enumerate((np.ones(len(pixels)), confidences, pixels > 0)):
            self.bins[row] += np.bincount(place, weights, BINS)

    def merge(self, other: 'Observed') -> 'Observed':
        """Both together; each image is in one of them."""
        return Observed(
            self.num_classes,
            pairs=self.pairs | other.pairs,
            scores=self.scores | other.scores,
            categories=self.categories + other.categories,
            bins=self.bins + other.bins,
        )

    def all_pairs(self) -> np.ndarray:
        """The columns of all images, int64 [4, n]."""
        empty = np.zeros((4, 0), np.int64)
        return np.concatenate([empty, *self.pairs.values()], axis=1)

    def confusion(self) -> sparse.csr_array:
        """Labeled pixels by true and predicted class, int64 [K, K + 1], the last one for none."""
        true, predicted, pixels, _ = self.all_pairs()
        shape = self.num_classes, self.num_classes + 1
        return sparse.coo_array((pixels, (true, predicted)), shape).tocsr()

    def semantic_scores(self, class_names: Sequence[str]) -> dict:
        """As `SemanticMetric.compute`, of all images."""
        confusion = self.confusion()
        return SemanticMetric(
            confusion.diagonal(),
            np.asarray(confusion.sum(0))[: self.num_classes],
            np.asarray(confusion.sum(1)),
        ).compute(class_names)

    def images_of(self) -> np.ndarray:
        """int [K], the images or frames that hold each category."""
        held = [np.unique(pairs[0]) for pairs in self.pairs.values()]
        return np.bincount(np.concatenate([np.zeros(0, int), *held]), minlength=self.num_classes)

    def found(self, num_selected: int) -> np.ndarray:
        """float [K], of the images or clips that hold a category the share that keep it among the
        best `num_selected`; nan without such an image."""
        held, _, ranks = np.concatenate([np.zeros((3, 0), int), *self.categories], axis=1)
        total, kept = (
            np.bincount(x, minlength=self.num_classes) for x in (held, held[ranks < num_selected])
        )
        return np.where(total > 0, kept / np.maximum(total, 1), np.nan)

    def curves(self, num_selected: int) -> dict[str, list[float]]:
        """What the best κ categories keep, for κ = 1 … K.

        Args:
          num_selected: κ of the run.

        Returns:
          As `recall_curves`; by_frequency, see `recall_by_frequency`; and, as far as
          `num_selected`, right_pixels: the share of the labeled pixels that are predicted right and
          whose class is among the best κ. Prediction with a smaller κ gets at least these right
          where ranks do not act on each other's scores.
        """
        lengths = [categories.shape[1] for categories in self.categories]
        held, pixels, ranks = np.concatenate(self.categories, axis=1)
        ends = np.concatenate([[0], np.cumsum(lengths)])
        counts = sparse.csr_array((pixels, held, ends), (len(lengths), self.num_classes))
        true, predicted, pixels, of_true = self.all_pairs()
        right = np.bincount(of_true, pixels * (true == predicted), self.num_classes).cumsum()
        right = right[:num_selected] / pixels.sum()
        return recall_curves(ranks, counts) | {
            'by_frequency': recall_by_frequency(counts),
            'right_pixels': right.tolist(),
        }

    def calibration(self) -> dict[str, Any]:
        """The reliability diagram of the multi-label head, bin by bin, of those that hold any.

        Returns:
          confidence: the mean; present: the share of them that are in the image; number: of pairs
          of an image and a category; and `error`, the expected calibration error.
        """
        number, confidence, present = self.bins[:, self.bins[0] > 0]
        gaps = np.abs(confidence - present).sum() / number.sum()
        return {
            'confidence': (confidence / number).tolist(),
            'present': (present / number).tolist(),
            'number': number.astype(int).tolist(),
            'error': float(gaps),
        }

    def mean_iou(self, places: Sequence[int]) -> float:
        """Mean IoU in some images or frames together, over the categories there or predicted."""
        columns = [self.pairs[place] for place in places if place in self.pairs]
        true, predicted, pixels, _ = np.concatenate([np.zeros((4, 0), int), *columns], axis=1)
        held, index = np.unique([true, predicted], return_inverse=True)  # [n], [2, columns]
        true, predicted = index.reshape(2, -1)
        right, of_true, of_predicted = (
            np.bincount(x, pixels * weights, len(held))
            for x, weights in ((true, true == predicted), (true, 1), (predicted, 1))
        )  # [n] each
        iou = (right / (of_true + of_predicted - right))[held < self.num_classes]
        return float(iou.mean()) if iou.size else float('nan')


def class_ranks(presence_logits: np.ndarray) -> np.ndarray:
    """[K]: the rank of each category from 0 on; ties rank the lower class id first."""
    order = np.argsort(-np.asarray(presence_logits), kind='stable')
    ranks = np.empty_like(order)
    ranks[order] = np.arange(len(order))
    return ranks


def recall_curves(ranks: np.ndarray, counts: sparse.csr_array) -> dict[str, list[float]]:
    """What the best κ categories of each image keep, for every κ.

    Args:
      ranks: int, those of the categories in all images, as counts.data.
      counts: sparse [N, K], labeled pixels.

    Returns:
      Lists for κ = 1 … K, of which images without a labeled pixel are excluded. category_recall:
      the mean over images of the share of their categories; pixel_recall: the share of all labeled
      pixels; image_pixel_recall: the mean over images of the share of their pixels.
    """
    held, pixels = np.diff(counts.indptr), counts.sum(1)  # [N]
    weights = {
        'category_recall': 1 / np.repeat(held, held),
        'pixel_recall': counts.data,
        'image_pixel_recall': counts.data / np.repeat(pixels, held),
    }
    sums = {
        name: np.bincount(ranks, weight, counts.shape[1]).cumsum()
        for name, weight in weights.items()
    }
    return {name: (total / total[-1]).tolist() for name, total in sums.items()}


def recall_by_frequency(counts: sparse.csr_array) -> list[float]:
    """As category_recall of `recall_curves`, if every image kept the κ commonest categories.

    A multi-label head that keeps no more has learned what is frequent, not what an image holds.

    Args:
      counts: sparse [N, K], labeled pixels.
    """
    images = np.diff(counts.tocsc().indptr)  # [K]
    return recall_curves(class_ranks(images)[counts.indices], counts)['category_recall']


def safe_selected(pixel_recall: Sequence[float], share: float = SAFE) -> int:
    """The smallest κ that keeps a share of the labeled pixels."""
    return int(np.searchsorted(pixel_recall, share)) + 1


def count(rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int]) -> sparse.csr_array:
    """How often each pair (row, column) occurs, int64 of `shape`."""
    return sparse.coo_array((np.ones(len(rows), np.int64), (rows, columns)), shape).tocsr()
