"""DINOv2 and CLIP with small stand-ins for transformers and for its networks."""

import pickle
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from eval.extractors import clip, dinov2
from eval.extractors.base import WeightsMissingError, state_dict_sha256
from eval.extractors.download import OFFLINE
from eval.features import open_extractor
from tests.eval.extractors.filled import fill, picture

CPU = torch.device("cpu")


class TinyDino(nn.Module):
    """Class token plus mean of (patch + position): enough to see what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(**dinov2.EXPECTED | {"hidden_size": 8})
        self.embeddings = nn.Module()
        self.embeddings.position_embeddings = nn.Parameter(torch.zeros(1, 1 + 37 * 37, 8))
        self.project = nn.Conv2d(3, 8, 14, 14)

    def forward(self, pixel_values: Tensor) -> SimpleNamespace:
        positions = self.embeddings.position_embeddings
        patches = self.project(pixel_values).flatten(2).transpose(1, 2) + positions[:, 1:]
        token = patches.mean(1, keepdim=True) + positions[:, :1]
        return SimpleNamespace(last_hidden_state=torch.cat([token, patches], 1))


class TinyClip(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(**clip.EXPECTED | {"projection_dim": 6})
        self.project = nn.Conv2d(3, 6, 14, 14)

    def forward(self, pixel_values: Tensor) -> SimpleNamespace:
        assert pixel_values.shape[2:] == (336, 336)
        return SimpleNamespace(image_embeds=self.project(pixel_values).mean((2, 3)))


class Transformers(SimpleNamespace):
    """Stands in for the package: notes the calls, and answers with `network` or `error`."""

    def __init__(self, network: nn.Module) -> None:
        self.network = fill(network)
        self.missing: set[str] = set()
        self.error: Exception | None = None
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.logging = SimpleNamespace(
            get_verbosity=lambda: 30, set_verbosity=lambda _: None, set_verbosity_error=lambda: None
        )
        self.Dinov2Model = self.CLIPVisionModelWithProjection = self

    def from_pretrained(self, source: str, **options: Any) -> tuple[nn.Module, dict[str, Any]]:
        self.calls.append((source, options))
        if self.error is not None:
            raise self.error
        return self.network, {"missing_keys": self.missing}


@pytest.fixture
def dino(monkeypatch: pytest.MonkeyPatch) -> Transformers:
    stand_in = Transformers(TinyDino())
    monkeypatch.delenv(OFFLINE, raising=False)
    monkeypatch.setitem(sys.modules, "transformers", stand_in)
    monkeypatch.setitem(dinov2.EXPECTED, "hidden_size", 8)
    return stand_in


@pytest.fixture
def clips(monkeypatch: pytest.MonkeyPatch) -> Transformers:
    stand_in = Transformers(TinyClip())
    monkeypatch.setitem(sys.modules, "transformers", stand_in)
    monkeypatch.setitem(clip.EXPECTED, "projection_dim", 6)
    return stand_in


def pillow(channel: Tensor, side: int) -> np.ndarray:
    image = Image.fromarray(channel.numpy())
    return np.asarray(image.resize((side, side), Image.Resampling.BICUBIC))


def test_dinov2_gives_the_class_token(dino: Transformers) -> None:
    published = {name: value.clone() for name, value in dino.network.state_dict().items()}
    extractor = open_extractor("dinov2", device=CPU)
    images = torch.cat([picture(64, 50, key) for key in range(5)])
    found = extractor(images)
    assert found.probabilities is None
    positions = dinov2.fit_positions(published["embeddings.position_embeddings"], 16)
    patches = F.conv2d(
        dinov2.prepare(images), published["project.weight"], published["project.bias"], stride=14
    )
    expected = patches.mean((2, 3)) + positions[:, 1:].mean(1) + positions[:, 0]
    torch.testing.assert_close(found.features, expected, rtol=1e-4, atol=1e-5)
    facts = extractor.facts
    assert (facts.name, facts.weights, facts.input_size) == ("dinov2", dinov2.MODEL, 224)
    assert (facts.dim, facts.classes) == (8, 0)
    assert facts.sha256 == state_dict_sha256(published)


def test_dinov2_input_is_resized_as_pillow_does_in_floats() -> None:
    images = picture(300, 250)
    reference = np.stack([pillow(channel.float(), 224) for channel in images[0]])
    mean, std = np.array(dinov2.MEAN)[:, None, None], np.array(dinov2.STD)[:, None, None]
    expected = torch.from_numpy((reference / 255 - mean) / std).float()
    torch.testing.assert_close(dinov2.prepare(images)[0], expected, rtol=0, atol=1e-4)


def cubic(distance: np.ndarray) -> np.ndarray:
    """Weights of cubic convolution with a = -0.75, torch's bicubic without antialias."""
    d, a = np.abs(distance), -0.75
    near = (a + 2) * d**3 - (a + 3) * d**2 + 1
    far = a * (d**3 - 5 * d**2 + 8 * d - 4)
    return np.where(d <= 1, near, np.where(d < 2, far, 0))


def test_positions_are_fitted_at_the_authors_scale() -> None:
    """Cubic convolution in float64, with samples 37 / 16.1 apart: not 37 / 16."""
    old, new = 37, 16
    taken = (np.arange(new) + 0.5) * old / (new + 0.1) - 0.5
    weights = np.zeros((new, old))
    for i, place in enumerate(taken):
        for j in range(int(place) - 2, int(place) + 4):
            weights[i, min(max(j, 0), old - 1)] += cubic(np.array(place - j))
    generator = torch.Generator().manual_seed(0)
    positions = torch.randn(1, 1 + old * old, 2, generator=generator)
    grid = positions[0, 1:].view(old, old, 2).double().numpy()
    expected = np.einsum("ia,jb,abc->ijc", weights, weights, grid).reshape(-1, 2)
    fitted = dinov2.fit_positions(positions, new)
    assert torch.equal(fitted[:, 0], positions[:, 0])
    np.testing.assert_allclose(fitted[0, 1:].numpy(), expected, rtol=0, atol=2e-5)
    same = torch.randn(1, 1 + new * new, 2)
    assert dinov2.fit_positions(same, new) is same


def test_clip_gives_embeddings_of_length_one(clips: Transformers) -> None:
    extractor = open_extractor("clip", device=CPU)
    found = extractor(picture(40, 60))
    weight, bias = (clips.network.state_dict()[f"project.{name}"] for name in ("weight", "bias"))
    raw = F.conv2d(clip.prepare(picture(40, 60)), weight, bias, stride=14).mean((2, 3)).double()
    torch.testing.assert_close(found.features.double(), raw / raw.norm(), rtol=1e-4, atol=1e-6)
    assert found.probabilities is None
    facts = extractor.facts
    assert (facts.name, facts.weights, facts.input_size) == ("clip", clip.MODEL, 336)
    assert (facts.dim, facts.classes) == (6, 0)


@pytest.mark.parametrize("size", [(200, 301), (500, 420), (336, 336)])
def test_clip_input_is_pillows_centre_square(size: tuple[int, int]) -> None:
    images = picture(*size)
    side = min(size)
    top, left = (size[0] - side) // 2, (size[1] - side) // 2
    square = images[0, :, top : top + side, left : left + side]
    reference = np.stack([pillow(channel.contiguous(), 336) for channel in square])
    mean, std = torch.tensor(clip.MEAN).view(3, 1, 1), torch.tensor(clip.STD).view(3, 1, 1)
    levels = (clip.prepare(images)[0] * std + mean) * 255
    difference = (levels - torch.from_numpy(reference).float()).abs()
    assert difference.max() < 1.01  # ties may be rounded either way
    assert difference.mean() < 1e-3


def test_only_tensors_are_asked_for(dino: Transformers, monkeypatch: pytest.MonkeyPatch) -> None:
    open_extractor("dinov2", device=CPU)
    dino.network = fill(TinyDino())
    monkeypatch.setenv(OFFLINE, "1")
    open_extractor("dinov2", device=CPU)
    assert [source for source, _ in dino.calls] == [dinov2.MODEL] * 2
    assert all(options["weights_only"] is True for _, options in dino.calls)
    assert [options["local_files_only"] for _, options in dino.calls] == [False, True]
    assert not [options for _, options in dino.calls if "trust_remote_code" in options]


def test_a_folder_is_read_without_a_network(dino: Transformers, tmp_path: Path) -> None:
    folder = tmp_path / "copied"
    folder.mkdir()
    with pytest.raises(WeightsMissingError, match=r"copied is not a folder with a config.json"):
        open_extractor("dinov2", weights=folder, device=CPU)
    (folder / "config.json").write_text("{}")
    assert open_extractor("dinov2", weights=folder, device=CPU).facts.weights == "copied"
    assert dino.calls == [
        (
            str(folder),
            {"local_files_only": True, "weights_only": True, "output_loading_info": True},
        )
    ]


def test_random_tensors_in_place_of_missing_ones_are_refused(clips: Transformers) -> None:
    clips.missing = {"project.weight"}
    with pytest.raises(WeightsMissingError, match=r"lacks 1 of the network's tensors, project.wei"):
        open_extractor("clip", device=CPU)


def test_a_smaller_model_does_not_pass(clips: Transformers) -> None:
    clips.network.config.hidden_size = 768
    with pytest.raises(WeightsMissingError, match=r"is another model than openai.*768"):
        open_extractor("clip", device=CPU)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError("no connection"), r"could not be opened: no connection; .*hf download facebook"),
        (pickle.UnpicklingError("weights_only=False helps"), "are no file of tensors"),
    ],
)
def test_failures_tell_the_remedy(dino: Transformers, error: Exception, said: str) -> None:
    dino.error = error
    with pytest.raises(WeightsMissingError, match=said) as caught:
        open_extractor("dinov2", device=CPU)
    assert "lite0" in str(caught.value)
    assert "weights_only" not in str(caught.value)


@pytest.mark.parametrize("name", ["dinov2", "clip"])
def test_an_absent_package_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(WeightsMissingError, match=f"{name}: it needs .*`pip install transformers`"):
        open_extractor(name, device=CPU)
