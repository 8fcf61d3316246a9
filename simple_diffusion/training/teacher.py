"""The network that makes the targets of few-step objectives."""

import copy
from collections.abc import Mapping

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from simple_diffusion.config_cluster import Strategy
from simple_diffusion.models.uvit import UViT
from simple_diffusion.training.parallel import device_mesh, shard_network
from simple_diffusion.training.sampling import in_precision
from simple_diffusion.training.weights import hollow_copy


class TeacherNetwork:
    """A copy of a network, in evaluation mode, that has the weights of an average or its own.

    Plain tensors are shared, and take no memory. Where weights are cut up between processes, the
    copy has pieces of its own, which are filled before every step.

    Args:
        network: what it is a copy of; before its weights are cut up, or its blocks compiled or
            recomputed: those cannot be differentiated forward, and compile anew for each number of
            images.
        accelerator: of the processes.
        strategy: how they share the network.
        shards: processes that share one copy under fsdp2; None for all.
        dtype: of autocast; float32 for none.
    """

    def __init__(
        self,
        network: UViT,
        accelerator: Accelerator,
        *,
        strategy: Strategy,
        shards: int | None,
        dtype: torch.dtype,
    ) -> None:
        self._sharded = strategy == "fsdp2"
        self._network: nn.Module
        if self._sharded:
            mine = copy.deepcopy(network).eval().requires_grad_(False)
            shard_network(mine, device_mesh(accelerator, shards))
            self._network = mine
        else:
            self._network = hollow_copy(network)
        self._pieces: Mapping[str, Tensor] = {}
        self._called = False
        self._call = in_precision(self._network, dtype, accelerator.device)

    @property
    def collective(self) -> bool:
        """Whether every process must call it as often as the others."""
        return self._sharded

    def follow(self, tensors: Mapping[str, Tensor]) -> None:
        """Have these weights from now on, as they change."""
        if self._sharded:
            self._pieces = dict(tensors)
        else:
            self._network.load_state_dict(
                {name: tensor.detach() for name, tensor in tensors.items()}, assign=True
            )
            self._network.requires_grad_(False)

    @torch.no_grad()
    def refresh(self) -> None:
        """Take over what has changed; every process calls it before a step."""
        if not self._sharded:
            return
        assert isinstance(self._network, FSDPModule)
        if self._called:
            # Or it would go on with what it gathered for the step before; and what FSDP notes of
            # each forward pass, a backward pass would clear, which never comes.
            getattr(self._network, "reset_iter_state", self._network.reshard)()
        for name, parameter in self._network.named_parameters():
            piece = self._pieces[name]
            assert isinstance(parameter, DTensor)
            assert isinstance(piece, DTensor)
            parameter.to_local().copy_(piece.to_local())

    def __call__(self, z: Tensor, logsnr: Tensor, *conditions: Tensor | None) -> Tensor:
        """The network's prediction, float32."""
        self._called = True
        return self._call(z, logsnr, *conditions)
