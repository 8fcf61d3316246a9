"""Counter-based randomness: a hash of integers, the same on every machine and numpy version.

The finaliser is that of SplitMix64 (Steele, Lea & Flood, 2014, "Fast splittable pseudorandom
number generators"). Libraries change their permutation algorithms between versions; a run that
is resumed a year later must still see the same order, so the arithmetic is spelled out here.
"""

from enum import IntEnum
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Words: TypeAlias = NDArray[np.uint64]


class Domain(IntEnum):
    """What a hash is for: keys of different domains never meet."""

    SHARDS = 1
    WINDOW = 2
    CROP = 3
    SET = 4
    BUCKET = 5
    TIME = 6


_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_MASK = 2**64 - 1


def _finalise(z: Words) -> Words:
    z = (z ^ (z >> np.uint64(30))) * _MIX_1
    z = (z ^ (z >> np.uint64(27))) * _MIX_2
    return z ^ (z >> np.uint64(31))


def hash_words(*keys: int | NDArray[np.integer]) -> Words:
    """Hashes a tuple of integers to 64 bits, elementwise over arrays (which broadcast).

    Args:
        keys: Integers or integer arrays; negative values count modulo 2^64.

    Returns:
        Array of uint64 of the broadcast shape.
    """
    state = np.zeros((), dtype=np.uint64)
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is meant
        for key in keys:
            if isinstance(key, np.ndarray):
                word = key.astype(np.uint64)
            else:
                word = np.array(int(key) & _MASK, dtype=np.uint64)
            state = _finalise((state + _GAMMA) ^ _finalise(word + _GAMMA))
    return state


def uniforms(*keys: int | NDArray[np.integer]) -> NDArray[np.float64]:
    """Hashes a tuple of integers to floats in [0, 1), elementwise over arrays."""
    return (hash_words(*keys) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(length: int, *keys: int) -> NDArray[np.int64]:
    """Returns the permutation of `range(length)` that belongs to `keys`.

    Equal hashes (about length²/2^65 of all cases) keep their order: the sort is stable.
    """
    return np.argsort(hash_words(*keys, np.arange(length)), kind="stable")
