"""The command line with a hand on the trainer: takes down what it does, and does it harm.

What `drive` is told to do:
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
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from data_pipelines.dataset import Batch
from simple_diffusion.cli.main import main
from simple_diffusion.training import assemble as assembly
from simple_diffusion.training.trainer import Trainer
from tests.processes import print_to


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


def watch_steps(trainer: Trainer, log: Path, rank: int) -> None:
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
        with (log / f"{rank}.jsonl").open("a") as file:
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


def take_in_hand(trainer: Trainer, given: Mapping[str, Any], rank: int) -> None:
    # drawing the report takes longer than a run of a few images
    object.__setattr__(trainer.evaluator, "_report", lambda: None)
    if "log" in given:
        watch_steps(trainer, Path(given["log"]), rank)
    for what, value in given.items():
        if what == "log" or value[0] != rank:
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


def drive(
    words: list[str], environment: Mapping[str, str], output: Path, given: Mapping[str, Any]
) -> None:
    """`simple-diffusion WORDS` in this process, which is forked: nothing here is undone.

    Args:
        words: of the command line.
        environment: variables; among them RANK, where there are several processes.
        output: a file for what it prints.
        given: what to do with the trainer.
    """
    print_to(output)
    os.environ.update(environment)
    torch.set_num_threads(1)
    rank = int(environment.get("RANK", "0"))
    original = assembly.assemble

    def assemble(config: Any) -> Trainer:
        trainer = original(config)
        take_in_hand(trainer, given, rank)
        return trainer

    assembly.assemble = assemble
    sys.exit(main(words))
