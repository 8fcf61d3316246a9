"""The hash against arithmetic on Python's own integers, and its permutations."""

import numpy as np
import pytest

from data_pipelines.hashing import hash_words, permutation, uniforms

MASK = 2**64 - 1


def finalise(z: int) -> int:
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & MASK
    return z ^ (z >> 31)


def reference(*keys: int) -> int:
    state = 0
    for key in keys:
        gamma = 0x9E3779B97F4A7C15
        state = finalise(((state + gamma) & MASK) ^ finalise((key + gamma) & MASK))
    return state


def test_finaliser_is_splitmix64() -> None:
    # The first outputs of SplitMix64 seeded with 0, published with the generator.
    published = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert [finalise((i + 1) * 0x9E3779B97F4A7C15 & MASK) for i in range(3)] == published


@pytest.mark.parametrize("keys", [(0,), (1, 2, 3), (-1, 5), (2**64 - 1, 2**63), (0, 0, 0)])
def test_hash_equals_integer_arithmetic(keys: tuple[int, ...]) -> None:
    assert int(hash_words(*keys)) == reference(*keys)


def test_arrays_hash_elementwise() -> None:
    numbers = np.arange(5)
    expected = [reference(7, number) for number in range(5)]
    assert hash_words(7, numbers).tolist() == expected


def test_a_permutation_is_pinned() -> None:
    # Changing this order would change the data order of every run that is resumed.
    by_hash = sorted(range(10), key=lambda number: reference(3, number))
    assert permutation(10, 3).tolist() == by_hash


@pytest.mark.parametrize("length", [0, 1, 2, 1000])
def test_permutation_permutes(length: int) -> None:
    assert sorted(permutation(length, 1, 2).tolist()) == list(range(length))


def test_each_place_is_equally_likely() -> None:
    # 6 orders of 3 items, 6,000 draws: chi-square with 5 degrees of freedom, 1e-6 quantile 36.
    orders = [tuple(permutation(3, 9, seed).tolist()) for seed in range(6000)]
    counts = [orders.count(order) for order in set(orders)]
    assert len(counts) == 6
    assert sum((count - 1000) ** 2 / 1000 for count in counts) < 36


def test_uniforms_fill_the_interval() -> None:
    values = uniforms(4, np.arange(100_000))
    assert 0 <= values.min() < 1e-4
    assert 1 - 1e-4 < values.max() < 1
    assert abs(values.mean() - 0.5) < 6 * np.sqrt(1 / 12 / values.size)
