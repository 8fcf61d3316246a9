"""The processes of one launch, and what one that works alone knows of the others."""

import os

import torch
from accelerate import PartialState


def start_processes() -> PartialState:
    """This process's place among those that the launcher started.

    Raises:
        ValueError: the launcher started several processes that do not see each other.
    """
    state = PartialState(cpu=not torch.cuda.is_available())
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if state.num_processes != launched:
        raise ValueError(
            f"the launcher started {launched} processes, but {state.num_processes} work together; "
            "launch with: torchrun --nproc_per_node N -m -- simple_diffusion evaluate ..."
        )
    return state
