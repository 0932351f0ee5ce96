"""Text blocks that reports of data and models share."""

from collections.abc import Iterable, Sequence


def table(titles: Sequence[str], rows: Iterable[Sequence], num_left: int = 1) -> str:
    """Columns of text, the first `num_left` aligned to the left, the others to the right."""
    cells = [[str(cell) for cell in row] for row in (titles, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]

    def line(row):
        padded = (
            cell.ljust(width) if i < num_left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        return '  '.join(padded).rstrip()

    return '\n'.join(map(line, cells))


def categories_per(unit: str, distribution: dict) -> str:
    """One line from the `statistics.distribution` of images, clips or frames."""
    return (
        f'categories per {unit}: {numbers(distribution)}; '
        f'{distribution["fewer_than_25"]:.2%} of the {unit}s hold fewer than 25'
    )


def numbers(distribution: dict) -> str:
    """The essentials of a `statistics.distribution`."""
    return ', '.join(
        f'{name} {distribution[name]:.4g}' for name in ('min', 'median', 'mean', 'p99', 'max')
    )
