"""What the data hold, before anything is trained: sizes, categories per image, and which classes are rare or come together."""

import json
from array import array
from collections import Counter
from multiprocessing.pool import ThreadPool

import numpy as np
from absl import logging
from scipy import sparse
from tqdm import tqdm

from rankseg_jax import charts, data
from rankseg_jax.metrics import analysis, cooccurrence

ROWS = 5  # of a printed table
LISTED = 5  # classes in a printed line


def describe(source):
    """What the examples of a source hold; each is read whole, and what cannot be read is named.

    Returns:
      A report, and sparse int32 [K, K], images that hold both of two classes. The memory does not grow with N K: only the classes
      that each image holds are kept, and the pairs of classes that meet.
    """
    num_classes = len(source.class_names)

    def read(index):
        try:
            label = source.load(index)['label']
        except ValueError as error:  # a CorruptExample, or values out of range
            return str(error)
        counts = np.bincount(
            label.ravel() + 1, minlength=num_classes + 1
        )  # [K + 1], the ignored first
        held = np.flatnonzero(counts[1:])  # the classes of this image
        return label.shape, held, counts[1 + held], counts[0]

    pixels, ignored = np.zeros(num_classes, np.int64), 0
    classes, ends, sizes, unread = (
        array('i'),
        [0],
        Counter(),
        [],
    )  # the classes of all images in a row, and where each one's end
    with ThreadPool() as pool:
        found = pool.imap(read, range(len(source)))
        for example in tqdm(found, 'Reading', len(source), unit=' images', delay=3, mininterval=3):
            if isinstance(example, str):
                logging.error('Skipped: %s', example)
                unread.append(example)
                continue
            size, held, counts, without = example
            pixels[held] += counts
            ignored += int(without)
            classes.extend(held)
            ends.append(len(classes))
            sizes[size] += 1
    num_images = len(ends) - 1
    presence = sparse.csr_array(
        (np.ones(len(classes), np.int32), np.asarray(classes), ends), (num_images, num_classes)
    )
    together = cooccurrence.count(presence)
    images, labelled = together.diagonal(), int(pixels.sum())  # [K]
    # The images of a data set of videos are their frames.
    videos = {'videos': len(source.videos)} if source.videos else {}
    kind, there = next(iter(videos.items()), ('images', len(source)))
    published = source.published_videos if videos else source.published
    warnings = []
    if published not in (None, there):
        warnings.append(
            f'{abs(there - published):,} {kind} {"fewer" if there < published else "more"} than published; '
            'docs/datasets.md says where to get the data set and where its files belong'
        )
    return {
        'images': num_images,
        **videos,
        'published': published,
        'unread': unread,
        'warnings': warnings,
        'ignored': ignored / max(labelled + ignored, 1),
        'sizes': [
            {'rows': rows, 'columns': columns, 'images': n}
            for (rows, columns), n in sizes.most_common()
        ],
        'categories_per_image': analysis.distribution(np.diff(ends)) if num_images else None,
        'never_seen': [name for name, n in zip(source.class_names, images, strict=True) if not n],
        'categories': [
            {'name': name, 'images': int(i), 'pixels': int(p)}
            for name, i, p in zip(source.class_names, images, pixels, strict=True)
        ],
        'cooccurrence': cooccurrence.pairs(together, num_images, source.class_names),
    }, together


def run(config, output) -> dict:
    """Describes both splits, with the check that training starts with for files of one's own.

    Writes into the folder `output`: analysis.json, cooccurrence_<split>.npz for `scipy.sparse.load_npz`, and pictures.

    Returns:
      What the JSON file holds: a report for each split.
    """
    output.mkdir(parents=True, exist_ok=True)
    reports = {}
    for split in (config.data.train_split, config.data.eval_split):
        source = data.get_source(config.data, split)
        found, together = describe(source)
        reports[split] = found | {'problems': []}
        check = source.check(config.data.max_corrupt)
        reports[split] |= {
            'problems': check.problems,
            'warnings': [*found['warnings'], *check.warnings],
        }
        path = output / f'cooccurrence_{split.replace("/", "_")}.npz'
        sparse.save_npz(path, together)
        charts.draw_cooccurrence(
            together, found['images'], source.class_names, path.with_suffix('.png')
        )
        print(f'{split}: ' + '\n'.join(summary(reports[split])), end='\n\n')
    (output / 'analysis.json').write_text(json.dumps(reports, indent=1))
    read = {split: found for split, found in reports.items() if found['images']}
    if read:
        charts.draw_data(read, output)
        p99, high = (
            max(found['categories_per_image'][key] for found in read.values())
            for key in ('p99', 'max')
        )
        print(f'κ: {p99} holds all categories of 99 % of the images, {high} those of every image')
    print(f'Written to {output}')
    return reports


def summary(report: dict) -> list[str]:
    """The essentials of a report of one split, in lines."""
    unread, never, published = len(report['unread']), report['never_seen'], report['published']
    num_examples, num_classes = report['images'] + unread, len(report['categories'])
    there = report.get('videos', num_examples)
    videos = f' of {there:,} videos' if 'videos' in report else ''
    size = (
        ''
        if published is None
        else ', as published'
        if published == there
        else f', published: {published:,}'
    )
    lines = [
        f'{num_examples:,} images{f" ({unread:,} unreadable)" if unread else ""}{videos}{size}; {num_classes:,} categories'
    ]
    lines += [f'PROBLEM: {text}' for text in report['problems']] + [
        f'warning: {text}' for text in report['warnings']
    ]
    if not report['images']:
        return lines
    most = report['sizes'][0]
    lines += [
        f'{most["rows"]} × {most["columns"]} pixels (rows × columns) most often, {len(report["sizes"]):,} sizes in all; '
        f'{report["ignored"]:.1%} of the pixels ignored',
        per_image_line(report['categories_per_image']),
    ]
    if never:
        more = f' and {len(never) - LISTED:,} more' if len(never) > LISTED else ''
        lines.append(
            f'warning: {len(never):,} of {num_classes:,} classes never seen: {", ".join(never[:LISTED])}{more}'
        )
    for title, name in (
        ('most often in one image', 'frequent'),
        ('most bound to each other', 'bound'),
    ):
        cells = [
            (
                charts.short(pair['a']),
                charts.short(pair['b']),
                f'{pair["images"]:,}',
                f'{pair["b_given_a"]:.1%}',
                f'{pair["a_given_b"]:.1%}',
                f'{pair["phi"]:z.2f}',
            )
            for pair in report['cooccurrence'][name][:ROWS]
        ]
        if cells:
            lines.append(
                table((title, '', 'images', 'P(2nd | 1st)', 'P(1st | 2nd)', 'φ'), cells, 2)
            )
    return lines


def per_image_line(numbers: dict) -> str:
    kept = ', '.join(
        f'{name} {numbers[name]:.4g}' for name in ('min', 'median', 'mean', 'p99', 'max')
    )
    return f'categories per image: {kept}; {numbers["fewer_than_25"]:.2%} of the images hold fewer than 25'


def table(titles, rows, names: int = 1) -> str:
    """Columns of text, the first `names` of them to the left, the others, numbers, to the right."""
    cells = [[str(cell) for cell in row] for row in (titles, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return '\n'.join(
        '  '.join(
            cell.ljust(width) if i < names else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    )
