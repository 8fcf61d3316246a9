"""`simple-diffusion ema`: averages that were never stored, their losses, and what it refuses."""

import argparse
import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from simple_diffusion.cli.ema import add_parser, lengths_between, lengths_listed
from simple_diffusion.cli.main import main
from simple_diffusion.training.saved_run import open_run
from tests.trained_run import TrainedRun

pytestmark = pytest.mark.integration
Kept = tuple[Path, dict[str, Tensor]]


def ema(*words: str | Path) -> int:
    return main(["ema", *map(str, words)])


def refused(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    """What is said, which is no traceback."""
    try:
        code: object = ema(*words)
    except SystemExit as end:  # argparse
        code = end.code
    said = capsys.readouterr().err
    assert code == 2, said
    assert "Traceback" not in said
    return said


@pytest.fixture
def run(kept: Kept, tmp_path: Path) -> Path:
    """A copy, elsewhere than where it was trained."""
    return shutil.copytree(kept[0], tmp_path / "moved")


def flat(tensors: dict[str, Tensor]) -> Tensor:
    return torch.cat([tensors[name].flatten() for name in sorted(tensors)]).double()


class TestRebuilding:
    def test_a_length_never_stored_is_as_if_tracked(
        self, run: Path, kept: Kept, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Within 1e-3; the ones it was made of are further away than that."""
        assert ema(run, "--length", "0.06,0.075") == 0
        said = capsys.readouterr().out
        assert "ema_0.075 at image 512, from 64 snapshots" in said
        assert "poor fit" not in said
        expected = flat(kept[1])
        rebuilt = open_run(run, "ema_0.075")
        assert rebuilt.images_seen == 512
        assert "posthoc" in str(rebuilt.checkpoint.path)  # there is a tracked one too
        actual = flat(rebuilt.state_dict())
        assert (actual - expected).norm() / expected.norm() < 1e-3
        for stored in ("ema_0.050", "ema_0.100"):
            other = flat(open_run(run, stored).state_dict())
            assert (other - expected).norm() / expected.norm() > 5e-3, stored
        assert (flat(open_run(run, "ema_0.060").state_dict()) - expected).norm() > 1e-3

    def test_it_draws(self, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        words = ["sample", str(run), "--num", "2", "--weights", "ema_0.060"]
        out = tmp_path / "grid.png"
        assert main([*words, "--out", str(out)]) == 2
        assert f"`simple-diffusion ema {run} --length 0.060` would rebuild" in (
            capsys.readouterr().err
        )
        assert ema(run, "--length", "0.06") == 0
        assert main([*words, "--out", str(out)]) == 0
        with Image.open(out) as picture:
            assert picture.size == (32, 16)

    def test_earlier_in_training(self, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert ema(run, "--length", "0.075", "--images", "256") == 0
        assert "ema_0.075 at image 256, from 32 snapshots" in capsys.readouterr().out
        assert open_run(run, "ema_0.075").images_seen == 256

    def test_a_tracked_one_tells_how_to_get_at_it(
        self, run: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert ema(run, "--length", "0.05", "--images", "504") == 0
        assert "--weights ema_0.050 --checkpoint 504" in capsys.readouterr().out
        assert open_run(run, "ema_0.050", 504).images_seen == 504
        assert open_run(run, "ema_0.050").images_seen == 512  # the run's own

    def test_a_poor_fit_is_told(self, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for folder in sorted((run / "snapshots").iterdir())[:-1]:
            shutil.rmtree(folder)
        assert ema(run, "--length", "0.2") == 0
        assert "poor fit" in capsys.readouterr().out


class TestSweeping:
    def test_the_table_the_file_and_the_picture_agree(
        self, run: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert ema(run, "--sweep", "0.05:0.10:3", "--at_once", "2") == 0
        said = capsys.readouterr().out
        found = json.loads((run / "ema_sweep.json").read_text())
        assert [one["weights"] for one in found["measured"]] == [
            "ema_0.050",
            "ema_0.075",
            "ema_0.100",
        ]
        best = min(found["measured"], key=lambda one: one["mean"])
        assert found["best"] == best["weights"]
        assert f"best: {best['weights']}, at image 512, on 16 held-out images" in said
        for one in found["measured"]:
            mark = "  *" if one is best else ""
            assert f" {one['length']:.3f}  {one['mean']:.5f}{mark}\n" in said
        assert ("at the end of the range" in said) == (best["length"] != 0.075)
        with Image.open(run / "ema_sweep.png") as picture:
            assert picture.format == "PNG"


class TestRefusals:
    def test_no_such_run(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        said = refused(capsys, tmp_path / "absent", "--length", "0.05")
        assert str(tmp_path / "absent") in said

    def test_a_run_without_snapshots(
        self, trained: TrainedRun, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for words in (("--length", "0.1"), ("--sweep", "0.05:0.1:2")):
            said = refused(capsys, trained.path, *words)
            assert "no snapshots of the averages" in said or "no held-out images" in said
        assert "set ema.snapshot_images" in refused(capsys, trained.path, "--length", "0.1")

    def test_a_moment_without_snapshot(self, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
        said = refused(capsys, run, "--length", "0.05", "--images", "100")
        assert "no snapshot at image 100" in said
        assert "96, 104" in said

    @pytest.mark.parametrize(
        ("text", "why"),
        [
            ("", "must be lengths"),
            ("abc", "must be lengths"),
            ("0.05,", "must be lengths"),
            ("0.05, 0.1", "must be lengths"),
            ("-0.05", "must be lengths"),
            ("1e-1", "must be lengths"),
            ("nan", "must be lengths"),
            ("0", r"must lie in \(0, 0.28\)"),
            ("0.05,0.3", r"length 0.3 must lie in"),
            ("0.05,0.0501", "first three decimals"),
        ],
    )
    def test_lengths(self, text: str, why: str) -> None:
        with pytest.raises(argparse.ArgumentTypeError, match=why):
            lengths_listed(text)

    @pytest.mark.parametrize(
        ("text", "why"),
        [
            ("0.05", "LO:HI:N"),
            ("0.05:0.1", "LO:HI:N"),
            ("0.05:0.1:0.5", "LO:HI:N"),
            ("0.05:0.1:1000", "LO:HI:N"),
            ("0.1:0.05:3", "LO must be below HI"),
            ("0.05:0.05:3", "LO must be below HI"),
            ("0.05:0.1:1", "at least 2"),
            ("0.1:0.5:3", "must lie in"),
            ("0.05:0.06:100", "first three decimals"),
        ],
    )
    def test_ranges(self, text: str, why: str) -> None:
        with pytest.raises(argparse.ArgumentTypeError, match=why):
            lengths_between(text)

    def test_one_of_both(self, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert "required" in refused(capsys, run)
        both = ("--length", "0.05", "--sweep", "0.05:0.1:2")
        assert "not allowed with" in refused(capsys, run, *both)


def test_ranges_are_even() -> None:
    assert lengths_between("0.03:0.20:3") == pytest.approx((0.03, 0.115, 0.20))
    assert lengths_listed("0.05,.075") == (0.05, 0.075)


def test_help_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser(prog="simple-diffusion")
    add_parser(parser.add_subparsers())
    with pytest.raises(SystemExit):
        parser.parse_args(["ema", "--help"])
    assert "simple-diffusion ema runs/quickstart --length" in capsys.readouterr().out
