"""What the plan of many devices says."""

import re
from dataclasses import replace

import pytest

from simple_diffusion.plan.cluster import ClusterPlan, Terms
from simple_diffusion.plan.cluster_text import cluster_json, cluster_text
from simple_diffusion.plan.layouts import Layout
from tests.plan.test_cluster import CHOSEN, PLAN

AGAIN = replace(
    CHOSEN,
    layout=Layout(64, "fsdp2", 8, (0, 1)),
    training={"weights": 10**9, "activations": 4 * 10**9},
    largest_micro_batch=32,
    compute_seconds=None,
)


def lines_of(plan: ClusterPlan, hours: float | None = None) -> str:
    return cluster_text(plan, hours)


def test_the_answers_come_first() -> None:
    text = lines_of(replace(PLAN, layouts=(CHOSEN, AGAIN)))
    for line in (
        r"^plan of runs/test on 64 x H100 SXM\n\n",
        r"\nfits +yes +DDP, 8 images at once: 70\.00 GB of 76\.00\n",
        r"\ntakes +11\.3 days +1,024 images/s at 40% MFU\n",
        r"\ncosts +43,403 +17,361 device-hours\n",
        r"\n\* DDP +30\.00 +40\.00 +70\.00 +40\.00 +yes +8\n",
        r"\n  FSDP2 by 8, recompute all +1\.00 +4\.00 +5\.00 +40\.00 +yes +32\n",
        r"\n\* DDP +3 T +2 +0\.5 +16 +1,024 +11\.3 +17,361 +43,403\n",
        r"\n  a checkpoint +40 GB +625 MB of host memory for each device",
    ):
        assert re.search(line, text), f"{line!r} not in:\n{text}"


def test_without_a_price_nothing_is_said_of_cost() -> None:
    assert "cost" not in lines_of(replace(PLAN, terms=Terms()))


def test_what_does_not_fit_is_told_what_does() -> None:
    large = replace(CHOSEN, training={"weights": 100 * 10**9, "activations": 0})
    plan = replace(PLAN, layouts=(replace(large, largest_micro_batch=2), AGAIN))
    text = lines_of(plan)
    assert re.search(r"\nfits +NO +DDP, 8 images at once: 100 GB of 76\.00\n", text)
    assert "--train.micro_batch_size=2; FSDP2 by 8, recompute all with" in text
    assert "--train.micro_batch_size=32\n" in text
    nothing = replace(PLAN, layouts=(replace(large, largest_micro_batch=0),))
    assert "nothing in this table" in lines_of(nothing)
    assert re.search(r"no +none\n", lines_of(nothing))


def test_what_is_not_known_is_not_made_up() -> None:
    plan = replace(PLAN, peak_tflops=None, layouts=(replace(CHOSEN, compute_seconds=None),))
    text = lines_of(plan)
    assert "takes" not in text.split("parameters")[0]
    assert "give it with --log.peak_tflops" in text
    assert cluster_json(plan)["layouts"][0]["hours"] is None


def test_a_slow_network_is_named() -> None:
    slow = replace(CHOSEN, traffic=replace(CHOSEN.traffic, seconds=4.0))
    assert "waits for the network" in lines_of(replace(PLAN, layouts=(slow,)))
    assert "waits" not in lines_of(PLAN)


def test_hours_ask_for_a_rate() -> None:
    # 10^9 images in 100 hours, 3 TFLOP each, on 64 devices of 989 TFLOP/s
    assert re.search(r"in 100 hours +2\.78e\+03 images/s +13\.2% MFU", lines_of(PLAN, 100))
    with pytest.raises(ValueError, match="--hours"):
        lines_of(PLAN, 0)
