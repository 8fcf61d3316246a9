"""What the backbone refuses, and what it says."""

from typing import Any

import pytest
import torch

from simple_diffusion.models.uvit import UViT

GOOD: dict[str, Any] = {
    "image_size": 16,
    "patch_size": 2,
    "channels": [8, 16],
    "blocks": [1],
    "depth": 1,
    "head_dim": 8,
    "condition_width": 8,
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stem": "dct"}, r"stem: unknown value 'dct'; choose one of patch, haar, cdf53"),
        ({"mlp": "relu"}, r"mlp: .*'relu'.*gelu, swiglu"),
        ({"skips": "none"}, r"skips: .*block, level"),
        ({"positions": "alibi"}, r"positions: .*learned, rotary"),
        ({"attention": "flash"}, r"attention: unknown backend 'flash'"),
        ({"channels": []}, r"channels: empty"),
        ({"channels": [0, 16]}, r"channels: must be a whole number of at least 1, got 0"),
        ({"blocks": [1, 1]}, r"blocks: 2 given for 1 convolutional levels"),
        ({"blocks": []}, r"blocks: 0 given for 1 convolutional levels"),
        ({"blocks": [0]}, r"blocks: .* at least 1"),
        ({"image_size": 18}, r"image_size: 18 is not divisible by 4 \(patch_size 2, .* 1 levels"),
        ({"patch_size": 6, "image_size": 24, "stem": "haar"}, r"patch_size: .*power of two, got 6"),
        ({"patch_size": 0}, r"patch_size: .* at least 1, got 0"),
        ({"bottleneck": 0}, r"bottleneck: .* at least 1"),
        ({"depth": 0}, r"depth: .* at least 1"),
        ({"head_dim": 5}, r"head_dim: 5 does not divide the transformer's width 16"),
        ({"head_dim": 2, "positions": "rotary"}, r"head_dim: rotary .* multiple of 4.*got 2"),
        ({"mlp_ratio": 0.0}, r"mlp_ratio: must be positive"),
        ({"dropout": 1.0}, r"dropout: a probability in \[0, 1\), got 1.0"),
        ({"dropout_resolution": 0}, r"dropout_resolution: .* at least 1"),
        ({"num_classes": -1}, r"num_classes: .* at least 0, got -1"),
        ({"condition_width": 2.5}, r"condition_width: must be a whole number.*2\.5"),
    ],
)
def test_refusals_name_the_argument(change: dict[str, Any], message: str) -> None:
    UViT(**GOOD)
    with pytest.raises(ValueError, match=message):
        UViT(**GOOD | change)


def test_xformers_is_refused_at_construction(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="backend 'xformers' cannot run"):
        UViT(**GOOD, attention="xformers")
