"""The verb `ablate`, with stub jobs."""

import json
import sys
from pathlib import Path

import pytest

from eval.ablate import executors
from simple_diffusion.cli.main import main
from tests.eval.ablate.drive import STUB
from tests.eval.ablate.studies import BASE, write_study


@pytest.fixture
def study(tmp_path: Path, tiny_shards: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study of two schedules with one seed; `behaviour.json` beside it tells the stubs."""
    plan = tmp_path / "behaviour.json"
    plan.write_text("{}")
    monkeypatch.setattr(executors, "COMMAND", (sys.executable, str(STUB), str(plan)))
    monkeypatch.chdir(tmp_path)
    base = {**BASE, "data": {"path": str(tiny_shards), "image_size": 16}}
    schedules = {
        "cosine": {"schedule": {"type": "cosine"}},
        "shifted_8": {"schedule": {"type": "shifted", "reference": 8}},
    }
    return write_study(tmp_path, base=base, axes={"schedule": schedules}, seeds=[0])


def results(folder: Path) -> list[Path]:
    return sorted(folder.glob("runs/ablations/study/cells/*/result.json"))


def test_a_study_runs_and_says_where_to_look(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ablate", str(study)]) == 0
    said = capsys.readouterr().out
    assert "2 cells in 2 runs, 2 of them still to do" in said
    assert "look at runs/ablations/study/report.html" in said
    out = tmp_path / "runs" / "ablations" / "study"
    assert (out / "report.html").is_file()
    assert (out / "report.md").is_file()
    assert len(results(tmp_path)) == 2

    # the study in its folder is the same study
    assert main(["ablate", str(out / "study.yaml")]) == 0
    assert "0 of them still to do" in capsys.readouterr().out


def test_a_dry_run_runs_nothing(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ablate", str(study), "--dry-run", "--rate", "10", "--jobs", "2"]) == 0
    said = capsys.readouterr().out
    assert "schedule=shifted_8" in said
    assert "with 2 at once, by the rate of 10 images/s" in said
    assert not (tmp_path / "runs").exists()


def test_some_cells_and_the_report_alone(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ablate", str(study), "--only", "schedule=cosine", "--out", "here"]) == 0
    assert len(list(Path("here").glob("cells/*/result.json"))) == 1
    assert "look at here/report.html" in capsys.readouterr().out
    report = Path("here/report.html")
    report.unlink()
    assert main(["ablate", str(study), "--report", "--out", "here"]) == 0
    assert report.is_file()
    assert len(list(Path("here").glob("cells/*"))) == 1


def test_a_failed_cell_is_named_with_its_log(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "behaviour.json").write_text(json.dumps({"*": "crash"}))
    assert main(["ablate", str(study), "--jobs", "2"]) == 1
    said = capsys.readouterr().out
    assert said.count("failed: schedule=cosine,seed=0: ValueError: the reason (see runs/") >= 1
    assert "log.txt)" in said
    assert "look at runs/ablations/study/report.html" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--only", "shedule=cosine"], "no axis 'shedule'; did you mean schedule?"),
        (["--report"], "runs/ablations/study: nothing of this study has run there yet"),
        (["--jobs", "0"], "--jobs 0: at least 1"),
        (["--rate", "-1"], "--rate -1.0: images/s, more than 0"),
        (["--optim.lr=3"], "unknown argument --optim; a study's configs are set in its file"),
        (["--slurm.partition=x"], "--slurm.partition: only with --executor slurm"),
        (["--slurm=x"], "unknown argument --slurm"),
    ],
)
def test_mistakes(
    study: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    assert main(["ablate", str(study), *words]) == 2
    assert message in capsys.readouterr().err
    assert not results(tmp_path)
    assert not (tmp_path / "runs").exists()


def test_a_misspelt_axis(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = write_study(tmp_path, axes={"objective.predicton": ["eps", "x0"]})
    assert main(["ablate", str(study), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "axes.objective.predicton" in said
    assert "did you mean objective.prediction?" in said
    assert not (tmp_path / "out").exists()


def test_missing_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = write_study(tmp_path)
    assert main(["ablate", str(study), "--out", str(tmp_path / "out")]) == 2
    assert "nowhere" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_help_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["ablate", "--help"])
    assert "simple-diffusion ablate configs/ablations/" in capsys.readouterr().out
