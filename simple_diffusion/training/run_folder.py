"""The folder of a run: its config, and whether a command may go on in it."""

import errno
import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import draccus

from simple_diffusion.config import RunConfig
from simple_diffusion.config_files import ConfigError, dump_config, load_config, parse_config

CONFIG = "config.yaml"
CHECKPOINTS = "checkpoints"
SNAPSHOTS = "snapshots"
LOCK = ".lock"
LOCK_SECONDS = 30.0  # a process that was just killed may take a moment to let go
# What the weights or the stream of samples depend on: it may not change within a run.
FIXED = (
    "seed",
    "model",
    "schedule",
    "objective",
    "few_step",
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


def checkpoint_root(config: RunConfig) -> str:
    """Where a run's checkpoints are: a folder, or a URL."""
    return f"{config.checkpoint.path or config.run_dir}/{CHECKPOINTS}"


def snapshot_root(config: RunConfig) -> str:
    """Where a run's snapshots of its averages are: a folder, or a URL."""
    return f"{config.checkpoint.path or config.run_dir}/{SNAPSHOTS}"


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
        _refuse(changes, f"{run_dir} holds")
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


def refuse_other_config(before: str, now: str, where: str) -> None:
    """Refuse to go on from a checkpoint whose config differs in what may not change.

    Args:
        before: the config in the checkpoint, as `dump_config` writes it.
        now: the run's.
        where: the checkpoint.

    Raises:
        RunError: naming the differences.
    """
    try:
        changes = _changes(parse_config(before, where), parse_config(now, "this run"))
    except ConfigError as error:
        raise RunError(f"{error}; the run cannot be continued from there") from None
    _refuse(changes, f"{where} is of")


@contextmanager
def hold_run_folder(run_dir: Path) -> Iterator[None]:
    """Keep other processes from training in the folder meanwhile.

    Raises:
        RunError: one does.
    """
    with (run_dir / LOCK).open("w") as file:
        deadline = time.monotonic() + LOCK_SECONDS
        while not _locked(file.fileno()):
            if time.monotonic() > deadline:
                raise RunError(
                    f"{run_dir}: another process trains in this folder; stop it, or choose "
                    "another --run_dir. If it was started together with this one, the launcher "
                    "did not tell them of each other: use torchrun"
                )
            time.sleep(0.2)
        yield


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        # A file system without locks cannot tell; going on there is what was done before.
        return error.errno not in (errno.EWOULDBLOCK, errno.EACCES)
    return True


def _refuse(changes: list[str], whose: str) -> None:
    refused = [line for line in changes if _is_fixed(line.partition(":")[0])]
    if refused:
        raise RunError(
            f"{whose} a run with another config, which cannot be continued:\n  "
            + "\n  ".join(refused)
            + "\nGo on with the old values, or choose another --run_dir"
        )


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
