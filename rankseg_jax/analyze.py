"""Which κ to use and what the model gets wrong, from one pass over the evaluation split."""

import json
import math
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from scipy import sparse

from rankseg_jax import charts, checkpoint, data, describe, evaluate, inference, models, sharding
from rankseg_jax.data import IGNORE_LABEL, pipeline
from rankseg_jax.metrics import analysis
from rankseg_jax.multilabel import pixel_counts

SHARES = (0.99, 0.999)  # of the labelled pixels: for each, the smallest κ that keeps them
ROWS = 8  # of a printed table


def make_segment(model, config, num_classes: int):
    """Jitted (variables, batch) -> labels [B, Hc, Wc] int32, selected labels [B, κ] or None, presence_logits [B, K] or None."""

    def segment(variables, batch):
        found = inference.segment(
            model,
            variables,
            batch['views'],
            batch['size'],
            config,
            canvas=batch['label'].shape[1:],
            presence=pixel_counts(batch['label'], num_classes) > 0,
        )
        return (
            found.labels,
            None if found.selection is None else found.selection.labels,
            found.presence_logits,
        )

    return jax.jit(segment)


def observe(segment, variables, source, config, mesh) -> analysis.Observations:
    """Goes through a source once.

    Raises:
      ValueError: not one pixel of it is labelled.
    """
    num_classes = len(source.class_names)
    confusion, missed = (
        sparse.csr_array((num_classes, num_classes), dtype=np.int64) for _ in range(2)
    )
    counts, selected, class_logits, seen = [], [], [], set()
    for batch in pipeline.eval_batches(source, config):
        outputs = jax.device_get(segment(variables, sharding.shard_batch(batch, mesh)))
        mask = batch['mask']
        predictions, chosen, scores = (
            None if x is None else x[mask] for x in outputs
        )  # [n, Hc, Wc], [n, κ], [n, K]
        labels = batch['label'][mask]  # [n, Hc, Wc]
        counted = labels != IGNORE_LABEL
        image, true, predicted = (
            np.nonzero(counted)[0],
            labels[counted],
            predictions[counted],
        )  # [pixels]
        counts.append(analysis.count(image, true, (len(labels), num_classes)))
        confusion += analysis.count(true, predicted, confusion.shape)
        if chosen is not None:
            kept = np.zeros((len(labels), num_classes), bool)
            np.put_along_axis(kept, chosen, True, 1)
            lost = ~kept[image, true]  # [pixels]
            missed += analysis.count(true[lost], predicted[lost], missed.shape)
            selected.append(chosen)
        if scores is not None:
            class_logits.append(scores)
        seen |= set(batch['index'][mask].tolist())
    if not confusion.nnz:
        raise ValueError(f'split {config.data.eval_split!r} has no labelled pixel that can be read')
    return analysis.Observations(
        sparse.vstack(counts, 'csr'),
        np.concatenate(class_logits) if class_logits else None,
        np.concatenate(selected) if selected else None,
        confusion,
        missed,
        [source.ids[i] for i in range(len(source)) if i not in seen],
    )


def by_rank(seen: analysis.Observations, variables) -> dict:
    """What is learned by rank, and the share of the images that truly hold the category at each rank.

    Returns:
      present [κ]; tau [κ or 1] for a temperature, or scale and bias [κ] for layer_norm, which act on the logits of a pixel
      normalised over its ranks; neither for 'none'.
    """
    learned = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(
        variables.get('ema', variables['params'])
    ):
        *parents, name = jax.tree_util.keystr(path, simple=True, separator='/').split('/')
        if 'rank/temperature' in '/'.join(parents):
            learned[name] = np.asarray(leaf, np.float64)
    if 'log_tau' in learned:
        learned = {'tau': np.exp(learned['log_tau'])}
    learned['present'] = seen.held().mean(0)
    ranks = slice(len(learned['present']))  # without that of no-object, after them
    return {name: values[ranks].tolist() for name, values in learned.items()}


def cost(config, num_classes: int, num_selected: int) -> dict:
    """Median time and temporary memory of predicting one image of `eval.size` at κ = `num_selected`, on one device."""
    config = config.copy_and_resolve_references()
    config.rankseg.num_selected, config.rankseg.select, config.rankseg.oracle = (
        num_selected,
        True,
        False,
    )
    model = models.build(config, num_classes)
    shapes = jax.eval_shape(
        lambda: models.init(model, num_classes, config.seed, config.augment.crop_size)
    )
    variables = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype), shapes
    )  # the time does not depend on the values
    size = jnp.array([config.eval.size])  # [1, 2]
    batch = {
        'views': ({'image': jnp.zeros((1, *config.eval.size, 3)), 'content': size},),
        'size': size,
        'label': jnp.full((1, *config.eval.size), IGNORE_LABEL),
    }
    compiled = make_segment(model, config, num_classes).lower(variables, batch).compile()
    seconds = []
    while len(seconds) < 6 or sum(seconds) < 0.5:
        start = time.perf_counter()
        jax.block_until_ready(compiled(variables, batch))
        seconds.append(time.perf_counter() - start)
    return {
        'num_selected': num_selected,
        'milliseconds': 1e3 * float(np.median(seconds[1:])),
        'temporary_bytes': compiled.memory_analysis().temp_size_in_bytes,
    }


def run(config, workdir) -> dict:
    """--mode=analyze: of a checkpoint of `workdir` on `config.data.eval_split`; of the data, as long as there is none.

    Writes analysis.json and pictures into a folder of `workdir` and prints the essentials.

    Returns:
      What the JSON file holds.

    Raises:
      ValueError: there are several hosts, or nothing to analyse.
    """
    if jax.process_count() > 1:
        raise ValueError('--mode=analyze runs on one host')
    workdir = Path(workdir)
    manager = checkpoint.open_checkpoints(workdir) if (workdir / 'checkpoints').is_dir() else None
    if manager is None or not manager.all_steps():
        return describe.run(config, workdir / 'analysis_data')
    step = checkpoint.find(manager, config.eval.checkpoint)
    mesh = sharding.make_mesh(config.mesh_data)
    source = data.get_source(config.data, config.data.eval_split)
    num_classes = len(source.class_names)
    model = models.build(config, num_classes)
    variables = models.restore(manager, step, model, config, num_classes, sharding.copied(mesh))
    seen = observe(make_segment(model, config, num_classes), variables, source, config, mesh)
    report = {
        'checkpoint': step,
        'split': config.data.eval_split,
        'images': seen.counts.shape[0],
        'unread': seen.unread,
        'notes': [],
        'categories_per_image': analysis.distribution(np.diff(seen.counts.indptr)),
        'categories': analysis.categories(seen, source.class_names),
        'errors': analysis.errors(seen, source.class_names),
    }
    if not config.rankseg:
        report['notes'].append(
            'The baseline has no multi-label head: no κ, no ranks, nothing on how categories are found.'
        )
    else:
        if config.rankseg.oracle:
            report['notes'].append(
                'The oracle selects by the ground truth; recall@κ is of the multi-label head beside it.'
            )
        if seen.selected is None:
            report['notes'].append(
                'config.rankseg.select is False: all K are kept; recall@κ tells what selecting would keep.'
            )
        else:
            report['by_rank'] = by_rank(seen, variables)
        report['recall'] = curves = analysis.recall(seen.class_logits, seen.counts)
        report['kappa'] = kappa = {'config': config.rankseg.num_selected}
        kappa |= {
            f'{100 * share:g}%': int(np.searchsorted(curves['pixel_recall'], share)) + 1
            for share in SHARES
        }
        between = np.geomspace(min(2, num_classes), num_classes, 4).round().astype(int).tolist()
        report['device'] = jax.devices()[0].device_kind  # that the costs are of
        report['costs'] = [
            cost(config, num_classes, k) | {name: values[k - 1] for name, values in curves.items()}
            for k in sorted({*kappa.values(), *between})
        ]
    output = workdir / f'analysis_{config.data.eval_split}_{step}'
    output.mkdir(exist_ok=True)
    (output / 'analysis.json').write_text(json.dumps(evaluate.without_nan(report), indent=1))
    charts.draw(report, seen.confusion, source.class_names, output)
    print('\n\n'.join(summary(report)))
    print(
        f'\nCheckpoint after step {step}, split {config.data.eval_split!r}, {report["images"]} images. Written to {output}'
    )
    return report


def summary(report: dict) -> list[str]:
    """The essentials of a report, as blocks of text."""
    blocks = [*report['notes'], describe.per_image_line(report['categories_per_image'])]
    errors = report['errors']
    wrong = errors['wrong_pixels']
    if 'recall' in report:
        kappa = report['kappa']
        marks = {
            k: ', '.join(
                name if name == 'config' else f'keeps {name}' for name in kappa if kappa[name] == k
            )
            for k in kappa.values()
        }
        rows = [
            (
                row['num_selected'],
                f'{row["pixel_recall"]:.3%}',
                f'{row["category_recall"]:.3%}',
                f'{row["milliseconds"]:.1f} ms',
                f'{row["temporary_bytes"] / 2**20:.1f} MiB',
                marks.get(row['num_selected'], ''),
            )
            for row in report['costs']
        ]
        blocks.append(
            describe.table(
                ('κ', 'pixels kept', 'categories kept', 'time/image', 'memory', ''), rows, 0
            )
        )
        names = list(kappa)[1:]
        blocks.append(
            f'Recommended: κ = {kappa[names[-1]]}, the smallest that keeps {names[-1]} of the labelled pixels '
            f'({names[0]}: κ = {kappa[names[0]]}).'
        )
    for title, rows in analysis.listed(report['categories'], ROWS).items():
        columns = [name for name in rows[0] if name not in ('name', 'pixels')]
        cells = [
            (
                row['name'],
                row['images'],
                *('–' if math.isnan(row[name]) else f'{row[name]:.1%}' for name in columns[1:]),
            )
            for row in rows
        ]
        blocks.append(describe.table((title, *(name.replace('_', ' ') for name in columns)), cells))
    lost = (
        f', {errors["not_selected_pixels"] / wrong:.1%} of them as their class was not selected'
        if errors['not_selected_pixels']
        else ''
    )
    blocks.append(
        f'{wrong / errors["labelled_pixels"]:.2%} of the labelled pixels are wrong{lost}.'
    )
    rows = [
        (
            row['true'],
            row['predicted'],
            f'{row["pixels"] / wrong:.1%}',
            '–' if row['not_selected'] is None else f'{row["not_selected"] / row["pixels"]:.1%}',
        )
        for row in errors['pairs'][:ROWS]
    ]
    return (
        [*blocks, describe.table(('true', 'predicted', 'of all wrong', 'not selected'), rows, 2)]
        if rows
        else blocks
    )
