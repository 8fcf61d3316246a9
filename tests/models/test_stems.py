"""Both ends of the network."""

import pytest
import torch

from simple_diffusion.models.stems import (
    ConvHead,
    Embedding,
    PixelTransform,
    StemName,
    TokenHead,
)

STEMS: tuple[StemName, ...] = ("patch", "haar", "cdf53")


@pytest.mark.parametrize("name", STEMS)
@pytest.mark.parametrize("factor", [1, 2, 8])
def test_transform_is_invertible(name: StemName, factor: int) -> None:
    stem = PixelTransform(name, factor)
    x = torch.randn(2, 3, 16, 24, dtype=torch.float64)
    y = stem(x)
    assert y.shape == (2, 3 * factor**2, 16 // factor, 24 // factor)
    torch.testing.assert_close(stem.inverse(y), x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", STEMS)
def test_transform_stays_float32_under_autocast(name: StemName) -> None:
    stem, x = PixelTransform(name, 4), torch.randn(2, 3, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        y = stem(x)
        back = stem.inverse(y)
    torch.testing.assert_close(y, stem(x), rtol=0, atol=0)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-5)


def test_patch_needs_no_power_of_two_and_wavelets_do() -> None:
    x = torch.randn(1, 3, 6, 6)
    stem = PixelTransform("patch", 3)
    assert torch.equal(stem.inverse(stem(x)), x)
    with pytest.raises(ValueError, match=r"patch_size.*power of two.*3"):
        PixelTransform("haar", 3)


def test_bottleneck_bounds_the_rank() -> None:
    embedding = Embedding(48, 32, 1, bottleneck=5).double()
    x = torch.randn(1, 48, 16, 16, dtype=torch.float64)
    features = embedding(x)[0].flatten(1)
    assert torch.linalg.matrix_rank(features - features.mean(1, keepdim=True)) == 5


@pytest.mark.parametrize("head", [ConvHead(16, 12), TokenHead(16, 12, 8)])
def test_heads_start_at_zero_and_answer_in_float32(head: ConvHead | TokenHead) -> None:
    x, condition = torch.randn(2, 16, 4, 6), torch.randn(2, 8)
    assert torch.equal(head(x, condition), torch.zeros(2, 12, 4, 6))
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    exact = head(x, condition)
    with torch.autocast("cpu", torch.bfloat16):
        cast = head(x, condition)
    assert cast.dtype == torch.float32
    torch.testing.assert_close(cast, exact, rtol=0, atol=0)


def test_token_head_equals_formula_per_cell() -> None:
    head = TokenHead(8, 5, 4).double()
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(2, 8, 3, 2, dtype=torch.float64)
    condition = torch.randn(2, 4, dtype=torch.float64)
    out = head(x, condition)
    scale, shift = (condition @ head.modulation.weight.T + head.modulation.bias).chunk(2, 1)
    for b, row, column in ((0, 0, 0), (1, 2, 1), (0, 1, 1)):
        cell = x[b, :, row, column]
        normed = (cell - cell.mean()) / (cell.var(correction=0) + 1e-6).sqrt()
        expected = head.out.weight @ (normed * (1 + scale[b]) + shift[b]) + head.out.bias
        torch.testing.assert_close(out[b, :, row, column], expected)
