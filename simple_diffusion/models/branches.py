"""How the residual branches start: off, small, or as every other layer."""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from simple_diffusion.models.blocks import ConvBlock, TransformerBlock

Branches = Literal["zero", "small", "default"]

SMALL_STD = 0.02  # BERT's (Devlin et al. 2019): about half of 1/sqrt(fan_in) at its width


def start_branches(network: nn.Module, how: Branches) -> None:
    """Set the last layer of every residual branch, and the gates of the transformer's.

    ``zero`` leaves blocks as they are made: convolutional branches end in zeros, and those of the
    transformer are shut by their gates (adaLN-zero). Otherwise all gates start at 1 and the last
    layers' weights are normal, with a standard deviation of 0.02 (``small``) or 1/sqrt(fan_in)
    (``default``, as in every other layer).

    Args:
        network: its `ConvBlock` and `TransformerBlock` modules are changed in place.
        how: as above.
    """
    if how == "zero":
        return
    for module in network.modules():
        if isinstance(module, ConvBlock):
            _start(module.conv2.weight, how)
        elif isinstance(module, TransformerBlock):
            _start(module.attention.out.weight, how)
            _start(module.mlp.out.weight, how)
            with torch.no_grad():  # the order is scale, shift, gate, for attention and for MLP
                module.modulation.bias.view(2, 3, module.width)[:, 2].fill_(1.0)


def _start(weight: Tensor, how: Branches) -> None:
    fan_in = weight[0].numel()
    nn.init.normal_(weight, std=SMALL_STD if how == "small" else 1 / math.sqrt(fan_in))
