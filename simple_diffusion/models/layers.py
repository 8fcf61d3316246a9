"""Tagged layers: the smallest pieces of every network here.

Every parameter is tagged where it is made with the optimiser group it belongs to:
``param.optim_group`` is ``decay`` (matrices, convolutions) or ``no_decay`` (biases, norms,
embeddings, positions).
"""

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

OptimGroup = Literal["decay", "no_decay"]


def tag(parameter: Tensor, group: OptimGroup) -> Tensor:
    """Mark a parameter with its optimiser group, and return it.

    After it is registered with its module: loaders that build networks without memory (diffusers,
    accelerate) make a new parameter at that moment, and cannot take one with attributes.
    """
    assert isinstance(parameter, nn.Parameter)
    parameter.optim_group = group  # type: ignore[attr-defined]
    return parameter


def optim_groups(module: nn.Module) -> dict[OptimGroup, list[nn.Parameter]]:
    """The parameters of `module` by optimiser group.

    Raises:
        ValueError: a parameter was never tagged, or lost its tag by being replaced.
    """
    groups: dict[OptimGroup, list[nn.Parameter]] = {"decay": [], "no_decay": []}
    for name, parameter in module.named_parameters():
        group = getattr(parameter, "optim_group", None)
        if group not in groups:
            raise ValueError(
                f"parameter {name}: optim_group is {group!r}; tag it 'decay' or 'no_decay' "
                "(moving a module with to_empty, or sharding it, makes new parameters: "
                "read the groups before)"
            )
        groups[group].append(parameter)
    return groups


def linear(inputs: int, outputs: int, *, bias: bool = True, zero: bool = False) -> nn.Linear:
    """A tagged Linear, weights of variance 1/inputs or zero, bias zero."""
    layer = nn.Linear(inputs, outputs, bias=bias)
    _initialise(layer.weight, layer.bias, inputs, zero)
    return layer


def conv(
    inputs: int,
    outputs: int,
    kernel: int,
    *,
    stride: int = 1,
    bias: bool = True,
    zero: bool = False,
) -> nn.Conv2d:
    """A tagged Conv2d; odd kernels keep the size (times 1/stride), even ones do not overlap."""
    padding = kernel // 2 if kernel % 2 else 0
    layer = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=padding, bias=bias)
    _initialise(layer.weight, layer.bias, inputs * kernel**2, zero)
    return layer


def _initialise(weight: Tensor, bias: Tensor | None, fan_in: int, zero: bool) -> None:
    tag(weight, "decay")
    if zero:
        nn.init.zeros_(weight)
    else:
        nn.init.normal_(weight, std=1 / math.sqrt(fan_in))
    if bias is not None:
        nn.init.zeros_(tag(bias, "no_decay"))


def full_precision(x: Tensor) -> AbstractContextManager[object]:
    """A context in which autocast leaves operations on `x` alone."""
    if torch.amp.is_autocast_available(x.device.type):
        return torch.autocast(x.device.type, enabled=False)
    return nullcontext()  # the meta device has no autocast to switch off


def at_least_float32(x: Tensor) -> Tensor:
    """`x` in float32, or in float64 if it is that."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class GroupNorm(nn.Module):
    """Group normalisation with statistics in float32 or better, whatever the input's dtype.

    At most 32 groups, of at least 4 channels each where the width allows.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.groups = math.gcd(32, width)
        while self.groups > 1 and width // self.groups < 4:
            self.groups //= 2
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        tag(self.weight, "no_decay")
        tag(self.bias, "no_decay")

    def forward(self, x: Tensor) -> Tensor:
        """Shape (B, width, H, W) -> the same; float32 or better."""
        x = at_least_float32(x)
        return F.group_norm(x, self.groups, self.weight.to(x.dtype), self.bias.to(x.dtype))

    def extra_repr(self) -> str:
        return f"width={self.width}, groups={self.groups}"
