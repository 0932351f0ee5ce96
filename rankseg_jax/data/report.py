"""The result of checking a data set before training."""

import dataclasses

import numpy as np


def listed(title: str, items: list[str], limit: int = 5) -> str:
    """A title and below it the first `limit` items and how many more there are."""
    more = [f'… and {len(items) - limit} more'] if len(items) > limit else []
    return '\n    '.join([f'{title}:', *items[:limit], *more])


def _no_counts() -> np.ndarray:
    return np.zeros(0, np.int64)


@dataclasses.dataclass
class Report:
    """The result of `Source.check`. Without arguments: nothing to report, and its text is empty.

    Attributes:
      class_names: K names.
      num_examples: pairs checked, N.
      problems: reasons not to use the split.
      unlearnable: why nothing can be learned from the split, if that is so; it may be evaluated.
      warnings: faults that training can live with.
      pixels: int64 [K], labeled pixels of each class.
      images: int64 [K], label files that hold the class.
      categories: int64 [N'], number of categories in each readable label file.
      sizes: int64 [N', 2], their heights and widths.
      ignored: share of ignored pixels, 0..1.
    """

    class_names: tuple[str, ...] = ()
    num_examples: int = 0
    problems: list[str] = dataclasses.field(default_factory=list)
    unlearnable: str = ''
    warnings: list[str] = dataclasses.field(default_factory=list)
    pixels: np.ndarray = dataclasses.field(default_factory=_no_counts)
    images: np.ndarray = dataclasses.field(default_factory=_no_counts)
    categories: np.ndarray = dataclasses.field(default_factory=_no_counts)
    sizes: np.ndarray = dataclasses.field(default_factory=_no_counts)
    ignored: float = 0.0

    def __str__(self) -> str:
        if not self.class_names:
            return ''
        lines = [f'{self.num_examples} examples, {len(self.class_names)} classes']
        if len(self.categories):
            low, middle, p99, high = np.percentile(self.categories, (0, 50, 99, 100))
            lines.append(
                f'categories per image: min {low:.0f}, median {middle:g}, '
                f'mean {self.categories.mean():.1f}, p99 {p99:g}, max {high:.0f}; '
                f'{self.ignored:.1%} of the pixels are ignored'
            )
        lines += [f'PROBLEM: {problem}' for problem in self.problems]
        warnings = [*self.warnings, *([self.unlearnable] if self.unlearnable else [])]
        lines += [f'warning: {warning}' for warning in warnings]
        never = [name for name, n in zip(self.class_names, self.images, strict=True) if not n]
        if never and len(self.categories):
            lines.append('warning: ' + listed(f'{len(never)} classes never seen', never))
        return '\n'.join(lines)
