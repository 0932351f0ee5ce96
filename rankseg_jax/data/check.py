"""Validates images and their label maps before training starts."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from rankseg_jax.data import IGNORE_LABEL, CorruptExample, Source, images
from rankseg_jax.data.report import Report, listed

if TYPE_CHECKING:
    from rankseg_jax.data.folder import PairedFiles


def check(source: PairedFiles, max_corrupt: int | None = None) -> Report:
    """Reads every label file and the header of every image.

    Args:
      max_corrupt: if more pairs than this are unreadable or mismatched, or all of them, that is a
        problem; otherwise a warning.

    Returns:
      A Report; training should not start if it has `problems`.
    """
    matched = source.files
    report = count(
        source,
        ((image, partial(source.read_label, label)) for image, label in matched.pairs),
        max_pixels=source.max_pixels,
        max_corrupt=max_corrupt,
    )
    found = not report.problems
    if not matched.pairs:
        unpaired = matched.unmatched or matched.other_labels
        report.problems.append('no image has a label file of its name' if unpaired else 'no images')
    suffixes = ' '.join(images.IMAGE_SUFFIXES)
    for others, message in (
        (matched.other_labels, 'label files that are not read, since only .png files are labels'),
        (matched.other_images, f'files that are not read, since images have one of {suffixes}'),
    ):
        if others:
            message = listed(f'{len(others)} {message}', [str(path) for path in others])
            (report.warnings if matched.pairs else report.problems).append(message)
    if matched.unmatched:
        unmatched = [str(path) for path in matched.unmatched]
        report.warnings.append(listed(f'{len(unmatched)} files without a partner', unmatched))
    if report.ignored and np.count_nonzero(report.pixels) < 2 and found:
        report.unlearnable = nothing_to_learn(source, report.pixels)
    if source.ignore_label in source.label_values:
        name = source.class_names[source.label_values.index(source.ignore_label)]
        report.warnings.append(
            f'the value {source.ignore_label} is config.data.ignore_label and also the class '
            f'{name!r}, whose pixels will be ignored; if that is not intended, choose a value that '
            'no class has, such as 65535'
        )
    return report


def count(
    source: Source,
    examples: Iterable[tuple[Path, Callable[[], np.ndarray]]],
    *,
    max_pixels: int,
    max_corrupt: int | None = None,
) -> Report:
    """Counts what labels hold and compares their sizes with the headers of their images.

    Args:
      examples: the file of each image, and a function that reads its labels, int32 [H, W] in
        0..K-1 or IGNORE_LABEL; raises as `Source.load`.
      max_pixels, max_corrupt: as in the config.
    """
    pixels = np.zeros(len(source.class_names) + 1, np.int64)  # [K + 1], the ignored last
    files = np.zeros_like(pixels)
    categories, sizes, faults = [], [], {'wrong': [], 'corrupt': []}
    with ThreadPool() as pool:
        results = pool.imap(
            lambda example: _count_one(
                *example, num_classes=len(source.class_names), max_pixels=max_pixels
            ),
            examples,
        )
        for held, counts, size, fault, message in tqdm(
            results, 'Checking', len(source), unit=' files', delay=3, mininterval=3
        ):
            if fault:
                faults[fault].append(message)
                continue
            pixels[held] += counts
            files[held] += 1
            categories.append(np.count_nonzero(held < len(source.class_names)))
            sizes.append(size)
    problems, warnings = [], []
    if wrong := faults['wrong']:
        problems.append(listed(f'{len(wrong)} label files with wrong values', wrong))
    if corrupt := faults['corrupt']:
        limit = ''
        if len(corrupt) == len(source):
            limit = ', which is all of them'
        elif max_corrupt is not None and len(corrupt) > max_corrupt:
            limit = f', more than config.data.max_corrupt = {max_corrupt}'
        message = listed(f'{len(corrupt)} pairs that cannot be used{limit}', corrupt)
        (problems if limit else warnings).append(message)
    return Report(
        class_names=source.class_names,
        num_examples=len(source),
        problems=problems,
        warnings=warnings,
        pixels=pixels[:-1],
        images=files[:-1],
        categories=np.array(categories, np.int64),
        sizes=np.array(sizes, np.int64).reshape(-1, 2),
        ignored=pixels[-1] / max(pixels.sum(), 1),
    )


def nothing_to_learn(source: PairedFiles, pixels: np.ndarray) -> str:
    """The message for label files of one class or none, and ignored pixels; `pixels` as counted."""
    values = source.label_values
    labeled = 'no pixel is labeled'
    if pixels.any():
        only = int(pixels.argmax())
        labeled = f'all labeled pixels are {source.class_names[only]!r} (value {values[only]})'
    ignored = f'{source.ignore_label} (config.data.ignore_label)'
    if source.reduce_zero_label:
        ignored += ' or 0 (config.data.reduce_zero_label)'
    return (
        f'{labeled}, so that there is nothing to learn; the only other value is {ignored}, which '
        f'is ignored: if it means a class, write one of {values[0]}..{values[-1]} in its place'
    )


def _count_one(image_path: Path, read_label, num_classes: int, max_pixels: int):
    """Classes in a label map [n] (K: ignored), their pixels [n], its size, a fault, a message."""
    try:
        label = read_label()  # [H, W]
        size = images.read_size(image_path, max_pixels)
        if size != label.shape:
            raise CorruptExample(images.size_mismatch(image_path, size, label.shape))
    except CorruptExample as error:
        return None, None, None, 'corrupt', str(error)
    except ValueError as error:
        return None, None, None, 'wrong', str(error)
    counts = np.bincount(np.where(label == IGNORE_LABEL, num_classes, label).ravel())
    held = np.flatnonzero(counts)  # [n]
    return held, counts[held], size, None, ''
