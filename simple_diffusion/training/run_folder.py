"""The folder of a run: its config, and whether a command may go on in it."""

from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import draccus

from simple_diffusion.config import RunConfig
from simple_diffusion.config_files import ConfigError, dump_config, load_config

CONFIG = "config.yaml"
CHECKPOINTS = "checkpoints"
# What the weights or the stream of samples depend on: it may not change within a run.
FIXED = (
    "seed",
    "model",
    "schedule",
    "objective",
    "ema.lengths",
    "ema.every_steps",
    "init_from",
    "data.image_size",
    "data.buckets",
    "data.weight",
    "data.random_crop",
    "data.flip",
    "data.streams",
    "data.window",
    "train.batch_size",
    "train.precision",
)


class RunError(ValueError):
    """A run folder that a command cannot use; the message says why and what to do."""


def read_run_config(run_dir: Path) -> RunConfig:
    """The config that a run was made with.

    Raises:
        RunError: the folder is missing or holds no run.
    """
    if not (run_dir / CONFIG).is_file():
        raise RunError(f"{run_dir}: not a run (it has no {CONFIG}); train one there first")
    return load_config(run_dir / CONFIG)


def claim_run_folder(run_dir: Path, config: RunConfig) -> list[str]:
    """Make or reopen the folder for a config, and write `config.yaml`.

    Returns:
        The permitted differences from the config that the run had, as lines `key: was -> now`.

    Raises:
        RunError: the folder holds something else, or a run that this config may not continue.
    """
    saved = run_dir / CONFIG
    changes: list[str] = []
    if saved.is_file():
        try:
            before = load_config(saved)
        except ConfigError as error:
            raise RunError(f"{error}; the run in {run_dir} cannot be continued") from None
        changes = _changes(before, config)
        refused = [line for line in changes if _is_fixed(line.partition(":")[0])]
        if refused:
            raise RunError(
                f"{run_dir} holds a run with another config, which cannot be continued:\n  "
                + "\n  ".join(refused)
                + "\nGo on with the old values, or choose another --run_dir"
            )
    elif run_dir.is_dir() and any(run_dir.iterdir()):
        raise RunError(
            f"{run_dir}: exists, is not empty and holds no run to resume ({CONFIG} is missing); "
            "choose another --run_dir"
        )
    run_dir.mkdir(parents=True, exist_ok=True)
    temporary = saved.with_suffix(".tmp")
    temporary.write_text(dump_config(config), encoding="utf-8")
    temporary.replace(saved)
    return changes


def _changes(before: RunConfig, now: RunConfig) -> list[str]:
    old, new = _flat(draccus.encode(before)), _flat(draccus.encode(now))
    keys = [key for key in {**old, **new} if key != "run_dir"]
    return [
        f"{key}: {old.get(key, '(none)')} -> {new.get(key, '(none)')}"
        for key in keys
        if old.get(key) != new.get(key)
    ]


def _is_fixed(key: str) -> bool:
    return fnmatch(key, "data.mix_with.*.weight") or any(
        key == fixed or key.startswith(f"{fixed}.") for fixed in FIXED
    )


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple) and value and isinstance(value[0], dict):
            flat |= _flat({str(n): item for n, item in enumerate(value)}, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
