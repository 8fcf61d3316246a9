"""The command line with a hand on the trainer: takes down what it does, and does it harm.

``python -m tests.training.driven train CONFIG ...``; what to do is JSON in the variable DRIVEN:
``log``: a folder, for each step's sample positions, learning rate and whether anything changed;
``nan``: [rank, first image, last image] of steps whose first loss is not finite;
``kill``: [rank, image] before which a process gets SIGKILL;
``term``: [rank, phase] of the evaluator ("validate", "draw") in which one gets SIGTERM;
``hang``: [rank, image] before which a process waits for its data for ever.
"""

import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from data_pipelines.dataset import Batch
from simple_diffusion.cli.main import main
from simple_diffusion.training import assemble as assembly
from simple_diffusion.training.trainer import Trainer

GIVEN: dict[str, Any] = json.loads(os.environ["DRIVEN"])
RANK = int(os.environ.get("RANK", "0"))


def digest(trainer: Trainer) -> str:
    """Of everything that a step may change, as this process has it."""
    found = hashlib.sha256()
    state = trainer.state
    for group in state.groups().values():
        for name, tensor in sorted(group.items()):
            local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
            found.update(name.encode() + local.detach().contiguous().numpy().tobytes())
    found.update(json.dumps(state.ema.state()).encode())
    return found.hexdigest()


def watch_steps(trainer: Trainer, log: Path) -> None:
    step = trainer.stepper.step
    log.mkdir(exist_ok=True)

    def watched(images: Any, number: int, images_seen: int) -> Any:
        before = digest(trainer)
        result = step(images, number, images_seen)
        line = {
            "images_seen": images_seen,
            "positions": images.positions.tolist(),
            "keys": images.keys,
            "lr": trainer.stepper.optimizer.param_groups[0]["lr"],
            "changed": digest(trainer) != before,
            "gradients": any(p.grad is not None for p in trainer.state.network.parameters()),
        }
        with (log / f"{RANK}.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        return result

    trainer.stepper.step = watched  # type: ignore[method-assign]


def spoil_losses(trainer: Trainer, first: int, last: int) -> None:
    objective = trainer.stepper.objective

    def spoilt(*arguments: Any) -> Any:
        losses = objective(*arguments)
        if first <= trainer.images_seen <= last:
            factor = torch.ones_like(losses.loss)
            factor[0] = torch.nan
            losses = type(losses)(losses.loss * factor, losses.terms)
        return losses

    trainer.stepper.objective = spoilt


def harm_before(trainer: Trainer, image: int, harm: Callable[[], None]) -> None:
    loader = trainer.loader

    def harmed(images_seen: int) -> Iterator[Batch]:
        for number, batch in enumerate(loader(images_seen)):
            if images_seen + number * trainer.batch_size >= image:
                harm()
            yield batch

    trainer.loader = harmed


def term_in(trainer: Trainer, phase: str) -> None:
    evaluate = getattr(trainer.evaluator, phase)

    def interrupted(*args: Any) -> None:
        if trainer.images_seen:
            os.kill(os.getpid(), signal.SIGTERM)
        evaluate(*args)

    object.__setattr__(trainer.evaluator, phase, interrupted)


def driven_assemble(config: Any) -> Trainer:
    trainer = original(config)
    if "log" in GIVEN:
        watch_steps(trainer, Path(GIVEN["log"]))
    for what, value in GIVEN.items():
        if what == "log" or value[0] != RANK:
            continue
        if what == "nan":
            spoil_losses(trainer, *value[1:])
        elif what == "term":
            term_in(trainer, value[1])
        else:
            harms = {
                "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
                "hang": lambda: time.sleep(1000),
            }
            harm_before(trainer, value[1], harms[what])
    return trainer


if __name__ == "__main__":
    original = assembly.assemble
    assembly.assemble = driven_assemble
    sys.exit(main(sys.argv[1:]))
