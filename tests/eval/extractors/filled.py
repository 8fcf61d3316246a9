"""Networks and images filled by arithmetic, the same on every machine and in every torch."""

import torch
from torch import Tensor, nn


def noise(count: int, key: int) -> Tensor:
    """Uniform numbers on [-1, 1), a function of (index, key) alone; float32 (count,)."""
    v = torch.arange(count) + 1_000_003 * key
    for multiplier in (747_796_405, 277_803_737, 1_103_515_245):
        v = (v * multiplier + 12_345) % 2**31
        v = v ^ (v >> 13)
    return (v.double() / 2**30 - 1).float()


def filled_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of the same names and shapes that keep activations at about the same size."""
    filled = {}
    for key, name in enumerate(sorted(k for k in state if not k.endswith("num_batches_tracked"))):
        shape = state[name].shape
        u = noise(shape.numel(), key).view(shape)
        if len(shape) > 1:
            filled[name] = u * (6 / shape[1:].numel()) ** 0.5
        elif name.endswith("running_var"):
            filled[name] = 1 + u / 2
        elif name.endswith("weight"):
            filled[name] = 1 + u / 4
        else:
            filled[name] = u / 8
    return filled


def fill(module: nn.Module) -> nn.Module:
    """Fill a module by `filled_state`, and make it ready for inference."""
    module.load_state_dict(filled_state(module.state_dict()), strict=False)
    return module.requires_grad_(False).eval()


def picture(height: int, width: int, key: int = 0) -> Tensor:
    """Smooth and rough parts, all grey levels; uint8 (1, 3, height, width)."""
    y = torch.linspace(0, 3, height).view(1, 1, -1, 1)
    x = torch.linspace(0, 4, width).view(1, 1, 1, -1)
    channel = torch.arange(3).view(1, 3, 1, 1)
    smooth = torch.sin(x * (channel + 1) + key) * torch.cos(y + channel * y)
    rough = noise(3 * height * width, key).view(1, 3, height, width)
    return ((0.75 * smooth + 0.25 * rough + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
