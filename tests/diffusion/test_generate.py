"""Drawing sets of images, and the way between pixels and [-1, 1]."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from simple_diffusion.diffusion.generate import from_uint8, generate, to_uint8
from simple_diffusion.diffusion.randomness import generators, normals
from simple_diffusion.diffusion.samplers import SAMPLERS
from simple_diffusion.diffusion.schedules import Cosine

CPU = torch.device("cpu")


def network(z: Tensor, logsnr: Tensor, labels: Tensor | None) -> Tensor:
    """x0_hat = ½ tanh(z), lighter by a tenth of the label; the null label 9 adds nothing."""
    x0 = 0.5 * torch.tanh(z)
    if labels is None:
        return x0
    return x0 + 0.1 * torch.where(labels == 9, 0, labels).to(z.dtype).reshape(-1, 1, 1, 1)


def draw(name: str, indices: list[int], seed: int = 4, **options: Any) -> Tensor:
    arguments: dict[str, Any] = {"shape": (3, 4, 4), "steps": 5, "device": CPU} | options
    return generate(
        network, Cosine(), "x0", SAMPLERS[name], indices=indices, seed=seed, **arguments
    )


@pytest.mark.parametrize("name", SAMPLERS)
def test_an_image_depends_on_its_seed_and_index_alone(name: str) -> None:
    whole = draw(name, [0, 1, 2, 3, 4])
    assert whole.shape == (5, 3, 4, 4)
    assert not whole.requires_grad
    assert torch.equal(draw(name, [3, 1]), whole[[3, 1]])
    assert not torch.isclose(draw(name, [0], seed=5), whole[:1]).all()
    assert len(whole.flatten(1).unique(dim=0)) == 5


def test_one_step_by_hand() -> None:
    """One step returns the estimate at the noise itself, which is the stream's first draw."""
    z = normals(generators(4, "sample", [7, 8], CPU), (3, 4, 4))
    labels = torch.tensor([2, 3])
    x = draw("ddim", [7, 8], steps=1, labels=labels, null_label=9)
    offset = torch.tensor([0.2, 0.3]).reshape(2, 1, 1, 1)
    torch.testing.assert_close(x, 0.5 * torch.tanh(z) + offset)
    # guidance 3 triples what the class adds; at t = 1, λ = -15 lies outside the second interval
    guided = draw("ddim", [7, 8], steps=1, labels=labels, null_label=9, guidance=3.0)
    torch.testing.assert_close(guided, (0.5 * torch.tanh(z) + 3.0 * offset).clamp(-1.0, 1.0))
    outside = draw(
        "ddim",
        [7, 8],
        steps=1,
        labels=labels,
        null_label=9,
        guidance=3.0,
        guidance_interval=(-14.0, math.inf),
    )
    assert torch.equal(outside, x)


def test_every_grey_level_survives_both_ways() -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(from_uint8(levels)), levels)
    assert from_uint8(levels)[[0, 51, 255]].tolist() == pytest.approx([-1.0, -0.6, 1.0])


def test_to_uint8_rounds_and_clamps() -> None:
    # ½ of a level is 1/255 wide: -1 + 2·(1.4/255) and -1 + 2·(1.6/255) fall to 1 and 2
    x = torch.tensor([-3.0, -1.0, -1.0 + 2.8 / 255.0, -1.0 + 3.2 / 255.0, 1.0, 1.2])
    assert to_uint8(x).tolist() == [0, 0, 1, 2, 255, 255]
    assert to_uint8(x.bfloat16())[[0, -1]].tolist() == [0, 255]
