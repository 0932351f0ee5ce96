"""Charts of what data hold, as PNG files."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.ticker import MaxNLocator, NullFormatter
from scipy import sparse

from rankseg_jax.analysis import charts
from rankseg_jax.analysis.charts import BLUE, MOST, ORANGE, percent, short, subplots


def draw(reports: dict, folder: Path) -> None:
    """Draws reports of `dataset.describe`, by split."""
    per_image = {split: report['categories_per_image'] for split, report in reports.items()}
    with charts.style(reports):
        charts.draw_categories_per('image', per_image, folder / 'categories_per_image.png')
        draw_long_tail(reports, folder / 'long_tail.png')
        over_time = {
            split: (report['over_time'], report['categories_per_image'])
            for split, report in reports.items()
            if 'over_time' in report
        }
        if over_time:
            draw_over_time(over_time, folder / 'over_time.png')


def draw_over_time(reports: dict[str, tuple[dict, dict]], path: Path) -> None:
    """How many categories clips and frames hold, and how long categories stay in a video.

    Args:
      reports: by split, a report of `dataset.over_time` and the distribution of frames.
      path: of the PNG file.
    """
    figure, plots = subplots(0.4 + 6 * len(reports), 3, 2 * len(reports))
    for numbers, stays, (split, (report, per_frame)) in zip(
        plots[::2], plots[1::2], reports.items(), strict=True
    ):
        per_clip, stay = report['categories_per_clip'], report.get('stay')
        for distribution, color, label in (
            (per_frame, BLUE, 'frames'),
            (per_clip, ORANGE, f'clips of {report["clip_length"]} frames'),
        ):
            histogram = np.array(distribution['histogram'])
            edges = np.arange(len(histogram) + 1) - 0.5
            shares = histogram / histogram.sum()
            numbers.stairs(shares, edges, color=color, fill=color == BLUE, label=label)
        numbers.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        numbers.set_xlabel('categories')
        numbers.set_title(
            f'{split}\nmean {per_frame["mean"]:.1f} in a frame, {per_clip["mean"]:.1f} in a clip'
        )
        if stay:
            counts = np.array(stay['histogram'])
            stays.stairs(counts / counts.sum(), np.arange(11) / 10, color=BLUE, fill=True)
            stays.set_title(f'{split}\nhow long categories stay, mean {stay["mean"]:.0%}')
        stays.xaxis.set_major_formatter(percent)
        stays.set_xlabel("share of a video's frames")
        for axis in (numbers, stays):
            axis.yaxis.set_major_formatter(percent)
    figure.legend(*plots[0].get_legend_handles_labels(), loc='outside lower center', ncols=2)
    figure.savefig(path)


def draw_cooccurrence(
    together: sparse.csr_array, num_images: int, class_names: Sequence[str], path: Path
) -> None:
    """How often the most frequent classes are in each other's images.

    Args:
      together: sparse int [K, K], images that hold both; on the diagonal, those that hold the one.
        Nothing is drawn if it is empty.
      num_images: N, including images without a class.
      class_names: K names.
      path: of the PNG file.
    """
    images = together.diagonal()  # [K]
    top = np.argsort(-images, kind='stable')[:MOST]
    top = top[images[top] > 0]  # [n]
    if not len(top):
        return
    shares = together[top][:, top].toarray() / images[top][:, None]  # [n, n]
    np.fill_diagonal(shares, images[top] / num_images)
    names = [short(class_names[c]) for c in top]
    with charts.style(names):
        figure, axis = charts.percentages(shares, names, names, color=BLUE, deepest=1.2)
        axis.set_ylabel('of the images with …')
        axis.set_xlabel('… this percentage also holds')
        axis.set_title('Classes of the same image\n(green: percentage of all images)')
        figure.savefig(path)


def draw_long_tail(reports: dict[str, dict], path: Path) -> None:
    """Each class's share of the images and of the labeled pixels, one line for each split."""
    figure, plots = subplots(6.8, 2.9, 2)
    for axis, key in zip(plots, ('images', 'pixels'), strict=True):
        least = 1
        for (split, report), color in zip(reports.items(), (BLUE, ORANGE), strict=False):
            rows = report['categories']
            values = np.array(sorted((row[key] for row in rows if row[key]), reverse=True))
            shares = values / (report['images'] if key == 'images' else values.sum())
            axis.plot(
                range(1, len(values) + 1),
                shares,
                color=color,
                marker='o' if len(rows) <= 60 else None,
                markersize=3,
                label=(
                    f'{split}: {report["images"]} images, {len(values)} of {len(rows)} classes seen'
                ),
            )
            least = min([least, *shares])  # a split may hold no labeled pixel
        axis.set_yscale('log')
        axis.set_ylim(10 ** np.floor(np.log10(0.9 * least)), 1.2)
        axis.yaxis.set_major_formatter(percent)
        axis.yaxis.set_minor_formatter(NullFormatter())
        axis.set_title(
            {'images': 'Images that hold the class', 'pixels': 'Labeled pixels of the class'}[key]
        )
        axis.set_xlabel('class, commonest first')
        axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axis.grid()
    figure.legend(*plots[0].get_legend_handles_labels(), loc='outside lower center', ncols=2)
    figure.savefig(path)
