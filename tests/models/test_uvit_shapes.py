"""The backbone on images that are not square, in every combination of its parts."""

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from simple_diffusion.models.blocks import Upsample
from simple_diffusion.models.stems import ConvHead, PixelTransform
from simple_diffusion.models.uvit import UViT
from tests.models.test_uvit import PLAIN_VIT, inputs, make

STEMS = ("patch", "haar", "cdf53")
PARTS: dict[str, dict[str, Any]] = {
    "-".join(names): {"positions": names[0], "skips": names[1], "stem": names[2]}
    for names in product(("learned", "rotary"), ("block", "level"), STEMS)
} | {
    f"vit-{positions}-{stem}": PLAIN_VIT | {"positions": positions, "stem": stem}
    for positions, stem in product(("learned", "rotary"), STEMS)
}
RECTANGLES = [(8, 24), (24, 16)]


@pytest.mark.parametrize("size", RECTANGLES)
@pytest.mark.parametrize("name", PARTS)
def test_untrained_network_returns_zero(name: str, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    shape = {"image_size": 16, "patch_size": 2, "channels": [8, 16], "blocks": [1], "depth": 1}
    net = UViT(**shape | {"head_dim": 8, "condition_width": 8} | PARTS[name])
    z, logsnr, _ = inputs(2, *size, classes=0)
    out = net(z, logsnr)
    assert out.shape == z.shape
    assert not out.any()


@pytest.mark.parametrize("size", RECTANGLES)
@pytest.mark.parametrize("name", PARTS)
def test_a_batch_is_its_images_one_by_one(name: str, size: tuple[int, int]) -> None:
    net = make(**PARTS[name]).double()
    z, logsnr, labels = inputs(3, *size)
    z = z.double()
    together = net(z, logsnr, labels)
    alone = [net(z[i : i + 1], logsnr[i : i + 1], labels[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-9, atol=1e-9)
    assert together.std() > 0.01


@pytest.mark.parametrize("size", RECTANGLES)
@pytest.mark.parametrize("name", PARTS)
def test_a_network_laid_on_its_side_sees_an_image_on_its_side(
    name: str, size: tuple[int, int]
) -> None:
    """Rows and columns change places in every weight: then they do in the output, and only then.

    A height taken for a width anywhere between stem and head would scramble the one or the other.
    """
    net = make(**PARTS[name]).double()
    z, logsnr, labels = inputs(2, *size)
    z = z.double()
    upright = net(z, logsnr, labels)
    lying = z.transpose(2, 3).contiguous()
    unturned = net(lying, logsnr, labels).transpose(2, 3)
    assert not torch.allclose(unturned, upright, rtol=0, atol=1e-2)
    lay_on_its_side(net)
    turned = net(lying, logsnr, labels).transpose(2, 3)
    # Cosines of the rotations are float32 at best, but the same ones in both.
    torch.testing.assert_close(turned, upright, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def lay_on_its_side(net: UViT) -> None:
    """Exchange the two axes of the image in all weights of a network."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.copy_(module.weight.transpose(2, 3).clone())
        if isinstance(module, Upsample):
            pixels = module.conv.weight.unflatten(0, (-1, 2, 2))
            module.conv.weight.copy_(pixels.transpose(1, 2).flatten(0, 2).clone())
    if net.positions is not None:
        net.positions.table.copy_(net.positions.table.transpose(1, 2).clone())
    else:
        exchange_rotations(net)
    places = turned_channels(net.transform, net.in_channels)
    first = net.embedding.conv if net.embedding.narrow is None else net.embedding.narrow
    last = net.head.conv if isinstance(net.head, ConvHead) else net.head.out
    first.weight.copy_(first.weight[:, places].clone())
    last.weight.copy_(last.weight[places].clone())
    assert last.bias is not None
    last.bias.copy_(last.bias[places].clone())


def exchange_rotations(net: UViT) -> None:
    """Give the channels that turn with the row to the column and the other way round."""
    count = net.head_dim // 4
    swap = torch.arange(net.head_dim).view(2, 2, count).flip(1).flatten()
    for block in net.transformer:
        attention: Any = block.attention
        for parameter in (attention.qkv.weight, attention.qkv.bias):
            parts = parameter.unflatten(0, (3, attention.heads, net.head_dim)).clone()
            parts[:2] = parts[:2, :, swap]
            parameter.copy_(parts.flatten(0, 2))
        if attention.qk_scale is not None:
            attention.qk_scale.copy_(attention.qk_scale[..., swap].clone())


def turned_channels(transform: PixelTransform, colours: int) -> Tensor:
    """For each channel of the transformed pixels, the one it is for an image on its side."""
    generator = torch.Generator().manual_seed(5)
    side = transform.factor
    cell = torch.randn(1, colours, side, side, generator=generator, dtype=torch.float64)
    upright, lying = transform(cell).flatten(), transform(cell.transpose(2, 3)).flatten()
    apart = (lying[:, None] - upright).abs()
    places = apart.argmin(1)
    assert apart.min(1).values.max() < 1e-12
    assert places.sort().values.equal(torch.arange(len(places)))
    return places


@pytest.mark.parametrize("stem", STEMS)
@pytest.mark.parametrize(("row", "column"), [(0, 0), (0, -1), (-1, 0), (-1, -1)])
@pytest.mark.parametrize("size", [(16, 48), (48, 16)])
def test_a_corner_of_the_image_gets_that_corner_of_the_learned_table(
    stem: str, row: int, column: int, size: tuple[int, int]
) -> None:
    net = make(**PLAIN_VIT, stem=stem)
    tokens: list[Tensor] = []
    net.transformer[0].register_forward_pre_hook(lambda _, given: tokens.append(given[0][0]))
    z, logsnr, labels = inputs(1, *size)
    marked_image = z.clone()
    marked_image[:, :, row, column] += 3.0

    def stream(image: Tensor) -> Tensor:
        net(image, logsnr, labels)
        return tokens[-1]

    with torch.no_grad():
        assert net.positions is not None
        net.positions.table.zero_()
        plain = stream(z)
        by_pixel = (stream(marked_image) - plain).abs().sum(-1)
        net.positions.table[:, row, column] = 1.0
        by_table = (stream(z) - plain).abs().sum(-1)
    rows, columns = size[0] // net.multiple, size[1] // net.multiple
    token = row % rows * columns + column % columns
    assert by_pixel.argmax() == token
    # The long side is stretched threefold: its mark is widest, and strongest at the very end.
    grid = by_table.view(rows, columns)
    assert grid.argmax() == token
    across, along = (grid[row], grid[:, column]) if rows < columns else (grid[:, column], grid[row])
    assert across[len(across) // 2] < 0.2 * across.max()
    assert (across > 0.5 * across.max()).sum() > (along > 0.5 * along.max()).sum()
