"""The verb `plan`."""

import argparse
import json
from pathlib import Path

import pytest

from simple_diffusion.cli.plan import add_parser
from simple_diffusion.config import ModelConfig, build_network

CONFIG = """\
data: {image_size: 16}
model: {patch_size: 4, channels: [32], blocks: [], depth: 1, head_dim: 16}
train: {batch_size: 8}
validation: {images: 0}
sampling: {batch_size: 4}
"""


@pytest.fixture
def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    return parser


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(CONFIG)
    return path


def run(parser: argparse.ArgumentParser, config: Path, *options: str) -> int:
    words = [word for word in options if "." not in word.partition("=")[0]]
    arguments = parser.parse_args(["plan", str(config), *words])
    assert arguments.takes_overrides
    arguments.overrides = [word for word in options if word not in words]
    code: int = arguments.func(arguments)
    return code


def test_plan_prints_the_overridden_config(
    parser: argparse.ArgumentParser, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = ["--train.total_images=72000", "--data.image_size=32"]
    assert run(parser, config, "--hours=2", *changed) == 0
    printed = capsys.readouterr().out
    assert "10 images/s" in printed
    assert "72,000 images" in printed


def test_plan_of_a_cluster_answers_first(
    parser: argparse.ArgumentParser, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--devices=4xH100", "--price=2.5", "--mfu=0.3"]
    assert run(parser, config, *options, "--log.peak_tflops=0.001") == 0
    title, _, fits, takes, costs, *rest = capsys.readouterr().out.splitlines()
    assert title == "plan of runs/run on 4 x H100 SXM"
    assert fits.split()[:5] == ["fits", "yes", "DDP,", "2", "images"]
    assert takes.startswith("takes ")
    assert "images/s at 30% MFU" in takes
    assert costs.startswith("costs ")
    assert any(line.startswith("* DDP ") for line in rest)
    assert any(line.startswith("  FSDP2, recompute all ") for line in rest)


def test_json_holds_what_follows_from_the_parts(
    parser: argparse.ArgumentParser, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--devices=4xH100", "--price=2.5", "--mfu=0.5", "--json"]
    assert run(parser, config, *options, "--log.peak_tflops=0.001") == 0
    plan = json.loads(capsys.readouterr().out)
    model = ModelConfig(patch_size=4, channels=(32,), blocks=(), depth=1, head_dim=16)
    real = sum(parameter.numel() for parameter in build_network(model, 16).parameters())
    assert sum(plan["parameters"].values()) == real
    assert plan["checkpoint_bytes"] == 4 * real * (3 + 1)
    ddp = plan["layouts"][0]
    assert (ddp["strategy"], ddp["chosen"], ddp["recompute"]) == ("ddp", True, [])
    # slow enough that the network, which takes 2 (n-1)/n of the weights, is no limit
    assert ddp["network_bytes"] == 2 * 3 / 4 * 4 * real
    rate = 4 * 0.5 * 1e9 / plan["step_flops"]
    assert ddp["images_per_second"] == pytest.approx(rate)
    assert ddp["hours"] == pytest.approx(plan["total_images"] / rate / 3600)
    assert ddp["cost"] == pytest.approx(4 * 2.5 * ddp["hours"])
    assert ddp["largest_micro_batch"] == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--devices=4xH9"], "'H9' is not in the table, which has .*H100 SXM"),
        (["--devices=H100"], "give a number and a device, such as 64xH100"),
        (["--devices=0xH100"], "give a number and a device"),
        (["--devices=3xH100"], "train.batch_size 8 is not divisible by 3 devices"),
        (["--devices=2xV100"], "bf16, which V100 .* has no arithmetic for; set --train.precision"),
        (
            ["--devices=8xH100", "--parallel.strategy=fsdp2", "--parallel.shards=3"],
            "parallel.shards 3 does not divide 8 devices",
        ),
        (["--devices=4xH100", "--parallel.recompute=[7]"], "level 7: this network has"),
        (["--devices=4xH100", "--mfu=1.5"], r"--mfu 1.5: .* must lie in \(0, 1\]"),
        (["--devices=4xH100", "--price=-1"], "--price -1.0: give the price"),
        (["--devices=4xH100", "--devices-per-node=0"], "--devices-per-node 0"),
        (["--devices=4xH100", "--network-gbit=0"], "--network-gbit 0.0: must be positive"),
        (["--devices=4xH100", "--json", "--hours=3"], "--hours asks for a line of text"),
        (["--price=2"], "plan for many devices: say which, for example --devices 64xH100"),
        (["--json"], "say which, for example --devices"),
    ],
)
def test_what_cannot_be_planned_is_said(
    parser: argparse.ArgumentParser, config: Path, options: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        run(parser, config, *options)


def test_help_has_an_example(
    parser: argparse.ArgumentParser, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parser.parse_args(["plan", "--help"])
    assert "simple-diffusion plan configs/" in capsys.readouterr().out
