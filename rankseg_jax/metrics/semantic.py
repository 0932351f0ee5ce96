"""Semantic segmentation: mIoU, pixel accuracy and the table per class."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct


@struct.dataclass
class SemanticMetric:
    """Pixel counts per class, all that IoU and accuracy need: no K × K confusion matrix.

    A batch's counts are int32 on the device; `merge` adds them on the host in int64. The state
    is additive: over several hosts, the sum of each field is the state of the whole data set.

    Attributes:
      intersection: [K] pixels where prediction and label agree.
      predicted: [K] labeled pixels predicted as the class.
      labeled: [K] pixels labeled as the class.
    """

    intersection: jax.Array | np.ndarray
    predicted: jax.Array | np.ndarray
    labeled: jax.Array | np.ndarray

    @classmethod
    def empty(cls, num_classes: int) -> 'SemanticMetric':
        return cls(*(np.zeros(num_classes, np.int64) for _ in range(3)))

    @classmethod
    def from_batch(
        cls, labels: jax.Array, predictions: jax.Array, num_classes: int
    ) -> 'SemanticMetric':
        """Counts one batch; made for `jit`.

        Args:
          labels: [B, H, W] int32; pixels outside 0..K-1 are ignored, with their predictions.
          predictions: [B, H, W] int32; a value outside 0..K-1 is wrong and counts for no class.
          num_classes: K, static.

        Raises:
          ValueError: labels and predictions differ in shape.
        """
        if labels.shape != predictions.shape:
            raise ValueError(
                f'labels are {labels.shape}, but predictions are {predictions.shape}; '
                'resize the predictions to the size of the labels'
            )
        valid = (labels >= 0) & (labels < num_classes)  # [B, H, W]
        predictions = jnp.where(valid & (predictions >= 0), predictions, num_classes)  # K: dropped
        labels = jnp.where(valid, labels, num_classes)
        agreed = jnp.where(labels == predictions, labels, num_classes)
        counts = jnp.zeros(num_classes, jnp.int32)  # [K]
        return cls(
            *(counts.at[classes].add(1, mode='drop') for classes in (agreed, predictions, labels))
        )

    def merge(self, other: 'SemanticMetric') -> 'SemanticMetric':
        """Adds up two states on the host, in int64.

        Raises:
          ValueError: they have different numbers of classes.
        """
        if self.labeled.shape != other.labeled.shape:
            raise ValueError(
                f'cannot merge metrics of {self.labeled.size} and {other.labeled.size} classes'
            )
        return jax.tree.map(
            lambda a, b: np.asarray(a, np.int64) + np.asarray(b, np.int64), self, other
        )

    def compute(self, class_names: Sequence[str] | None = None) -> dict:
        """The scores, as fractions; mIoU, mAcc and aAcc as mmsegmentation defines them.

        Args:
          class_names: K names for the table; without them, the class numbers.

        Returns:
          mIoU: mean over the classes that are labeled or predicted anywhere; a class that is
            predicted but never labeled counts 0. mIoU_labeled: mean over the labeled classes
            alone, as in VSPW's script and in detectron2 since July 2022; never lower than mIoU.
            fwIoU: mean IoU weighted by the labeled pixels of each class. mAcc: mean over the
            labeled classes of the share of their pixels that is right. aAcc: the share of all
            labeled pixels that is right. classes: K rows of name, IoU, Acc and pixels (the
            labeled ones). A share of no pixels is nan.

        Raises:
          ValueError: the number of names is not K.
        """
        if class_names is None:
            class_names = [str(label) for label in range(self.labeled.size)]
        if len(class_names) != self.labeled.size:
            raise ValueError(f'{len(class_names)} class names for {self.labeled.size} classes')
        right, predicted, labeled = (
            np.asarray(x, np.int64) for x in (self.intersection, self.predicted, self.labeled)
        )
        iou = _divide(right, labeled + predicted - right)  # [K]
        accuracy = _divide(right, labeled)  # [K]
        return {
            'mIoU': _mean(iou),
            'mIoU_labeled': _mean(iou[labeled > 0]),
            'fwIoU': float(_divide((labeled * np.nan_to_num(iou)).sum(), labeled.sum())),
            'mAcc': _mean(accuracy),
            'aAcc': float(_divide(right.sum(), labeled.sum())),
            'classes': [
                {'name': name, 'IoU': float(i), 'Acc': float(a), 'pixels': int(n)}
                for name, i, a, n in zip(class_names, iou, accuracy, labeled, strict=True)
            ],
        }


def _divide(a, b):
    return np.where(b > 0, a / np.maximum(b, 1), np.nan)


def _mean(values):
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else float('nan')
