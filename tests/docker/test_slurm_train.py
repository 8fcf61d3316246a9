"""The Slurm script in a real queue: two nodes, preempted, with a process lost, in error."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from simple_diffusion.training.signals import EXIT_REQUEUE
from tests.slurm import slurm_cluster, why_not
from tests.slurm_job import TrainingJob
from tests.training.runs import last_tensors, metrics

pytestmark = [pytest.mark.cluster, pytest.mark.skipif(why_not() is not None, reason=str(why_not()))]
WriteConfig = Callable[..., Path]
SECONDS = 240.0


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with slurm_cluster(tmp_path_factory.mktemp("slurm")) as environment:
        yield environment | {"PYTHON": sys.executable, "OMP_WAIT_POLICY": "PASSIVE"}


@pytest.fixture
def config(tiny_config: WriteConfig) -> Path:
    """Long enough to be disturbed."""
    return tiny_config(
        train={"total_images": 1600},
        checkpoint={"every_images": 160},
        validation={"every_images": 800},
        grids={"every_images": 800},
        log={"every_images": 80},
    )


@pytest.fixture
def submit(cluster: dict[str, str], tmp_path: Path) -> Iterator[Callable[..., TrainingJob]]:
    jobs: list[TrainingJob] = []

    def submit(config: Path, *overrides: str, options: tuple[str, ...] = (), **more: str) -> Any:
        environment = cluster | more
        job = TrainingJob(tmp_path, config, *overrides, environment=environment, options=options)
        jobs.append(job)
        return job

    yield submit
    for job in jobs:
        if not job.ended():
            job.cancel()


@pytest.fixture(scope="module")
def undisturbed(
    cluster: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Path], Path]:
    """What all others are compared with; run once."""
    folder = tmp_path_factory.mktemp("undisturbed")

    def make(config: Path) -> Path:
        run = folder / "run"
        if not run.exists():
            job = TrainingJob(folder, config, f"--run_dir={run}", environment=cluster)
            facts = job.wait(SECONDS)
            assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "0"), job.output
            assert "done: 1600 images" in job.output
        return run

    return make


@pytest.fixture
def stub(tmp_path: Path) -> Callable[[str], str]:
    """An interpreter that does what a line of shell says instead of training."""

    def write(line: str) -> str:
        path = tmp_path / "stub"
        path.write_text(f"#!/bin/bash\necho start >>{tmp_path}/starts-$RANK\n{line}\n")
        path.chmod(0o755)
        return str(path)

    return write


def until(condition: Callable[[], bool], job: TrainingJob) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, job.output
        assert not job.ended(), job.output
        time.sleep(0.1)


def images_seen(run: Path) -> int:
    path = run / "metrics.jsonl"
    texts = path.read_text().splitlines(keepends=True) if path.exists() else []
    lines = [json.loads(text) for text in texts if text.endswith("\n")]
    return max((line["images_seen"] for line in lines), default=0)


def process_of(job: TrainingJob, rank: int) -> psutil.Process:
    """A process of the job that trains."""
    for process in psutil.process_iter():
        try:
            environment = process.environ()
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        if (environment.get("SLURM_JOB_ID"), environment.get("RANK")) == (job.id, str(rank)):
            return process
    raise LookupError(f"rank {rank} of job {job.id}")


def assert_the_same(run: Path, expected: Path) -> None:
    """Metrics but for clocks, and every tensor of the last checkpoint bit for bit."""
    assert metrics(run) == metrics(expected)
    mine, theirs = last_tensors(run), last_tensors(expected)
    assert mine.keys() == theirs.keys()
    assert [name for name in mine if not torch.equal(mine[name], theirs[name])] == []
    names = [path.name for path in (run / "checkpoints").iterdir()]
    assert all(name.isdigit() for name in names), names


def test_a_preempted_run_goes_on(
    config: Path,
    undisturbed: Callable[[Path], Path],
    submit: Callable[..., TrainingJob],
    tmp_path: Path,
) -> None:
    expected, run = undisturbed(config), tmp_path / "preempted"
    job = submit(config, f"--run_dir={run}", "--data.workers=1", MAX_FAILURES="0")
    until(lambda: images_seen(run) >= 160, job)
    job.preempt()
    facts = job.wait(SECONDS)
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "1"), job.output
    assert "stopped by SIGTERM at image" in job.output
    assert "requeue after preemption (exit code 75)" in job.output
    assert "resuming" in job.output
    assert not (tmp_path / f"slurm-{job.id}.failures").exists()
    assert_the_same(run, expected)


def test_a_lost_process_is_named_and_the_run_goes_on(
    config: Path,
    undisturbed: Callable[[Path], Path],
    submit: Callable[..., TrainingJob],
    tmp_path: Path,
) -> None:
    expected, run = undisturbed(config), tmp_path / "lost"
    job = submit(config, f"--run_dir={run}", MAX_FAILURES="1")
    until(lambda: images_seen(run) >= 160, job)
    os.kill(process_of(job, 1).pid, signal.SIGKILL)
    facts = job.wait(SECONDS)
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "1"), job.output
    assert "rank 1" in job.output
    assert "is gone" in job.output
    assert "requeue after an end that nobody asked for (exit code 137)" in job.output
    assert len((tmp_path / f"slurm-{job.id}.failures").read_text().splitlines()) == 1
    assert_the_same(run, expected)


def test_an_error_of_the_config_is_final(
    config: Path, submit: Callable[..., TrainingJob], tmp_path: Path
) -> None:
    job = submit(config, f"--run_dir={tmp_path / 'wrong'}", "--train.batch_sizes=3")
    facts = job.wait(SECONDS)
    assert (facts["JobState"], facts["ExitCode"], facts["Restarts"]) == ("FAILED", "2:0", "0")
    assert "batch_sizes" in job.output
    assert "requeue" not in job.output


def test_a_crash_loop_ends(
    config: Path, submit: Callable[..., TrainingJob], stub: Callable[[str], str], tmp_path: Path
) -> None:
    """With the code that asks for a restart, but nobody having asked for the end."""
    job = submit(config, PYTHON=stub(f"exit {EXIT_REQUEUE}"), MAX_FAILURES="1")
    facts = job.wait(SECONDS)
    assert (facts["JobState"], facts["ExitCode"]) == ("FAILED", f"{EXIT_REQUEUE}:0"), job.output
    assert (tmp_path / "starts-0").read_text().split() == ["start"] * 2
    assert "2 ends within a day that nobody asked for" in job.output


def test_a_cancelled_job_stays_cancelled(
    config: Path, submit: Callable[..., TrainingJob], stub: Callable[[str], str], tmp_path: Path
) -> None:
    line = f"trap 'exit {EXIT_REQUEUE}' TERM; for i in {{1..2000}}; do sleep 0.1; done"
    job = submit(config, PYTHON=stub(line))
    until(lambda: (tmp_path / "starts-1").exists(), job)
    job.cancel()
    facts = job.facts()
    assert (facts["JobState"], facts["Restarts"]) == ("CANCELLED", "0"), job.output
    assert (tmp_path / "starts-1").read_text().split() == ["start"]


def test_a_run_out_of_time_goes_on(
    config: Path, submit: Callable[..., TrainingJob], stub: Callable[[str], str], tmp_path: Path
) -> None:
    """Slurm's warning reaches every task; only those that had it end so."""
    again = f'[ "$(wc -l <{tmp_path}/starts-$RANK)" = 2 ] && exit 0'
    line = f"{again}; trap 'exit {EXIT_REQUEUE}' USR1; for i in {{1..2000}}; do sleep 0.1; done"
    options = ("--time=1", "--signal=USR1@50")
    job = submit(config, PYTHON=stub(line), options=options, MAX_FAILURES="0")
    facts = job.wait(SECONDS)
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "1"), job.output
    assert "requeue after the time limit (exit code 75)" in job.output
