"""The diffusers model is the plain network under another name."""

import inspect
from pathlib import Path

import pytest
import torch

from simple_diffusion.models.uvit import UViT
from simple_diffusion.pipelines import PixelUViT

ARGUMENTS = {
    "image_size": 16,
    "channels": [16, 32],
    "blocks": [1],
    "depth": 1,
    "head_dim": 16,
    "num_classes": 3,
    "condition_width": 16,
}


def random_network(**arguments: object) -> PixelUViT:
    torch.manual_seed(0)
    network = PixelUViT(**{**ARGUMENTS, **arguments}).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.1)
    return network


@pytest.mark.parametrize("positions", ["learned", "rotary"])
@pytest.mark.parametrize("stem", ["patch", "haar"])
def test_same_function_after_a_round_trip(positions: str, stem: str, tmp_path: Path) -> None:
    arguments = {"positions": positions, "stem": stem, "patch_size": 2, "mlp": "swiglu"}
    network = random_network(**arguments)
    network.save_pretrained(tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.suffix not in (".json", ".safetensors")]
    reloaded = PixelUViT.from_pretrained(tmp_path)
    plain = UViT(**{**ARGUMENTS, **arguments}).eval()
    plain.load_state_dict(network.state_dict())
    z, logsnr, labels = torch.randn(3, 3, 16, 16), torch.tensor([-3.0, 0.5, 8.0]), torch.arange(3)
    with torch.no_grad():
        expected = plain(z, logsnr, labels)
        assert expected.std() > 0.01
        assert torch.equal(network(z, logsnr, labels), expected)
        assert torch.equal(reloaded(z, logsnr, labels), expected)


def test_config_holds_every_argument() -> None:
    network = random_network(dropout=0.25)
    names = set(inspect.signature(UViT.__init__).parameters) - {"self"}
    assert {name for name in network.config if not name.startswith("_")} == names
    assert network.config.dropout == 0.25
    assert network.config.skips == "block"  # a default


def test_submodules_win_over_config() -> None:
    """`positions` is an argument and a submodule."""
    assert isinstance(random_network().positions, torch.nn.Module)


def test_a_refused_argument_is_refused_here_too() -> None:
    with pytest.raises(ValueError, match="image_size"):
        PixelUViT(**{**ARGUMENTS, "image_size": 15})
