"""What a training step of each few-step objective costs, over one of plain denoising.

    OMP_NUM_THREADS=1 python -m benchmarks.few_step_cost --data data/icons_64

The quickstart's network, batch and optimiser. One process for each objective, all alive, which take
turns of a few steps: what else happens on the machine then happens to all. Time is the processor's;
memory is the growth of the resident set from after the imports to its peak.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

ARMS = {
    "plain": ("quickstart", ("--sampling.guidance=1",)),
    "shortcut": ("shortcut_icons_64", ()),
    "shortcut, guidance 2": (
        "shortcut_icons_64",
        ("--few_step.guidance=2", "--sampling.guidance=2"),
    ),
    "consistency": ("consistency_icons_64", ()),
    "consistency, pairs": (
        "shortcut_icons_64",
        ("--few_step={type: discrete_consistency, share: 0.25}",),
    ),
    "meanflow": ("meanflow_icons_64", ()),
}
CHILD = """
import json, sys, time
from pathlib import Path

def status(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))

from simple_diffusion.config_files import load_config
from simple_diffusion.training.assemble import assemble
before = status("VmRSS:")
trainer = assemble(load_config(Path(sys.argv[1]), sys.argv[2:]))
batches = iter(trainer.loader(0))
print("ready", flush=True)
for line in sys.stdin:
    for _ in range(int(line)):
        batch = next(batches)
        begun = time.process_time()
        trainer.stepper.step(batch, trainer.state.step + 1, trainer.state.images_seen)
        print(json.dumps(time.process_time() - begun), flush=True)
        trainer.state.step += 1
        trainer.state.images_seen += trainer.batch_size
print(json.dumps(status("VmHWM:") - before), flush=True)
"""


@contextmanager
def started(config: str, overrides: Sequence[str], folder: Path) -> Iterator[Any]:
    """A process that does steps when it is asked to."""
    words = [f"configs/{config}.yaml", f"--run_dir={folder}", "--scores.num=0", *overrides]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", CHILD, *words], **pipes) as child:
        assert child.stdout.readline() == "ready\n", f"{config} did not start"
        yield child


def measure(data: Path, rounds: int, each: int) -> dict[str, tuple[float, int]]:
    """(CPU seconds of a step, bytes) of each objective."""
    seconds: dict[str, list[float]] = {name: [] for name in ARMS}
    memory = {}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        children = {
            name: stack.enter_context(
                started(config, [f"--data.path={data}", *overrides], Path(folder) / str(number))
            )
            for number, (name, (config, overrides)) in enumerate(ARMS.items())
        }
        for number in range(rounds + 1):
            for name, child in children.items():
                child.stdin.write(f"{each}\n")
                child.stdin.flush()
                times = [json.loads(child.stdout.readline()) for _ in range(each)]
                if number:  # the first round warms up
                    seconds[name] += times
        for name, child in children.items():
            child.stdin.close()
            memory[name] = json.loads(child.stdout.readline())
    return {name: (statistics.mean(times), memory[name]) for name, times in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Time and memory of training steps: few-step objectives over plain denoising.",
        epilog="example: OMP_NUM_THREADS=1 python -m benchmarks.few_step_cost --data data/icons_64",
    )
    parser.add_argument("--data", type=Path, default=Path("data/icons_64"))
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--each", type=int, default=4, help="steps of a round")
    given = parser.parse_args()
    found = measure(given.data, given.rounds, given.each)
    time, memory = found["plain"]
    print("| objective | s of a step | over plain | MB | over plain |\n|---|---|---|---|---|")
    for name, (seconds, size) in found.items():
        print(
            f"| {name} | {seconds:.3f} | {seconds / time:.2f} "
            f"| {size / 1e6:.0f} | {size / memory:.2f} |"
        )


if __name__ == "__main__":
    main()
