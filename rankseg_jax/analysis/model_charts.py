"""Charts of what a model finds and confuses, as PNG files."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator, ScalarFormatter
from scipy import sparse

from rankseg_jax.analysis import charts, statistics
from rankseg_jax.analysis.charts import (
    BLUE,
    GREEN,
    INK,
    MOST,
    ORANGE,
    PALE,
    RED,
    percent,
    short,
    subplots,
)

LEAST = 1e-4  # a share on a logarithmic axis
TICKS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000)  # of κ


def draw(
    report: dict, confusion: sparse.csr_array, class_names: Sequence[str], folder: Path
) -> None:
    """Draws all there is in a report of `analysis.model`; `confusion` is sparse [K, K]."""
    unit = report['unit']
    with charts.style([*class_names, report['split']]):
        if 'recall' in report:
            draw_kappa(report, folder / 'kappa.png')
            draw_costs(report, folder / 'costs.png')
            draw_categories(report['categories'], folder / 'categories.png', unit)
            if 'frames' in report:
                draw_frames(report, folder / 'frames.png')
        if 'by_rank' in report:
            draw_ranks(report['by_rank'], folder / 'ranks.png', unit)
        draw_confusion(confusion, class_names, folder / 'confusion.png')
        if report['errors']['pairs']:
            draw_pairs(report['errors'], folder / 'errors.png')
        charts.draw_categories_per(
            unit,
            {report['split']: report['categories_per_image']},
            folder / f'categories_per_{unit}.png',
        )


def draw_kappa(report: dict, path: Path) -> None:
    """The share of pixels and categories that the best κ categories keep and lose, against κ."""
    number = np.arange(1, len(report['recall']['pixel_recall']) + 1)  # κ
    figure, (kept, lost) = subplots(8, 3.5, 2)
    kept.fill_between(
        number,
        images_within(report),
        step='post',
        color=PALE,
        label=f'{report["unit"]}s that hold at most κ categories',
    )
    kept.set_title('Kept by the best κ categories')
    kept.set_ylim(0, 1.03)
    lost.set_title('Lost')
    lost.set_yscale('log')
    lost.set_ylim(LEAST, 1)
    draw_recall(kept, report, lambda share: share)
    draw_recall(lost, report, lambda share: np.maximum(1 - share, LEAST))
    for axis in (kept, lost):
        scale_kappa_axis(axis, len(number))
    figure.legend(*kept.get_legend_handles_labels(), loc='outside lower center', ncols=3)
    figure.savefig(path)


def images_within(report: dict) -> np.ndarray:
    """[K] shares of the images or clips that hold at most κ = 1 … K categories."""
    num_classes = len(report['recall']['pixel_recall'])
    within = np.cumsum(report['categories_per_image']['histogram']) / report['images']  # from κ = 0
    return np.append(within[1:], np.ones(num_classes))[:num_classes]


def draw_recall(axis: Axes, report: dict, transform: Callable) -> None:
    """The recall curves, with marks at the run's κ and at those that keep enough."""
    curves = {name: np.array(values) for name, values in report['recall'].items()}
    pixels = curves['pixel_recall']  # [K]
    number = np.arange(1, len(pixels) + 1)
    axis.plot(
        number,
        transform(curves['category_recall']),
        color=ORANGE,
        label=f'categories of {report["unit"]}s, mean',
    )
    axis.plot(
        number,
        transform(np.array(report['by_frequency'])),
        color=ORANGE,
        linestyle=':',
        label='categories, if every image kept the κ commonest',
    )
    axis.plot(number, transform(pixels), color=BLUE, label='labeled pixels')
    for (name, k), marker in zip(report['kappa'].items(), 'osD', strict=True):
        if name == 'config':
            face, label = BLUE, f'κ = {k}, of this run, keeps {pixels[k - 1]:.3%}'
        else:
            face, label = 'white', f'κ = {k} keeps {name}'
        axis.plot(
            k,
            transform(pixels[k - 1]),
            marker,
            color=face,
            markeredgecolor=BLUE,
            markersize=6,
            label=label,
            clip_on=False,
            zorder=3,
        )


def draw_frames(report: dict, path: Path) -> None:
    """The share of the categories of clips, and of their frames, that the best κ keep and lose."""
    number = np.arange(1, len(report['recall']['category_recall']) + 1)  # κ
    chosen = report['kappa']['config']
    figure, (kept, lost) = subplots(8, 3.2, 2)
    for found, color, label in (
        (report['recall'], ORANGE, 'categories of clips, mean'),
        (report['frames']['recall'], GREEN, 'categories of frames, mean'),
    ):
        shares = np.array(found['category_recall'])
        kept.plot(number, shares, color=color, label=label)
        lost.plot(number, np.maximum(1 - shares, LEAST), color=color)
    kept.set_title("Kept by a clip's best κ categories")
    kept.set_ylim(0, 1.03)
    lost.set_title('Lost')
    lost.set_yscale('log')
    lost.set_ylim(LEAST, 1)
    for axis in (kept, lost):
        label = f'κ = {chosen}, of this run'
        axis.axvline(chosen, color=BLUE, linestyle='--', label=label, zorder=1)
        scale_kappa_axis(axis, len(number))
    figure.legend(*kept.get_legend_handles_labels(), loc='outside lower center', ncols=3)
    figure.savefig(path)


def scale_kappa_axis(axis: Axes, num_classes: int) -> None:
    """κ from 1 to K along the bottom, logarithmic for many categories."""
    if num_classes > 30:
        axis.set_xscale('log')
        axis.xaxis.set_major_locator(FixedLocator([k for k in TICKS if k <= num_classes]))
        axis.xaxis.set_major_formatter(ScalarFormatter())
        axis.xaxis.set_minor_locator(NullLocator())
    else:
        axis.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axis.set_xlim(1, num_classes * 1.02)
    axis.yaxis.set_major_formatter(percent)
    axis.set_xlabel(f'κ (of K = {num_classes})')
    axis.grid()


def draw_costs(report: dict, path: Path) -> None:
    """Time and memory against κ."""
    rows = report['costs']
    number = [row['num_selected'] for row in rows]
    chosen = number.index(report['kappa']['config'])
    figure, plots = subplots(6.4, 2.7, 2)
    for axis, key, unit, title in zip(
        plots,
        ('milliseconds', 'temporary_bytes'),
        (1, 2**20),
        (f'Time of one {report["unit"]}, ms', 'Temporary memory, MiB'),
        strict=True,
    ):
        values = [row[key] / unit for row in rows]
        axis.plot(number, values, color=BLUE, marker='o', markersize=4)
        axis.plot(
            number[chosen], values[chosen], 'o', color=ORANGE, markersize=6, label='κ of this run'
        )
        axis.set_title(title)
        axis.set_xlim(0, number[-1] * 1.05)
        axis.set_ylim(0, max(values) * 1.1)
        axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axis.set_xlabel('κ')
        axis.grid()
    plots[0].legend(loc='lower right')
    figure.savefig(path)


def draw_ranks(found: dict, path: Path, unit: str) -> None:
    """Learned values by rank, and how often the category at a rank is truly in the image."""
    titles = {
        'tau': 'Temperature τ',
        'scale': 'Scale of the normalized logits',
        'bias': 'Offset',
        'present': f'{unit.capitalize()}s that hold the category',
    }
    names = [name for name in titles if name in found]
    number = np.arange(1, len(found['present']) + 1)
    figure, plots = subplots(0.4 + 2.9 * len(names), 2.6, len(names))
    for axis, name in zip(plots, names, strict=True):
        values = np.broadcast_to(found[name], number.shape)  # a shared temperature is one value
        if name == 'present':
            axis.bar(number, values, 0.8 if len(number) <= 60 else 1, color=GREEN)
            axis.yaxis.set_major_formatter(percent)
            axis.set_ylim(0, 1.02)
        else:
            axis.plot(
                number,
                values,
                color=BLUE,
                marker='o' if len(number) <= 60 else None,
                markersize=3.5,
            )
            axis.grid()
        axis.set_title(titles[name])
        axis.set_xlim(0.4, len(number) + 0.6)
        axis.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        axis.set_xlabel('rank')
    figure.savefig(path)


def draw_categories(rows: list[dict], path: Path, unit: str) -> None:
    """How well categories are found: the commonest, and those hardest to find."""
    lists = statistics.category_lists(rows, MOST)
    figure, plots = subplots(5 * len(lists), 1 + 0.19 * len(lists['commonest']), len(lists))
    for axis, (title, shown) in zip(plots, lists.items(), strict=True):
        axis.hlines(np.arange(len(shown)), 0, 1, PALE, linewidth=1)
        draw_category_scores(axis, shown)
        axis.set_yticks(
            range(len(shown)), [f'{short(row["name"])}  {row["images"]}' for row in shown]
        )
        axis.set_ylim(len(shown) - 0.4, -0.6)
        axis.set_xlim(-0.03, 1.03)
        axis.xaxis.set_major_formatter(percent)
        axis.set_title(f'{title.capitalize()} (number of {unit}s)')
        axis.spines['left'].set_visible(False)
        axis.tick_params(axis='y', length=0)
    figure.legend(
        *plots[0].get_legend_handles_labels(), loc='outside lower center', ncols=2 * len(lists)
    )
    figure.savefig(path)


def draw_category_scores(axis: Axes, rows: list[dict]) -> None:
    """A mark for each score of each category, one category a line."""
    for key, label, marker, color in (
        ('precision', 'precision at confidence 0.5', 'D', BLUE),
        ('recall', 'recall at confidence 0.5', 'o', ORANGE),
        ('average_precision', 'average precision', 's', GREEN),
        ('selected', 'selected where present', '|', INK),
    ):
        if key in rows[0]:
            size, edge = (9, 2) if marker == '|' else (5, 0)
            axis.plot(
                [row[key] for row in rows],
                range(len(rows)),
                marker,
                color=color,
                label=label,
                markersize=size,
                markeredgewidth=edge,
                alpha=0.85,
                clip_on=False,
                zorder=3,
            )


def draw_confusion(confusion: sparse.csr_array, class_names: Sequence[str], path: Path) -> None:
    """How the pixels of the classes with the most wrong ones are predicted, in percent.

    Args:
      confusion: sparse [K, K], pixels by true and predicted class.
      class_names: K names.
      path: of the PNG file.
    """
    right, labeled, predicted = confusion.diagonal(), confusion.sum(1), confusion.sum(0)  # [K]
    seen = labeled + predicted > 0
    order = np.argsort(-(labeled + predicted - 2 * right), kind='stable')
    top = order[seen[order]][:MOST]  # [n]
    among = confusion[top][:, top].toarray()  # [n, n]
    names = [short(class_names[c], 18) for c in top]
    columns = names
    if seen.sum() > len(top):
        among = np.column_stack([among, labeled[top] - among.sum(1)])  # [n, n + 1]
        columns = [*names, 'any other']
    shares = among / np.maximum(labeled[top], 1)[:, None]
    figure, axis = charts.percentages(shares, names, columns, color=RED, deepest=0.6)
    axis.set_ylabel('true class')
    axis.set_xlabel('predicted class')
    axis.set_title("Percentage of each true class's pixels")
    figure.savefig(path)


def draw_pairs(errors: dict, path: Path) -> None:
    """The pairs of classes with the most wrong pixels, and how many the selection missed."""
    rows = errors['pairs'][:MOST]
    place, total = np.arange(len(rows)), errors['wrong_pixels']
    pixels = np.array([row['pixels'] for row in rows]) / total
    missed = np.array([row['not_selected'] or 0 for row in rows]) / total
    figure, (axis,) = subplots(6.4, 0.9 + 0.19 * len(rows), 1)
    axis.barh(place, missed, 0.7, color=ORANGE, label='true class not selected')
    axis.barh(
        place, pixels - missed, 0.7, missed, color=BLUE, label='selected, yet classified wrongly'
    )
    if errors['not_selected_pixels'] is not None:
        axis.legend(loc='lower right')
    axis.set_yticks(place, [f'{short(row["true"])} → {short(row["predicted"])}' for row in rows])
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.xaxis.set_major_locator(MaxNLocator(6))
    axis.xaxis.set_major_formatter(percent)
    axis.tick_params(axis='y', length=0)
    axis.grid(axis='x')
    axis.set_title('True class → predicted class')
    axis.set_xlabel('share of all wrong pixels')
    figure.savefig(path)
