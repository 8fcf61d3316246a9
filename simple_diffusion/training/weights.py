"""A whole network for evaluation, made of tensors that may be cut up between processes."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


class WholeNetwork:
    """A network without weights of its own, which is lent those of an average or of training.

    Args:
        network: what it is a copy of; before its weights are cut up, or its blocks compiled.
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = hollow_copy(network)
        self._empty = self._network.state_dict()

    @contextmanager
    def lent(self, tensors: Mapping[str, Tensor]) -> Iterator[nn.Module]:
        """The network with these weights; every process calls it if they are cut up.

        Plain tensors are used as they are, without a copy; sharded ones are put together, and
        let go at the end.
        """
        with torch.no_grad():
            whole = {name: _whole(tensor.detach()) for name, tensor in tensors.items()}
        self._network.load_state_dict(whole, assign=True)
        try:
            yield self._network.requires_grad_(False)
        finally:
            self._network.load_state_dict(self._empty, assign=True)


def hollow_copy(network: nn.Module) -> nn.Module:
    """A copy in evaluation mode whose parameters are empty, for others' tensors."""
    assert not list(network.buffers()), "buffers would have to be lent too"
    with torch.no_grad():
        memo = {id(p): nn.Parameter(p.to("meta"), False) for p in network.parameters()}
    return copy.deepcopy(network, memo).eval()


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
