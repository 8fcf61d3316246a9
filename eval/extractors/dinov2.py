"""DINOv2 ViT-L/14: self-supervised features, in which Fréchet distances follow human judgement.

Oquab et al. 2023 (arXiv:2304.07193) trained it; Stein et al. 2023 (arXiv:2306.04675) proposed the
distance, and EDM2 (Karras et al. 2024, arXiv:2312.02696) reports it with the resize rule used here.
"""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eval.extractors.base import Extractor, ExtractorFacts, NetworkExtractor, state_dict_sha256
from eval.extractors.hub import normalised, open_pretrained

MODEL = "facebook/dinov2-large"
EXPECTED = {"hidden_size": 1024, "num_hidden_layers": 24, "patch_size": 14, "image_size": 518}
SIZE = 224
RESIZE = (
    "float32, stretched to 224x224 by bicubic with antialias (Keys a = -0.5, half-pixel centres), "
    "neither clamped nor rounded; then (p / 255 - mean) / std with ImageNet's statistics"
)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def prepare(images: Tensor) -> Tensor:
    """Network input by the rule `RESIZE`; uint8 (n, 3, H, W) -> float32 (n, 3, 224, 224)."""
    x = F.interpolate(images.float(), (SIZE, SIZE), mode="bicubic", antialias=True)
    return normalised(x, MEAN, STD)


def fit_positions(positions: Tensor, side: int) -> Tensor:
    """Learned positions for a grid of side x side patches; (1, 1 + s², dim) -> (1, 1 + side², dim).

    As the authors' code does: bicubic with the scale (side + 0.1) / s, which also moves the
    samples a little. Other libraries leave that tenth out, and their features differ.
    """
    first, grid = positions[:, :1], positions[:, 1:]
    old = round(grid.shape[1] ** 0.5)
    if old == side:
        return positions
    grid = grid.unflatten(1, (old, old)).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, scale_factor=(side + 0.1) / old, mode="bicubic")
    return torch.cat([first, grid.flatten(2).transpose(1, 2)], 1)


def open_dinov2(weights: Path | None, device: torch.device) -> Extractor:
    """Open the extractor `dinov2`: the 1024 features of the normalised class token.

    Args:
        weights: folder with the files of `facebook/dinov2-large`; None for the hub.
        device: where to compute.

    Raises:
        WeightsMissingError: transformers or the weights are absent.
    """
    network, source = open_pretrained("dinov2", "Dinov2Model", MODEL, weights, EXPECTED)
    sha256 = state_dict_sha256(network.state_dict())
    embeddings: Any = network.embeddings
    side = SIZE // network.config.patch_size
    embeddings.position_embeddings = nn.Parameter(
        fit_positions(embeddings.position_embeddings.data, side), requires_grad=False
    )
    network.to(device)
    dim = int(network.config.hidden_size)
    facts = ExtractorFacts("dinov2", source, sha256, SIZE, RESIZE, dim, classes=0)

    def class_token(x: Tensor) -> tuple[Tensor, None]:
        return network(pixel_values=x).last_hidden_state[:, 0], None

    return NetworkExtractor(facts, class_token, prepare, device)
