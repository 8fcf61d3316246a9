"""A build in a real Slurm queue gives the same bytes as one here."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_pipelines.building.build_set import build_set
from data_pipelines.manifest import ShardSetError
from tests.data_pipelines.building.numbered import Numbered, contents
from tests.slurm import slurm_cluster, why_not

ROOT = Path(__file__).resolve().parents[3]
pytestmark = [pytest.mark.cluster, pytest.mark.skipif(why_not() is not None, reason=str(why_not()))]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with slurm_cluster(tmp_path_factory.mktemp("slurm")) as environment:
        before = dict(os.environ)
        os.environ.update(environment, PYTHONPATH=str(ROOT))
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    out = tmp_path_factory.mktemp("reference") / "set"
    build_set(Numbered(), out, shard_samples=8, validation=0.25, progress=False)
    return contents(out)


def build(out: Path, source: Numbered, **options: object) -> None:
    build_set(
        source,
        out,
        shard_samples=8,
        validation=0.25,
        executor="slurm",
        slurm_options={"partition": "low", **options},
        workers=2,
        progress=False,
    )


def until_empty() -> None:
    deadline = time.monotonic() + 60
    while subprocess.run(["squeue", "-h"], capture_output=True, check=True).stdout:
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_two_jobs_give_the_same_bytes(
    cluster: None, reference: dict[str, str], tmp_path: Path
) -> None:
    build(tmp_path / "set", Numbered())
    assert contents(tmp_path / "set") == reference
    assert len(reference) > 10
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_a_killed_driver(cluster: None, reference: dict[str, str], tmp_path: Path) -> None:
    """Its jobs are cancelled by the next one, which goes on from what they finished."""
    out, results = tmp_path / "set", tmp_path / "set.partial" / "results"
    code = (
        "from tests.data_pipelines.building.test_slurm import *; "
        f"build(Path({str(out)!r}), Numbered(pause=0.2))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    deadline = time.monotonic() + 90
    while len(list(results.glob("*.json"))) < 2:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    left = subprocess.run(["squeue", "-h"], capture_output=True, text=True, check=True)
    assert len(left.stdout.splitlines()) == 2
    done = {path: path.stat().st_mtime_ns for path in results.glob("*.json")}
    build_set(Numbered(), out, shard_samples=8, validation=0.25, progress=False)  # here this time
    assert contents(out) == reference
    assert len(done) >= 2
    until_empty()


def test_a_killed_job_is_submitted_again(
    cluster: None,
    reference: dict[str, str],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    build(tmp_path / "set", Numbered(killed=20, kills=(tmp_path, 1), killed_anywhere=True))
    assert contents(tmp_path / "set") == reference
    (message,) = [r.getMessage() for r in caplog.records if "tried again" in r.getMessage()]
    assert "shard shard-00000" in message


def test_a_job_that_dies_again_and_again_stops_the_build(cluster: None, tmp_path: Path) -> None:
    with pytest.raises(ShardSetError, match=r"shard-000000\.tar: job \d+, .* ended without a word"):
        build(tmp_path / "set", Numbered(killed=0, kills=(tmp_path, 9), killed_anywhere=True))
    assert len(list(tmp_path.glob("kill-*"))) == 2
    until_empty()


def test_an_error_in_a_job_is_told(cluster: None, tmp_path: Path) -> None:
    with pytest.raises(ShardSetError, match=r"job \d+: k/030: cannot be read \(Input/output error"):
        build(tmp_path / "set", Numbered(unreadable=30))
    until_empty()


def test_options_that_slurm_does_not_know(cluster: None, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--slurm options: .*slurm_colour"):
        build(tmp_path / "set", Numbered(), colour="red")
    with pytest.raises(ValueError, match="the job was not accepted"):
        build(tmp_path / "set", Numbered(), partition="nowhere")
    with pytest.raises(ValueError, match="cpus_per_task is 0"):
        build(tmp_path / "set", Numbered(), cpus_per_task=0)
