"""The whole backbone, in small."""

import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from simple_diffusion.models.layers import optim_groups
from simple_diffusion.models.levels import Level
from simple_diffusion.models.uvit import UViT

BASE: dict[str, Any] = {
    "image_size": 16,
    "patch_size": 2,
    "channels": [8, 16],
    "blocks": [1],
    "depth": 2,
    "head_dim": 8,
    "condition_width": 8,
    "num_classes": 3,
}
PLAIN_VIT = {"channels": [16], "blocks": [], "patch_size": 4, "bottleneck": 6, "mlp": "swiglu"}
VARIANTS: dict[str, dict[str, Any]] = {
    "base": {},
    "haar": {"stem": "haar", "patch_size": 4},
    "cdf53": {"stem": "cdf53"},
    "level": {"skips": "level", "channels": [8, 12, 16], "blocks": [1, 2]},
    "block": {"channels": [8, 12, 16], "blocks": [2, 1]},
    "rotary": {"positions": "rotary", "qk_norm": False},
    "vit": PLAIN_VIT | {"positions": "rotary"},
    "unconditional": {"num_classes": 0},
}


def make(**change: Any) -> UViT:
    """A small network with random weights everywhere, zero-initialised ones included."""
    torch.manual_seed(0)
    net = UViT(**BASE | change)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.15)
    return net


def inputs(batch: int = 3, height: int = 16, width: int = 16, classes: int = 3) -> Any:
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(batch, 3, height, width, generator=generator)
    logsnr = torch.linspace(-5, 5, batch)
    return z, logsnr, torch.arange(batch) % (classes + 1) if classes else None


@pytest.mark.parametrize(("size", "bound"), [(16, -8.0), (128, -8.0 - 2 * math.log(2.0))])
def test_step_conditions_tell_no_lower_noise_levels(size: int, bound: float) -> None:
    net = make(step_condition=True, image_size=size).eval()
    z, _, labels = inputs(batch=1, height=size, width=size)

    def at(logsnr: float) -> Tensor:
        return net(z, torch.tensor([logsnr]), labels)

    torch.testing.assert_close(at(-20.0), at(bound))
    assert (at(bound + 0.5) - at(bound)).abs().max() > 1e-4


@pytest.mark.parametrize("name", VARIANTS)
def test_untrained_network_returns_zero(name: str) -> None:
    net = UViT(**BASE | VARIANTS[name])
    z, logsnr, labels = inputs(classes=net.num_classes)
    out = net(z, logsnr, labels)
    assert out.shape == z.shape
    assert not out.any()


@pytest.mark.parametrize("name", VARIANTS)
def test_every_parameter_is_tagged_used_and_described(name: str) -> None:
    net = make(**VARIANTS[name])
    groups = optim_groups(net)
    assert sum(map(len, groups.values())) == len(list(net.parameters()))
    for parameter_name, parameter in net.named_parameters():
        plain = parameter_name.endswith("weight") and parameter.ndim > 1
        assert any(parameter is p for p in groups["decay" if plain else "no_decay"])
    z, logsnr, labels = inputs(classes=net.num_classes)
    net(z, logsnr, labels).square().sum().backward()
    unused = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert unused == []
    for module in net.modules():
        if type(module).__module__.startswith("simple_diffusion"):
            assert module.extra_repr(), type(module)


@pytest.mark.parametrize("name", VARIANTS)
def test_images_of_a_batch_do_not_see_each_other(name: str) -> None:
    net = make(**VARIANTS[name])
    z, logsnr, labels = inputs(classes=net.num_classes)
    together = net(z, logsnr, labels)
    alone = [
        net(z[i : i + 1], logsnr[i : i + 1], None if labels is None else labels[i : i + 1])
        for i in range(len(z))
    ]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-4)
    z.requires_grad_()
    (gradient,) = torch.autograd.grad(net(z, logsnr, labels)[1].sum(), z)
    assert gradient[1].any()
    assert not gradient[[0, 2]].any()


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("size", [(16, 24), (32, 8), (32, 32)])
def test_other_sizes_and_shapes(name: str, size: tuple[int, int]) -> None:
    net = make(**VARIANTS[name])
    z, logsnr, labels = inputs(2, *size, classes=net.num_classes)
    out = net(z, logsnr, labels)
    assert out.shape == z.shape
    assert out.isfinite().all()
    turned = net(z.transpose(2, 3), logsnr, labels).transpose(2, 3)
    assert not torch.allclose(out, turned, atol=1e-2)  # rows are not columns


def test_every_pixel_reaches_every_pixel() -> None:
    net = make()
    z, logsnr, labels = inputs(1)
    z.requires_grad_()
    (gradient,) = torch.autograd.grad(net(z, logsnr, labels)[0, :, 0, 0].sum(), z)
    assert (gradient.abs().sum(1) > 0).all()


@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_positions_matter(positions: str) -> None:
    net = make(**PLAIN_VIT, positions=positions)
    z, logsnr, labels = inputs(1)
    rolled = net(z.roll(4, dims=3), logsnr, labels).roll(-4, dims=3)
    # Without positions the two agree to rounding, 1e-6.
    assert not torch.allclose(net(z, logsnr, labels), rolled, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["base", "vit"])
def test_conditions_matter(name: str) -> None:
    net = make(**VARIANTS[name])
    z, logsnr, _ = inputs(1)
    z, logsnr = z.expand(4, -1, -1, -1), logsnr.expand(4)
    assert net.null_label == 3
    by_label = net(z, logsnr, torch.tensor([0, 1, 2, net.null_label]))
    by_noise = net(z, torch.tensor([-20.0, -5.0, 5.0, 20.0]), torch.zeros(4, dtype=torch.long))
    for outputs in (by_label, by_noise):
        apart = torch.cdist(outputs.flatten(1), outputs.flatten(1)) + torch.eye(4) * 1e3
        assert apart.min() > 1e-2


def test_unconditional_network_has_no_null_label() -> None:
    with pytest.raises(ValueError, match="unconditional"):
        _ = UViT(**BASE | {"num_classes": 0}).null_label


@pytest.mark.parametrize("name", ["haar", "level", "rotary", "vit"])
def test_bfloat16_autocast_is_close_and_float32_at_both_ends(name: str) -> None:
    net = make(**VARIANTS[name])
    z, logsnr, labels = inputs(classes=net.num_classes)
    exact = net(z, logsnr, labels)
    with torch.autocast("cpu", torch.bfloat16):
        cast = net(z, logsnr, labels)
    assert cast.dtype == torch.float32
    assert 0 < (cast - exact).norm() < 0.02 * exact.norm()


def test_transformer_stream_is_float32_under_autocast() -> None:
    net = make(skips="level", positions="rotary")  # a learned table would promote by itself
    dtypes: list[torch.dtype] = []
    for block in net.transformer:
        block.register_forward_hook(lambda *call: dtypes.append(call[-1].dtype))
    z, logsnr, labels = inputs()
    with torch.autocast("cpu", torch.bfloat16):
        net(z, logsnr, labels)
    assert dtypes == [torch.float32] * 2


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("skips", ["block", "level"])
def test_whole_network_in_another_dtype(dtype: torch.dtype, skips: str) -> None:
    net = make(positions="rotary", skips=skips)
    z, logsnr, labels = inputs()
    exact = net(z, logsnr, labels)
    out = net.to(dtype)(z.to(dtype), logsnr, labels)
    assert out.dtype == dtype
    assert (out - exact).norm() < (1e-5 if dtype == torch.float64 else 0.05) * exact.norm()


def test_dropout_only_at_or_below_its_resolution() -> None:
    # Grids: 16 and 8 for the levels, 4 for the transformer.
    shape = {"image_size": 32, "channels": [8, 8, 16], "blocks": [1, 1], "dropout": 0.5}
    for resolution, expected in (
        (None, [16, 8, 4]),
        (16, [16, 8, 4]),
        (8, [8, 4]),
        (4, [4]),
        (3, []),
    ):
        net = make(**shape, dropout_resolution=resolution)
        z, logsnr, labels = inputs(1, 32, 32)
        assert noisy_grids(net, z, logsnr, labels) == expected
        net.eval()
        assert noisy_grids(net, z, logsnr, labels) == []


def noisy_grids(net: UViT, z: Tensor, logsnr: Tensor, labels: Tensor) -> list[int]:
    """Sides of the grids with a block that answers one input in two ways."""
    changed = []
    condition = net.conditioner(logsnr, labels)
    sides = {}
    for i, level in enumerate(net.levels):
        assert isinstance(level, Level)
        sides[level.down_blocks[0]] = (16 >> i, level.width)
    sides[net.transformer[0]] = (4, 16)
    for block, (side, width) in sides.items():
        call: tuple[Any, ...]
        if side == 4:
            call = (torch.ones(1, 16, width).cumsum(2), condition, None)
        else:
            call = (torch.ones(1, width, side, side).cumsum(1), condition)
        if not torch.equal(block(*call), block(*call)):
            changed.append(side)
    return changed


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (
            (1, 3, 16, 18),
            r"divisible by 4 \(patch_size times 2 for each of the 1 levels\), got 16x18",
        ),
        ((1, 3, 6, 16), r"divisible by 4"),
        ((1, 4, 16, 16), r"expected shape \(B, 3, H, W\), got \(1, 4, 16, 16\)"),
        ((3, 16, 16), r"expected shape"),
    ],
)
def test_wrong_images_are_refused(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UViT(**BASE)(torch.zeros(shape), torch.zeros(1), torch.zeros(1, dtype=torch.long))


def test_arguments_survive_json() -> None:
    arguments = BASE | VARIANTS["block"]
    net = UViT(**json.loads(json.dumps(arguments)))
    other = UViT(**arguments | {"channels": (8, 12, 16), "blocks": (2, 1)})
    assert net.state_dict().keys() == other.state_dict().keys()
    other.load_state_dict(net.state_dict())


def test_parameter_count_closed_form() -> None:
    c, w, d, k = 8, 16, 2, 8  # conv width, transformer width, depth, condition width
    norm_conv = lambda i, o: 2 * i + 9 * i * o + o  # noqa: E731
    down_block = norm_conv(c, c) + norm_conv(c, c) + (k + 1) * 2 * c
    up_block = norm_conv(2 * c, c) + norm_conv(c, c) + (k + 1) * 2 * c + (2 * c + 1) * c
    transformer = (k + 1) * 6 * w + (w + 1) * 3 * w + (w + 1) * w + 2 * 8
    transformer += (w + 1) * 4 * w + (4 * w + 1) * w
    expected = (
        (9 * 12 * c + c)  # stem
        + (256 + 1) * k + (k + 1) * k + 4 * k  # noise level and classes
        + down_block + (4 * c + 0) * w + w  # and the 2x2 convolution down
        + 4 * 4 * w  # positions of the 4x4 grid
        + d * transformer
        + w * 4 * c + up_block
        + norm_conv(c, 12)  # head
    )  # fmt: skip
    assert sum(p.numel() for p in UViT(**BASE).parameters()) == expected


PAPERS: dict[str, tuple[dict[str, Any], tuple[float, float]]] = {
    "jit_b16": (
        {
            "image_size": 256, "patch_size": 16, "bottleneck": 128, "channels": [768],
            "blocks": [], "depth": 12, "mlp": "swiglu", "positions": "rotary",
            "num_classes": 1000, "condition_width": 768,
        },
        (130e6, 132e6),
    ),
    "simple_diffusion": (
        {
            "image_size": 512, "patch_size": 4, "channels": [128, 256, 512, 2048],
            "blocks": [2, 2, 2], "depth": 36, "head_dim": 128, "num_classes": 1000,
            "condition_width": 512,
        },
        (2.0e9, 2.3e9),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PAPERS)
def test_papers_networks_can_be_built_and_run_on_meta(name: str) -> None:
    arguments, (low, high) = PAPERS[name]
    with torch.device("meta"):
        net = UViT(**arguments)
        size = arguments["image_size"]
        out = net(torch.empty(2, 3, size, size), torch.empty(2), torch.empty(2, dtype=torch.long))
    assert out.shape == (2, 3, size, size)
    assert low < sum(p.numel() for p in net.parameters()) < high
