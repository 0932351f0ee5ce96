"""Evaluation: mIoU and pixel accuracy at the original size, and how well the multi-label head finds the categories."""

import json
from pathlib import Path

import jax
import numpy as np
from absl import logging

from rankseg_jax import checkpoint, data, inference, models, sharding
from rankseg_jax.data import pipeline
from rankseg_jax.metrics.multilabel import MultilabelMetric
from rankseg_jax.metrics.semantic import SemanticMetric
from rankseg_jax.multilabel import pixel_counts
from rankseg_jax.tasks import semantic


def recall_values(config, num_classes: int) -> tuple[int, ...]:
    """The values of κ to report recall and precision at: the selection's own, and `eval.recall_at`."""
    return tuple(sorted({min(k, num_classes) for k in (config.rankseg.num_selected, *config.eval.recall_at)}))


def make_eval_step(model, config, num_classes: int, mesh):
    """Jitted (model variables, batch) -> (SemanticMetric, MultilabelMetric or None), sums over the global batch."""
    recall_at = recall_values(config, num_classes) if config.rankseg else ()

    def eval_step(variables, batch):
        labels = batch['label']  # [B, H, W]
        predictions, _, class_logits = inference.segment(
            model, variables, batch['views'], batch['size'], config, canvas=labels.shape[1:],
            presence=pixel_counts(labels, num_classes) > 0)
        return semantic.statistics(labels, predictions, class_logits, batch['mask'], num_classes=num_classes, recall_at=recall_at)

    return jax.jit(eval_step, in_shardings=(sharding.copied(mesh), sharding.split(mesh)), out_shardings=sharding.copied(mesh))


def evaluate(eval_step, variables, source, config, mesh) -> dict:
    """Scores of the model on every image of a source, each counted once: those of SemanticMetric and MultilabelMetric."""
    num_classes = len(source.class_names)
    total = SemanticMetric.empty(num_classes)
    categories = MultilabelMetric.empty(recall_values(config, num_classes)) if config.rankseg else None
    num_images = 0
    for batch in pipeline.eval_batches(source, config):
        pixels, found = jax.device_get(eval_step(variables, sharding.shard_batch(batch, mesh)))
        total = total.merge(pixels)
        if found is not None:
            categories = categories.merge(found)
        num_images += int(batch['mask'].sum())
    if jax.process_count() == 1 and num_images < len(source):
        logging.error('%d of %d images could not be read and are not scored', len(source) - num_images, len(source))
    return total.compute(source.class_names) | (categories.compute() if categories else {})


def run(config, workdir) -> dict:
    """--mode=evaluate: scores a checkpoint of `workdir` on `config.data.eval_split`; prints them and writes a JSON file."""
    mesh = sharding.make_mesh(config.mesh_data)
    source = data.get_source(config.data, config.data.eval_split)
    num_classes = len(source.class_names)
    model = models.build(config, num_classes)
    manager = checkpoint.open_checkpoints(workdir)
    step = checkpoint.find(manager, config.eval.checkpoint)
    variables = models.restore(manager, step, model, config, num_classes, sharding.copied(mesh))
    scores = evaluate(make_eval_step(model, config, num_classes, mesh), variables, source, config, mesh)
    if jax.process_index() == 0:
        path = Path(workdir) / f'scores_{config.data.eval_split}_{step}.json'
        path.write_text(json.dumps(without_nan(scores), indent=1))
        print(table(scores))
        print(f'Checkpoint after step {step}, split {config.data.eval_split!r}, {len(source)} images. Written to {path}')
    return scores


def without_nan(values):
    """The same with None for what is not a number, which JSON has no word for."""
    if isinstance(values, dict):
        return {key: without_nan(value) for key, value in values.items()}
    if isinstance(values, list):
        return [without_nan(value) for value in values]
    return None if isinstance(values, float) and np.isnan(values) else values


def one_line(scores: dict) -> str:
    return '  '.join(f'{name} {100 * value:.1f}' for name, value in scores.items() if np.isscalar(value))


def table(scores: dict, most: int = 20) -> str:
    """Per-class rows, the `most` frequent ones, and the totals, all in percent."""
    rows = sorted(scores['classes'], key=lambda row: -row['pixels'])
    shown = rows[:most]
    width = max(len(row['name']) for row in shown)
    lines = [f'{"category":<{width}}    IoU    Acc  share of pixels']
    pixels = max(sum(row['pixels'] for row in rows), 1)
    for row in shown:
        values = (row['IoU'], row['Acc'], row['pixels'] / pixels)
        lines.append(f'{row["name"]:<{width}}  ' + '  '.join(f'{100 * value:5.1f}' for value in values))
    if len(rows) > most:
        lines.append(f'… and {len(rows) - most} rarer categories')
    totals = [f'{name:<{max(width, 20)}}  {100 * value:5.1f}' for name, value in scores.items() if np.isscalar(value)]
    return '\n'.join([*lines, '', *totals])
