"""Style and parts that the charts of data and of models share."""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rankseg_jax import fonts

BLUE, ORANGE, GREEN, RED = '#1f6fb4', '#e08214', '#189648', '#c0392b'
INK, PALE = '#202124', '#e4e6ea'
MOST = 20  # rows of a chart
STYLE: dict[Any, Any] = {
    'figure.dpi': 160,
    'figure.constrained_layout.use': True,
    'font.size': 8,
    'axes.titlesize': 9,
    'axes.axisbelow': True,
    'axes.spines.top': False,
    'axes.spines.right': False,
    'grid.color': PALE,
    'legend.frameon': False,
    'text.parse_math': False,  # a class name may hold dollars
}


def style(names: Iterable[str]) -> AbstractContextManager:
    """Charts drawn in this context have one style, and fonts for these names."""
    return matplotlib.rc_context(STYLE | {'font.family': fonts.families(names)})


def subplots(width: float, height: float, columns: int) -> tuple[Figure, np.ndarray]:
    """A figure, its size in inches, and its axes side by side."""
    figure = Figure((width, height))
    return figure, figure.subplots(1, columns, squeeze=False)[0]


def percent(share: float, _: float) -> str:
    return f'{100 * share:g}%'


def short(name: str, most: int = 24) -> str:
    name = fonts.drawable(name)
    return name if len(name) <= most else name[: most - 1].rstrip() + '…'


def percentages(
    shares: np.ndarray, rows: Sequence[str], columns: Sequence[str], *, color: str, deepest: float
) -> tuple[Figure, Axes]:
    """A figure and its axis that show shares as percentages, green on the diagonal.

    Args:
      shares: [n, m].
      rows: n names.
      columns: m names.
      color: off the diagonal.
      deepest: share that gets the full color.
    """
    diagonal = np.eye(*shares.shape, dtype=bool)
    figure, (axis,) = subplots(max(2 + 0.3 * len(columns), 4), 2.1 + 0.26 * len(rows), 1)
    for part, shade, most in ((diagonal, GREEN, 1.2), (~diagonal, color, deepest)):
        colors = LinearSegmentedColormap.from_list('', ['white', shade])
        axis.imshow(np.where(part, shares, np.nan), colors, vmin=0, vmax=most, aspect='auto')
    for row, column in np.ndindex(*shares.shape):
        share = float(shares[row, column])
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


def draw_categories_per(unit: str, distributions: dict[str, dict], path: Path) -> None:
    """Histograms of the number of categories per image or clip, one for each split."""
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
        axis.set_xlabel(f'categories per {unit}')
        axis.set_ylabel(f'{unit}s')
    figure.savefig(path)
