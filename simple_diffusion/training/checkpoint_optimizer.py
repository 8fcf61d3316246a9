"""Optimiser state as named tensors, sharded like the parameters where these are."""

from collections.abc import Mapping

import torch
from torch import Tensor

from simple_diffusion.training.checkpoint_places import CheckpointError
from simple_diffusion.training.checkpoint_reading import Checkpoint

STEP = "step"  # the one key whose value is no tensor like the parameter


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str]
) -> dict[str, Tensor]:
    """Optimiser state as flat tensors named `<parameter>/<key>`; the tensors are the optimiser's.

    Args:
        optimizer: any that keeps tensors, or numbers, for each parameter.
        names: parameter -> name.
    """
    flat = {}
    for parameter, values in optimizer.state.items():
        for key, value in values.items():
            flat[f"{names[parameter]}/{key}"] = torch.as_tensor(value)
    return flat


def load_optimizer(
    checkpoint: Checkpoint,
    optimizer: torch.optim.Optimizer,
    names: Mapping[Tensor, str],
    group: str = "optimizer",
) -> None:
    """Put back what `optimizer_tensors` gave. Every process calls it.

    The moments are made like their parameters, so that each process reads its shards only.

    Args:
        checkpoint: what was saved.
        optimizer: a fresh one, or one whose state is to be replaced.
        names: parameter -> name.
        group: the checkpoint's group of tensors.

    Raises:
        CheckpointError: the state is of other parameters.
    """
    by_name = {name: parameter for parameter, name in names.items()}
    fused = {
        parameter: bool(options.get("fused") or options.get("capturable"))
        for options in optimizer.param_groups
        for parameter in options["params"]
    }
    made: dict[str, Tensor] = {}
    state: dict[Tensor, dict[str, Tensor]] = {}
    for full, (_, dtype) in checkpoint.shapes(group).items():
        name, _, key = full.rpartition("/")
        parameter = by_name.get(name)
        if parameter is None or parameter not in fused:
            raise CheckpointError(f"{checkpoint.path}: {group} has {full}, of no parameter here")
        if key == STEP:
            # torch's fused kernels count on the device, the others on the CPU
            device = parameter.device if fused[parameter] else torch.device("cpu")
            value = torch.zeros((), dtype=dtype, device=device)
        else:
            value = torch.zeros_like(parameter, dtype=dtype, requires_grad=False)
        made[full] = state.setdefault(parameter, {})[key] = value
    checkpoint.load_into({group: made})
    optimizer.state.clear()
    optimizer.state.update(state)
