"""The plan of many devices: what follows from its parts, and what fits."""

from dataclasses import replace

import pytest

from simple_diffusion.devices import find_device
from simple_diffusion.plan.cluster import ClusterPlan, LayoutPlan, Terms
from simple_diffusion.plan.layouts import Layout
from simple_diffusion.plan.planner import largest_divisor, make_cluster_plan, parse_devices
from simple_diffusion.plan.traffic import Traffic
from tests.plan.configs import CONV, small_run

H100 = find_device("H100")
assert H100 is not None
CHOSEN = LayoutPlan(
    layout=Layout(64, "ddp", 1, (), chosen=True),
    training={"weights": 30 * 10**9, "activations": 40 * 10**9},
    evaluation={"weights": 30 * 10**9, "activations": 10 * 10**9},
    largest_micro_batch=8,
    step_flops=3 * 10**12,
    traffic=Traffic(16e9, 0.5),
    compute_seconds=2.0,
)
PLAN = ClusterPlan(
    name="runs/test",
    device=H100,
    count=64,
    terms=Terms(price=2.5),
    batch=2048,
    share=32,
    micro_batch=8,
    total_images=10**9,
    peak_tflops=989.0,
    precision="bf16",
    parameters={"transformer": 2 * 10**9},
    forward_flops=10**12,
    step_flops=3 * 10**12,
    checkpoint_bytes=40 * 10**9,
    levels=2,
    layouts=(CHOSEN,),
    compiles=False,
)


def test_time_and_cost_follow_from_a_step() -> None:
    assert PLAN.images_per_second(CHOSEN) == 1024
    hours = 10**9 / 1024 / 3600
    assert PLAN.hours(CHOSEN) == pytest.approx(hours)
    assert PLAN.cost(CHOSEN) == pytest.approx(64 * 2.5 * hours)
    assert replace(PLAN, terms=Terms()).cost(CHOSEN) is None


def test_a_step_takes_as_long_as_what_is_slower() -> None:
    assert not CHOSEN.waits
    slow = replace(CHOSEN, traffic=Traffic(16e9, 4.0))
    assert slow.waits
    assert PLAN.images_per_second(slow) == 512
    unknown = replace(CHOSEN, compute_seconds=None)
    assert unknown.waits is None
    assert PLAN.hours(unknown) is None


def test_what_fits_leaves_a_margin() -> None:
    assert CHOSEN.peak == 70 * 10**9
    assert PLAN.budget == pytest.approx(76e9)
    assert PLAN.fits(CHOSEN)
    evaluation = replace(CHOSEN, evaluation={"weights": 77 * 10**9})
    assert not PLAN.fits(evaluation)
    cpu = parse_devices("8xcpu")[1]
    assert replace(PLAN, device=cpu).fits(CHOSEN) is None


@pytest.mark.parametrize(
    ("text", "count", "name"),
    [("64xH100", 64, "H100 SXM"), (" 8 x A100 40GB ", 8, "A100 SXM 40GB"), ("2Xcpu", 2, "cpu")],
)
def test_devices_as_people_write_them(text: str, count: int, name: str) -> None:
    found, device = parse_devices(text)
    assert (found, device.name) == (count, name)


@pytest.mark.parametrize("budget", [0, 99, 100, 139, 140, 259, 300, 10**6])
@pytest.mark.parametrize("near", [1, 4, 7, 12])
def test_the_largest_divisor_is_that_of_trying_all(near: int, budget: int) -> None:
    def total(size: int) -> int:
        return max(90 + 10 * size, 40 + 20 * size)  # two moments, each linear

    fitting = [n for n in (1, 2, 3, 4, 6, 12) if total(n) <= budget]
    found = largest_divisor(12, near=near, total=total, budget=budget)
    assert found == max(fitting, default=0)
    assert largest_divisor(1, near=1, total=total, budget=100) == 1


def test_a_real_plan_hangs_together() -> None:
    batch = {"batch_size": 32, "micro_batch_size": 4}
    quiet = {"validation": {"images": 0}, "sampling": {"batch_size": 2}}
    config = small_run(CONV, train=batch, parallel={"recompute": (1,)}, **quiet)
    plan = make_cluster_plan(config, *parse_devices("4xH100"))
    assert plan.levels == 2
    assert [one.layout.recompute for one in plan.layouts] == [(), (1,), (0, 1)] * 2
    whole = 4 * sum(plan.parameters.values())
    for one in plan.layouts:
        again = one.layout.recompute
        assert one.layout.chosen == (one.layout.name == "DDP" and again == (1,))
        assert one.largest_micro_batch == 8  # a share
        part = 1 if one.layout.strategy == "ddp" else 4
        for name, copies in (("weights", 1), ("gradients", 1), ("optimiser", 2), ("averages", 1)):
            assert one.training[name] == pytest.approx(copies * whole / part, rel=0.02), name
        assert one.step_flops > plan.step_flops if again else one.step_flops == plan.step_flops
        # what is computed again is at most the forward pass
        assert one.step_flops <= plan.step_flops + plan.forward_flops
    kept, _, recomputed, *_ = (one.training["activations"] for one in plan.layouts)
    assert recomputed < 0.7 * kept
