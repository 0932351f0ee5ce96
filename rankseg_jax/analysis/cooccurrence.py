"""Which categories share images, and which do so more often than by chance."""

import math
from collections.abc import Sequence

import numpy as np
from scipy import sparse

NUM_PAIRS = 50  # that are listed
# Images, and share of all images, that a pair of which we say that it is bound must have: fewer may
# be chance, or a single video.
LEAST_IMAGES, LEAST_SHARE = 5, 0.001
DEVIATIONS = 5  # from what independent categories would give


def count(presence: sparse.csr_array) -> sparse.csr_array:
    """How many images hold both of two categories; on the diagonal, how many hold the one.

    Args:
      presence: sparse int32 [N, K] of ones.

    Returns:
      Sparse int32 [K, K], symmetric.
    """
    return (presence.T @ presence).tocsr()


def pairs(together: sparse.csr_array, num_images: int, class_names: Sequence[str]) -> dict:
    """The pairs of categories that share the most images, and those most bound to each other.

    How bound a and b are is the phi coefficient, the correlation of their presences over the N
    images. With n_a images that hold a,

        φ = (N n_ab - n_a n_b) / √(n_a (N - n_a) n_b (N - n_b)),

    which is 1 if every image holds both or neither, 0 if they meet as often as by chance or one is
    in every image, and -1 if every image holds exactly one of them. For independent categories its
    standard deviation is about 1/√N.

    Args:
      together: sparse int [K, K], as `count` returns it.
      num_images: N.
      class_names: K names.

    Returns:
      frequent: the pairs by images. bound: by φ, those with φ ≥ 5/√N of which at least
      `least_images` images hold both and at least as many hold neither. Each lists up to 50 dicts
      with the names `a` and `b`; `images` that hold both; `b_given_a`, which is
      P(b | a) = n_ab / n_a; `a_given_b`; `lift` = N n_ab / (n_a n_b); and `phi`.
    """
    held = together.diagonal().astype(np.int64)  # [K]
    upper = sparse.triu(together, 1).tocoo()
    a, b, both = upper.row, upper.col, upper.data.astype(np.int64)  # [pairs that meet]
    neither = num_images - held[a] - held[b] + both
    variance = held * (num_images - held).astype(float)  # [K]
    spread = np.sqrt(variance[a] * variance[b])
    phi = np.divide(
        num_images * both - held[a] * held[b], spread, out=np.zeros_like(spread), where=spread > 0
    )
    least = max(LEAST_IMAGES, math.ceil(LEAST_SHARE * num_images))
    bound = np.flatnonzero(
        (np.minimum(both, neither) >= least) & (phi >= DEVIATIONS / math.sqrt(max(num_images, 1)))
    )

    def row(i):
        return {
            'a': class_names[a[i]],
            'b': class_names[b[i]],
            'images': int(both[i]),
            'b_given_a': float(both[i] / held[a[i]]),
            'a_given_b': float(both[i] / held[b[i]]),
            'lift': float(num_images * both[i] / (held[a[i]] * held[b[i]])),
            'phi': float(phi[i]),
        }

    frequent = np.lexsort((b, a, -both))
    bound = bound[np.lexsort((-both[bound], -phi[bound]))]
    return {
        'least_images': least,
        'frequent': [row(i) for i in frequent[:NUM_PAIRS]],
        'bound': [row(i) for i in bound[:NUM_PAIRS]],
    }
