"""Image semantic segmentation from per-pixel outputs: losses, label maps, statistics. Works in rank space to the last step."""

import jax
import jax.numpy as jnp

from rankseg_jax import losses
from rankseg_jax.data import IGNORE_LABEL
from rankseg_jax.metrics.multilabel import MultilabelMetric
from rankseg_jax.metrics.semantic import SemanticMetric
from rankseg_jax.multilabel import pixel_counts
from rankseg_jax.ranking import from_ranks, to_ranks

ROWS = 64  # of the label map are upsampled at once, so that memory stays at κ × these


def loss(output, batch, presence, config, num_classes: int):
    """The training loss of a batch: (scalar, its parts by name).

    Args:
      output: decoders.pixel_classifier.PixelOutput.
      batch: 'label' [B, H, W] int32 class ids or IGNORE_LABEL, 'mask' [B] bool.
      presence: [B, K] bool, the categories in the labels.

    Raises:
      ValueError: unknown multi-label loss.
    """
    targets = batch['label']  # [B, H, W]
    if output.selection is not None:
        targets = to_ranks(targets, output.selection, num_classes=num_classes, ignore_label=IGNORE_LABEL)
    options = config.loss

    def pixel_loss(logits):
        return losses.pixel_cross_entropy(logits, targets, upsample=options.upsample, average_all=options.average_all)

    parts = {'loss_pixel': pixel_loss(output.logits)}
    if output.auxiliary_logits is not None:
        parts['loss_auxiliary'] = config.model.auxiliary_weight * pixel_loss(output.auxiliary_logits)
    if output.class_logits is not None:
        if options.multilabel == 'bce':
            value = losses.binary_cross_entropy(output.class_logits, presence, mask=batch['mask'])
        elif options.multilabel != 'asymmetric':
            raise ValueError(f"config.loss.multilabel = {options.multilabel!r} is unknown; use 'asymmetric' or 'bce'")
        else:
            value = losses.asymmetric_loss(
                output.class_logits, presence, gamma_neg=options.gamma_neg, gamma_pos=options.gamma_pos,
                clip=options.clip, mask=batch['mask'])
        parts['loss_multilabel'] = options.multilabel_weight * value
    return sum(parts.values()), parts


def label_map(output, content, size, *, image_shape, canvas):
    """The predicted class of every pixel of the original images.

    The logits are resized bilinearly (half-pixel centres) to the original size, the best rank is taken there, and only its
    number is mapped to a class id.

    Args:
      output: PixelOutput with logits [B, h, w, κ].
      content: [B, 2] rows and columns of the network's input that hold the picture; the rest is padding.
      size: [B, 2] rows and columns of the original images.
      image_shape: (H, W) of the network's input, static.
      canvas: (rows, columns) of the result, static, at least `size`.

    Returns:
      [B, *canvas] int32 class ids; IGNORE_LABEL outside the original image.
    """
    logits = output.logits  # [B, h, w, κ]
    rows, columns = (
        interpolation(canvas[i], size[:, i], logits.shape[1 + i], content[:, i] * logits.shape[1 + i] / image_shape[i])
        for i in (0, 1))  # [B, rows, h], [B, columns, w]
    blocks = -(-canvas[0] // ROWS)
    rows = jnp.pad(rows, ((0, 0), (0, blocks * ROWS - canvas[0]), (0, 0)))
    rows = rows.reshape(len(rows), blocks, ROWS, -1).swapaxes(0, 1)  # [blocks, B, ROWS, h]

    def best_rank(rows):
        upsampled = jnp.einsum('brh,bhwk->brwk', rows, logits, precision='highest')
        upsampled = jnp.einsum('bcw,brwk->brck', columns, upsampled, precision='highest')  # [B, ROWS, columns, κ]
        return upsampled.argmax(-1).astype(jnp.int32)

    ranks = jax.lax.map(best_rank, rows)  # [blocks, B, ROWS, columns]
    ranks = ranks.swapaxes(0, 1).reshape(len(logits), -1, canvas[1])[:, :canvas[0]]  # [B, *canvas]
    inside = ((jnp.arange(canvas[0]) < size[:, :1])[:, :, None] & (jnp.arange(canvas[1]) < size[:, 1:])[:, None])
    labels = ranks if output.selection is None else from_ranks(ranks, output.selection)
    return jnp.where(inside, labels, IGNORE_LABEL)


def interpolation(length: int, size, num_cells: int, extent):
    """Bilinear weights [B, length, num_cells] of output position p < `size` over the first `extent` of the input's cells."""
    position = (jnp.arange(length) + 0.5) * (extent / size)[:, None] - 0.5  # [B, length]
    last = jnp.ceil(extent)[:, None] - 1
    position = jnp.clip(position, 0, last)[:, :, None]
    return jnp.maximum(0.0, 1.0 - jnp.abs(position - jnp.arange(num_cells)))


def statistics(output, batch, *, num_classes: int, recall_at: tuple[int, ...]):
    """The sums that the metrics of an evaluation batch need: (SemanticMetric, MultilabelMetric or None)."""
    predictions = label_map(
        output, batch['content'], batch['size'], image_shape=batch['image'].shape[1:3], canvas=batch['label'].shape[1:])
    semantic = SemanticMetric.from_batch(batch['label'], predictions, num_classes)
    if output.class_logits is None:
        return semantic, None
    counts = pixel_counts(batch['label'], num_classes)  # [B, K]
    return semantic, MultilabelMetric.from_batch(output.class_logits, counts, recall_at, batch['mask'])
