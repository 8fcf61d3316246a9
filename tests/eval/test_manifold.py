"""Oracle: the papers' definitions, one pair at a time."""

import math

import pytest
import torch
from torch import Tensor

import eval.manifold
from eval.manifold import NAMES, manifold_scores, squared_distances, squared_radii
from tests.eval.feature_sets import normal

CLOSED = 1 + 1e-9


def radius(rows: list[list[float]], i: int, k: int) -> float:
    """Distance from row i to its k-th nearest among the others."""
    return sorted(math.dist(rows[i], rows[j]) for j in range(len(rows)) if j != i)[k - 1]


def inside(point: list[float], centres: list[list[float]], k: int) -> list[bool]:
    return [
        math.dist(point, centre) <= radius(centres, i, k) * CLOSED
        for i, centre in enumerate(centres)
    ]


def by_definition(samples: Tensor, reference: Tensor) -> dict[str, float]:
    fake, real = samples.double().tolist(), reference.double().tolist()
    in_balls = [inside(point, real, 5) for point in fake]
    return {
        # Kynkäänniemi et al., equations 1 to 3
        "precision": sum(any(inside(p, real, 3)) for p in fake) / len(fake),
        "recall": sum(any(inside(p, fake, 3)) for p in real) / len(real),
        # Naeem et al., equations 3 and 4
        "density": sum(sum(row) for row in in_balls) / (5 * len(fake)),
        "coverage": sum(any(row[i] for row in in_balls) for i in range(len(real))) / len(real),
    }


def scores(samples: Tensor, reference: Tensor, names=NAMES) -> dict[str, float]:
    return manifold_scores(
        names, samples, reference, squared_radii(samples), squared_radii(reference)
    )


SETS = {
    "alike": (normal(40, 3, 0), normal(50, 3, 1)),
    "shifted": (normal(50, 3, 0) + 1.5, normal(40, 3, 1)),
    "narrow": (0.3 * normal(30, 2, 0), normal(60, 2, 1)),
    "wide": (3 * normal(60, 2, 0), normal(30, 2, 1)),
    "far": (normal(10, 2, 0) + 100, normal(10, 2, 1)),
    "far from zero": (normal(30, 3, 0) + 1e4, normal(30, 3, 1) + 1e4),
    "lattice": (normal(50, 2, 0).mul(2).round(), normal(40, 2, 1).mul(2).round()),
    "copies": (normal(30, 3, 1).repeat(2, 1), normal(30, 3, 1)),
    "few": (normal(6, 2, 0), normal(6, 2, 1)),
}


@pytest.mark.parametrize("chunk", [2**22, 64])
@pytest.mark.parametrize("name", SETS)
def test_is_the_definition(name: str, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eval.manifold, "_CHUNK_FLOATS", chunk)
    samples, reference = SETS[name]
    assert scores(samples, reference) == pytest.approx(by_definition(samples, reference), rel=1e-12)


def test_the_sets_tell_the_scores_apart() -> None:
    found = {name: scores(*sets) for name, sets in SETS.items()}
    assert found["narrow"]["precision"] == 1
    assert found["narrow"]["recall"] < 0.5
    assert found["wide"]["precision"] < 0.7
    assert found["wide"]["recall"] > 0.9
    assert set(found["far"].values()) == {0.0}
    assert found["copies"]["precision"] == found["copies"]["coverage"] == 1
    assert len({tuple(one.values()) for one in found.values()}) == len(found)


def test_dropped_modes_cost_recall_and_coverage_alone() -> None:
    modes = torch.tensor([[0.0, 0.0], [50.0, 0.0]])
    reference = torch.cat([normal(100, 2, 0) + mode for mode in modes])
    found = scores(normal(100, 2, 5) + modes[0], reference)
    assert found["precision"] > 0.9
    assert found["recall"] < 0.55
    assert found["coverage"] < 0.55


def test_only_what_is_asked_for_is_computed() -> None:
    samples, reference = SETS["alike"]
    whole = scores(samples, reference)
    for name in NAMES:
        assert scores(samples, reference, [name]) == {name: whole[name]}
    recall = manifold_scores(["recall"], samples, reference, squared_radii(samples), {})
    assert recall == {"recall": whole["recall"]}
    precision = manifold_scores(["precision"], samples, reference, {}, squared_radii(reference))
    assert precision == {"precision": whole["precision"]}


def test_copies_are_at_no_distance() -> None:
    x = normal(50, 300, 0).double() * 100 + 5
    found = squared_distances(x, x)
    assert (found.diagonal() == 0).all()
    assert (found.fill_diagonal_(1) > 0).all()
    direct = (x[:, None] - x[:9]).square().sum(2)
    torch.testing.assert_close(squared_distances(x, x[:9]), direct, rtol=1e-11, atol=0)


def test_radii_leave_out_the_row_but_not_its_copies() -> None:
    x = torch.tensor([[0.0], [0.0], [0.0], [0.0], [7.0]])
    assert squared_radii(x)[3].tolist() == pytest.approx([0, 0, 0, 0, 49], rel=1e-12, abs=0)
    assert set(squared_radii(x)) == {3}  # the fifth of four others does not exist


def test_an_offset_costs_no_digits() -> None:
    x = (normal(40, 5, 0).double() * 1024).round() / 1024
    for k, radii in squared_radii(x + 2**20).items():  # the sum is exact
        torch.testing.assert_close(radii, squared_radii(x)[k], rtol=1e-7, atol=0)
