"""Evaluation at the original size: a task's scores, each image once, over all devices and hosts."""

import functools
import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from flax import linen as nn
from ml_collections import ConfigDict

from rankseg_jax import checkpoint, inference, models, predict, report, sharding, storage, tasks
from rankseg_jax.data import CorruptExample, Source, batching
from rankseg_jax.report.observed import Observed


class Stopped(Exception):
    """Evaluation was asked to end before its end."""


def make_eval_step(
    model: nn.Module, config: ConfigDict, task: tasks.Task, mesh: jax.sharding.Mesh
) -> Callable:
    """A compiled function: (model variables, batch) → iterator of (metrics by name, maps by name).

    It yields once for images, and for clips once for each frame. What a model carries from clip to
    clip is kept between calls, so the clips of a video must come in order, see
    `batching.video_batches`. Metrics are sums over the batch; maps are those of its images, split
    over the mesh, see `tasks.Task.statistics` and `postprocess`; with RankSeg they include
    'presence_logits' [B, K].

    Args:
      mesh: of this host's devices, see `sharding.local`.
    """

    def then(prediction, batch):
        maps = prediction.maps
        if prediction.presence_logits is not None:
            # A head that is split over the mesh would leave the categories split.
            logits = jax.lax.with_sharding_constraint(
                prediction.presence_logits, sharding.split(mesh)
            )
            maps = maps | {'presence_logits': logits}
        return task.statistics(batch, prediction), maps

    segment = inference.compiled(model, config, task, mesh, then)
    stream = inference.Stream()

    def eval_step(variables, batch):
        canvas = batch['label'].shape[-2:]
        return segment(variables, sharding.shard_batch(batch, mesh), canvas, stream)

    return eval_step


def evaluate(
    eval_step: Callable,
    variables: dict[str, Any],
    source: Source,
    *,
    config: ConfigDict,
    task: tasks.Task,
    mesh: jax.sharding.Mesh,
    writer: Any = None,
    observed: Observed | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Scores of the model on every image or video of a source, each counted once, over all hosts.

    While the device works on a batch, threads read the next ones and score those before.

    Args:
      eval_step: see `make_eval_step`.
      variables: of the model, on the devices of `mesh`.
      mesh: of this host's devices.
      writer: see `tasks.Task.writer`, for the predictions of this host's images; None: they are
        only scored.
      observed: takes what the report needs of this host's images.
      stopped: asked before each batch whether to end; for one process.

    Returns:
      The scores by name, see `tasks.Task.scores`.

    Raises:
      Stopped: `stopped` was true.
      ValueError: the source is empty, or more than `data.max_corrupt` examples cannot be read.
    """
    total, num_read = task.empty_statistics(), 0  # of this host's images or clips
    examples: Any = task.examples(source)
    follow = task.takes_clips and models.carries(config)
    batches = (batching.video_batches if follow else batching.eval_batches)(
        examples, config, sharding.batch_parts(mesh)
    )

    def steps():
        for batch in batches:
            if stopped():
                raise Stopped
            for number, found in enumerate(eval_step(variables, batch)):
                yield batch, number, *found

    def images():
        nonlocal total, num_read
        for batch, number, statistics, maps in batching.delayed(steps()):
            total = merge(total, jax.device_get(statistics))
            if number == 0:
                num_read += int(batch['mask'].sum())
                progress.update(num_read - progress.n)
            if writer is None and observed is None and not task.scores_images:
                continue
            maps = {name: sharding.local_part(x) for name, x in maps.items()}
            shown = batch['mask'] & batch['shown'][:, number] if 'shown' in batch else batch['mask']
            for i in np.flatnonzero(shown):
                index = int(batch['index'][i])
                found = task.cut({name: x[i] for name, x in maps.items()}, batch['size'][i])
                logits = found.pop('presence_logits', None)
                if observed is not None:
                    observe(observed, batch, i, number=number, found=found, logits=logits)
                yield index, number, found

    def observe(observed, batch, i, *, number, found, logits):
        predicted = task.label_map(found)
        if predicted is None:
            return
        rows, columns = batch['size'][i]
        label, length = batch['label'][i, ..., :rows, :columns], 1  # [(t,) H, W]
        if 'shown' in batch:
            length = batch['shown'][i].sum()
        if logits is not None and number == length - 1:  # a clip counts once
            observed.add_categories(label, logits)
        if 'counted' not in batch or batch['counted'][i, number]:
            place = examples.place(int(batch['index'][i]), number)
            label = label[number] if 'shown' in batch else label
            observed.add(place, label, predicted, logits)

    def encode(image):
        index, number, found = image
        return index, number, task.encode(examples, index, number, found)

    def score(image):
        index, found = image
        try:
            metrics = task.image_statistics(source, index, found)
        except CorruptExample as error:
            return error
        if observed is not None and (rated := task.image_score(metrics)) is not None:
            observed.scores[index] = rated
        if writer is not None:
            task.write(writer, source, index, found)
        return metrics

    ahead = config.eval.batch_size
    with batching.progress('Evaluating', len(examples), examples.unit) as progress:
        encoded = batching.read_ahead(encode, images(), ahead=ahead)
        for metrics in batching.read_ahead(score, task.join(examples, encoded), ahead=ahead):
            if isinstance(metrics, CorruptExample):
                logging.error('Excluded from the scores: %s', metrics)
            else:
                total = merge(total, metrics)
    counts, totals = zip(*sharding.gather((num_read, total)), strict=True)
    missing = len(examples) - sum(counts)
    if missing:
        logging.error(
            '%d of %d %s could not be read and are not scored',
            missing,
            len(examples),
            examples.unit,
        )
    return task.scores(functools.reduce(merge, totals))


def merge(total: dict[str, Any], metrics: dict[str, Any]) -> dict[str, Any]:
    """Adds metrics to a total, by name."""
    return total | {name: total[name].merge(metric) for name, metric in metrics.items()}


def run(
    config: ConfigDict,
    workdir: str | Path,
    output: str | Path | None = None,
    compare: Sequence[str] = (),
) -> dict[str, Any]:
    """--mode=evaluate: scores a checkpoint of `workdir` on `config.data.eval_split`.

    Prints the scores and writes a JSON file and a report into `workdir`. With a folder `output`,
    they lie there instead, and so do predictions in the data set's own format. A split without
    annotations is only predicted.

    Args:
      compare: workdirs of other runs, which the report shows beside this one.

    Raises:
      DamagedCheckpoint: the checkpoint cannot be read.
      FileNotFoundError: there is no such checkpoint, or no report of a run to compare.
      OSError: the folder cannot be written.
      ValueError: another run saw other data; `output` with several hosts, or among the data; the
        data has other categories than the run; or it has no annotations, and there is no `output`.
    """
    if output and jax.process_count() > 1:
        raise ValueError('--output is for evaluation on one host')
    mesh = sharding.local_mesh(sharding.make_mesh(**config.mesh))
    source = tasks.open_source(config, config.data.eval_split)
    if not (source.annotated or output):
        raise ValueError(
            f'the split {config.data.eval_split!r} has no annotations, and there is nothing to '
            'score: with --output=<folder>, predictions are written'
        )
    task = tasks.from_source(config, source)
    saved = checkpoint.open_run(workdir, config.eval.checkpoint)
    saved.check_categories(task, config.data)
    others = report.read_others(compare, config.data.eval_split, task.class_names)
    check_output(output, config.data.dir)
    place = storage.make_folder(output or workdir)
    model = models.build(config, task.num_classes)
    variables = models.restore(saved, model, config, mesh)
    eval_step = make_eval_step(model, config, task, mesh)
    observed = Observed(task.num_classes)
    with (
        storage.written(place) if output else nullcontext() as folder,
        task.writer(folder, source) if output else nullcontext() as writer,
    ):
        scores = evaluate(
            eval_step,
            variables,
            source,
            config=config,
            task=task,
            mesh=mesh,
            writer=writer,
            observed=observed,
        )
        if source.annotated:
            sharding.print_once(table(scores, task.columns))  # before writing
    if not source.annotated:
        sharding.print_once(
            f'The split {config.data.eval_split!r} has no annotations to score against. '
            f'Predictions: {place}'
        )
        return {}
    path = place / f'scores_{saved.stem(config.data.eval_split)}.json'
    observed = functools.reduce(Observed.merge, sharding.gather(observed))
    if jax.process_index() == 0:
        content = without_nan(scores) | {'settings': settings(config)}
        path.write_text(json.dumps(content, indent=1))
    if observed.pairs and jax.process_index() == 0:
        predictor = predict.from_model(model, variables, config, task=task, mesh=mesh)
        about = report.about(config, saved, workdir)
        content = report.content(about, observed, scores, task, source, others)
        report.write(place, without_nan(content), predictor, source)
    about = [f'split {config.data.eval_split!r}', f'{len(source)} images', task.protocol()]
    sharding.print_once(
        f'Checkpoint after step {saved.step}, {", ".join(filter(None, about))}. '
        f'Written to {place if output else path}'
    )
    if observed.pairs:
        sharding.print_once(f'Report: {place / report.PAGE}')
    return scores


def check_output(output: str | Path | None, data_dir: str) -> None:
    """Raises a ValueError if predictions might overwrite the data."""
    if not output or not data_dir or storage.is_remote(output) or storage.is_remote(data_dir):
        return
    data = Path(storage.path(data_dir)).resolve()
    if Path(storage.path(output)).resolve().is_relative_to(data):
        raise ValueError(
            f'--output={output} lies in config.data.dir = {data_dir}, whose files it might '
            'overwrite: choose another folder'
        )


def settings(config: ConfigDict) -> dict[str, Any]:
    """Plain data of what scores depend on besides the checkpoint and the split."""
    rankseg = config.rankseg.to_dict() if config.rankseg else None
    kept = {'eval': config.eval.to_dict(), 'rankseg': rankseg}
    for name in ('checkpoint', 'batch_size'):
        kept['eval'].pop(name)
    return json.loads(json.dumps(kept))  # tuples as lists, as they are read


def read_scores(path: Path, config: ConfigDict) -> dict[str, Any] | None:
    """The scores in a file of `run`; None if it is not there, or they were made otherwise.

    Raises:
      ValueError: the file is damaged.
    """
    if not path.is_file():
        return None
    try:
        scores = json.loads(path.read_text())
        same = scores.pop('settings', None) == settings(config)
    except (AttributeError, ValueError) as error:
        raise ValueError(f'{path} is damaged ({error}): remove it or evaluate again') from error
    return scores if same else None


def without_nan(values: Any) -> Any:
    """The same with None for NaN, which JSON cannot express."""
    if isinstance(values, dict):
        return {key: without_nan(value) for key, value in values.items()}
    if isinstance(values, list):
        return [without_nan(value) for value in values]
    return None if isinstance(values, float) and np.isnan(values) else values


def totals(scores: dict[str, Any]) -> dict[str, float]:
    """The scores of the whole data set, without those of its categories."""
    return {name: value for name, value in scores.items() if isinstance(value, float)}


def one_line(scores: dict[str, Any]) -> str:
    """The total scores, in percent."""
    return '  '.join(f'{name} {100 * value:.1f}' for name, value in totals(scores).items())


def table(scores: dict[str, Any], columns: Sequence[str], most: int = 20) -> str:
    """Rows of the `most` frequent categories, and the totals, all in percent.

    Args:
      scores: see `tasks.Task.scores`.
      columns: the scores of a category to show.
    """
    rows = sorted(scores['classes'], key=lambda row: -row['pixels'])
    shown = rows[:most]
    width = max((len(row['name']) for row in shown), default=0)
    titles = '  '.join(f'{column:>5}' for column in columns)
    lines = [f'{"category":<{width}}  {titles}  share of pixels'] if rows else []
    pixels = max(sum(row['pixels'] for row in rows), 1)
    for row in shown:
        values = [row[column] for column in columns] + [row['pixels'] / pixels]
        cells = '  '.join(f'{100 * value:5.1f}' for value in values)
        lines.append(f'{row["name"]:<{width}}  {cells}')
    if len(rows) > most:
        lines.append(f'… and {len(rows) - most} rarer categories')
    lines.append('')
    lines += [
        f'{name:<{max(width, 20)}}  {100 * value:5.1f}' for name, value in totals(scores).items()
    ]
    return '\n'.join(lines)
