"""`simple-diffusion plan`."""

import argparse
from pathlib import Path
from typing import Any

EXAMPLE = """\
examples:
  simple-diffusion plan configs/icons_512.yaml --train.micro_batch_size=8 --hours 24
  simple-diffusion plan configs/imagenet_512.yaml --devices 64xH100 --mfu 0.4 --price 2.5

Nothing is trained and nothing of the model's size is allocated: a model larger than this machine
can be planned on it. Every key of the config can be overridden as --section.key=value.
"""


def add_parser(subparsers: Any) -> None:
    """Register the verb."""
    parser = subparsers.add_parser(
        "plan",
        help="parameters, FLOPs, memory, speed and cost that a config asks for",
        description="Print what a run would need: parameters, FLOPs of an image, memory by part, "
        "and the speed that ends it in time; for many devices also how the weights can be shared, "
        "what the network carries, and how long the run takes.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "config", type=Path, help="a YAML file, for example configs/quickstart.yaml"
    )
    parser.add_argument("--hours", type=float, help="the time in which the run should end")
    cluster = parser.add_argument_group("many devices")
    cluster.add_argument(
        "--devices", help="how many and which, for example 64xH100, 8xRTX4090 or 8xcpu"
    )
    cluster.add_argument(
        "--mfu", type=float, help="share of a device's peak that is reached (default 0.4)"
    )
    cluster.add_argument("--price", type=float, help="of a device for an hour, in any currency")
    cluster.add_argument(
        "--devices-per-node", type=int, dest="per_node", help="devices in a node (default 8)"
    )
    cluster.add_argument(
        "--network-gbit",
        type=float,
        dest="node_gbit_s",
        help="what a node can send, in Gbit/s (default 3200: an adapter of 400 for each of eight)",
    )
    cluster.add_argument("--json", action="store_true", help="print JSON, for machines")
    parser.set_defaults(func=run, takes_overrides=True)


TERMS = ("mfu", "price", "per_node", "node_gbit_s")


def run(arguments: argparse.Namespace) -> int:
    """Print the plan; returns the exit code.

    Raises:
        ValueError: options or a config that cannot be planned.
    """
    import json

    from simple_diffusion.config import Precision
    from simple_diffusion.config_files import load_config
    from simple_diffusion.plan import (
        Terms,
        cluster_json,
        cluster_text,
        make_cluster_plan,
        make_plan,
        parse_devices,
    )

    given = {name: value for name in TERMS if (value := getattr(arguments, name)) is not None}
    if arguments.devices is None and (given or arguments.json):
        raise ValueError(
            "--mfu, --price, --devices-per-node, --network-gbit and --json plan for many devices: "
            "say which, for example --devices 64xH100"
        )
    if arguments.json and arguments.hours is not None:
        raise ValueError("--hours asks for a line of text, which --json does not print")
    if arguments.devices is None:
        config = load_config(arguments.config, arguments.overrides)
        print(make_plan(config).text(arguments.hours))
        return 0
    count, device = parse_devices(arguments.devices)
    fastest: Precision = "fp32" if device.tflops_bf16 is None else "bf16"
    config = load_config(arguments.config, arguments.overrides, auto=fastest)
    plan = make_cluster_plan(config, count, device, Terms(**given))
    if arguments.json:
        print(json.dumps(cluster_json(plan)))
    else:
        print(cluster_text(plan, arguments.hours))
    return 0
