"""The plan as a whole, and what it says."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from simple_diffusion.config_files import load_config
from simple_diffusion.plan import Plan, make_plan
from simple_diffusion.plan.live import PARTS
from simple_diffusion.plan.phases import PhaseMemory
from simple_diffusion.plan.plan import yardstick_bound
from tests.plan.configs import VIT, small_run

CONFIGS = Path(__file__).parent.parent.parent / "configs"


def memory(resident: int | None, activations: int) -> PhaseMemory:
    return PhaseMemory(dict.fromkeys(PARTS, 10**6) | {"activations": activations}, resident)


PLAN = Plan(
    name="runs/test",
    parameters={"stem": 250_000, "transformer": 1_000_000},
    forward_flops=2 * 10**9,
    step_flops=59 * 10**8,
    total_images=3_600_000,
    devices=1,
    images=64,
    micro_batch=16,
    memory={
        "training": memory(1_400_000_000, 1_234_000_000),
        "drawing": memory(700_000_000, 500_000_000),
    },
    yardstick=0,
    notes=("Nothing is left out.",),
)


def test_text_holds_the_numbers() -> None:
    text = PLAN.text(hours=10)
    for line in (
        r"parameters +1\.25 M",
        r"  transformer +1 M +80\.0%",
        r"  forward +2 GFLOP",
        r"  training step +5\.9 GFLOP +2\.95 x forward",
        r"64 images, 16 at once",
        r"  weights +1 +1\n",
        r"  activations +1,234 +500\n",
        r"  allocator's holes +160 +194\n",
        r"  total +1,400 +700\n",
        r"peak +1,400\n",
        r"run +3,600,000 images +21\.2 PFLOP",
        r"  in 10 hours +100 images/s +590 GFLOP/s",
        r"Nothing is left out\.$",
    ):
        assert re.search(line, text), f"{line!r} not in:\n{text}"
    assert "hours" not in PLAN.text()


def test_an_unknown_allocator_is_not_hidden() -> None:
    plan = replace(PLAN, memory={"training": memory(None, 9 * 10**6)})
    assert "unknown" in plan.text()
    assert plan.peak == 15 * 10**6


def test_the_peak_is_the_largest_phase_or_the_yardstick() -> None:
    assert PLAN.peak == 1_400_000_000
    # The yardstick comes last, on top of what the process has kept.
    assert replace(PLAN, yardstick=10**9).peak == 1_700_000_000


@pytest.mark.parametrize("hours", [0.0, -1.0, float("nan")])
def test_impossible_times_are_refused(hours: float) -> None:
    with pytest.raises(ValueError, match="--hours"):
        PLAN.text(hours=hours)


def test_what_is_left_out_is_said() -> None:
    # xformers needs a GPU to run, not to be planned.
    model = replace(VIT, depth=1, attention="xformers")
    config = small_run(model, train={"batch_size": 8, "compile": True}, data={"workers": 2})
    text = make_plan(config).text()
    assert "torch.compile" in text
    assert "workers" in text


def test_yardstick_has_its_bound() -> None:
    few = small_run(VIT, validation={"wiener_images": 100})
    assert yardstick_bound(few) == 4 * 4 * 100 * 3 * 16 * 16
    many = small_run(VIT, 512, validation={"wiener_images": 4096})
    assert yardstick_bound(many) == 4 * 10**9
    unused = small_run(VIT, validation={"wiener_images": 100, "images": 0})
    assert yardstick_bound(unused) == 0


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_config_can_be_planned(path: Path) -> None:
    plan = make_plan(load_config(path))
    assert 2.5 < plan.step_flops / plan.forward_flops < 3
    assert plan.peak > 16 * plan.total_parameters
