"""Which κ a model needs and what it gets wrong, from one pass over the evaluation split."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from rankseg_jax import checkpoint, evaluate, models, predict, sharding, storage, tasks
from rankseg_jax import report as pages
from rankseg_jax.analysis import model_charts, statistics, text
from rankseg_jax.analysis.cost import prediction_cost
from rankseg_jax.analysis.observations import Observations, make_segment, observe
from rankseg_jax.report.observed import SAFE, recall_by_frequency, safe_selected

SHARES = (0.99, SAFE)  # of the labeled pixels: for each, the smallest κ that keeps them
ROWS = 8  # of a printed table


def run(
    config: ConfigDict,
    saved: checkpoint.SavedRun,
    workdir: Any,
    output: Path,
    compare: Sequence = (),
) -> dict:
    """Analyzes a checkpoint on `config.data.eval_split`.

    Args:
      config: of the run.
      saved: the checkpoint.
      workdir: of the run.
      output: pathlib.Path of the folder for analysis.json, charts and the report.
      compare: workdirs of other runs, for the report.

    Returns:
      The contents of analysis.json; its images are the clips of a video task.

    Raises:
      ValueError: the data or `config` do not fit the checkpoint, or no labeled pixel can be read.
    """
    mesh = sharding.local_mesh(sharding.make_mesh(**config.mesh))
    source = tasks.open_source(config, config.data.eval_split)
    saved.check_categories(source, config.data)
    task = tasks.build(config, saved.class_names, saved.things)
    examples = task.examples(source)
    others = pages.read_others(compare, config.data.eval_split, source.class_names)
    storage.make_folder(output)
    model = models.build(config, len(source.class_names))
    variables = models.restore(saved, model, config, mesh=mesh)
    segment = make_segment(model, config, source.class_names, mesh=mesh)
    observed = observe(segment, variables, examples, config=config, mesh=mesh)
    report = {
        'checkpoint': saved.step,
        'split': config.data.eval_split,
        'unit': 'clip' if task.takes_clips else 'image',
        'images': observed.counts.shape[0],
        'unread': observed.unread,
        'notes': notes(config),
        'categories_per_image': statistics.distribution(np.diff(observed.counts.indptr)),
        'categories': statistics.categories(observed, source.class_names),
        'errors': statistics.errors(observed, source.class_names),
    }
    if observed.selected is not None:
        report['by_rank'] = by_rank(observed, variables)
    if config.rankseg:
        report |= recall_and_costs(observed, config)
    if observed.frames:
        report['frames'] = of_frames(observed)
    print('\n\n'.join(summary(report)))  # before writing
    (output / 'analysis.json').write_text(json.dumps(evaluate.without_nan(report), indent=1))
    model_charts.draw(report, observed.confusion, source.class_names, folder=output)
    # Scores of the task itself, if this checkpoint has been evaluated.
    evaluated = workdir / f'scores_{saved.stem(config.data.eval_split)}.json'
    scores = evaluate.read_scores(evaluated, config)
    if scores is None:
        scores = observed.images.semantic_scores(source.class_names)
    content = pages.content(
        pages.about(config, saved, workdir),
        observed.images,
        scores,
        task=task,
        source=source,
        others=others,
    )
    content |= {name: report[name] for name in ('notes', 'costs', 'device') if name in report}
    predictor = predict.from_model(model, variables, config, task=task, mesh=mesh)
    pages.write(output, evaluate.without_nan(content), predictor, source=source)
    print(
        f'\nCheckpoint after step {saved.step}, split {config.data.eval_split!r}, '
        f'{report["images"]} {report["unit"]}s. Written to {output}\n'
        f'Report: {output / pages.PAGE}'
    )
    return report


def notes(config: ConfigDict) -> list[str]:
    """What the reader of a report must know about the kind of run."""
    if not config.rankseg:
        return ['The baseline has no multi-label head: no κ, no ranks, no scores of categories.']
    found = []
    if config.rankseg.oracle:
        found.append(
            'The oracle selects by the ground truth; recall@κ is that of the multi-label head '
            'beside it.'
        )
    if not config.rankseg.select:
        found.append(
            'config.rankseg.select is False: all K are kept; recall@κ tells what selecting would '
            'keep.'
        )
    return found


def by_rank(observed: Observations, variables: dict) -> dict:
    """What is learned by rank, and how often the category at each rank is truly in the image.

    Returns:
      present [κ], a share of the images; tau [κ or 1] for a temperature, with bias [κ] if it is
      affine, or scale and bias [κ] for layer_norm, which act on the logits of a pixel normalized
      over its ranks; neither for 'none'.
    """
    learned = {}
    params = variables.get('ema', variables['params'])
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        *parents, name = jax.tree_util.keystr(path, simple=True, separator='/').split('/')
        if 'rank/temperature' in '/'.join(parents):
            learned[name] = np.asarray(leaf, np.float64)
    if 'log_tau' in learned:
        learned['tau'] = np.exp(learned.pop('log_tau'))
    learned['present'] = observed.selected_present().mean(0)
    ranks = slice(len(learned['present']))  # a query's no-object class comes after them
    return {name: values[ranks].tolist() for name, values in learned.items()}


def recall_and_costs(observed: Observations, config: ConfigDict) -> dict:
    """What each κ keeps, the κ to choose, and what predicting costs at these and a few between.

    Returns:
      recall: see `statistics.recall`; by_frequency: see `recall_by_frequency`; kappa:
      the run's κ as 'config', and the smallest that keeps each of `SHARES`; device: its kind;
      costs: a dict for each κ.
    """
    assert observed.presence_logits is not None
    curves = statistics.recall(observed.presence_logits, observed.counts)
    kappa = {'config': config.rankseg.num_selected} | {
        f'{100 * share:g}%': safe_selected(curves['pixel_recall'], share) for share in SHARES
    }
    num_classes = observed.counts.shape[1]
    between = np.geomspace(min(2, num_classes), num_classes, 4).round().astype(int).tolist()
    costs = [
        prediction_cost(config, num_classes, k)
        | {name: values[k - 1] for name, values in curves.items()}
        for k in sorted({*kappa.values(), *between})
    ]
    return {
        'recall': curves,
        'by_frequency': recall_by_frequency(observed.counts),
        'kappa': kappa,
        'device': jax.devices()[0].device_kind,
        'costs': costs,
    }


def of_frames(observed: Observations) -> dict:
    """What the frames of clips hold, and how much of it the best κ categories of the clip keep.

    Returns:
      number; categories_per_frame; and, with a multi-label head, recall, see `statistics.recall`.
    """
    assert observed.frames is not None
    counts, clips = observed.frames.counts, observed.frames.clips
    report = {
        'number': counts.shape[0],
        'categories_per_frame': statistics.distribution(np.diff(counts.indptr)),
    }
    if observed.presence_logits is not None:
        report['recall'] = statistics.recall(observed.presence_logits[clips], counts)
    return report


def summary(report: dict) -> list[str]:
    """The essentials of a report, as blocks of text."""
    unit = report['unit']
    blocks = [*report['notes'], text.categories_per(unit, report['categories_per_image'])]
    if 'frames' in report:
        blocks[-1] += '\n' + text.categories_per('frame', report['frames']['categories_per_frame'])
    if 'recall' in report:
        blocks += kappa_blocks(report)
    blocks += category_blocks(report['categories'], unit)
    return blocks + error_blocks(report['errors'])


def kappa_blocks(report: dict) -> list[str]:
    kappa, unit, frames = report['kappa'], report['unit'], 'frames' in report

    def remark(k):
        names = [name for name in kappa if kappa[name] == k]
        return ', '.join(name if name == 'config' else f'keeps {name}' for name in names)

    def of_frame(k):
        return f'{report["frames"]["recall"]["category_recall"][k - 1]:.3%}'

    titles = (
        'κ',
        'pixels kept',
        'categories kept',
        'by frequency',
        *(('of a frame',) if frames else ()),
        f'time/{unit}',
        'memory',
        '',
    )
    rows = [
        (
            row['num_selected'],
            f'{row["pixel_recall"]:.3%}',
            f'{row["category_recall"]:.3%}',
            f'{report["by_frequency"][row["num_selected"] - 1]:.3%}',
            *((of_frame(row['num_selected']),) if frames else ()),
            f'{row["milliseconds"]:.1f} ms',
            f'{row["temporary_bytes"] / 2**20:.1f} MiB',
            remark(row['num_selected']),
        )
        for row in report['costs']
    ]
    low, high = list(kappa)[1:]
    recommended = (
        f'Recommended: κ = {kappa[high]}, the smallest that keeps {high} of the labeled pixels '
        f'({low}: κ = {kappa[low]}).'
    )
    return [text.table(titles, rows, num_left=0), recommended]


def category_blocks(categories: list[dict], unit: str) -> list[str]:
    blocks = []
    for title, rows in statistics.category_lists(categories, ROWS).items():
        scores = [name for name in rows[0] if name not in ('name', 'images', 'pixels')]
        cells = [
            (
                row['name'],
                row['images'],
                *('–' if math.isnan(row[name]) else f'{row[name]:.1%}' for name in scores),
            )
            for row in rows
        ]
        columns = (title, f'{unit}s', *(name.replace('_', ' ') for name in scores))
        blocks.append(text.table(columns, cells))
    return blocks


def error_blocks(errors: dict) -> list[str]:
    wrong = errors['wrong_pixels']
    share = f'{wrong / errors["labeled_pixels"]:.2%} of the labeled pixels are wrong'
    if errors['not_selected_pixels']:
        not_selected = errors['not_selected_pixels'] / wrong
        share += f', {not_selected:.1%} of them because their class was not selected'
    rows = [
        (
            row['true'],
            row['predicted'],
            f'{row["pixels"] / wrong:.1%}',
            '–' if row['not_selected'] is None else f'{row["not_selected"] / row["pixels"]:.1%}',
        )
        for row in errors['pairs'][:ROWS]
    ]
    titles = ('true', 'predicted', 'of all wrong', 'not selected')
    return [f'{share}.', *([text.table(titles, rows, num_left=2)] if rows else [])]
