"""Class layers of a model on other categories: what was learned of a category stays with its name.

Class ids are places in a list, so that the same id means another category in another data set.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

# Parameters with an axis of categories, and after them no-object in per-query frameworks.
CLASS_LAYER = re.compile(
    r'/(class_embedding|classify/(kernel|bias)|'
    r'(auxiliary_)?classes/(embedding|bias|norm/\w+))$'
)


def places(learned: Sequence[str], wanted: Sequence[str]) -> list[tuple[int, int]] | None:
    """Which learned category each wanted one starts from: (place wanted, place learned) each.

    It is the one of its name. In lists of one length of which most common names are at the same
    places, a name that the other list lacks stands for the name at its place there: it is spelled
    differently.

    Returns:
      None if class layers fit as they are: each place starts from itself, or a list is unknown,
      that is empty.
    """
    if not learned or not wanted or list(learned) == list(wanted):
        return None
    numbers = Counter(learned)
    found = {name: place for place, name in enumerate(learned) if numbers[name] == 1}
    pairs = {place: found[x] for place, x in enumerate(wanted) if x in found}
    in_place = sum(a == b for a, b in pairs.items())
    if len(learned) == len(wanted) and 2 * in_place >= len(pairs):
        taken = set(pairs.values())
        pairs |= {i: i for i in range(len(wanted)) if i not in pairs and i not in taken}
    if len(learned) == len(wanted) == sum(a == b for a, b in pairs.items()):
        return None
    return sorted(pairs.items())


def carry(
    name: str,
    learned: np.ndarray,
    initial: Mapping[str, np.ndarray],
    pairs: Sequence[tuple[int, int]],
    num_learned: int,
) -> np.ndarray:
    """A class layer with what was learned of no-object and the categories in `pairs`.

    Initial values are elsewhere.

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


def category_axis(name: str, variables: Mapping[str, np.ndarray]) -> int:
    """The last of the one kernel that is a dense layer's, that of a multi-label head which pools.

    Heads with attention, which end with a norm, have a classifier [K, D] for their class tokens.
    """
    head, _, leaf = name.rpartition('/classify/')
    pools = leaf == 'kernel' and head.endswith('/head') and f'{head}/norm/scale' not in variables
    return -1 if pools else 0
