"""Where jobs run: this machine's cores, submitit's queue, and options that are refused."""

import builtins
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from eval.ablate.cells import expand
from eval.ablate.driver import cell_folder, run_cells
from eval.ablate.executors import Elsewhere, LocalExecutor
from eval.ablate.folder import claim_log, read_failure
from eval.ablate.slurm import SlurmExecutor
from eval.ablate.study_file import read_study_file
from tests.eval.ablate.drive import STUB
from tests.eval.ablate.studies import write_study


@pytest.mark.parametrize(("cores", "jobs", "threads"), [(8, 1, 8), (8, 3, 2), (2, 4, 1)])
def test_jobs_share_the_cores(
    monkeypatch: pytest.MonkeyPatch, cores: int, jobs: int, threads: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert LocalExecutor(jobs, ["true"]).environment["OMP_NUM_THREADS"] == str(threads)
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert LocalExecutor(jobs, ["true"]).environment["OMP_NUM_THREADS"] == "5"


def test_a_job_left_over_is_waited_for_until_it_ends_or_we_do(tmp_path: Path) -> None:
    executor = LocalExecutor(1, ["true"])
    assert executor.left_over(tmp_path) is None
    with claim_log(tmp_path):
        job = executor.left_over(tmp_path)
        assert isinstance(job, Elsewhere)
        assert not job.ended()
        other = Elsewhere(tmp_path)
        other.stop()
        assert other.ended()
    assert job.ended()


def test_without_submitit_the_remedy_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "submitit":
            raise ModuleNotFoundError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(
        ValueError, match=r"needs submitit: pip install 'simple-diffusion\[slurm\]'"
    ):
        SlurmExecutor(tmp_path, 1, {}, ["true"])


def test_without_slurm_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="no `srun` here"):
        SlurmExecutor(tmp_path, 1, {}, ["true"])


@pytest.mark.parametrize("options", [{"timeout_min": "soon"}, {"no_such_option": 1}])
def test_slurm_options_that_are_none(tmp_path: Path, options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="--slurm options: ") as error:
        SlurmExecutor(tmp_path, 1, options, ["true"], cluster="local")
    assert next(iter(options)) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_study_through_submitit(tmp_path: Path) -> None:
    """With submitit's own runner of processes in Slurm's place."""
    study = write_study(tmp_path, axes=None, seeds=[0, 1])
    cells = expand(read_study_file(study))
    plan = tmp_path / "behaviour.json"
    plan.write_text(json.dumps({cells[0].id: "crash", cells[1].id: "again"}))
    out = tmp_path / "out"
    executor = SlurmExecutor(
        out, 2, {"cpus_per_task": 3}, [sys.executable, str(STUB), str(plan)], cluster="local"
    )
    assert run_cells(cells, out, executor) is None
    crashed, again = (cell_folder(out, cell.id) for cell in cells)
    failure = read_failure(crashed)
    assert failure is not None
    assert failure.error == "ValueError: the reason"
    assert (again / "result.json").exists()
    lines = (again / "starts").read_text().splitlines()
    assert [line.split()[1] for line in lines] == ["3", "3"]
