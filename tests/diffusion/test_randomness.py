"""Randomness as a pure function, against an independent integer implementation."""

import hashlib
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from simple_diffusion.diffusion.randomness import (
    generators,
    hash64,
    normals,
    permutation,
    uniforms,
)

MASK = (1 << 64) - 1
CPU = torch.device("cpu")


def splitmix_finaliser(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def by_integers(seed: int, purpose: str, position: int) -> int:
    """The same hash in Python's unbounded integers."""
    digest = hashlib.blake2b(f"{seed}/{purpose}".encode(), digest_size=8).digest()
    x = (position * 0x9E3779B97F4A7C15 + int.from_bytes(digest, "little")) & MASK
    return splitmix_finaliser(splitmix_finaliser(x))


def test_the_reference_itself_gives_the_published_splitmix64_numbers() -> None:
    # widely published test vector: the first outputs of splitmix64 from the state 1234567
    state, published = 1234567, [6457827717110365317, 3203168211198807973, 9817491932198370423]
    for expected in published:
        state = (state + 0x9E3779B97F4A7C15) & MASK
        assert splitmix_finaliser(state) == expected


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**63 - 1),
    purpose=st.text(max_size=20),
    positions=st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=8),
)
def test_hash_equals_integer_arithmetic(seed: int, purpose: str, positions: list[int]) -> None:
    expected = [by_integers(seed, purpose, position) for position in positions]
    assert hash64(seed, purpose, positions).tolist() == expected
    assert hash64(seed, purpose, torch.tensor(positions)).tolist() == expected


def test_golden_values() -> None:
    """Pinned: another algorithm would change every resumed run and every sampled image."""
    expected = [6362448649275060884, 3763177941831940735, 4478138021942522198]
    assert hash64(0, "noise", [0, 1, 10**9]).tolist() == expected
    assert hash64(42, "strata", [7]).tolist() == [15346297817124836134]


@pytest.mark.parametrize("draw", [hash64, uniforms])
def test_rows_depend_on_their_own_position_only(draw) -> None:  # type: ignore[no-untyped-def]
    whole = draw(3, "noise", range(100)).tolist()
    shuffled = [int(i) for i in np.random.default_rng(0).permutation(100)]
    assert draw(3, "noise", shuffled).tolist() == [whole[i] for i in shuffled]
    assert draw(3, "noise", range(40, 60)).tolist() == whole[40:60]  # another rank's share
    assert draw(3, "noise", [99]).tolist() == whole[99:]


def test_seeds_and_purposes_give_unrelated_numbers() -> None:
    streams = [
        uniforms(seed, purpose, range(20_000))
        for seed, purpose in [(0, "noise"), (1, "noise"), (0, "t"), (1, "t"), (10, "noise")]
    ]
    correlation = torch.corrcoef(torch.stack(streams)) - torch.eye(len(streams))
    assert correlation.abs().max() < 5.0 / math.sqrt(20_000)  # 5 standard errors
    assert len(torch.cat(streams).unique()) == 5 * 20_000


def test_uniforms_are_uniform_and_neighbours_independent() -> None:
    u = uniforms(5, "t", range(2**16)).numpy()
    assert u.dtype == np.float64
    assert u.min() >= 0.0
    assert u.max() < 1.0
    counts = np.histogram(u, bins=256, range=(0.0, 1.0))[0]
    chi_square = ((counts - 256.0) ** 2 / 256.0).sum()
    assert abs(chi_square - 255.0) < 6.0 * math.sqrt(2.0 * 255.0)
    pairs = np.histogram2d(u[:-1], u[1:], bins=16, range=((0.0, 1.0), (0.0, 1.0)))[0]
    chi_square = ((pairs - 256.0) ** 2 / 256.0).sum()
    assert abs(chi_square - 255.0) < 6.0 * math.sqrt(2.0 * 255.0)


def test_uniforms_are_the_top_53_bits() -> None:
    expected = [(by_integers(1, "jitter", i) >> 11) / 2**53 for i in range(20)]
    assert uniforms(1, "jitter", range(20)).tolist() == expected


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1000), count=st.integers(0, 500))
def test_permutation_is_one(seed: int, count: int) -> None:
    order = permutation(seed, "strata/12", count)
    assert order.dtype == torch.int64
    assert sorted(order.tolist()) == list(range(count))
    assert torch.equal(order, permutation(seed, "strata/12", count))


def test_permutations_differ_and_have_no_favourite_place() -> None:
    orders = torch.stack([permutation(0, f"strata/{step}", 16) for step in range(4096)])
    assert len(orders.unique(dim=0)) == 4096
    for item in (0, 7, 15):
        counts = (orders == item).sum(dim=0).double()  # where it fell: 256 times in each place
        assert ((counts - 256.0) ** 2 / 256.0).sum() < 15.0 + 6.0 * math.sqrt(2.0 * 15.0)


def test_normals_do_not_depend_on_the_batch() -> None:
    whole = normals(generators(1, "noise", range(8), CPU), (3, 4, 4))
    assert whole.shape == (8, 3, 4, 4)
    assert whole.dtype == torch.float32
    part = normals(generators(1, "noise", [5, 2], CPU), (3, 4, 4))
    assert torch.equal(part, whole[[5, 2]])
    assert len(whole.flatten(1).unique(dim=0)) == 8


def test_generators_continue_their_own_stream() -> None:
    each = generators(1, "noise", [0, 1], CPU)
    first, second = normals(each, (4,)), normals(each, (4,))
    assert not torch.equal(first, second)
    again = generators(1, "noise", [1], CPU)
    normals(again, (4,))
    assert torch.equal(normals(again, (4,)), second[1:])


def test_normals_are_standard() -> None:
    x = normals(generators(2, "noise", range(2000), CPU), (50,), torch.float64)
    assert x.dtype == torch.float64
    n = x.numel()
    # standard errors of the first four moments of a normal: √(1, 2, 15, 96)/√n
    for power, (moment, spread) in enumerate([(0, 1), (1, 2), (0, 15), (3, 96)], start=1):
        assert abs((x**power).mean().item() - moment) < 5.0 * math.sqrt(spread / n)
    # the first number of each generator as well: neighbouring seeds must not be alike
    assert abs(x[:, 0].mean().item()) < 5.0 / math.sqrt(2000)
    assert abs((x[:-1, 0] * x[1:, 0]).mean().item()) < 5.0 / math.sqrt(2000)
