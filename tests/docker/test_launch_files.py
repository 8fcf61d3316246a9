"""The files that start training on clusters, as far as they can be checked without one."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import launch_command_parser

ROOT = Path(__file__).resolve().parents[2]
DOCKER = ROOT / "docker"


class TestSlurmScript:
    SCRIPT = DOCKER / "slurm_train.sh"

    def test_syntax(self) -> None:
        subprocess.run(["bash", "-n", str(self.SCRIPT)], check=True)

    @pytest.mark.skipif(shutil.which("shellcheck") is None, reason="no shellcheck")
    def test_shellcheck(self) -> None:
        found = subprocess.run(
            ["shellcheck", str(self.SCRIPT)], capture_output=True, text=True, check=False
        )
        assert found.returncode == 0, found.stdout

    def test_outside_slurm(self) -> None:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")}
        ended = subprocess.run(
            ["bash", str(self.SCRIPT), "configs/quickstart.yaml"],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode != 0
        assert "submit it: sbatch" in ended.stderr

    @pytest.mark.parametrize(("tasks", "refused"), [("1", True), ("8", False)])
    def test_each_gpu_has_a_task(self, tmp_path: Path, tasks: str, refused: bool) -> None:
        """With an srun that only says what it was told to start, and with what."""
        gpus = {"SLURM_GPUS_ON_NODE": "8", "SLURM_NTASKS_PER_NODE": tasks}
        ended = self.run(tmp_path, srun='echo "srun $@, port $MASTER_PORT"', variables=gpus)
        if refused:
            assert (ended.returncode, ended.stdout) == (2, "")
            assert "sbatch --ntasks-per-node=8" in ended.stderr
        else:
            assert ended.returncode == 0, ended.stderr
            assert "-m simple_diffusion train some.yaml --seed=1, port 1" in ended.stdout

    @pytest.mark.parametrize(
        ("state", "requeued"),
        [("RUNNING", True), ("SIGNALING", True), ("COMPLETING", False), ("REQUEUED", False)],
    )
    def test_requeues_itself_while_it_runs(
        self, tmp_path: Path, state: str, requeued: bool
    ) -> None:
        """SIGNALING lasts a moment after a warning; a fast task ends within it."""
        facts = f"JobId=7 JobState={state} Reason=None PreemptTime=2026-01-01T00:00:00 "
        scontrol = f'case $1 in show) echo "{facts}" ;; requeue) echo "again: $2" ;; esac'
        ended = self.run(tmp_path, srun="exit 75", scontrol=scontrol)
        if requeued:
            assert ended.returncode == 0, ended.stderr
            assert ended.stdout == "requeue after preemption (exit code 75)\nagain: 7\n"
        else:
            assert (ended.returncode, ended.stdout) == (75, "")

    def run(
        self, folder: Path, variables: Mapping[str, str] | None = None, **programs: str
    ) -> "subprocess.CompletedProcess[str]":
        """The script in job 7, with programs of Slurm that are a line of shell each."""
        for name, line in programs.items():
            (folder / name).write_text(f"#!/bin/sh\n{line}\n")
            (folder / name).chmod(0o755)
        path = f"{folder}:{os.environ['PATH']}"
        return subprocess.run(
            ["bash", str(self.SCRIPT), "some.yaml", "--seed=1"],
            env={**os.environ, **(variables or {}), "SLURM_JOB_ID": "7", "PATH": path},
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )


def instructions(text: str) -> list[tuple[str, str]]:
    """Those of a Dockerfile as (name, arguments), continued lines joined."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    pairs = (line.split(maxsplit=1) for line in joined.splitlines())
    return [(name, arguments) for name, arguments in pairs]


class TestDockerfile:
    """It was never built: no Docker where this runs."""

    @pytest.fixture
    def steps(self) -> list[tuple[str, str]]:
        return instructions((DOCKER / "Dockerfile").read_text())

    @pytest.mark.skipif(shutil.which("hadolint") is None, reason="no hadolint")
    def test_hadolint(self) -> None:
        words = ["hadolint", str(DOCKER / "Dockerfile")]
        found = subprocess.run(words, capture_output=True, text=True, check=False)
        assert found.returncode == 0, found.stdout

    def test_instructions(self, steps: list[tuple[str, str]]) -> None:
        known = {"FROM", "ENV", "RUN", "WORKDIR", "COPY", "USER", "ENTRYPOINT", "CMD"}
        assert {name for name, _ in steps} <= known
        assert re.fullmatch(r"python:3\.\d+-slim-\w+", dict(steps)["FROM"])
        assert sys.version_info >= (3, 11)  # what pyproject asks of that Python
        assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", dict(steps)["USER"])
        assert [name for name, _ in steps].index("USER") > max(
            number for number, (name, _) in enumerate(steps) if name in ("RUN", "COPY")
        )

    def test_layers(self, steps: list[tuple[str, str]]) -> None:
        """Dependencies under the constraints come before any source, and no cache stays."""
        installs = [arguments for name, arguments in steps if "pip install" in arguments]
        assert all("--no-cache-dir" in one for one in installs)
        dependencies, project = installs
        assert "--constraint constraints.txt" in dependencies
        assert "--no-deps" in project
        copied = [arguments for name, arguments in steps if name == "COPY"]
        before = steps.index(("COPY", copied[0]))
        assert steps.index(("RUN", dependencies)) == before + 1
        assert copied[0] == "pyproject.toml constraints.txt README.md LICENSE ./"
        extras = re.search(r"'\.\[(.*)\]'", dependencies)
        assert extras is not None
        known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        assert set(extras[1].split(",")) <= set(known["optional-dependencies"])
        for apt in (arguments for _, arguments in steps if "apt-get install" in arguments):
            assert "--no-install-recommends" in apt
            assert "rm -rf /var/lib/apt/lists/*" in apt

    def test_copies_what_is_there_and_not_ignored(self, steps: list[tuple[str, str]]) -> None:
        ignore = (ROOT / ".dockerignore").read_text().splitlines()
        kept = {line[1:] for line in ignore if line.startswith("!")}
        assert "*" in ignore
        sources = {
            source
            for name, arguments in steps
            if name == "COPY"
            for source in arguments.split()[:-1]
        }
        assert sources == kept
        assert all((ROOT / source).exists() for source in sources)
        packages = tomllib.loads((ROOT / "pyproject.toml").read_text())
        wanted = packages["tool"]["setuptools"]["packages"]["find"]["include"]
        assert {name.rstrip("*") for name in wanted} <= sources


class TestAccelerate:
    @pytest.mark.parametrize(("gpus", "nodes"), [(1, 1), (8, 1), (64, 8)])
    def test_configs(self, gpus: int, nodes: int) -> None:
        path = ROOT / "configs" / "launch" / f"{gpus}_gpu.yaml"
        config = load_config_from_file(str(path))
        assert isinstance(config, ClusterConfig)
        assert (config.num_processes, config.num_machines) == (gpus, nodes)
        # the only type with which accelerate starts several processes on GPUs by torch's launcher,
        # and without its own sharding, which is not used here
        kind = "NO" if gpus == 1 else "MULTI_GPU"
        assert str(config.distributed_type).rpartition(".")[2] == kind
        assert (config.use_cpu, config.fsdp_config, config.deepspeed_config) == (False, {}, {})

    @pytest.mark.parametrize("gpus", [1, 8, 64])
    def test_their_commands_parse(self, gpus: int) -> None:
        path = ROOT / "configs" / "launch" / f"{gpus}_gpu.yaml"
        comment = "".join(re.findall(r"^# *(.*)$", path.read_text(), re.MULTILINE))
        found = re.search(r"accelerate launch (.*?train CONFIG)", comment.replace("\\", " "))
        assert found is not None
        words = found[1].replace("machine_rank N", "machine_rank 7").split()
        parsed = launch_command_parser().parse_args(words)
        assert ROOT / parsed.config_file == path
        assert parsed.module
        assert [parsed.training_script, *parsed.training_script_args] == [
            "simple_diffusion",
            "train",
            "CONFIG",
        ]
