"""Evaluation at the original size: mIoU, pixel accuracy, panoptic quality, and how well the multi-label head finds categories."""

import json
from contextlib import nullcontext
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

from rankseg_jax import checkpoint, data, inference, models, sharding
from rankseg_jax.data import CorruptExample, coco, label_files, pipeline
from rankseg_jax.metrics.multilabel import MultilabelMetric
from rankseg_jax.metrics.panoptic import PanopticMetric
from rankseg_jax.metrics.semantic import SemanticMetric
from rankseg_jax.multilabel import pixel_counts
from rankseg_jax.tasks import semantic


def recall_values(config, num_classes: int) -> tuple[int, ...]:
    """The values of κ to report recall and precision at: the selection's own, and `eval.recall_at`."""
    return tuple(
        sorted({min(k, num_classes) for k in (config.rankseg.num_selected, *config.eval.recall_at)})
    )


def make_eval_step(model, config, source, mesh):
    """Jitted (model variables, batch) -> (SemanticMetric, MultilabelMetric or None, labels [B, Hc, Wc], Segments or None).

    The metrics are sums over the global batch; label maps and panoptic segments are those of its images, split over the mesh.
    """
    num_classes, things = len(source.class_names), data.things(source, config.task)
    recall_at = recall_values(config, num_classes) if config.rankseg else ()

    def eval_step(variables, batch):
        labels = batch['label']  # [B, H, W]
        prediction = inference.segment(
            model,
            variables,
            batch['views'],
            batch['size'],
            config,
            canvas=labels.shape[1:],
            presence=pixel_counts(labels, num_classes) > 0,
            things=things and jnp.array(things),
        )
        return (
            *semantic.statistics(
                labels,
                prediction.labels,
                prediction.presence_logits,
                batch['mask'],
                num_classes=num_classes,
                recall_at=recall_at,
            ),
            prediction.labels,
            prediction.segments,
        )

    copied, split = sharding.copied(mesh), sharding.split(mesh)
    return jax.jit(
        eval_step, in_shardings=(copied, split), out_shardings=(copied, copied, split, split)
    )


def evaluate(eval_step, variables, source, config, mesh, writer=None) -> dict:
    """Scores of the model on every image of a source, each counted once.

    Args:
      writer: a `coco.Writer` for the panoptic segments, or a `LabelWriter` for the label maps, of this host's images; None:
        they are only scored.

    Returns:
      The scores of SemanticMetric, of MultilabelMetric with RankSeg, and of PanopticMetric for that task.
    """
    num_classes, things = len(source.class_names), data.things(source, config.task)
    total = SemanticMetric.empty(num_classes)
    categories = (
        MultilabelMetric.empty(recall_values(config, num_classes)) if config.rankseg else None
    )
    panoptic = PanopticMetric.empty(num_classes)
    num_images = 0
    for batch in pipeline.eval_batches(source, config):
        pixels, found, label_maps, segments = eval_step(
            variables, sharding.shard_batch(batch, mesh)
        )
        total = total.merge(jax.device_get(pixels))
        if found is not None:
            categories = categories.merge(jax.device_get(found))
        if segments is not None:
            ids, labels = sharding.local_part(segments.ids), sharding.local_part(segments.labels)
            for i in np.flatnonzero(batch['mask']):
                index, (height, width) = int(batch['index'][i]), batch['size'][i]
                try:
                    truth = source.segments(index)
                except CorruptExample as error:
                    logging.error('Not in the panoptic scores: %s', error)
                    continue
                image_ids, image_labels = (
                    ids[i, :height, :width],
                    labels[i][labels[i] >= 0].tolist(),
                )
                predicted = [
                    {'id': place, 'category_id': label}
                    for place, label in enumerate(image_labels, 1)
                ]
                panoptic = panoptic.merge(
                    PanopticMetric.from_image(*truth, image_ids, predicted, num_classes)
                )
                if writer is not None:
                    image_id = source.image_ids[index]
                    writer.write(image_id, Path(source.ids[index]).stem, image_ids, image_labels)
        elif writer is not None:
            label_maps = sharding.local_part(label_maps)  # [B, Hc, Wc]
            for i in np.flatnonzero(batch['mask']):
                height, width = batch['size'][i]
                writer.write(source.ids[batch['index'][i]], label_maps[i, :height, :width])
        num_images += int(batch['mask'].sum())
    if jax.process_count() == 1 and num_images < len(source):
        logging.error(
            '%d of %d images could not be read and are not scored',
            len(source) - num_images,
            len(source),
        )
    scores = {}
    if things is not None:
        of_hosts = jax.tree.map(
            lambda x: multihost_utils.process_allgather(x).reshape(-1, num_classes), panoptic
        )
        panoptic = jax.tree.map(lambda x: x.sum(0), of_hosts)
        scores = panoptic.compute(things, source.class_names)
        scores['panoptic_classes'] = scores.pop('classes')
    return scores | total.compute(source.class_names) | (categories.compute() if categories else {})


def run(config, workdir, output=None) -> dict:
    """--mode=evaluate: scores a checkpoint of `workdir` on `config.data.eval_split`; prints them and writes a JSON file.

    Predictions are written in the data set's own format if there is a folder `output` for them: label maps as `LabelWriter`
    does, panoptic segments as `coco.Writer` does.

    Raises:
      ValueError: `output` with several hosts.
    """
    mesh = sharding.make_mesh(config.mesh_data)
    source = data.get_source(config.data, config.data.eval_split)
    num_classes = len(source.class_names)
    things = data.things(source, config.task)
    if output and jax.process_count() > 1:
        raise ValueError('--output is for evaluation on one host')
    model = models.build(config, num_classes)
    manager = checkpoint.open_checkpoints(workdir)
    step = checkpoint.find(manager, config.eval.checkpoint)
    variables = models.restore(manager, step, model, config, num_classes, sharding.copied(mesh))
    eval_step = make_eval_step(model, config, source, mesh)
    if not output:
        writer = nullcontext()
    elif things is None:
        writer = label_files.LabelWriter(output, source)
    else:
        writer = coco.Writer(Path(output) / 'predictions.json', coco.categories(source))
    with writer as writer:
        scores = evaluate(eval_step, variables, source, config, mesh, writer)
    if jax.process_index() == 0:
        path = Path(workdir) / f'scores_{config.data.eval_split}_{step}.json'
        path.write_text(json.dumps(without_nan(scores), indent=1))
        print(table(scores))
        print(
            f'Checkpoint after step {step}, split {config.data.eval_split!r}, {len(source)} images. Written to {path}'
            + (f' and {output}' if output else '')
        )
    return scores


def without_nan(values):
    """The same with None for what is not a number, which JSON has no word for."""
    if isinstance(values, dict):
        return {key: without_nan(value) for key, value in values.items()}
    if isinstance(values, list):
        return [without_nan(value) for value in values]
    return None if isinstance(values, float) and np.isnan(values) else values


def one_line(scores: dict) -> str:
    return '  '.join(
        f'{name} {100 * value:.1f}' for name, value in scores.items() if np.isscalar(value)
    )


def table(scores: dict, most: int = 20) -> str:
    """Per-class rows, the `most` frequent ones, and the totals, all in percent."""
    quality = {row['name']: row['PQ'] for row in scores.get('panoptic_classes', ())}
    rows = sorted(scores['classes'], key=lambda row: -row['pixels'])
    shown = rows[:most]
    width = max(len(row['name']) for row in shown)
    lines = [
        f'{"category":<{width}}  ' + '   PQ  ' * bool(quality) + '  IoU    Acc  share of pixels'
    ]
    pixels = max(sum(row['pixels'] for row in rows), 1)
    for row in shown:
        values = (
            *([quality[row['name']]] if quality else ()),
            row['IoU'],
            row['Acc'],
            row['pixels'] / pixels,
        )
        lines.append(
            f'{row["name"]:<{width}}  ' + '  '.join(f'{100 * value:5.1f}' for value in values)
        )
    if len(rows) > most:
        lines.append(f'… and {len(rows) - most} rarer categories')
    totals = [
        f'{name:<{max(width, 20)}}  {100 * value:5.1f}'
        for name, value in scores.items()
        if np.isscalar(value)
    ]
    return '\n'.join([*lines, '', *totals])
