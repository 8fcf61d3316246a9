"""Embeddings of the log-SNR and of classes."""

import math

import pytest
import torch

from simple_diffusion.models.conditioning import (
    LOGSNR_FREQUENCIES,
    STEP_FREQUENCIES,
    ClassEmbedding,
    Conditioner,
    ScalarEmbedding,
    lowest_logsnr_told,
)


def test_fourier_features_equal_formula() -> None:
    embedding = ScalarEmbedding(4, 0.5, 8.0, features=6)
    features = embedding.fourier(torch.tensor([1.7], dtype=torch.float64))[0]
    expected = [f(1.7 * w) for f in (math.cos, math.sin) for w in (0.5, 2.0, 8.0)]
    torch.testing.assert_close(features, torch.tensor(expected, dtype=torch.float64))


def test_noise_levels_are_told_apart_over_the_whole_range() -> None:
    embedding = ScalarEmbedding(4, *LOGSNR_FREQUENCIES)
    logsnr = torch.linspace(-30, 30, 601)
    apart = torch.cdist(embedding.fourier(logsnr), embedding.fourier(logsnr))
    near = (logsnr[:, None] - logsnr).abs() < 0.05
    assert apart[~near].min() > 0.5  # 0.1 apart in λ, out of a norm of 11


def test_embedding_ignores_autocast() -> None:
    conditioner = Conditioner(16, 0)
    logsnr = torch.tensor([-21.3, 0.01, 20.03])
    plain = conditioner(logsnr, None)
    with torch.autocast("cpu", torch.bfloat16):
        cast = conditioner(logsnr, None)
    assert cast.dtype == torch.float32
    assert torch.equal(cast, plain)


def test_classes_add_to_the_noise_embedding() -> None:
    conditioner = Conditioner(16, 3)
    assert conditioner.label is not None
    labels = torch.tensor([2, 3, 0])
    logsnr = torch.tensor([1.0, 2.0, 3.0])
    expected = conditioner.logsnr(logsnr) + conditioner.label.table[labels]
    torch.testing.assert_close(
        conditioner(logsnr, labels), torch.nn.functional.silu(expected), rtol=0, atol=0
    )


@pytest.mark.parametrize("bad", [[0, 4], [-1, 0]])
def test_label_out_of_range(bad: list[int]) -> None:
    embedding = ClassEmbedding(3, 8)
    assert embedding(torch.tensor([0, 3])).shape == (2, 8)
    with pytest.raises(ValueError, match=r"labels: got values from .* num_classes=3"):
        embedding(torch.tensor(bad))


def test_labels_must_match_the_kind_of_network() -> None:
    logsnr = torch.zeros(2)
    with pytest.raises(ValueError, match="labels: this network has num_classes=3"):
        Conditioner(8, 3)(logsnr, None)
    with pytest.raises(ValueError, match="unconditional network"):
        Conditioner(8, 0)(logsnr, torch.zeros(2, dtype=torch.long))


def test_step_sizes_change_nothing_before_they_are_learned() -> None:
    torch.manual_seed(0)
    plain = Conditioner(16, 3)
    torch.manual_seed(0)
    stepped = Conditioner(16, 3, step_condition=True)
    logsnr, labels = torch.linspace(-5, 5, 4), torch.tensor([0, 1, 2, 3])
    sizes = torch.tensor([0.0, 1 / 128, 0.5, 1.0])
    assert torch.equal(stepped(logsnr, labels, sizes), plain(logsnr, labels))
    assert stepped.step is not None
    torch.nn.init.normal_(stepped.step.outer.weight)
    moved = stepped(logsnr, labels, sizes) - plain(logsnr, labels)
    assert (moved.abs().amax(dim=1) > 1e-3).all()
    none = stepped(logsnr, labels)
    assert torch.equal(none, stepped(logsnr, labels, torch.zeros(4)))


def test_with_step_sizes_noise_levels_below_a_bound_look_alike() -> None:
    """A derivative along the path does not meet dλ/dτ, which has no bound, at pure noise."""
    stepped = Conditioner(16, 0, step_condition=True, lowest_logsnr=lowest_logsnr_told(64))
    plain = Conditioner(16, 0, lowest_logsnr=-8.0)
    logsnr = torch.tensor([-20.0, -8.1, -8.0, -7.9, 15.0])
    told = stepped(logsnr, None)
    assert torch.equal(told[0], told[2])
    assert torch.equal(told[1], told[2])
    assert (told[3] - told[2]).abs().max() > 1e-3
    assert (told[4] - told[2]).abs().max() > 1e-3
    apart = plain(logsnr, None)
    assert (apart[0] - apart[2]).abs().max() > 1e-3
    path = -2.0 / (torch.sigmoid(-logsnr / 2) * torch.sigmoid(logsnr / 2))  # dλ/dτ
    _, slope = torch.func.jvp(lambda λ: stepped(λ, None), (logsnr,), (path,))
    assert path[0] < -1e4
    assert not slope[:2].any()
    assert slope[3].abs().max() > 1.0


def test_the_bound_falls_with_the_schedule_shift() -> None:
    assert lowest_logsnr_told(16) == lowest_logsnr_told(64) == -8.0
    assert lowest_logsnr_told(512) == pytest.approx(-8.0 + 2 * math.log(64 / 512))


def test_step_sizes_from_1_128th_up_look_different() -> None:
    embedding = ScalarEmbedding(8, *STEP_FREQUENCIES)
    sizes = torch.tensor([0.0, *(2.0**-k for k in range(7, -1, -1))])
    waves = embedding.fourier(sizes)
    apart = torch.cdist(waves, waves) + 10 * torch.eye(len(sizes))
    assert apart.min() > 1.0


def test_step_sizes_for_a_network_that_takes_none() -> None:
    with pytest.raises(ValueError, match="without step_condition"):
        Conditioner(8, 0)(torch.zeros(2), None, torch.zeros(2))
