"""CLIP ViT-L/14 at 336px: the image embeddings in which CMMD is measured.

Radford et al. 2021 (arXiv:2103.00020) trained it; Jayasumana et al. 2024 (arXiv:2401.09603) measure
the maximum mean discrepancy of its embeddings, brought to unit length as here.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from eval.extractors.base import Extractor, ExtractorFacts, NetworkExtractor, state_dict_sha256
from eval.extractors.hub import normalised, open_pretrained

MODEL = "openai/clip-vit-large-patch14-336"
EXPECTED = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "patch_size": 14,
    "image_size": 336,
    "projection_dim": 768,
}
SIZE = 336
RESIZE = (
    "centre square, resized to 336x336 by bicubic with antialias (Keys a = -0.5, half-pixel "
    "centres), across and then down, each clamped to [0, 255] and rounded as Pillow does; then "
    "(p / 255 - mean) / std with CLIP's statistics; embeddings divided by their length"
)
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def prepare(images: Tensor) -> Tensor:
    """Network input by the rule `RESIZE`; uint8 (n, 3, H, W) -> float32 (n, 3, 336, 336).

    CMMD's code crops and resizes 8-bit pictures with Pillow; this gives its numbers, but for rare
    ties in rounding, on any device.
    """
    height, width = images.shape[2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    x = images[:, :, top : top + side, left : left + side].float()
    for shape in ((side, SIZE), (SIZE, SIZE)):
        x = F.interpolate(x, shape, mode="bicubic", antialias=True).clamp(0, 255).round()
    return normalised(x, MEAN, STD)


def open_clip(weights: Path | None, device: torch.device) -> Extractor:
    """Open the extractor `clip`: 768 features, the image embedding at unit length.

    Args:
        weights: folder with the files of `openai/clip-vit-large-patch14-336`; None for the hub.
        device: where to compute.

    Raises:
        WeightsMissingError: transformers or the weights are absent.
    """
    network, source = open_pretrained(
        "clip", "CLIPVisionModelWithProjection", MODEL, weights, EXPECTED
    )
    sha256 = state_dict_sha256(network.state_dict())
    network.to(device)
    dim = int(network.config.projection_dim)
    facts = ExtractorFacts("clip", source, sha256, SIZE, RESIZE, dim, classes=0)

    def embedding(x: Tensor) -> tuple[Tensor, None]:
        return F.normalize(network(pixel_values=x).image_embeds, dim=1), None

    return NetworkExtractor(facts, embedding, prepare, device)
