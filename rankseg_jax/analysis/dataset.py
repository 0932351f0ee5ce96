"""What the data hold, before anything is trained.

Sizes of images, categories per image, which classes are rare and which come together; of videos,
how long categories stay, and what clips hold.
"""

import json
from array import array
from collections import Counter
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import cast

import numpy as np
from absl import logging
from ml_collections import ConfigDict
from scipy import sparse
from tqdm import tqdm

from rankseg_jax import data, storage, tasks
from rankseg_jax.analysis import charts, cooccurrence, dataset_charts, statistics, text
from rankseg_jax.data import Source, VideoSource, videos
from rankseg_jax.tasks.clips import video_source

ROWS = 5  # of a printed table
LISTED = 5  # classes in a printed line


class Tally:
    """Sums over the images that could be read.

    Memory does not grow with N K: only the classes that each image holds are kept.

    Attributes:
      pixels: int64 [K], labeled pixels of each class.
      ignored: pixels without a label.
      sizes: number of images by (rows, columns).
      classes: those of all images, one image after another.
      ends: 0, and where the classes of each image end.
      read: places of the images in the source.
    """

    def __init__(self, num_classes: int):
        self.pixels = np.zeros(num_classes, np.int64)
        self.ignored = 0
        self.sizes = Counter()
        self.classes = array('i')
        self.ends = [0]
        self.read = []

    def add(
        self,
        place: int,
        size: tuple[int, int],
        classes: np.ndarray,
        pixels: np.ndarray,
        ignored: int,
    ) -> None:
        """Adds an image of `size` with `classes`, `pixels` of each, and `ignored` pixels."""
        self.read.append(place)
        self.sizes[size] += 1
        self.pixels[classes] += pixels
        self.ignored += int(ignored)
        self.classes.extend(classes)
        self.ends.append(len(self.classes))

    def presence(self) -> sparse.csr_array:
        """int32 [N, K], 1 where an image holds a class."""
        ones = np.ones(len(self.classes), np.int32)
        shape = (len(self.ends) - 1, len(self.pixels))
        return sparse.csr_array((ones, np.asarray(self.classes), self.ends), shape)


def tally(source: Source) -> tuple[Tally, list[str]]:
    """Reads every example of `source`.

    Returns:
      The sums, and a message for each example that cannot be read.
    """
    num_classes = len(source.class_names)

    def read(index):
        try:
            label = source.load(index)['label']
        except ValueError as error:  # a CorruptExample, or values out of range
            return str(error)
        counts = np.bincount(label.ravel() + 1, minlength=num_classes + 1)  # the ignored come first
        classes = np.flatnonzero(counts[1:])
        return label.shape, classes, counts[1 + classes], counts[0]

    total, unread = Tally(num_classes), []
    with ThreadPool() as pool:
        found = pool.imap(read, range(len(source)))
        found = tqdm(found, 'Reading', len(source), unit=' images', delay=3, mininterval=3)
        for place, example in enumerate(found):
            if isinstance(example, str):
                logging.error('Skipped: %s', example)
                unread.append(example)
            else:
                total.add(place, *example)
    return total, unread


def describe(source: Source, clips: tuple[int, int] | None = None) -> tuple[dict, sparse.csr_array]:
    """What the examples of `source` hold; each is read whole, and those that cannot be are named.

    Args:
      clips: frames of a clip, and those that it shares with the one before, to describe videos by.

    Returns:
      A report, and sparse int32 [K, K], the images that hold both of two classes.
    """
    total, unread = tally(source)
    presence = total.presence()
    together = cooccurrence.count(presence)
    num_images = presence.shape[0]
    images, labeled = together.diagonal(), int(total.pixels.sum())  # [K]
    # The images may be frames of videos.
    videos = {'videos': len(source.videos)} if source.videos else {}
    published = source.published_videos if videos else source.published
    kind, number = next(iter(videos.items()), ('images', len(source)))
    report = {
        'images': num_images,
        **videos,
        'published': published,
        'unread': unread,
        'warnings': published_warnings(kind, number, published),
        'ignored': total.ignored / max(labeled + total.ignored, 1),
        'sizes': [
            {'rows': rows, 'columns': columns, 'images': n}
            for (rows, columns), n in total.sizes.most_common()
        ],
        'categories_per_image': (
            statistics.distribution(np.diff(total.ends)) if num_images else None
        ),
        'never_seen': [name for name, n in zip(source.class_names, images, strict=True) if not n],
        'categories': [
            {'name': name, 'images': int(i), 'pixels': int(p)}
            for name, i, p in zip(source.class_names, images, total.pixels, strict=True)
        ],
        'cooccurrence': cooccurrence.pairs(together, num_images, source.class_names),
    }
    if clips and num_images:
        report['over_time'] = over_time(
            cast(VideoSource, source), presence, read=total.read, clips=clips
        )
    return report, together


def over_time(
    source: VideoSource, presence: sparse.csr_array, read: list[int], clips: tuple[int, int]
) -> dict:
    """How categories, and tracks, come and go in videos.

    Args:
      presence: sparse int32 [N, K], 1 where a frame holds a class.
      read: N places of these frames in the source.
      clips: see `describe`.

    Returns:
      clip_length; categories_per_clip and, of a `TrackSource`, tracks_per_clip and
      tracks_per_video, each a `statistics.distribution`; stay, see `statistics.stay`.
    """
    windows = [
        range(found[frames.start], found[frames.stop - 1] + 1)
        for _, found in source.videos
        for frames, _ in videos.windows(len(found), *clips)
    ]
    held, lengths = statistics.groups(presence, read, windows)
    report = {
        'clip_length': clips[0],
        'categories_per_clip': statistics.distribution(np.diff(held.indptr)[lengths > 0]),
    }
    held, lengths = statistics.groups(presence, read, [found for _, found in source.videos])
    if held.nnz:
        report['stay'] = statistics.stay(held, lengths)
    if isinstance(source, data.TrackSource):
        report |= count_tracks(source, clips)
    return report


def count_tracks(source: data.TrackSource, clips: tuple[int, int]) -> dict:
    """tracks_per_clip and tracks_per_video of `over_time`: those that a frame of it shows."""

    def read(video):
        try:
            tracks = source.tracks(video)
        except data.CorruptExample as error:
            logging.error('Skipped: %s', error)
            return None
        visible = [[bool(mask) for mask in track['segmentations']] for track in tracks]
        length = len(source.videos[video][1])
        visible = np.array(visible, bool).reshape(len(tracks), length)
        windows = [frames for frames, _ in videos.windows(length, *clips)]
        per_clip = [int(visible[:, frames].any(1).sum()) for frames in windows]
        return per_clip, int(visible.any(1).sum())

    with ThreadPool() as pool:
        found = [counts for counts in pool.imap(read, range(len(source.videos))) if counts]
    if not found:
        return {}
    per_clip, per_video = zip(*found, strict=True)
    return {
        'tracks_per_clip': statistics.distribution(np.concatenate(per_clip)),
        'tracks_per_video': statistics.distribution(per_video),
    }


def published_warnings(kind: str, number: int, published: int | None) -> list[str]:
    """A warning if there are not as many images or videos, `kind`, as published."""
    if published in (None, number):
        return []
    than = 'fewer' if number < published else 'more'
    return [
        f'{abs(number - published):,} {kind} {than} than published; docs/datasets.md says where to '
        'get the data set and where its files belong'
    ]


def run(config: ConfigDict, output: Path) -> dict:
    """Describes both splits; user folders are also validated as before training.

    Writes into the folder `output`: analysis.json, charts, and for each split
    cooccurrence_<split>.npz, which `scipy.sparse.load_npz` reads.

    Returns:
      The contents of analysis.json: a report for each split.

    Raises:
      ValueError: the task needs videos, which the data do not have; or as `data.get_source`.
      OSError: the folder cannot be written.
    """
    storage.make_folder(output)
    reports, task = {}, tasks.task_class(config.task)
    clips = (config.eval.clip_length, config.eval.clip_overlap) if task.takes_clips else None
    for split in (config.data.train_split, config.data.eval_split):
        source = task.adapt(data.get_source(config.data, split))
        if clips:
            video_source(config, source)
        report, together = describe(source, clips)
        check = source.check(config.data.max_corrupt)
        report['problems'] = check.problems
        report['warnings'] += check.warnings
        reports[split] = report
        print(f'{split}: ' + '\n'.join(summary(report)), end='\n\n')  # before writing
        path = output / f'cooccurrence_{split.replace("/", "_")}.npz'
        sparse.save_npz(path, together)
        dataset_charts.draw_cooccurrence(
            together, report['images'], source.class_names, path=path.with_suffix('.png')
        )
    (output / 'analysis.json').write_text(json.dumps(reports, indent=1))
    read = {split: report for split, report in reports.items() if report['images']}
    if read:
        dataset_charts.draw(read, output)
        unit = 'clip' if clips else 'image'
        held = [
            report['over_time']['categories_per_clip'] if clips else report['categories_per_image']
            for report in read.values()
        ]
        p99, high = (max(distribution[key] for distribution in held) for key in ('p99', 'max'))
        print(f'κ: {p99} holds all categories of 99 % of the {unit}s, {high} those of every {unit}')
    print(f'Written to {output}')
    return reports


def summary(report: dict) -> list[str]:
    """The essentials of a report of one split, in lines."""
    lines = [size_line(report)]
    lines += [f'PROBLEM: {problem}' for problem in report['problems']]
    lines += [f'warning: {warning}' for warning in report['warnings']]
    if not report['images']:
        return lines
    most = report['sizes'][0]
    lines += [
        f'{most["rows"]} × {most["columns"]} pixels (rows × columns) most often, '
        f'{len(report["sizes"]):,} sizes in all; {report["ignored"]:.1%} of the pixels ignored',
        text.categories_per('image', report['categories_per_image']),
    ]
    if 'over_time' in report:
        lines += over_time_lines(report['over_time'])
    never, num_classes = report['never_seen'], len(report['categories'])
    if never:
        more = f' and {len(never) - LISTED:,} more' if len(never) > LISTED else ''
        lines.append(
            f'warning: {len(never):,} of {num_classes:,} classes never seen: '
            f'{", ".join(never[:LISTED])}{more}'
        )
    for title, name in (
        ('most often in one image', 'frequent'),
        ('most bound to each other', 'bound'),
    ):
        if pairs := report['cooccurrence'][name][:ROWS]:
            lines.append(pair_table(title, pairs))
    return lines


def over_time_lines(report: dict) -> list[str]:
    """The essentials of `over_time`."""
    lines = [
        f'in clips of {report["clip_length"]} frames, '
        + text.categories_per('clip', report['categories_per_clip'])
    ]
    if 'stay' in report:
        stay = report['stay']
        lines.append(
            f'a category of a video is in {stay["mean"]:.1%} of its frames on average (median '
            f'{stay["median"]:.1%}), in all of them {stay["always"]:.1%} of the time'
        )
    lines += [
        f'tracks per {unit}: {text.numbers(report[f"tracks_per_{unit}"])}'
        for unit in ('video', 'clip')
        if f'tracks_per_{unit}' in report
    ]
    return lines


def size_line(report: dict) -> str:
    """How many images, videos and categories there are, and how many there should be."""
    unread, published = len(report['unread']), report['published']
    num_examples = report['images'] + unread
    number = report.get('videos', num_examples)
    unreadable = f' ({unread:,} unreadable)' if unread else ''
    videos = f' of {number:,} videos' if 'videos' in report else ''
    if published is None:
        expected = ''
    elif published == number:
        expected = ', as published'
    else:
        expected = f', published: {published:,}'
    num_classes = len(report['categories'])
    return f'{num_examples:,} images{unreadable}{videos}{expected}; {num_classes:,} categories'


def pair_table(title: str, pairs: list[dict]) -> str:
    cells = [
        (
            charts.short(pair['a']),
            charts.short(pair['b']),
            f'{pair["images"]:,}',
            f'{pair["b_given_a"]:.1%}',
            f'{pair["a_given_b"]:.1%}',
            f'{pair["phi"]:z.2f}',
        )
        for pair in pairs
    ]
    return text.table((title, '', 'images', 'P(2nd | 1st)', 'P(1st | 2nd)', 'φ'), cells, 2)
