import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from simple_diffusion.cli.main import main
from tests.trained_run import train_run
from tests.training.runs import ENVIRONMENT


@pytest.fixture(scope="module")
def run(tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_run(tiny_shards, tmp_path_factory.mktemp("evaluate_cli") / "run").path


def evaluate(*words: object) -> int:
    return main(["evaluate", *map(str, words)])


def test_a_run(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--num", 12, "--steps", 2, "--cache", tmp_path, "--metrics", "kid", "recall")
    assert evaluate(run, *options) == 0
    record = json.loads((run / "evaluation.json").read_text())
    assert set(record["figures"]) == {"kid_lite0", "recall_lite0"}
    assert record["samples"]["steps"] == 2
    assert len(record["extractor"]["sha256"]) == 64
    out = capsys.readouterr().out
    assert "kid_lite0" in out
    assert "floor" in out
    assert str(run / "evaluation.json") in out


@pytest.mark.integration
def test_two_processes_find_the_same(run: Path, tmp_path: Path) -> None:
    """In processes of one thread each: other threads add up in another order."""
    options = ["--num", "10", "--steps", "2", "--seed", "7", "--cache", str(tmp_path)]
    words = ["simple_diffusion", "evaluate", str(run), *options]
    launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "--"]
    records = []
    for start in ([], launcher):
        shutil.rmtree(run / "evaluations", ignore_errors=True)
        done = subprocess.run(
            [sys.executable, "-m", *start, *words],
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("kid_lite0") == 1  # the main process alone reports
        records.append(json.loads((run / "evaluation.json").read_text()))
    assert records[0] == records[1]


def test_a_shard_set(tiny_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "record.json"
    words = ("--size", 16, "--reference", tiny_shards / "validation", "--cache", tmp_path)
    assert evaluate(tiny_shards, *words, "--num", 40, "--out", out) == 0
    record = json.loads(out.read_text())
    assert record["samples"]["num"] == 40
    assert set(record["figures"]) == {"kid_lite0", "fd_lite0"}
    assert str(out) in capsys.readouterr().out


def test_bad_requests(
    run: Path, tiny_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    real = ("--reference", tiny_shards)
    cases = [
        ((run, "--metrics", "kidd"), "kid"),
        ((run, "--extractor", "lite"), "lite0"),
        ((run, "--extractor", "inception", "--extractor_weights", tmp_path / "no.pth"), "no.pth"),
        ((run, "--size", 16), "--size is for images"),
        ((run, "--reference", tmp_path), "manifest"),
        ((run, "--sampler", "ddimm"), "did you mean ddim"),
        ((tiny_shards, "--size", 16), "--reference SHARDS is needed"),
        ((tiny_shards, *real), "--size is needed"),
        ((tiny_shards, *real, "--size", 16, "--steps", 3), "--steps is for runs"),
        ((tmp_path / "nowhere", *real, "--size", 16), "no such folder"),
    ]
    for words, message in cases:
        assert evaluate(*words, "--num", 4) == 2
        error = capsys.readouterr().err
        assert message in error
        assert "Traceback" not in error


def test_help_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        evaluate("--help")
    assert "simple-diffusion evaluate runs/quickstart" in capsys.readouterr().out
