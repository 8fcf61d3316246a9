"""Distributions of t against statistics.NormalDist, and stratification over the global batch."""

import math
from statistics import NormalDist

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from simple_diffusion.diffusion.randomness import permutation, uniforms
from simple_diffusion.diffusion.timesteps import (
    LogitNormal,
    TimeDistribution,
    UniformTime,
    stratified_quantiles,
)

LOGIT_NORMALS = [LogitNormal(), LogitNormal(-0.8, 0.8), LogitNormal(1.0, 2.0)]
each_logit_normal = pytest.mark.parametrize("times", LOGIT_NORMALS, ids=str)


@settings(max_examples=60, deadline=None)
@given(count=st.integers(1, 300), ranks=st.integers(1, 8), step=st.integers(0, 10_000))
def test_one_draw_in_each_stratum_for_any_split(count: int, ranks: int, step: int) -> None:
    strata = permutation(7, f"strata/{step}", count)
    jitter = uniforms(7, "jitter", range(step * count, (step + 1) * count))
    pieces = zip(strata.tensor_split(ranks), jitter.tensor_split(ranks), strict=True)
    q = torch.cat([stratified_quantiles(s, j, count) for s, j in pieces])
    assert q.dtype == torch.float64
    assert ((q >= 0.0) & (q < 1.0)).all()
    assert sorted((q * count).floor().int().tolist()) == list(range(count))
    assert torch.equal(q, stratified_quantiles(strata, jitter, count))


def test_stratified_quantiles_by_hand() -> None:
    q = stratified_quantiles(torch.tensor([2, 0, 3]), torch.tensor([0.5, 0.0, 0.25]), 4)
    assert q.tolist() == [0.625, 0.0, 0.8125]


@each_logit_normal
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-6)])
def test_logit_normal_quantile(times: LogitNormal, dtype: torch.dtype, tolerance: float) -> None:
    q = torch.linspace(1.0 / 128, 127.0 / 128, 127, dtype=dtype)
    normal = NormalDist(times.mean, times.std)
    expected = [1.0 / (1.0 + math.exp(-normal.inv_cdf(p))) for p in q.tolist()]
    t = times.quantile(q)
    assert t.dtype == dtype
    assert t.tolist() == pytest.approx(expected, abs=tolerance)


@each_logit_normal
def test_logit_normal_density(times: LogitNormal) -> None:
    t = torch.linspace(0.001, 0.999, 999, dtype=torch.float64)
    normal = NormalDist(times.mean, times.std)
    # change of variables: p(t) = φ(logit t) · d logit/dt
    expected = [normal.pdf(math.log(x / (1.0 - x))) / (x * (1.0 - x)) for x in t.tolist()]
    assert times.density(t).tolist() == pytest.approx(expected, rel=1e-11, abs=0.0)


@pytest.mark.parametrize("times", [UniformTime(), *LOGIT_NORMALS], ids=str)
def test_density_integrates_to_the_quantile(times: TimeDistribution) -> None:
    """The two faces of a distribution agree: ∫_0^t(q) p = q, and 1 over the whole interval."""
    t = torch.linspace(0.0, 1.0, 200_001, dtype=torch.float64)[1:-1]
    density = times.density(t).numpy()
    mass = np.concatenate([[0.0], np.cumsum(0.5 * (density[1:] + density[:-1]) * t.diff().numpy())])
    assert mass[-1] == pytest.approx(1.0, abs=1e-4)
    q = torch.linspace(0.02, 0.98, 49, dtype=torch.float64)
    at_quantiles = np.interp(times.quantile(q).numpy(), t.numpy(), mass)
    np.testing.assert_allclose(at_quantiles, q.numpy(), atol=1e-4)


@pytest.mark.parametrize("times", [UniformTime(), *LOGIT_NORMALS], ids=str)
def test_quantiles_rise_and_stay_inside(times: TimeDistribution) -> None:
    t = times.quantile(torch.linspace(0.0, 1.0, 1001))  # 0 can be drawn, 1 is the worst case
    assert torch.isfinite(t).all()
    assert (t.diff() >= 0.0).all()
    assert t.diff().count_nonzero() > 990
    assert 0.0 <= t[0] < t[-1] <= 1.0
    assert torch.isfinite(times.density(t)).all()


def test_uniform_time() -> None:
    q = torch.tensor([0.0, 0.3, 0.999])
    assert torch.equal(UniformTime().quantile(q), q)
    assert UniformTime().density(q).tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("std", [0.0, -1.0])
def test_logit_normal_refuses_a_flat_or_negative_spread(std: float) -> None:
    with pytest.raises(ValueError, match="std must be positive"):
        LogitNormal(0.0, std)
