"""Checkpoints: folders of safetensors and JSON, atomic, verified, found and never guessed.

A checkpoint is `checkpoints/<images seen>/` with one safetensors file for each group of tensors,
`state.json`, and `COMPLETE.json`, which lists every file's size and SHA-256. It is written under a
temporary name, synced, the marker last, and renamed: a folder of the final name is whole, or its
disk is broken. No file holds code.
"""

import errno
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

FORMAT_VERSION = 1
MARKER = "COMPLETE.json"
STATE = "state.json"
MAX_JSON_BYTES = 10_000_000
TensorGroups = dict[str, dict[str, Tensor]]

logger = logging.getLogger(__name__)


class CheckpointError(ValueError):
    """A checkpoint that cannot be written or read; the message names it and the remedy."""


@dataclass(frozen=True)
class Checkpoint:
    """One complete checkpoint: where it is, and what its state file says."""

    path: Path
    state: dict[str, Any]

    def tensors(self, group: str) -> dict[str, Tensor]:
        """The tensors of one group, on the CPU."""
        path = self.path / f"{group}.safetensors"
        try:
            return load_file(path)
        except (SafetensorError, FileNotFoundError) as error:
            raise CheckpointError(f"{path}: cannot be read: {error}") from None


class CheckpointStore:
    """The checkpoints of a run.

    Args:
        root: their folder; made when the first one is saved.
        keep: how many of the newest stay.
        milestone_images: multiples of this many images stay for ever; None for none.
    """

    def __init__(self, root: Path, keep: int = 2, milestone_images: int | None = None) -> None:
        self.root, self.keep, self.milestone_images = root, keep, milestone_images

    def save(self, images_seen: int, groups: TensorGroups, state: Mapping[str, Any]) -> Path:
        """Write a checkpoint and delete the ones that need not stay.

        Raises:
            CheckpointError: the disk is full or read-only; what was there before is untouched.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        self._remove_temporaries()
        final = self.root / f"{images_seen:012d}"
        temporary = self.root / f".tmp-{images_seen:012d}"
        try:
            self._write(temporary, groups, {**state, "format_version": FORMAT_VERSION})
            if final.exists():  # the same step, saved again once its events were done
                final.rename(self.root / f".old-{images_seen:012d}")
            temporary.rename(final)
            _sync(self.root)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise CheckpointError(self._why_not_saved(final, groups, error)) from error
        self._remove_temporaries()
        self._retire()
        return final

    def newest(self, *, verify: bool = True) -> Checkpoint | None:
        """The newest checkpoint that is whole, or None if there is none at all.

        A damaged one is reported, set aside as `<name>.damaged`, and the one before is tried.

        Args:
            verify: False to trust the newest one, where another process has just verified it.

        Raises:
            CheckpointError: all are damaged, or one was written by a newer version.
        """
        if verify:
            self._restore_replaced()
        candidates = self._complete_names()
        for path in reversed(candidates):
            damage = _damage(path) if verify else None
            if damage is None:
                return _open_verified(path)
            aside = path.with_name(f"{path.name}.damaged")
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
            logger.warning("CHECKPOINT DAMAGED: %s; set aside as %s", damage, aside)
        if candidates:
            raise CheckpointError(
                f"{self.root}: every checkpoint is damaged (see *.damaged); restore one from a "
                "copy, or start again in another run_dir"
            )
        return None

    def _write(self, folder: Path, groups: TensorGroups, state: Mapping[str, Any]) -> None:
        folder.mkdir()
        for name, tensors in groups.items():
            plain = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
            save_file(plain, folder / f"{name}.safetensors")
        (folder / STATE).write_text(json.dumps(state, indent=1), encoding="utf-8")
        files = {path.name: _describe(path) for path in sorted(folder.iterdir())}
        (folder / MARKER).write_text(json.dumps(files, indent=1), encoding="utf-8")
        for path in folder.iterdir():
            _sync(path)
        _sync(folder)

    def _why_not_saved(self, final: Path, groups: TensorGroups, error: Exception) -> str:
        tensors = [tensor for group in groups.values() for tensor in group.values()]
        needed = sum(tensor.numel() * tensor.element_size() for tensor in tensors) / 1e6
        free = shutil.disk_usage(self.root).free / 1e6
        kept = self._complete_names()
        newest = f"the newest complete one is {kept[-1]}" if kept else "there is no earlier one"
        full = getattr(error, "errno", None) == errno.ENOSPC or free < needed
        reason = (
            f"no space left ({needed:.0f} MB needed, {free:.0f} MB free)" if full else str(error)
        )
        return (
            f"checkpoint {final} could not be saved: {reason}; {newest}. "
            "Make room (or lower checkpoint.keep) and run the same command again"
        )

    def _complete_names(self) -> list[Path]:
        if not self.root.is_dir():
            return []
        return sorted(path for path in self.root.iterdir() if path.name.isdigit())

    def _restore_replaced(self) -> None:
        """Put back a checkpoint that was moved away for its successor, which never came."""
        for path in self.root.glob(".old-*"):
            final = self.root / path.name.removeprefix(".old-")
            if not final.exists():
                path.rename(final)

    def _milestones(self, names: list[Path]) -> set[Path]:
        """The first checkpoint at or after each multiple of the interval, but for the start."""
        if not self.milestone_images:
            return set()
        first: dict[int, Path] = {}
        for path in names:
            first.setdefault(int(path.name) // self.milestone_images, path)
        first.pop(0, None)
        return set(first.values())

    def _remove_temporaries(self) -> None:
        self._restore_replaced()
        for path in (*self.root.glob(".tmp-*"), *self.root.glob(".old-*")):
            shutil.rmtree(path, ignore_errors=True)

    def _retire(self) -> None:
        names = self._complete_names()
        milestones = self._milestones(names)
        for path in names[: -self.keep]:
            if path in milestones:
                continue
            (path / MARKER).unlink(missing_ok=True)  # half deleted must not look whole
            shutil.rmtree(path, ignore_errors=True)


def find_checkpoint(root: Path, images_seen: int | None = None) -> Checkpoint:
    """A checkpoint to read from; nothing on the disk is changed, so training may go on meanwhile.

    Args:
        root: the folder of checkpoints.
        images_seen: which one; None for the newest that is whole. Newer, damaged ones are reported.

    Raises:
        CheckpointError: there is none, not this one, or it is damaged.
    """
    candidates = CheckpointStore(root)._complete_names()
    if not candidates:
        raise CheckpointError(f"{root}: no checkpoint there yet; train the run first")
    if images_seen is not None:
        wanted = [path for path in candidates if int(path.name) == images_seen]
        if not wanted:
            there = ", ".join(str(int(path.name)) for path in candidates)
            raise CheckpointError(
                f"{root}: no checkpoint at image {images_seen}; there are {there}"
            )
        return open_checkpoint(wanted[0])
    for path in reversed(candidates):
        damage = _damage(path)
        if damage is None:
            return open_checkpoint(path)
        logger.warning("CHECKPOINT DAMAGED: %s; trying the one before", damage)
    raise CheckpointError(f"{root}: every checkpoint is damaged; restore one from a copy")


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a checkpoint folder.

    Raises:
        CheckpointError: it is no complete checkpoint, or a newer version wrote it.
    """
    damage = _damage(path)
    if damage is not None:
        raise CheckpointError(damage)
    return _open_verified(path)


def _open_verified(path: Path) -> Checkpoint:
    state = _read_json(path / STATE)
    version = state.get("format_version")
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: written by a newer simple_diffusion (checkpoint format {version}; this one "
            f"reads {FORMAT_VERSION}); upgrade simple_diffusion"
        )
    return Checkpoint(path, state)


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str]
) -> dict[str, Tensor]:
    """Optimiser state as flat tensors named `<parameter>/<key>`."""
    flat = {}
    for parameter, values in optimizer.state.items():
        for key, value in values.items():
            flat[f"{names[parameter]}/{key}"] = torch.as_tensor(value)
    return flat


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str], flat: Mapping[str, Tensor]
) -> None:
    """Put back what `optimizer_tensors` gave."""
    by_name: dict[str, dict[str, Tensor]] = {}
    for full, tensor in flat.items():
        name, _, key = full.rpartition("/")
        by_name.setdefault(name, {})[key] = tensor
    for parameter, name in names.items():
        for key, tensor in by_name.get(name, {}).items():
            optimizer.state[parameter][key] = tensor.to(parameter.device, copy=True)


def _describe(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def _damage(path: Path) -> str | None:
    """What is wrong with a checkpoint folder, or None."""
    marker = path / MARKER
    if not marker.is_file():
        return f"{path}: not a complete checkpoint ({MARKER} is missing)"
    try:
        files = _read_json(marker)
        for name, expected in files.items():
            file = path / Path(name).name
            if not file.is_file():
                return f"{file}: missing"
            if file.stat().st_size != expected["bytes"]:
                return f"{file}: {file.stat().st_size} bytes instead of {expected['bytes']}"
            if _describe(file)["sha256"] != expected["sha256"]:
                return f"{file}: its content does not match its checksum"
    except (CheckpointError, KeyError, TypeError, AttributeError) as error:
        return f"{marker}: {error}"
    return None if STATE in files else f"{path}: {STATE} is missing"


def _read_json(path: Path) -> dict[str, Any]:
    if path.stat().st_size > MAX_JSON_BYTES:
        raise CheckpointError(f"{path}: larger than {MAX_JSON_BYTES} bytes")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: must hold an object")
    return content


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
