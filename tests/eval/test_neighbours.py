import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import eval.neighbours
from eval.neighbours import Nearest, nearest
from tests.eval.feature_sets import normal


def brute_force(queries: Tensor, bank: Tensor, k: int) -> tuple[list, list]:
    distances, rows = [], []
    for query in queries.double().tolist():
        found = [math.dist(query, row) for row in bank.double().tolist()]
        order = sorted(range(len(found)), key=lambda i: (found[i], i))[:k]
        distances.append([found[i] for i in order])
        rows.append(order)
    return distances, rows


@pytest.mark.parametrize("k", [1, 4, 30])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_is_brute_force(k: int, offset: float) -> None:
    queries, bank = normal(12, 6, 0) + offset, normal(30, 6, 1) + offset
    distances, rows = nearest(queries, bank, k)
    expected, order = brute_force(queries, bank, k)
    assert rows.tolist() == order
    torch.testing.assert_close(
        distances, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12
    )


def test_an_offset_costs_no_digits() -> None:
    queries, bank = normal(5, 6, 0).double() / 3 + 1e6, normal(30, 6, 1).double() / 3 + 1e6
    expected = (queries[:, None] - bank).square().sum(2).sqrt().sort().values
    torch.testing.assert_close(nearest(queries, bank, 30)[0], expected, rtol=1e-13, atol=0)


def test_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, bank = normal(12, 6, 0), normal(50, 6, 1)
    whole = nearest(queries, bank, 5)
    monkeypatch.setattr(eval.neighbours, "_CHUNK_FLOATS", 60)
    monkeypatch.setattr(eval.neighbours, "_QUERIES", 5)
    assert all(torch.equal(a, b) for a, b in zip(nearest(queries, bank, 5), whole, strict=True))


@st.composite
def banks(draw: st.DrawFn) -> tuple[Tensor, Tensor, list[Tensor], int]:
    """Queries and a bank with copies and ties, in an order, cut into batches."""
    dim, n = draw(st.sampled_from([1, 3, 40])), draw(st.integers(1, 30))
    pool = normal(draw(st.integers(1, 30)), dim, 0) + draw(st.sampled_from([0, 100]))
    if draw(st.booleans()):
        pool = pool.round()
    index = draw(st.lists(st.integers(0, len(pool) - 1), min_size=n, max_size=n))
    bank = pool[torch.tensor(index)]
    order = torch.tensor(draw(st.permutations(range(n))))
    cuts = sorted(draw(st.lists(st.integers(0, n), max_size=4)))
    queries = torch.cat([bank[:2], normal(2, dim, 1)])
    return queries, bank, list(torch.tensor_split(order, cuts)), draw(st.integers(1, n))


@settings(max_examples=60, deadline=None)
@given(banks())
def test_order_and_batches_change_nothing(case: tuple[Tensor, Tensor, list[Tensor], int]) -> None:
    queries, bank, batches, k = case
    search = Nearest(queries, k)
    for rows in batches:
        search.update(bank[rows], rows)
    found, whole = search.result(), nearest(queries, bank, k)
    assert torch.equal(found[0], whole[0])
    assert torch.equal(found[1], whole[1])
    direct = (queries.double()[:, None] - bank.double()).square().sum(-1).sqrt()
    torch.testing.assert_close(found[0], direct.sort().values[:, :k], rtol=1e-12, atol=0)


def test_copies_are_found_at_no_distance_and_in_order_of_their_ids() -> None:
    bank = normal(200, 64, 0) * 30 + 5
    bank[[17, 90, 150]] = bank[3].clone()
    distances, rows = nearest(bank, bank, 4)
    assert rows[3].tolist() == rows[150].tolist() == [3, 17, 90, 150]
    assert distances[3].tolist() == [0, 0, 0, 0]
    others = torch.tensor([i for i in range(200) if i not in (3, 17, 90, 150)])
    assert torch.equal(rows[others, 0], others)
    assert (distances[others, 1] > 0).all()


def test_a_bank_of_one_image_many_times() -> None:
    bank = normal(1, 8, 0).repeat(5000, 1)
    distances, rows = nearest(normal(3, 8, 1), bank, 3)
    assert rows.tolist() == [[0, 1, 2]] * 3
    assert (distances == distances[:, :1]).all()


def test_ids_are_the_callers() -> None:
    search = Nearest(torch.zeros(1, 2), 2)
    search.update(torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.tensor([2**40, 7]))
    distances, ids = search.result()
    assert ids.tolist() == [[7, 2**40]]
    assert distances.tolist() == [[1.0, 5.0]]


def test_no_queries_and_no_rows() -> None:
    distances, ids = nearest(torch.zeros(0, 3), torch.zeros(5, 3), 2)
    assert distances.shape == ids.shape == (0, 2)
    search = Nearest(torch.zeros(1, 3), 1)
    search.update(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long))
    with pytest.raises(ValueError, match="1 nearest rows of 0"):
        search.result()


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1, not 0"):
        Nearest(torch.zeros(1, 2), 0)
    with pytest.raises(ValueError, match="queries must be finite"):
        Nearest(torch.full((1, 2), np.nan), 1)
    search = Nearest(torch.zeros(1, 2), 1)
    with pytest.raises(ValueError, match=r"shape \(n, 2\), not \(4, 3\)"):
        search.update(torch.zeros(4, 3), torch.arange(4))
    with pytest.raises(ValueError, match="ids must be int64 of shape"):
        search.update(torch.zeros(4, 2), torch.arange(3))
    with pytest.raises(ValueError, match="features must be finite"):
        search.update(torch.full((1, 2), np.inf), torch.arange(1))
