"""Class layers of a model on other categories: what was learned of a category stays with its name.

Class ids are places in a list, so that the same id means another category in another data set.
"""

import re
from collections.abc import Mapping, Sequence

import numpy as np

# Parameters with an axis of categories, and after them no-object in per-query frameworks.
CLASS_LAYER = re.compile(
    r'/(class_embedding|classify/(kernel|bias)|'
    r'(auxiliary_)?classes/(embedding|bias|norm/\w+))$'
)


def places(learned: Sequence[str], wanted: Sequence[str]) -> list[tuple[int, int]] | None:
    """Where the wanted categories are that were learned too: (place wanted, place learned) each.

    None means that class layers fit as they are: one of the lists is unknown, that is empty, or
    they have one length and no common name at different places. Such lists are those of the same
    categories; two sources may spell some of them differently.
    """
    found = {name: place for place, name in reversed(list(enumerate(learned)))}
    pairs = [(place, found[name]) for place, name in enumerate(wanted) if name in found]
    same = len(learned) == len(wanted) and all(a == b for a, b in pairs)
    return None if same or not learned or not wanted else pairs


def carry(
    name: str,
    learned: np.ndarray,
    initial: Mapping[str, np.ndarray],
    pairs: Sequence[tuple[int, int]],
    num_learned: int,
) -> np.ndarray:
    """A class layer with what was learned of the categories in `pairs`, initial values elsewhere.

    Args:
      name: of the parameter.
      learned: the parameter for `num_learned` categories. If it is of another width than that of
        the model, it is returned as it is.
      initial: the model's parameters by name.
      pairs: as `places` returns them.
    """
    axis = category_axis(name, initial)
    here = np.moveaxis(np.array(initial[name]), axis, 0)  # [K, …], or [K + 1, …] with no-object
    there = np.moveaxis(learned, axis, 0)
    if here.shape[1:] != there.shape[1:] or len(there) - num_learned not in (0, 1):
        return learned
    if len(there) > num_learned:
        here[-1] = there[-1]
    for place, source in pairs:
        here[place] = there[source]
    return np.moveaxis(here, 0, axis)


def category_axis(name: str, variables) -> int:
    """The last of the one kernel that is a dense layer's, that of a multi-label head which pools.

    Heads with attention, which end with a norm, have a classifier [K, D] for their class tokens.
    """
    head, _, leaf = name.rpartition('/classify/')
    pools = leaf == 'kernel' and head.endswith('/head') and f'{head}/norm/scale' not in variables
    return -1 if pools else 0
