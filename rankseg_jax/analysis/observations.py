"""One pass of a model over a split: counts, selections and scores, collected on the host."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import numpy as np
from scipy import sparse

from rankseg_jax import inference, sharding
from rankseg_jax.data import IGNORE_LABEL, batching
from rankseg_jax.tasks.semantic import Semantic


@dataclasses.dataclass
class Observations:
    """Everything that is kept of the N images that could be read.

    Attributes:
      counts: sparse int64 [N, K], labeled pixels of each category.
      presence_logits: float32 [N, K]; None for the baseline.
      selected: int32 [N, κ], the categories that pixels were classified over, best first; None if
        those were all K.
      confusion: sparse int64 [K, K], labeled pixels by true and predicted class.
      missed: sparse int64 [K, K], those of them whose true class had not been selected.
      unread: names of the examples that could not be read.
    """

    counts: sparse.csr_array
    presence_logits: np.ndarray | None
    selected: np.ndarray | None
    confusion: sparse.csr_array
    missed: sparse.csr_array
    unread: list[str]

    def selected_present(self) -> np.ndarray:
        """bool [N, κ]: does the image hold the category selected at this rank?"""
        assert self.selected is not None
        return np.take_along_axis((self.counts > 0).toarray(), self.selected, 1)


def make_segment(model, config, class_names: Sequence[str], mesh) -> Callable:
    """A compiled (variables, batch) → (labels, selected, presence_logits), whatever the task.

    `labels` are int32 [B, H, W], `selected` int32 [B, κ] or None, `presence_logits` [B, K] or None.

    Args:
      mesh: of this host's devices.
    """

    def then(found, _):
        selected = None if found.selection is None else found.selection.labels
        return found.maps['labels'], selected, found.presence_logits

    segment = inference.compiled(model, config, Semantic(config, class_names), mesh, then)

    def run(variables, batch):
        batch = sharding.shard_batch(batch, mesh)
        return next(segment(variables, batch, batch['label'].shape[1:]))

    return run


def observe(segment, variables, source, config, mesh) -> Observations:
    """Goes through `source` once.

    Args:
      segment: from `make_segment`.
      variables: its first argument.
      source: the data, see `data.get_source`.
      config: of the run.
      mesh: the devices that batches are sharded over.

    Raises:
      ValueError: no pixel is labeled.
    """
    num_classes = len(source.class_names)
    confusion, missed = (
        sparse.csr_array((num_classes, num_classes), dtype=np.int64) for _ in range(2)
    )
    counts, all_selected, all_logits, seen = [], [], [], set()
    batches = batching.eval_batches(source, config, mesh.size)
    for batch, outputs in batching.behind((batch, segment(variables, batch)) for batch in batches):
        outputs, mask = jax.device_get(outputs), batch['mask']
        # The n images of the batch that are not padding: [n, H, W], [n, κ], [n, K].
        labels, selected, logits = jax.tree.map(lambda x, mask=mask: x[mask], outputs)
        image, true, predicted = labeled_pixels(batch['label'][mask], labels)
        counts.append(count(image, true, (len(labels), num_classes)))
        confusion += count(true, predicted, confusion.shape)
        if selected is not None:
            kept = np.zeros((len(labels), num_classes), bool)
            np.put_along_axis(kept, selected, True, 1)
            lost = ~kept[image, true]  # [pixels]
            missed += count(true[lost], predicted[lost], missed.shape)
            all_selected.append(selected)
        if logits is not None:
            all_logits.append(logits)
        seen |= set(batch['index'][mask].tolist())
    if not confusion.nnz:
        raise ValueError(f'split {config.data.eval_split!r} has no labeled pixel that can be read')
    return Observations(
        counts=sparse.vstack(counts, 'csr'),
        presence_logits=np.concatenate(all_logits) if all_logits else None,
        selected=np.concatenate(all_selected) if all_selected else None,
        confusion=confusion,
        missed=missed,
        unread=[source.ids[i] for i in range(len(source)) if i not in seen],
    )


def labeled_pixels(true, predicted) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Label maps [n, H, W] -> image, true and predicted class of each labeled pixel, [pixels]."""
    labeled = true != IGNORE_LABEL
    return np.nonzero(labeled)[0], true[labeled], predicted[labeled]


def count(rows, columns, shape) -> sparse.csr_array:
    """How often each pair (row, column) occurs, int64 of `shape`."""
    return sparse.coo_array((np.ones(len(rows), np.int64), (rows, columns)), shape).tocsr()
