"""The Inception network that defines FID: TensorFlow's graph of 2015-12-05, not torchvision's.

Heusel et al. 2017 (arXiv:1706.08500) measured with that graph, and the weights that everyone uses
were converted from it. It differs from Inception-v3 as published and as in torchvision: 1008
classes, average pools that leave the padding out of the mean, a maximum pool in the last block,
and an input stretched by TensorFlow 1's bilinear rule, which does not antialias and samples pixel
corners. All of these move FID, so all are kept. Names of modules follow the weights.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eval.extractors.base import (
    WEIGHTS_OPTION,
    Extractor,
    ExtractorFacts,
    NetworkExtractor,
    checked_file,
    load_tensors,
    ready,
)
from eval.extractors.download import download

FILE = "weights-inception-2015-12-05-6726825d.pth"
URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{FILE}"
OTHER_FILE = "pt_inception-2015-12-05-6726825d.pth"  # the same bytes, as pytorch-fid names them
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
SIZE = 299
RESIZE = (
    "float32, stretched to 299x299 by TensorFlow 1's bilinear rule (no antialias, source = "
    "destination * size / 299), not rounded; then (p - 128) / 128"
)
_MOST_BYTES = 200_000_000  # the file has 96 MB


class Conv(nn.Module):
    """Convolution without bias, batch normalisation, ReLU."""

    def __init__(
        self,
        channels: int,
        out: int,
        kernel: int | tuple[int, int] = 1,
        stride: int = 1,
        padding: int | tuple[int, int] = 0,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


def _wide(channels: int, out: int, length: int = 7) -> Conv:
    return Conv(channels, out, (1, length), padding=(0, length // 2))


def _tall(channels: int, out: int, length: int = 7) -> Conv:
    return Conv(channels, out, (length, 1), padding=(length // 2, 0))


def _average(x: Tensor) -> Tensor:
    """3x3 mean over the pixels that exist: padding counts neither above nor below the line."""
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


class MixedA(nn.Module):
    """35x35 grid: branches of 1x1, 5x5, twice 3x3, and pooling."""

    def __init__(self, channels: int, pooled: int) -> None:
        super().__init__()
        self.branch1x1 = Conv(channels, 64)
        self.branch5x5_1 = Conv(channels, 48)
        self.branch5x5_2 = Conv(48, 64, 5, padding=2)
        self.branch3x3dbl_1 = Conv(channels, 64)
        self.branch3x3dbl_2 = Conv(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = Conv(96, 96, 3, padding=1)
        self.branch_pool = Conv(channels, pooled)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        five = self.branch5x5_2(self.branch5x5_1(x))
        return torch.cat([self.branch1x1(x), five, double, self.branch_pool(_average(x))], 1)


class MixedB(nn.Module):
    """From 35x35 to 17x17."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch3x3 = Conv(channels, 384, 3, stride=2)
        self.branch3x3dbl_1 = Conv(channels, 64)
        self.branch3x3dbl_2 = Conv(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = Conv(96, 96, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, F.max_pool2d(x, 3, stride=2)], 1)


class MixedC(nn.Module):
    """17x17 grid: 7x7 convolutions taken apart into rows and columns, `mid` channels between."""

    def __init__(self, mid: int) -> None:
        super().__init__()
        self.branch1x1 = Conv(768, 192)
        self.branch7x7_1 = Conv(768, mid)
        self.branch7x7_2 = _wide(mid, mid)
        self.branch7x7_3 = _tall(mid, 192)
        self.branch7x7dbl_1 = Conv(768, mid)
        self.branch7x7dbl_2 = _tall(mid, mid)
        self.branch7x7dbl_3 = _wide(mid, mid)
        self.branch7x7dbl_4 = _tall(mid, mid)
        self.branch7x7dbl_5 = _wide(mid, 192)
        self.branch_pool = Conv(768, 192)

    def forward(self, x: Tensor) -> Tensor:
        seven = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(x), seven, double, self.branch_pool(_average(x))], 1)


class MixedD(nn.Module):
    """From 17x17 to 8x8."""

    def __init__(self) -> None:
        super().__init__()
        self.branch3x3_1 = Conv(768, 192)
        self.branch3x3_2 = Conv(192, 320, 3, stride=2)
        self.branch7x7x3_1 = Conv(768, 192)
        self.branch7x7x3_2 = _wide(192, 192)
        self.branch7x7x3_3 = _tall(192, 192)
        self.branch7x7x3_4 = Conv(192, 192, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        seven = self.branch7x7x3_2(self.branch7x7x3_1(x))
        seven = self.branch7x7x3_4(self.branch7x7x3_3(seven))
        three = self.branch3x3_2(self.branch3x3_1(x))
        return torch.cat([three, seven, F.max_pool2d(x, 3, stride=2)], 1)


class MixedE(nn.Module):
    """8x8 grid, branches that fork; the last of the network pools by maximum, as the graph does."""

    def __init__(self, channels: int, *, last: bool) -> None:
        super().__init__()
        self.last = last
        self.branch1x1 = Conv(channels, 320)
        self.branch3x3_1 = Conv(channels, 384)
        self.branch3x3_2a = _wide(384, 384, 3)
        self.branch3x3_2b = _tall(384, 384, 3)
        self.branch3x3dbl_1 = Conv(channels, 448)
        self.branch3x3dbl_2 = Conv(448, 384, 3, padding=1)
        self.branch3x3dbl_3a = _wide(384, 384, 3)
        self.branch3x3dbl_3b = _tall(384, 384, 3)
        self.branch_pool = Conv(channels, 192)

    def forward(self, x: Tensor) -> Tensor:
        three = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = F.max_pool2d(x, 3, stride=1, padding=1) if self.last else _average(x)
        forks = [
            self.branch3x3_2a(three),
            self.branch3x3_2b(three),
            self.branch3x3dbl_3a(double),
            self.branch3x3dbl_3b(double),
        ]
        return torch.cat([self.branch1x1(x), *forks, self.branch_pool(pooled)], 1)


class Inception(nn.Module):
    """The whole network: prepared images to pool features and logits.

    `forward` takes float32 (n, 3, 299, 299), made by `prepare`, and returns the global average of
    the last feature map (n, 2048), and logits of the 1008 classes (n, 1008). The logits leave the
    bias of the last layer out, as the Inception Score's reference implementation does (Salimans
    et al. 2016): it multiplied the pool by the weights of the softmax layer alone.
    """

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Conv(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = Conv(32, 32, 3)
        self.Conv2d_2b_3x3 = Conv(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = Conv(64, 80)
        self.Conv2d_4a_3x3 = Conv(80, 192, 3)
        self.Mixed_5b = MixedA(192, 32)
        self.Mixed_5c = MixedA(256, 64)
        self.Mixed_5d = MixedA(288, 64)
        self.Mixed_6a = MixedB(288)
        self.Mixed_6b = MixedC(128)
        self.Mixed_6c = MixedC(160)
        self.Mixed_6d = MixedC(160)
        self.Mixed_6e = MixedC(192)
        self.Mixed_7a = MixedD()
        self.Mixed_7b = MixedE(1280, last=False)
        self.Mixed_7c = MixedE(2048, last=True)
        self.fc = nn.Linear(2048, 1008)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = F.max_pool2d(x, 3, stride=2)
        x = F.max_pool2d(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)), 3, stride=2)
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))
        x = self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))
        x = self.Mixed_6e(self.Mixed_6d(x))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        features = x.mean((2, 3))
        return features, features @ self.fc.weight.T


def prepare(images: Tensor) -> Tensor:
    """Network input by the rule `RESIZE`; uint8 (n, 3, H, W) -> float32 (n, 3, 299, 299).

    (p - 128) / 128 maps 0 to -1 and 255 to just below 1: the graph's own numbers.
    """
    return (resize_like_tensorflow(images.float(), SIZE) - 128) / 128


def resize_like_tensorflow(x: Tensor, size: int) -> Tensor:
    """`tf.image.resize_bilinear` of TensorFlow 1 with align_corners=False; (n, C, H, W) floats.

    Output pixel i is read at i * H / size: pixel corners, not centres, are matched, so the result
    lies up to half a pixel off. Positions are rounded to float32 before their fraction is taken,
    as there.
    """
    return _stretch(_stretch(x, 3, size), 2, size)


def _stretch(x: Tensor, dim: int, size: int) -> Tensor:
    length = x.shape[dim]
    scale = torch.tensor(length / size, dtype=torch.float32, device=x.device)
    position = torch.arange(size, dtype=torch.float32, device=x.device) * scale
    low = position.long()
    fraction = (position - low).view(-1, *[1] * (3 - dim))
    start = x.index_select(dim, low)
    return start + (x.index_select(dim, (low + 1).clamp_max(length - 1)) - start) * fraction


def open_inception(weights: Path | None, device: torch.device) -> Extractor:
    """Open the extractor `inception`: 2048 features, 1008 classes; FID is measured with it.

    Args:
        weights: path of the `.pth` file; None for torch's hub cache, filled by a download.
        device: where to compute.

    Raises:
        WeightsMissingError: no such file and no way to fetch it, or another file.
    """
    path = checked_file(weights or _fetched(), SHA256, "inception", _remedy())
    network = Inception()
    load_tensors(path, network, "inception")
    ready(network, device)
    facts = ExtractorFacts("inception", FILE, SHA256, SIZE, RESIZE, dim=2048, classes=1008)
    return NetworkExtractor(facts, network, prepare, device)


def _fetched() -> Path:
    """The file in torch's hub cache, under either of its names; downloaded where it is not."""
    cache = Path(torch.hub.get_dir()) / "checkpoints"
    for name in (FILE, OTHER_FILE):
        if (cache / name).is_file():
            return cache / name
    download(URL, cache / FILE, SHA256, most_bytes=_MOST_BYTES, remedy=f"inception: {_remedy()}")
    return cache / FILE


def _remedy() -> str:
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    return (
        f"on a machine with a network fetch {URL} and put it into {folder}, or give its path "
        f"({WEIGHTS_OPTION}); or measure with the extractor lite0, which needs no download"
    )
