"""Charts of an analysis, as PNG files."""

import matplotlib
import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullFormatter, NullLocator, ScalarFormatter

from rankseg_jax.metrics import analysis

BLUE, ORANGE, GREEN, RED, INK, PALE = (
    '#1f6fb4',
    '#e08214',
    '#189648',
    '#c0392b',
    '#202124',
    '#e4e6ea',
)
MOST = 20  # rows of a chart
LEAST = 1e-4  # a share on a logarithmic axis
STYLE = {
    'figure.dpi': 160,
    'figure.constrained_layout.use': True,
    'font.size': 8,
    'axes.titlesize': 9,
    'axes.axisbelow': True,
    'axes.spines.top': False,
    'axes.spines.right': False,
    'grid.color': PALE,
    'legend.frameon': False,
    'text.parse_math': False,
}  # a class name may hold dollars


@matplotlib.rc_context(STYLE)
def draw(report: dict, confusion, class_names, folder):
    """Draws what there is in a report of `analyze.run`; `confusion` is sparse [K, K]."""
    if 'recall' in report:
        draw_kappa(report, folder / 'kappa.png')
        draw_costs(report, folder / 'costs.png')
        draw_categories(report['categories'], folder / 'categories.png')
    if 'by_rank' in report:
        draw_ranks(report['by_rank'], folder / 'ranks.png')
    draw_confusion(confusion, class_names, folder / 'confusion.png')
    if report['errors']['pairs']:
        draw_pairs(report['errors'], folder / 'errors.png')
    draw_categories_per_image(
        {report['split']: report['categories_per_image']}, folder / 'categories_per_image.png'
    )


@matplotlib.rc_context(STYLE)
def draw_data(reports: dict, folder):
    """Draws reports of `describe.describe`, by split."""
    per_image = {split: report['categories_per_image'] for split, report in reports.items()}
    draw_categories_per_image(per_image, folder / 'categories_per_image.png')
    draw_long_tail(reports, folder / 'long_tail.png')


def subplots(width: float, height: float, columns: int):
    """A figure of inches and its axes."""
    figure = Figure((width, height))
    return figure, figure.subplots(1, columns, squeeze=False)[0]


def percent(share: float, _) -> str:
    return f'{100 * share:g}%'


def short(name: str, most: int = 24) -> str:
    return name if len(name) <= most else name[: most - 1].rstrip() + '…'


def draw_kappa(report, path):
    """What the best κ categories keep and lose, against κ."""
    curves = {name: np.array(values) for name, values in report['recall'].items()}
    pixels = curves['pixel_recall']  # [K]
    number = np.arange(1, len(pixels) + 1)
    held = (
        np.cumsum(report['categories_per_image']['histogram']) / report['images']
    )  # at most 0, 1, 2, … categories
    held = np.append(held[1:], np.ones(len(number)))[: len(number)]  # [K]
    figure, (kept, lost) = subplots(8, 3.5, 2)
    kept.fill_between(
        number, held, step='post', color=PALE, label='images that hold at most κ categories'
    )
    kept.set_title('Kept by the best κ categories')
    kept.set_ylim(0, 1.03)
    lost.set_title('Lost')
    lost.set_yscale('log')
    lost.set_ylim(LEAST, 1)
    for axis, values in ((kept, lambda x: x), (lost, lambda x: np.maximum(1 - x, LEAST))):
        axis.plot(
            number,
            values(curves['category_recall']),
            color=ORANGE,
            label="an image's categories, mean",
        )
        axis.plot(number, values(pixels), color=BLUE, label='labelled pixels')
        for (name, k), marker in zip(report['kappa'].items(), 'osD', strict=True):
            label = (
                f'κ = {k}, of this run, keeps {pixels[k - 1]:.3%}'
                if name == 'config'
                else f'κ = {k} keeps {name}'
            )
            axis.plot(
                k,
                values(pixels[k - 1]),
                marker,
                color=BLUE if name == 'config' else 'white',
                markeredgecolor=BLUE,
                markersize=6,
                label=label,
                clip_on=False,
                zorder=3,
            )
        if len(number) > 30:
            axis.set_xscale('log')
            ticks = [
                k
                for k in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000)
                if k <= len(number)
            ]
            axis.xaxis.set_major_locator(FixedLocator(ticks))
            axis.xaxis.set_major_formatter(ScalarFormatter())
            axis.xaxis.set_minor_locator(NullLocator())
        else:
            axis.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        axis.set_xlim(1, len(number) * 1.02)
        axis.yaxis.set_major_formatter(percent)
        axis.set_xlabel(f'κ (of K = {len(number)})')
        axis.grid()
    figure.legend(*kept.get_legend_handles_labels(), loc='outside lower center', ncols=3)
    figure.savefig(path)


def draw_costs(report, path):
    """Time and memory against κ."""
    rows = report['costs']
    number = [row['num_selected'] for row in rows]
    chosen = number.index(report['kappa']['config'])
    figure, plots = subplots(6.4, 2.7, 2)
    for axis, key, unit, title in zip(
        plots,
        ('milliseconds', 'temporary_bytes'),
        (1, 2**20),
        ('Time of one image, ms', 'Temporary memory, MiB'),
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


def draw_ranks(found, path):
    """What is learned by rank, and how often the category at a rank is truly in the image."""
    titles = {
        'tau': 'Temperature τ',
        'scale': 'Scale of the normalised logits',
        'bias': 'Offset of the normalised logits',
        'present': 'Images that hold the category',
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


def draw_categories(rows, path):
    """How categories are found: the commonest, and those hardest to find."""
    lists = analysis.listed(rows, MOST)
    kinds = {
        'precision': ('precision at confidence 0.5', 'D', BLUE),
        'recall': ('recall at confidence 0.5', 'o', ORANGE),
        'average_precision': ('average precision', 's', GREEN),
        'selected': ('selected where present', '|', INK),
    }
    figure, plots = subplots(5 * len(lists), 1 + 0.19 * len(lists['commonest']), len(lists))
    for axis, (title, shown) in zip(plots, lists.items(), strict=True):
        place = np.arange(len(shown))
        axis.hlines(place, 0, 1, PALE, linewidth=1)
        for key, (label, marker, colour) in kinds.items():
            if key in shown[0]:
                size, edge = (9, 2) if marker == '|' else (5, 0)
                axis.plot(
                    [row[key] for row in shown],
                    place,
                    marker,
                    color=colour,
                    label=label,
                    markersize=size,
                    markeredgewidth=edge,
                    alpha=0.85,
                    clip_on=False,
                    zorder=3,
                )
        axis.set_yticks(place, [f'{short(row["name"])}  {row["images"]}' for row in shown])
        axis.set_ylim(len(shown) - 0.4, -0.6)
        axis.set_xlim(-0.03, 1.03)
        axis.xaxis.set_major_formatter(percent)
        axis.set_title(f'{title.capitalize()} (number of images)')
        axis.spines['left'].set_visible(False)
        axis.tick_params(axis='y', length=0)
    figure.legend(
        *plots[0].get_legend_handles_labels(), loc='outside lower center', ncols=2 * len(lists)
    )
    figure.savefig(path)


def draw_confusion(confusion, class_names, path):
    """Of the classes with the most wrong pixels: the percentage of each one's pixels predicted as each, and as any other."""
    right, labelled, predicted = confusion.diagonal(), confusion.sum(1), confusion.sum(0)  # [K]
    seen = labelled + predicted > 0
    order = np.argsort(-(labelled + predicted - 2 * right), kind='stable')
    top = order[seen[order]][:MOST]  # [n]
    among = confusion[top][:, top].toarray()  # [n, n]
    names = [short(class_names[c], 18) for c in top]
    columns = names
    if seen.sum() > len(top):
        among, columns = (
            np.column_stack([among, labelled[top] - among.sum(1)]),
            [*names, 'any other'],
        )  # [n, n + 1]
    figure, axis = percentages(
        among / np.maximum(labelled[top], 1)[:, None], names, columns, RED, 0.6
    )
    axis.set_ylabel('true class')
    axis.set_xlabel('predicted class')
    axis.set_title("Percentage of each true class's pixels")
    figure.savefig(path)


@matplotlib.rc_context(STYLE)
def draw_cooccurrence(together, num_images: int, class_names, path):
    """Of the most frequent classes: which are in the images of which.

    Args:
      together: sparse int [K, K], images that hold both; on the diagonal those that hold the one. Nothing is drawn if it is empty.
      num_images: N, with those that hold no class.
    """
    images = together.diagonal()  # [K]
    top = np.argsort(-images, kind='stable')[:MOST]
    top = top[images[top] > 0]  # [n]
    if not len(top):
        return
    shares = together[top][:, top].toarray() / images[top][:, None]  # [n, n]
    np.fill_diagonal(shares, images[top] / num_images)
    names = [short(class_names[c]) for c in top]
    figure, axis = percentages(shares, names, names, BLUE, 1.2)
    axis.set_ylabel('of the images with …')
    axis.set_xlabel('… this percentage also holds')
    axis.set_title('Classes of the same image\n(green: percentage of all images)')
    figure.savefig(path)


def percentages(shares, rows, columns, colour, full: float):
    """A figure and its axis: shares [n, m] as percentages, green on the diagonal, elsewhere in `colour`, deepest at `full`."""
    diagonal = np.eye(*shares.shape, dtype=bool)
    figure, (axis,) = subplots(max(2 + 0.3 * len(columns), 4), 2.1 + 0.26 * len(rows), 1)
    for part, shade, most in ((diagonal, GREEN, 1.2), (~diagonal, colour, full)):
        colours = LinearSegmentedColormap.from_list('', ['white', shade])
        axis.imshow(np.where(part, shares, np.nan), colours, vmin=0, vmax=most, aspect='auto')
    for (row, column), share in np.ndenumerate(shares):
        if share >= 0.005:
            axis.text(column, row, f'{100 * share:.0f}', ha='center', va='center', fontsize=6.5)
    axis.set_yticks(range(len(rows)), rows)
    axis.set_xticks(range(len(columns)), columns, rotation=50, ha='right', rotation_mode='anchor')
    axis.set_xticks(np.arange(len(columns) + 1) - 0.5, minor=True)
    axis.set_yticks(np.arange(len(rows) + 1) - 0.5, minor=True)
    axis.grid(which='minor')
    axis.tick_params(which='both', length=0)
    axis.spines[:].set_visible(False)
    return figure, axis


def draw_pairs(errors, path):
    """The pairs of classes with the most wrong pixels; what the selection missed in another colour."""
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


def draw_categories_per_image(distributions, path):
    """How many categories images hold, one histogram a split."""
    figure, plots = subplots(0.4 + 3 * len(distributions), 2.6, len(distributions))
    for axis, (split, numbers) in zip(plots, distributions.items(), strict=True):
        histogram = np.array(numbers['histogram'])
        axis.bar(
            range(len(histogram)),
            histogram / histogram.sum(),
            1,
            color=BLUE,
            edgecolor='white',
            linewidth=0.4,
        )
        axis.axvline(numbers['p99'], color=ORANGE, linestyle='--')
        axis.set_title(
            f'{split}\nmean {numbers["mean"]:.1f}, 99th percentile (dashed) {numbers["p99"]:g}'
        )
        axis.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        axis.yaxis.set_major_formatter(percent)
        axis.set_xlabel('categories per image')
        axis.set_ylabel('images')
    figure.savefig(path)


def draw_long_tail(reports, path):
    """Shares of the images that hold each class and of the labelled pixels that it has, the commonest first, one line a split."""
    figure, plots = subplots(6.8, 2.9, 2)
    for axis, key in zip(plots, ('images', 'pixels'), strict=True):
        least = 1
        for (split, report), colour in zip(reports.items(), (BLUE, ORANGE), strict=False):
            rows = report['categories']
            values = np.array(sorted((row[key] for row in rows if row[key]), reverse=True))
            shares = values / (report['images'] if key == 'images' else values.sum())
            axis.plot(
                range(1, len(values) + 1),
                shares,
                color=colour,
                marker='o' if len(rows) <= 60 else None,
                markersize=3,
                label=f'{split}: {report["images"]} images, {len(values)} of {len(rows)} classes seen',
            )
            least = min([least, *shares])  # a split may hold no labelled pixel
        axis.set_yscale('log')
        axis.set_ylim(10 ** np.floor(np.log10(0.9 * least)), 1.2)
        axis.yaxis.set_major_formatter(percent)
        axis.yaxis.set_minor_formatter(NullFormatter())
        axis.set_title(
            {'images': 'Images that hold the class', 'pixels': 'Labelled pixels of the class'}[key]
        )
        axis.set_xlabel('class, commonest first')
        axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axis.grid()
    figure.legend(*plots[0].get_legend_handles_labels(), loc='outside lower center', ncols=2)
    figure.savefig(path)
