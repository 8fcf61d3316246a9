"""A trained run opened for reading: its config, weights and data facts. Nothing is changed."""

import difflib
import re
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from simple_diffusion.config import RunConfig, build_network
from simple_diffusion.models.attention import check_backend
from simple_diffusion.models.uvit import UViT
from simple_diffusion.training.data_facts import DataFacts
from simple_diffusion.training.ema import ema_name
from simple_diffusion.training.posthoc import posthoc_root
from simple_diffusion.training.run_folder import RunError, checkpoint_root, read_run_config
from simple_diffusion.training.state import (
    Checkpoint,
    CheckpointError,
    CheckpointStore,
    find_checkpoint,
)

OPTIMIZER = "optimizer"  # the one group of tensors in a checkpoint that is no network
REBUILT = r"ema_0\.\d{3}"  # names of averages, the only ones that are looked for elsewhere


@dataclass(frozen=True)
class SavedRun:
    """One set of weights of a run.

    Attributes:
        path: the run's folder.
        config: what the run was made with.
        checkpoint: where the weights come from.
        weights: which of its weights: ``model``, or an average such as ``ema_0.050``.
        data: what the run remembers of its training set.
        images_seen: images seen in training by then.
    """

    path: Path
    config: RunConfig
    checkpoint: Checkpoint
    weights: str
    data: DataFacts
    images_seen: int

    def state_dict(self) -> dict[str, Tensor]:
        """The weights, on the CPU."""
        return self.checkpoint.tensors(self.weights)

    def load_into(self, network: nn.Module) -> None:
        """Give a network these weights, every one of them.

        Raises:
            CheckpointError: they are of another network.
        """
        try:
            network.load_state_dict(self.state_dict())
        except RuntimeError as error:
            raise CheckpointError(
                f"{self.checkpoint.path}: {self.weights} does not fit {self.path}'s config: {error}"
            ) from None

    def network(self, device: torch.device) -> UViT:
        """The network with these weights, for inference.

        Raises:
            ValueError: its attention backend cannot run there.
        """
        check_backend(self.config.model.attention, device)
        network = build_network(self.config.model, self.config.data.image_size)
        self.load_into(network)
        return network.to(device).eval().requires_grad_(False)


def open_run(run_dir: Path, weights: str | None = None, images_seen: int | None = None) -> SavedRun:
    """Open a run, which may still be training.

    Args:
        run_dir: the run's folder.
        weights: ``model`` or an average, one rebuilt after training (`posthoc`) too; None for the
            first average, which drew the grids.
        images_seen: the checkpoint to take; None for the newest that is whole.

    Raises:
        RunError: no run, or no such weights in it.
        CheckpointError: no such checkpoint, or a damaged one.
    """
    config = read_run_config(run_dir)
    # The folder may have been moved since; what was put elsewhere is still there.
    config_here = replace(config, run_dir=str(run_dir))
    name = ema_name(config.ema.lengths[0]) if weights is None else weights
    checkpoint = _find(config_here, name, images_seen)
    try:
        seen, facts = checkpoint.state["images_seen"], checkpoint.state["data"]
        data = DataFacts.from_state(facts)
    except (KeyError, AttributeError, ValueError) as error:
        raise CheckpointError(
            f"{checkpoint.path}: its state does not say what it was trained on: {error}; was it "
            "written by another version of simple_diffusion?"
        ) from None
    if not isinstance(seen, int):
        raise CheckpointError(f"{checkpoint.path}: images_seen must be a number, not {seen!r}")
    return SavedRun(run_dir, config, checkpoint, name, data, seen)


def _find(config: RunConfig, name: str, images_seen: int | None) -> Checkpoint:
    """A checkpoint with these weights: one of training, or where there is none, a rebuilt one."""
    rebuilt = posthoc_root(config, name) if re.fullmatch(REBUILT, name) else None
    if rebuilt is not None and not CheckpointStore(rebuilt).exists():
        rebuilt = None
    tracked = name in map(ema_name, config.ema.lengths)
    if rebuilt is not None and not tracked:
        return find_checkpoint(rebuilt, images_seen)
    try:
        checkpoint = find_checkpoint(checkpoint_root(config), images_seen)
    except CheckpointError:
        if rebuilt is None:
            raise
        return find_checkpoint(rebuilt, images_seen)
    there = sorted(group for group in checkpoint.groups() if group != OPTIMIZER)
    if name in there:
        return checkpoint
    close = difflib.get_close_matches(name, there, 1)
    hint = f"did you mean {close[0]}? " if close else ""
    if re.fullmatch(REBUILT, name):
        remedy = f"simple-diffusion ema {config.run_dir} --length {name.removeprefix('ema_')}"
        hint += f"`{remedy}` would rebuild it, if the run kept snapshots. "
    raise RunError(f"{checkpoint.path}: no weights {name!r}; {hint}It has {', '.join(there)}")
