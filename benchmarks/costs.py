"""What runs will need and cost on given devices, as the table of docs/cluster.md.

    python benchmarks/costs.py configs/imagenet_*.yaml --devices 64xH100 --price 2.5

Nothing is measured: every row is `simple-diffusion plan` of a config in its own way of sharing.
"""

import argparse
from pathlib import Path

from simple_diffusion.config_files import load_config
from simple_diffusion.plan import ClusterPlan, Terms, make_cluster_plan, parse_devices
from simple_diffusion.plan.cluster_text import layout_name
from simple_diffusion.plan.paper import si

TITLES = (
    "config",
    "parameters",
    "GFLOP an image, forward / step",
    "sharing, images at once",
    "GB a device",
    "largest that fits",
    "images/s",
    "days",
    "cost",
    "GB sent a step",
)


def table_row(name: str, plan: ClusterPlan) -> tuple[str, ...]:
    """One config's cells."""
    own = plan.own
    hours, cost, rate = plan.hours(own), plan.cost(own), plan.images_per_second(own)
    if hours is None or cost is None or rate is None:
        raise SystemExit(f"{name}: the peak of {plan.device.name} is not known")
    return (
        name,
        si(sum(plan.parameters.values())),
        f"{plan.forward_flops / 1e9:,.4g} / {plan.step_flops / 1e9:,.4g}",
        f"{layout_name(own, plan.levels)}, {plan.micro_batch}",
        f"{own.peak / 1e9:.1f}",
        str(own.largest_micro_batch or "none"),
        f"{rate:,.0f}" + (" (waits for the network)" if own.waits else ""),
        f"{hours / 24:.3g}",
        f"{cost:,.0f}" if cost >= 10 else f"{cost:.2g}",
        f"{own.traffic.bytes / 1e9:.3g}",
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description="A table of what configs will cost.",
        epilog="Further arguments override every config: --section.key=value.",
    )
    parser.add_argument("configs", type=Path, nargs="+")
    parser.add_argument("--devices", required=True)
    parser.add_argument("--price", type=float, required=True)
    parser.add_argument("--mfu", type=float, default=0.4)
    args, overrides = parser.parse_known_args()
    terms = Terms(mfu=args.mfu, price=args.price)
    print("| " + " | ".join(TITLES) + " |")
    print("|" + "---|" * len(TITLES))
    for path in args.configs:
        config = load_config(path, overrides)
        plan = make_cluster_plan(config, *parse_devices(args.devices), terms, own_only=True)
        print("| " + " | ".join(table_row(path.stem, plan)) + " |", flush=True)


if __name__ == "__main__":
    main()
