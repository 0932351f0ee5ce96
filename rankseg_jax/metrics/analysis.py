"""What a multi-label head finds and a model confuses, from what one pass over a split collects on the host."""

import dataclasses

import numpy as np
from scipy import sparse

PAIRS = 50  # of confused classes that are listed
ENOUGH = 5  # images that hold a category; fewer say little about how well it is found


@dataclasses.dataclass
class Observations:
    """What one pass saw of the N images that could be read.

    Attributes:
      counts: sparse int64 [N, K], labelled pixels of each category.
      class_logits: float32 [N, K] of the multi-label head; None for the baseline.
      selected: int32 [N, κ], the categories that pixels were classified over, best first; None if those were all K.
      confusion: sparse int64 [K, K], labelled pixels by true and predicted class.
      missed: the same of the pixels whose true class had not been selected.
      unread: names of the examples that could not be read.
    """

    counts: sparse.csr_array
    class_logits: np.ndarray | None
    selected: np.ndarray | None
    confusion: sparse.csr_array
    missed: sparse.csr_array
    unread: list[str]

    def held(self):
        """bool [N, κ]: does the image hold the category selected at this rank?"""
        return np.take_along_axis((self.counts > 0).toarray(), self.selected, 1)


def count(rows, columns, shape):
    return sparse.coo_array((np.ones(len(rows), np.int64), (rows, columns)), shape).tocsr()


def recall(class_logits, counts) -> dict:
    """What the best κ categories of each image keep, for every κ.

    Args:
      class_logits: [N, K]; ties rank the lower class id first, as the selection does.
      counts: sparse [N, K], labelled pixels.

    Returns:
      Lists for κ = 1 … K. category_recall: mean over images of the share of their categories; pixel_recall: share of all labelled
      pixels; image_pixel_recall: mean over images of the share of their pixels. Images without a labelled pixel count nowhere.
    """
    num_classes = counts.shape[1]
    ranks = [
        np.argsort(np.argsort(-scores, kind='stable'))[counts.indices[start:end]]
        for scores, start, end in zip(class_logits, counts.indptr, counts.indptr[1:], strict=False)
    ]
    ranks = np.concatenate(ranks)  # [categories in all images], as counts.data
    held, pixels = np.diff(counts.indptr), counts.sum(1)  # [N]
    weights = {
        'category_recall': 1 / np.repeat(held, held),
        'pixel_recall': counts.data,
        'image_pixel_recall': counts.data / np.repeat(pixels, held),
    }
    sums = {
        name: np.bincount(ranks, weight, num_classes).cumsum() for name, weight in weights.items()
    }
    return {name: (total / total[-1]).tolist() for name, total in sums.items()}


def categories(seen: Observations, class_names) -> list[dict]:
    """How each of the K categories is found: precision and recall at confidence 0.5, recall as selected, average precision."""
    presence = seen.counts.tocsc()
    image, category = seen.counts.nonzero()
    num_classes = len(class_names)
    images = np.diff(presence.indptr)  # [K]
    columns = {'images': images.tolist(), 'pixels': seen.counts.sum(0).tolist()}
    if seen.class_logits is not None:
        chosen = seen.class_logits >= 0  # [N, K], a confidence of 0.5
        right = np.bincount(category[chosen[image, category]], minlength=num_classes)  # [K]
        columns |= {'precision': ratio(right, chosen.sum(0)), 'recall': ratio(right, images)}
        columns['average_precision'] = [
            average_precision(scores, presence.indices[start:end])
            for scores, start, end in zip(
                seen.class_logits.T, presence.indptr, presence.indptr[1:], strict=False
            )
        ]
    if seen.selected is not None:
        columns['selected'] = ratio(
            np.bincount(seen.selected[seen.held()], minlength=num_classes), images
        )
    return [
        {'name': name} | dict(zip(columns, row, strict=True))
        for name, *row in zip(class_names, *columns.values(), strict=True)
    ]


def listed(rows, most: int) -> dict[str, list[dict]]:
    """The rows of `categories` to show, by title: the `most` commonest, and those that the head finds worst, if there are more."""
    seen = [row for row in rows if row['images']]
    lists = {'commonest': sorted(seen, key=lambda row: -row['images'])[:most]}
    if len(seen) > most and 'average_precision' in seen[0]:
        known = [row for row in seen if row['images'] >= ENOUGH] or seen
        lists['hardest to find'] = sorted(known, key=lambda row: row['average_precision'])[:most]
    return lists


def average_precision(scores, present) -> float:
    """Mean over the images `present` (indices) of the precision at their score [N]; nan without one."""
    if not len(present):
        return float('nan')
    found = np.sort(-scores[present])
    above = np.searchsorted(np.sort(-scores), found, 'right')
    return float(np.mean(np.searchsorted(found, found, 'right') / above))


def ratio(a, b):
    return np.where(b > 0, a / np.maximum(b, 1), np.nan).tolist()


def errors(seen: Observations, class_names) -> dict:
    """Labelled, wrong and missed pixels, and the pairs of classes with the most wrong ones."""
    pairs = seen.confusion.tocoo()
    wrong = np.where(pairs.row == pairs.col, 0, pairs.data)
    order = np.argsort(-wrong, kind='stable')[:PAIRS]
    rows = [
        {
            'true': class_names[t],
            'predicted': class_names[p],
            'pixels': int(n),
            'not_selected': None if seen.selected is None else int(seen.missed[t, p]),
        }
        for t, p, n in zip(pairs.row[order], pairs.col[order], wrong[order], strict=True)
        if n
    ]
    return {
        'labelled_pixels': int(pairs.data.sum()),
        'wrong_pixels': int(wrong.sum()),
        'not_selected_pixels': None if seen.selected is None else int(seen.missed.sum()),
        'pairs': rows,
    }


def distribution(numbers) -> dict:
    """Of categories per image [N]; p99 is the fewest that 99 % of the images do not exceed.

    `fewer_than_25` is the share of the images that hold fewer than 25, of the paper's data sets at least 99 %; the histogram counts
    the images that hold 0, 1, 2, … categories.
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
