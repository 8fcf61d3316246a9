"""The randomness of a step depends on global positions alone."""

import dataclasses

import pytest
import torch

from simple_diffusion.diffusion.timesteps import UniformTime
from simple_diffusion.training.draws import Draws

BATCH, START = 16, 3200
DRAWS = Draws(
    seed=5,
    batch_size=BATCH,
    times=UniformTime(),
    flip=True,
    label_drop=0.25,
    null_label=10,
    device=torch.device("cpu"),
)


def inputs(positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """An image and a label that depend on the position."""
    generator = torch.Generator().manual_seed(0)
    pool = torch.randint(0, 256, (BATCH, 3, 4, 4), generator=generator, dtype=torch.uint8)
    return pool[positions - START], (positions % 10)


def test_any_split_and_order_gives_each_sample_the_same_draws() -> None:
    positions = torch.arange(START, START + BATCH)
    whole = DRAWS.batch(*inputs(positions), positions, START)
    shuffled = positions[torch.randperm(BATCH, generator=torch.Generator().manual_seed(1))]
    for piece in shuffled.split(4):
        part = DRAWS.batch(*inputs(piece), piece, START)
        rows = piece - START
        for name in ("x0", "eps", "t", "labels"):
            assert torch.equal(getattr(part, name), getattr(whole, name)[rows]), name


def test_each_stratum_is_drawn_once_and_not_in_batch_order() -> None:
    t = DRAWS.t(torch.arange(START, START + BATCH), START)
    strata = (t * BATCH).long()
    assert sorted(strata.tolist()) == list(range(BATCH))
    assert strata.tolist() != list(range(BATCH))
    following = DRAWS.t(torch.arange(START + BATCH, START + 2 * BATCH), START + BATCH)
    assert (following * BATCH).long().tolist() != strata.tolist()


def test_pixels_are_mapped_to_the_range_of_images() -> None:
    plain = dataclasses.replace(DRAWS, flip=False)
    images = torch.tensor([0, 255], dtype=torch.uint8).reshape(1, 1, 1, 2)
    x0 = plain.batch(images, torch.zeros(1, dtype=torch.long), torch.tensor([START]), START).x0
    assert x0.flatten().tolist() == [-1.0, 1.0]


def test_flips_mirror_about_half_of_the_images() -> None:
    positions = torch.arange(START, START + 1000)
    images = torch.arange(4, dtype=torch.uint8).expand(1000, 3, 1, 4)
    labels = torch.zeros(1000, dtype=torch.long)
    draws = dataclasses.replace(DRAWS, batch_size=1000)
    x0 = draws.batch(images, labels, positions, START).x0
    rising = x0[:, 0, 0, 0] < x0[:, 0, 0, 3]
    mirrored = x0[~rising][0]
    assert torch.equal(mirrored, x0[rising][0].flip(-1))
    assert rising.float().mean().item() == pytest.approx(0.5, abs=0.06)


def test_labels_are_dropped_at_the_rate_and_missing_ones_are_null() -> None:
    positions = torch.arange(START, START + 4000)
    draws = dataclasses.replace(DRAWS, batch_size=4000, flip=False)
    labels = torch.where(positions % 2 == 0, 3, -1)
    drawn = draws.batch(
        torch.zeros(4000, 1, 1, 1, dtype=torch.uint8), labels, positions, START
    ).labels
    assert drawn is not None
    assert set(drawn[labels < 0].tolist()) == {10}
    assert (drawn[labels == 3] == 10).float().mean().item() == pytest.approx(0.25, abs=0.04)


def test_unconditional_runs_have_no_labels() -> None:
    draws = dataclasses.replace(DRAWS, null_label=None)
    positions = torch.arange(START, START + BATCH)
    assert draws.batch(*inputs(positions), positions, START).labels is None
