"""One pass of a model over a split: counts, selections and scores, collected on the host."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh
from ml_collections import ConfigDict
from scipy import sparse

from rankseg_jax import inference, sharding
from rankseg_jax.data import IGNORE_LABEL, Source, batching
from rankseg_jax.report.observed import Observed, count
from rankseg_jax.tasks.semantic import Semantic


@dataclasses.dataclass
class Frames:
    """The F frames of clips, each once, although clips may overlap.

    Attributes:
      counts: sparse int64 [F, K], labeled pixels of each category.
      clips: int [F], the clip of each frame.
    """

    counts: sparse.csr_array
    clips: np.ndarray


@dataclasses.dataclass
class Observations:
    """Everything that is kept of the N images, or clips, that could be read.

    Attributes:
      counts: sparse int64 [N, K], labeled pixels of each category.
      presence_logits: float32 [N, K]; None for the baseline.
      selected: int32 [N, κ], the categories that pixels were classified over, best first; None if
        those were all K.
      confusion: sparse int64 [K, K], labeled pixels by true and predicted class.
      missed: sparse int64 [K, K], those of them whose true class had not been selected.
      unread: names of the examples that could not be read.
      images: for the report.
      frames: of the clips; None for images.
    """

    counts: sparse.csr_array
    presence_logits: np.ndarray | None
    selected: np.ndarray | None
    confusion: sparse.csr_array
    missed: sparse.csr_array
    unread: list[str]
    images: Observed
    frames: Frames | None = None

    def selected_present(self) -> np.ndarray:
        """bool [N, κ]: does the image hold the category selected at this rank?"""
        assert self.selected is not None
        return np.take_along_axis((self.counts > 0).toarray(), self.selected, 1)


def make_segment(
    model: nn.Module, config: ConfigDict, class_names: Sequence[str], mesh: Mesh
) -> Callable:
    """A compiled (variables, batch) → (labels, selected, presence_logits) of each frame of clips.

    That of images is one. Whatever the task, `labels` are int32 [B, H, W]; `selected` int32 [B, κ]
    or None and `presence_logits` [B, K] or None are those of the whole clip.

    Args:
      mesh: of this host's devices.
    """

    def then(found, _):
        selected = None if found.selection is None else found.selection.labels
        return found.maps['labels'], selected, found.presence_logits

    config = config.copy_and_resolve_references()
    config.eval.average_over = 'clip'
    segment = inference.compiled(model, config, Semantic(config, class_names), mesh=mesh, then=then)

    def run(variables, batch):
        batch = sharding.shard_batch(batch, mesh)
        return segment(variables, batch, batch['label'].shape[-2:])

    return run


def observe(
    segment: Callable, variables: dict, source: Source, config: ConfigDict, mesh: Mesh
) -> Observations:
    """Goes through `source` once, all on this host.

    Args:
      segment: from `make_segment`.
      variables: its first argument.
      source: the data, as `tasks.Task.examples` returns it.
      config: of the run.
      mesh: the devices that batches are sharded over.

    Raises:
      ValueError: no pixel is labeled.
    """
    num_classes = len(source.class_names)
    confusion, missed = (
        sparse.csr_array((num_classes, num_classes), dtype=np.int64) for _ in range(2)
    )
    counts, all_selected, all_logits, seen = [], [], [], []
    images = Observed(num_classes)
    frame_counts, frame_clips = [], []

    def steps():
        for batch in batching.eval_batches(source, config, sharding.batch_parts(mesh), alone=True):
            for number, outputs in enumerate(segment(variables, batch)):
                yield batch, number, outputs

    for batch, number, outputs in batching.delayed(steps()):
        outputs, mask = jax.device_get(outputs), batch['mask']
        # The n images of the batch that are not padding: [n, H, W], [n, κ], [n, K].
        labels, selected, logits = jax.tree.map(lambda x, mask=mask: x[mask], outputs)
        true, shape = batch['label'][mask], (len(labels), num_classes)  # [n, (t,) H, W]
        indices = batch['index'][mask].tolist()
        if number == 0:
            seen += indices
            labeled = true != IGNORE_LABEL
            counts.append(count(np.nonzero(labeled)[0], true[labeled], shape))
            if selected is not None:
                all_selected.append(selected)
            if logits is not None:
                all_logits.append(logits)
                for label, scores in zip(true, logits, strict=True):
                    images.add_categories(label, scores)
        if 'counted' in batch:
            counted = batch['counted'][mask, number]  # [n]
            true = np.where(counted[:, None, None], true[:, number], IGNORE_LABEL)  # [n, H, W]
        for i, index in enumerate(indices):
            if 'counted' not in batch or counted[i]:
                scores = None if logits is None else logits[i]
                images.add(source.place(index, number), true[i], labels[i], presence_logits=scores)
        image, true, predicted = labeled_pixels(true, labels)
        confusion += count(true, predicted, confusion.shape)
        if selected is not None:
            kept = np.zeros(shape, bool)
            np.put_along_axis(kept, selected, True, 1)
            lost = ~kept[image, true]  # [pixels]
            missed += count(true[lost], predicted[lost], missed.shape)
        if 'counted' in batch:
            places = np.flatnonzero(counted)
            frame_counts.append(count(image, true, shape)[places])
            frame_clips.append(len(seen) - len(labels) + places)
    if not confusion.nnz:
        raise ValueError(f'split {config.data.eval_split!r} has no labeled pixel that can be read')
    frames = None
    if frame_counts:
        frames = Frames(sparse.vstack(frame_counts, 'csr'), np.concatenate(frame_clips))
    return Observations(
        counts=sparse.vstack(counts, 'csr'),
        presence_logits=np.concatenate(all_logits) if all_logits else None,
        selected=np.concatenate(all_selected) if all_selected else None,
        confusion=confusion,
        missed=missed,
        images=images,
        unread=[source.ids[i] for i in sorted(set(range(len(source))) - set(seen))],
        frames=frames,
    )


def labeled_pixels(
    true: np.ndarray, predicted: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Label maps [n, H, W] → image, true and predicted class of each labeled pixel, [pixels]."""
    labeled = true != IGNORE_LABEL
    return np.nonzero(labeled)[0], true[labeled], predicted[labeled]
