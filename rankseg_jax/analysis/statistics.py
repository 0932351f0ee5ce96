"""How well categories are found and which are confused, from the observations of one pass."""

from collections.abc import Sequence

import numpy as np
from scipy import sparse

from rankseg_jax.analysis.observations import Observations
from rankseg_jax.report.observed import class_ranks, recall_curves

NUM_PAIRS = 50  # of confused classes that are listed
ENOUGH = 5  # images that hold a category; fewer say little about how well it is found


def recall(presence_logits: np.ndarray, counts: sparse.csr_array) -> dict:
    """What the best κ categories of each image keep, for every κ.

    Args:
      presence_logits: [N, K]; ties rank the lower class id first, as the selection does.
      counts: sparse [N, K], labeled pixels.

    Returns:
      As `recall_curves`.
    """
    ranks = [
        class_ranks(logits)[counts.indices[start:end]]
        for logits, start, end in zip(
            presence_logits, counts.indptr, counts.indptr[1:], strict=False
        )
    ]
    return recall_curves(np.concatenate(ranks), counts)


def categories(observed: Observations, class_names: Sequence[str]) -> list[dict]:
    """How each of the K categories is found.

    Returns:
      A dict for each: name, images and pixels that hold it; precision and recall at confidence 0.5
      and average_precision, unless there is no multi-label head; and `selected`, the share of its
      images in which it was, unless all K are kept. A share of nothing is nan.
    """
    presence = observed.counts.tocsc()
    image, category = observed.counts.nonzero()
    num_classes = len(class_names)
    images = np.diff(presence.indptr)  # [K]
    pixels = (observed.frames or observed).counts.sum(0)  # clips may overlap
    columns = {'images': images.tolist(), 'pixels': pixels.tolist()}
    if observed.presence_logits is not None:
        found = observed.presence_logits >= 0  # [N, K], a confidence of 0.5
        right = np.bincount(category[found[image, category]], minlength=num_classes)  # [K]
        columns |= {'precision': ratio(right, found.sum(0)), 'recall': ratio(right, images)}
        columns['average_precision'] = [
            average_precision(logits, presence.indices[start:end])
            for logits, start, end in zip(
                observed.presence_logits.T, presence.indptr, presence.indptr[1:], strict=False
            )
        ]
    if observed.selected is not None:
        rightly = observed.selected[observed.selected_present()]
        columns['selected'] = ratio(np.bincount(rightly, minlength=num_classes), images)
    return [
        {'name': name} | dict(zip(columns, row, strict=True))
        for name, *row in zip(class_names, *columns.values(), strict=True)
    ]


def category_lists(rows: list[dict], most: int) -> dict[str, list[dict]]:
    """The rows of `categories` to show, by title.

    These are the `most` commonest and, if there are more than that, those that are found worst.
    """
    seen = [row for row in rows if row['images']]
    lists = {'commonest': sorted(seen, key=lambda row: -row['images'])[:most]}
    if len(seen) > most and 'average_precision' in seen[0]:
        known = [row for row in seen if row['images'] >= ENOUGH] or seen
        lists['hardest to find'] = sorted(known, key=lambda row: row['average_precision'])[:most]
    return lists


def average_precision(scores: np.ndarray, present: np.ndarray) -> float:
    """Mean over the images `present` (indices) of the precision at their score, scores [N].

    It is nan where no image is present.
    """
    if not len(present):
        return float('nan')
    found = np.sort(-scores[present])
    above = np.searchsorted(np.sort(-scores), found, 'right')
    return float(np.mean(np.searchsorted(found, found, 'right') / above))


def ratio(a: np.ndarray, b: np.ndarray) -> list[float]:
    return np.where(b > 0, a / np.maximum(b, 1), np.nan).tolist()


def errors(observed: Observations, class_names: Sequence[str]) -> dict:
    """Labeled, wrong and missed pixels, and the pairs of classes with the most wrong ones."""
    pairs = observed.confusion.tocoo()
    wrong = np.where(pairs.row == pairs.col, 0, pairs.data)
    order = np.argsort(-wrong, kind='stable')[:NUM_PAIRS]
    all_kept = observed.selected is None
    rows = [
        {
            'true': class_names[true],
            'predicted': class_names[predicted],
            'pixels': int(pixels),
            'not_selected': None if all_kept else int(observed.missed[true, predicted]),
        }
        for true, predicted, pixels in zip(
            pairs.row[order], pairs.col[order], wrong[order], strict=True
        )
        if pixels
    ]
    return {
        'labeled_pixels': int(pairs.data.sum()),
        'wrong_pixels': int(wrong.sum()),
        'not_selected_pixels': None if all_kept else int(observed.missed.sum()),
        'pairs': rows,
    }


def distribution(numbers: Sequence[int] | np.ndarray) -> dict:
    """How numbers, [N], are distributed, such as those of categories per image.

    Returns:
      min, median, mean and max; p99, the smallest number that 99 % of the images do not exceed;
      fewer_than_25, the share of the images that hold fewer (at least 99 % in the paper's data
      sets); histogram, the numbers of images that hold 0, 1, 2, … categories.
    """
    low, p99, high = (
        int(np.percentile(numbers, share, method='inverted_cdf')) for share in (0, 99, 100)
    )
    return {
        'min': low,
        'median': float(np.median(numbers)),
        'mean': float(np.mean(numbers)),
        'p99': p99,
        'max': high,
        'fewer_than_25': float(np.mean(np.asarray(numbers) < 25)),
        'histogram': np.bincount(numbers).tolist(),
    }


def groups(
    presence: sparse.csr_array, read: Sequence[int], ranges: Sequence[range]
) -> tuple[sparse.csr_array, np.ndarray]:
    """What groups of images hold, such as those of videos or of clips.

    Args:
      presence: sparse int32 [N, K], 1 where an image holds a category.
      read: [N] places of these images in the source, ascending.
      ranges: of places, one for each of G groups.

    Returns:
      Sparse int32 [G, K], the images of a group that hold a category, and int [G], its images.
    """
    bounds = np.searchsorted(read, [(group.start, group.stop) for group in ranges])  # [G, 2]
    lengths = bounds[:, 1] - bounds[:, 0]
    members = np.concatenate([np.arange(*bound) for bound in bounds])
    ends = np.concatenate([[0], lengths.cumsum()])
    ones = np.ones(len(members), np.int32)
    shape = (len(lengths), presence.shape[0])
    return (sparse.csr_array((ones, members, ends), shape) @ presence).tocsr(), lengths


def stay(held: sparse.csr_array, lengths: np.ndarray) -> dict:
    """How long categories stay: the shares of a video's frames in which one of its categories is.

    Args:
      held, lengths: of videos, as `groups` returns them.

    Returns:
      mean and median of the shares; always, how many of them are 1; histogram, how many lie in
      each tenth.
    """
    shares = held.data / np.repeat(lengths, np.diff(held.indptr))
    return {
        'mean': float(np.mean(shares)),
        'median': float(np.median(shares)),
        'always': float(np.mean(shares == 1)),
        'histogram': np.histogram(shares, 10, (0, 1))[0].tolist(),
    }
