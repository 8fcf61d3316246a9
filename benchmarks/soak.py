"""A run that is preempted again and again, beside the same run left alone.

    python -m benchmarks.soak --data data/icons_64 --preemptions 12

Starts a real Slurm with two nodes on this machine (root; `apt-get install slurm-wlm munge`), and in
it `docker/slurm_train.sh` with a process on each node, twice: once undisturbed, once with jobs of
higher priority taking the nodes at random moments: while it trains, saves, evaluates and starts.
Then it demands that both runs left the same: metrics but for clocks, and every tensor of the last
checkpoint bit for bit; that no checkpoint is half-written; and that no process is left. Exit code 1
if any of that fails. Further arguments override the config: --section.key=value.
"""

import argparse
import json
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from simple_diffusion.training.state import open_checkpoint
from tests.slurm import slurm_cluster, why_not
from tests.slurm_job import ROOT, TrainingJob
from tests.training.runs import last_tensors, metrics

GRACE_SECONDS = 20.0  # the GraceTime of the partition, tests/slurm.py
AIMS = ("save", "evaluate", "train", "save", "evaluate", "train", "start")
SECONDS = "seconds"  # file with the wall time of a run that has ended
# Short, with much of the time spent saving and evaluating; and fp32, as many CPUs have no bf16.
SHORT = (
    "--train.precision=fp32",
    "--sampling.precision=fp32",
    "--train.total_images=2400",
    "--checkpoint.every_images=160",
    "--validation.every_images=320",
    "--validation.images=32",
    "--validation.batch_size=16",
    "--validation.logsnr=[-4,0,4]",
    "--validation.wiener_images=64",
    "--grids.every_images=320",
    "--grids.final_num=16",
    "--sampling.steps=8",
    "--scores.num=0",
    "--log.every_images=80",
    f"--checkpoint.grace_seconds={GRACE_SECONDS:g}",
)


@dataclass
class Soak:
    """A run in the queue, and what it is known to be doing."""

    folder: Path
    job: TrainingJob
    started: float

    def phases(self) -> list[dict[str, Any]]:
        """What rank 0 has taken down so far."""
        path = self.folder / "phases.jsonl"
        text = path.read_text() if path.exists() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line[-1] == "\n"]

    def starts(self) -> int:
        """How often rank 0 has been started."""
        return sum(line["phase"] == "start" for line in self.phases())

    def wait_for(self, condition: Callable[..., bool], seconds: float = 600) -> bool:
        """Until the newest phase is so; False if the job has ended."""
        deadline, asked = time.monotonic() + seconds, time.monotonic()
        while time.monotonic() < deadline:
            lines = self.phases()
            if lines and condition(lines[-1]):
                return True
            if time.monotonic() - asked > 2:  # seldom: asking takes the CPU from training
                asked = time.monotonic()
                if self.job.ended():
                    return False
            time.sleep(0.05)
        raise TimeoutError(f"{self.phases()[-3:]}\n{self.job.output[-3000:]}")


def submit(
    work: Path, name: str, words: list[str], slurm: dict[str, str], slow_save: float
) -> Soak:
    """Queue the run called `name`, in a folder of its own."""
    folder = work / name
    folder.mkdir()
    python = folder / "python"  # called as: python -m simple_diffusion train ...
    python.write_text(
        f'#!/bin/sh\nshift 2\nexec "{sys.executable}" -m benchmarks.soak_phases "$@"\n'
    )
    python.chmod(0o755)
    environment = {
        **slurm,
        "PYTHON": str(python),
        "PHASES": str(folder / "phases.jsonl"),
        "SLOW_SAVE": str(slow_save),
    }
    config, *overrides = words
    overrides.append(f"--run_dir={folder / 'run'}")
    job = TrainingJob(folder, Path(config).resolve(), *overrides, environment=environment)
    return Soak(folder, job, time.time())


def disturb(soak: Soak, preemptions: int, total: int, dice: random.Random) -> None:
    """Preempt a run so often, at random places of its course, aiming at each phase in turn."""
    places = sorted(dice.uniform(0.02, 0.9) * total for _ in range(preemptions))
    for number, place in enumerate(places):
        aim = AIMS[number % len(AIMS)]
        seen = len(soak.phases())
        if aim == "start":
            # Into its imports and first messages, some of it before it can handle signals.
            there = soak.wait_for(lambda line: line["phase"] == "start")
            time.sleep(dice.uniform(0, 8))
        else:
            # Any line since: a phase may be over before it is looked for.
            there = soak.wait_for(
                lambda line, at=place, aim=aim, seen=seen: any(
                    one["images"] >= at and one["phase"] == aim for one in soak.phases()[seen:]
                )
            )
            if aim == "train":
                time.sleep(dice.uniform(0, 2))
        if not there:
            return
        starts = soak.starts()
        soak.job.preempt()
        print(f"{number + 1}/{preemptions}: aimed at {aim}, image {soak.phases()[-1]['images']}")
        if not soak.wait_for(lambda line, before=starts: soak.starts() > before):
            return


def faults(alone: Path, broken: Path, work: Path) -> list[str]:
    """What is wrong with the disturbed run, one line each."""
    found = []
    ours, theirs = metrics(broken), metrics(alone)
    if ours != theirs:
        differ = [(a, b) for a, b in zip(ours, theirs, strict=False) if a != b]
        found.append(f"metrics: {len(ours)} lines, {len(theirs)} expected; differ: {differ[:2]}")
    mine, expected = last_tensors(broken), last_tensors(alone)
    if mine.keys() != expected.keys():
        found.append("the last checkpoints hold other tensors")
    else:
        other = [name for name in mine if not torch.equal(mine[name], expected[name])]
        found += (
            [f"{len(other)} of {len(mine)} tensors differ, such as {other[0]}"] if other else []
        )
    for path in sorted((broken / "checkpoints").iterdir()):
        if not path.name.isdigit():
            found.append(f"left over: {path.name}")
            continue
        checkpoint = open_checkpoint(path)  # raises unless it is whole
        for group in checkpoint.groups():
            checkpoint.tensors(group)
    for process in psutil.process_iter(["cmdline"]):
        if any(str(work) in word and "run_dir" in word for word in process.info["cmdline"] or ()):
            found.append(f"process {process.pid} is left")
    return found


def report(broken: Soak, seconds: dict[str, float], asked: int) -> str:
    """The figures, as Markdown."""
    lines = broken.phases()
    signals = [number for number, line in enumerate(lines) if line["phase"] == "signal"]
    restarts = int(broken.job.facts().get("Restarts", "0"))
    where = [lines[n]["at"] for n in signals]
    counts = {phase: where.count(phase) for phase in ("train", "save", "evaluate")}
    counts["start"] = restarts - len(signals)
    writing = sum(bool(lines[n]["writing"]) for n in signals)
    told = [json.loads(t) for t in (broken.folder / "run/metrics.jsonl").read_text().splitlines()]
    stops = [line["seconds"] for line in told if line["kind"] == "stop"]
    away, redone = [], 0
    for number in signals:
        phases = [line["phase"] for line in lines]
        again = phases.index("start", number) if "start" in phases[number:] else len(lines)
        later = [line for line in lines[again:] if line["phase"] == "train"]
        away += [later[0]["time"] - lines[number]["time"]] if later else []
        redone += max(0, lines[number]["images"] - later[0]["images"]) if later else 0
    lost = (seconds["broken"] - seconds["alone"]) / max(1, restarts)
    rows = [
        ("preemptions asked for / restarts", f"{asked} / {restarts}"),
        ("signal came in", ", ".join(f"{phase} {n}" for phase, n in counts.items())),
        ("a checkpoint was being written when it came", str(writing)),
        ("images trained on twice", str(redone)),
        (
            "wall time undisturbed / disturbed",
            f"{seconds['alone']:.0f} / {seconds['broken']:.0f} s",
        ),
        ("wall time lost per preemption", f"{lost:.1f} s"),
        (
            "from the signal until training again, median / longest",
            f"{statistics.median(away):.1f} / {max(away):.1f} s",
        ),
        (
            "from the signal to the end of saving, median / longest",
            f"{statistics.median(stops):.2f} / {max(stops):.2f} s, of {GRACE_SECONDS:g} s",
        ),
    ]
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def run(arguments: argparse.Namespace, overrides: list[str], work: Path) -> int:
    """Both runs in one cluster; returns the exit code."""
    words = [arguments.config, f"--data.path={arguments.data.resolve()}", *SHORT, *overrides]
    total = [word for word in words if word.startswith("--train.total_images=")][-1]
    images = int(total.partition("=")[2].replace("_", ""))
    seconds: dict[str, float] = {}
    before = work / "alone" / SECONDS
    if before.exists():
        seconds["alone"] = float(before.read_text())
    cluster = Path(tempfile.mkdtemp(prefix="slurm-", dir=work))
    cluster.chmod(0o755)
    with slurm_cluster(cluster) as slurm:
        for name in ("alone", "broken"):
            if name in seconds:
                continue
            soak = submit(work, name, words, slurm, arguments.slow_save)
            try:
                if name == "broken":
                    disturb(soak, arguments.preemptions, images, random.Random(arguments.seed))
                facts = soak.job.wait(3600)
            except BaseException:
                soak.job.cancel()  # no process may outlive the cluster
                raise
            seconds[name] = time.time() - soak.started
            print(f"{name}: {facts.get('JobState')} after {seconds[name]:.0f} s")
            if facts.get("JobState") != "COMPLETED":
                print(soak.job.output[-5000:])
                return 1
            (soak.folder / SECONDS).write_text(str(seconds[name]))
    wrong = faults(work / "alone" / "run", work / "broken" / "run", work)
    print(report(soak, seconds, arguments.preemptions))
    print("\n".join(f"FAULT: {one}" for one in wrong) or "the same as the undisturbed run")
    return 1 if wrong else 0


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Preempt a two-node run in a real Slurm many times; compare it with one that "
        "was left alone.",
        epilog="Further arguments override the config: --section.key=value.",
    )
    parser.add_argument("--config", default=str(ROOT / "configs" / "quickstart.yaml"))
    parser.add_argument("--data", type=Path, default=ROOT / "data" / "icons_64")
    parser.add_argument("--preemptions", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument(
        "--slow_save",
        type=float,
        default=2.0,
        help="seconds by which the disk is slower than it is: a small checkpoint is else written "
        "before a preemption can hit it (default 2)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="keep everything in this folder; an undisturbed run that it holds is used again",
    )
    arguments, overrides = parser.parse_known_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # cleaning up on the way
    if (reason := why_not()) is not None:
        parser.error(reason)
    if arguments.out is not None:
        arguments.out.mkdir(parents=True, exist_ok=True)
        return run(arguments, overrides, arguments.out.resolve())
    with tempfile.TemporaryDirectory() as work:
        return run(arguments, overrides, Path(work))


if __name__ == "__main__":
    sys.exit(main())
