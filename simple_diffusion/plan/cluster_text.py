"""The plan of a run on many devices, for people and for machines."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from simple_diffusion.plan.cluster import MARGIN, ClusterPlan, LayoutPlan
from simple_diffusion.plan.paper import flop_lines, parameter_lines, row, si, table

UNKNOWN = "?"


def cluster_text(plan: ClusterPlan, hours: float | None = None) -> str:
    """The plan for people; with `hours`, also how fast the run must be.

    Raises:
        ValueError: no positive number of hours.
    """
    blocks = [
        _answer_lines(plan),
        parameter_lines(plan.parameters),
        flop_lines(plan.forward_flops, plan.step_flops),
        _memory_lines(plan),
        _speed_lines(plan),
        _run_lines(plan, hours),
        _notes(plan),
    ]
    title = f"plan of {plan.name} on {plan.count} x {plan.device.name}"
    return f"{title}\n\n" + "\n\n".join("\n".join(block) for block in blocks)


def cluster_json(plan: ClusterPlan) -> dict[str, Any]:
    """The plan as JSON values; bytes are those of one device, times are of a step or the run."""
    return {
        "name": plan.name,
        "device": asdict(plan.device),
        "devices": plan.count,
        "terms": asdict(plan.terms),
        "batch_size": plan.batch,
        "micro_batch_size": plan.micro_batch,
        "total_images": plan.total_images,
        "parameters": plan.parameters,
        "forward_flops": plan.forward_flops,
        "step_flops": plan.step_flops,
        "checkpoint_bytes": plan.checkpoint_bytes,
        "peak_tflops": plan.peak_tflops,
        "layouts": [_layout_json(plan, one) for one in plan.layouts],
    }


def _layout_json(plan: ClusterPlan, one: LayoutPlan) -> dict[str, Any]:
    return {
        "strategy": one.layout.strategy,
        "shards": one.layout.shards,
        "recompute": list(one.layout.recompute),
        "chosen": one.layout.chosen,
        "training_bytes": one.training,
        "evaluation_bytes": one.evaluation,
        "peak_bytes": one.peak,
        "largest_micro_batch": one.largest_micro_batch,
        "step_flops": one.step_flops,
        "network_bytes": one.traffic.bytes,
        "network_seconds": one.traffic.seconds,
        "compute_seconds": one.compute_seconds,
        "images_per_second": plan.images_per_second(one),
        "hours": plan.hours(one),
        "cost": plan.cost(one),
    }


def layout_name(one: LayoutPlan, levels: int) -> str:
    """How the weights are shared, and what is computed again."""
    again = one.layout.recompute
    if not again:
        return one.layout.name
    which = "all" if len(again) == levels else ",".join(map(str, again))
    return f"{one.layout.name}, recompute {which}"


def _names(plan: ClusterPlan) -> list[str]:
    return [
        ("* " if one.layout.chosen else "  ") + layout_name(one, plan.levels)
        for one in plan.layouts
    ]


def _answer_lines(plan: ClusterPlan) -> Iterator[str]:
    """Does it fit, how long does it take, what does it cost: in the config's own way."""
    own, budget = plan.own, plan.budget
    need = f"{layout_name(own, plan.levels)}, {plan.micro_batch} images at once"
    if budget is None:
        yield row("fits", UNKNOWN, f"  {need}: {_gb(own.peak)} GB")
    else:
        sizes = f"{_gb(own.peak)} GB of {_gb(budget)}"
        yield row("fits", "yes" if plan.fits(own) else "NO", f"  {need}: {sizes}")
    if plan.fits(own) is False:
        yield row("  what does", "", f"  {'; '.join(_remedies(plan)) or 'nothing in this table'}")
    hours = plan.hours(own)
    if hours is None:
        return
    yield row("takes", f"{_number(hours / 24)} days", f"  {_rate(plan, own)}")
    cost = plan.cost(own)
    if cost is not None:
        yield row("costs", _number(cost), f"  {_number(hours * plan.count)} device-hours")


def _rate(plan: ClusterPlan, one: LayoutPlan) -> str:
    return f"{_number(plan.images_per_second(one))} images/s at {plan.terms.mfu:.0%} MFU"


def _remedies(plan: ClusterPlan) -> Iterator[str]:
    """What to set so that it fits: fewer images at once, or another way of sharing."""
    for one in plan.layouts:
        if one.largest_micro_batch:
            name = "" if one.layout.chosen else f"{layout_name(one, plan.levels)} with "
            yield f"{name}--train.micro_batch_size={one.largest_micro_batch}"


def _memory_lines(plan: ClusterPlan) -> Iterator[str]:
    batch = f"{plan.share} images"
    if plan.micro_batch < plan.share:
        batch += f", {plan.micro_batch} at once"
    yield f"memory in GB of one device at the peak of a step; {batch}"
    parts = list(plan.layouts[0].training)
    rows = [["", *parts, "peak", "evaluation", "fits", "largest"]]
    for name, one in zip(_names(plan), plan.layouts, strict=True):
        sizes = [_gb(one.training[part]) for part in parts]
        sums = [_gb(sum(each.values())) for each in (one.training, one.evaluation)]
        fits = {None: UNKNOWN, True: "yes", False: "no"}[plan.fits(one)]
        rows.append([name, *sizes, *sums, fits, _count(one.largest_micro_batch)])
    yield from table(rows)
    yield "peak: of a training step; evaluation: of validation and drawing, whichever needs more."
    yield "*: as the config says. largest: images at once that fit, among the divisors of a share."
    if plan.budget is not None:
        yield (
            f"fits: in the {plan.device.memory_gb:g} GB of the device less {MARGIN:.0%} for its "
            "driver, workspaces and holes."
        )


def _speed_lines(plan: ClusterPlan) -> Iterator[str]:
    terms = plan.terms
    if plan.peak_tflops is None:
        yield (
            f"speed: the peak of {plan.device.name} in {plan.precision} is not known; "
            "give it with --log.peak_tflops"
        )
    else:
        yield (
            f"speed at {terms.mfu:.0%} of {plan.peak_tflops:g} TFLOP/s in {plan.precision}; "
            f"{terms.node_gbit_s:g} Gbit/s out of each node of {terms.per_node}"
        )
    titles = ["FLOP/image", "compute s", "network s", "sent GB", "images/s", "days", "device-h"]
    if terms.price is not None:
        titles.append("cost")
    rows = [["", *titles, ""]]
    for name, one in zip(_names(plan), plan.layouts, strict=True):
        hours = plan.hours(one)
        words = [
            si(one.step_flops),
            _number(one.compute_seconds),
            _number(one.traffic.seconds),
            _number(one.traffic.bytes / 1e9),
            _number(plan.images_per_second(one)),
            _number(None if hours is None else hours / 24),
            _number(None if hours is None else hours * plan.count),
        ]
        if terms.price is not None:
            words.append(_number(plan.cost(one)))
        rows.append([name, *words, "waits for the network" if one.waits else ""])
    yield from table(rows)


def _run_lines(plan: ClusterPlan, hours: float | None) -> Iterator[str]:
    work = plan.total_images * plan.step_flops
    yield row("run", f"{plan.total_images:,} images", f"  {si(work, 'FLOP')}")
    own = f"  {si(plan.checkpoint_bytes / plan.count, 'B')} of host memory for each device"
    yield row("  a checkpoint", si(plan.checkpoint_bytes, "B"), own)
    if hours is None:
        return
    if not hours > 0:
        raise ValueError(f"--hours {hours}: give the time of the run, more than 0")
    rate = plan.total_images / (3600 * hours)
    share = ""
    if plan.peak_tflops is not None:
        share = f"  {rate * plan.step_flops / (plan.count * plan.peak_tflops * 1e12):.1%} MFU"
    yield row(f"  in {hours:g} hours", f"{rate:,.3g} images/s", share)


def _notes(plan: ClusterPlan) -> Iterator[str]:
    yield (
        "Memory is rehearsed with the kernels of a CPU. Arithmetic and network work at the same "
        "time; evaluation and checkpoints take time of their own."
    )
    yield "What is computed again counts as arithmetic: such a run logs a lower MFU."
    if plan.compiles:
        yield "What torch.compile adds or saves is not counted."


def _gb(size: float) -> str:
    return f"{size / 1e9:,.2f}" if size < 99.95e9 else f"{size / 1e9:,.0f}"


def _count(number: int | None) -> str:
    if number is None:
        return UNKNOWN
    return str(number) if number else "none"


def _number(value: float | None) -> str:
    if value is None:
        return UNKNOWN
    return f"{value:,.0f}" if value >= 99.95 else f"{value:.3g}"
