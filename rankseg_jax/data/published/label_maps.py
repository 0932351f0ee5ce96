"""Classes of published data sets, and label maps in their order."""

import json
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

import numpy as np

from rankseg_jax.data.published import IGNORED, LISTED


@cache
def read_classes(name: str) -> dict[str, list]:
    """Reads `classes/<name>.json`: 'names', 'ids' (in the data set's own files), perhaps 'isthing'.

    Each is a list of K in label order.
    """
    return json.loads((Path(__file__).parent / f'classes/{name}.json').read_text('utf-8'))


def to_labels(
    values: np.ndarray, ids: Sequence[int], ignored: Iterable[int] | None, path: str | Path
) -> np.ndarray:
    """Maps the values of a label file [H, W] to uint16 [H, W]: places in `ids`, or IGNORED.

    Args:
      values: integers, at least 0.
      ids: K values, one for each class.
      ignored: values to ignore; None: all that are not in `ids`.
      path: named in errors.

    Raises:
      ValueError: a value is neither a class nor ignored.
    """
    unknown = IGNORED if ignored is None else IGNORED - 1
    ignored = list(ignored or ())
    table = np.full(max(values.max(initial=0), *ids, *ignored) + 1, unknown, np.uint16)
    table[ignored] = IGNORED
    table[list(ids)] = np.arange(len(ids))
    labels = table[values]  # [H, W]
    if (labels == IGNORED - 1).any():
        wrong = np.unique(values[labels == IGNORED - 1])[:LISTED].tolist()
        raise ValueError(
            f'{path}: label values {wrong} are neither a class of this data set ({len(ids)} '
            f'classes, values {min(ids)}..{max(ids)}) nor ignored '
            f'({", ".join(map(str, ignored)) or "no value is"}): is the file from another data '
            'set, or converted?'
        )
    return labels


def segment_labels(ids: np.ndarray, segments: Sequence[dict], path: str | Path) -> np.ndarray:
    """The label map uint16 [H, W] of a panoptic map.

    Args:
      ids: int [H, W]; 0 is void and becomes IGNORED.
      segments: dicts with 'id' and 'category_id' in 0..K-1.
      path: named in errors.

    Raises:
      ValueError: an id has no segment, or two.
    """
    label = {0: IGNORED} | {segment['id']: segment['category_id'] for segment in segments}
    if len(label) <= len(segments):
        raise ValueError(
            f'{path}: two of its segments in the JSON file have the same id, or one has the id 0, '
            'which is void'
        )
    known = np.array(sorted(label))
    # [H, W]; several times faster than np.unique over the pixels.
    places = np.searchsorted(known[:-1], ids)
    unknown = known[places] != ids
    if unknown.any():
        wrong = np.unique(ids[unknown])[:LISTED].tolist()
        raise ValueError(
            f'{path}: ids {wrong} are in the image but not among its segments in the JSON file'
        )
    return np.array([label[i] for i in known.tolist()], np.uint16)[places]
