"""Checkpoints: written by all processes in the background, atomic, verified, never guessed.

A checkpoint is `checkpoints/<images seen>/`: one safetensors file for each process that wrote,
`index.json` (which tensors there are, and in which pieces), `state.json`, and `COMPLETE.json`,
which lists every file's size and SHA-256. On a disk it is written under a temporary name, synced,
the marker last, and renamed; in an object store the marker is written last. No file holds code.
Any number of processes reads what any other number wrote.
"""

import errno
import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException

from simple_diffusion.training.checkpoint_dcp import STATE, ShardWriter, write_together
from simple_diffusion.training.checkpoint_finding import (
    find_checkpoint,
    open_checkpoint,
    readable,
)
from simple_diffusion.training.checkpoint_optimizer import load_optimizer, optimizer_tensors
from simple_diffusion.training.checkpoint_places import (
    MARKER,
    CheckpointError,
    Place,
    places_of,
)
from simple_diffusion.training.checkpoint_reading import (
    FORMAT_VERSION,
    Checkpoint,
    damage,
    open_verified,
    read_marker,
)
from simple_diffusion.training.checkpoint_share import Share, TensorGroups, copy_share

__all__ = [
    "FORMAT_VERSION",
    "MARKER",
    "STATE",
    "Checkpoint",
    "CheckpointError",
    "CheckpointStore",
    "Saved",
    "TensorGroups",
    "find_checkpoint",
    "load_optimizer",
    "open_checkpoint",
    "optimizer_tensors",
]

logger = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class Saved:
    """A checkpoint that was written.

    Attributes:
        path: where it is.
        images_seen: images seen in training by then.
        stall_seconds: how long `save` held up this process.
        seconds: from the call until the checkpoint was complete.
        bytes: of all its files.
    """

    path: str
    images_seen: int
    stall_seconds: float
    seconds: float
    bytes: int


@dataclass
class _Flight:
    """A save under way."""

    images_seen: int
    share: Share
    writer: ShardWriter
    began: float
    stall: float = 0.0
    saved: Saved | None = None
    failure: BaseException | None = None
    thread: threading.Thread | None = None


class CheckpointStore:
    """The checkpoints of a run.

    Args:
        root: their folder, made when the first one is saved, or an fsspec URL. All nodes share it.
        keep: how many of the newest stay; None for all.
        milestone_images: the first checkpoints at or after multiples of this many images stay for
            ever; None for none.
        group: a gloo group over all processes that nothing else uses; None where this process is
            alone. All processes then make the same calls in the same order.

    Raises:
        ValueError: the URL's protocol is not known, or needs an extra.
    """

    def __init__(
        self,
        root: str | Path,
        keep: int | None = 2,
        milestone_images: int | None = None,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        self.keep, self.milestone_images, self.group = keep, milestone_images, group
        self._places = places_of(root)
        self._rank = 0 if group is None else dist.get_rank(group)
        self._processes = 1 if group is None else dist.get_world_size(group)
        self._flight: _Flight | None = None
        self._ended: list[Saved] = []

    @property
    def root(self) -> Path | str:
        """The folder of all checkpoints, or its URL."""
        return self._places.path

    def save(self, images_seen: int, groups: TensorGroups, state: Mapping[str, Any]) -> None:
        """Copy the tensors, and write a checkpoint from the copy in the background.

        Every process calls it, in step. It returns once the tensors may change again. The process
        must not end before `wait`, or the checkpoint is not there.

        Args:
            images_seen: names the checkpoint. The same number again replaces it.
            groups: group -> name -> tensor, on any device; the same names on all processes. Plain
                tensors are equal on all of them, and each process writes a part of them.
            state: JSON values; the first process's counts.

        Raises:
            CheckpointError, RuntimeError: as `wait`, of the save before this one.
        """
        began = time.perf_counter()
        self.wait()
        text = json.dumps({**state, "format_version": FORMAT_VERSION}, indent=1)
        share = copy_share(groups, self._rank, self._processes)
        writer = ShardWriter(self._places, images_seen, list(groups), text, self._rank)
        flight = self._flight = _Flight(images_seen, share, writer, began)
        # Of our own, not async_save's: that one's thread keeps a process from ending for as long
        # as a lost peer is waited for.
        flight.thread = threading.Thread(
            target=self._write, args=(flight,), name="checkpoint", daemon=True
        )
        flight.stall = time.perf_counter() - began
        flight.thread.start()

    def wait(self) -> None:
        """Wait until nothing is in flight.

        Raises:
            CheckpointError: it could not be written, on whichever process that was. What was there
                before is untouched. It is said once.
            RuntimeError: another process is gone.
        """
        if self._flight is not None:
            assert self._flight.thread is not None
            self._flight.thread.join()
            self._land()

    def poll(self) -> Saved | None:
        """What has ended since it was last asked, without waiting.

        Raises:
            CheckpointError, RuntimeError: as `wait`.
        """
        flight = self._flight
        if flight is not None and flight.thread is not None and not flight.thread.is_alive():
            self._land()
        return self._ended.pop(0) if self._ended else None

    def exists(self) -> bool:
        """Whether a complete checkpoint seems to be there; nothing is verified.

        Raises:
            CheckpointError: the place cannot be read.
        """
        with readable(self.root):
            return bool(self._places.listed())

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint that is whole, or None if there is none at all.

        Every process calls it, and each verifies a part of the files; all return the same. A save
        in flight is waited for. A damaged one is reported, set aside, and the one before is tried.

        Raises:
            CheckpointError: all are damaged, or one was written by a newer version.
        """
        self.wait()
        places = self._from_first(self._candidates)
        for place in reversed(places):
            why = self._damage(place)
            if why is None:
                found = self._from_first(partial(open_verified, place.folder))
                return Checkpoint(found.folder, found.state, found.files, self.group)
            aside = self._from_first(partial(self._places.set_aside, place))
            if self._rank == 0:
                logger.warning("CHECKPOINT DAMAGED: %s; set aside as %s", why, aside)
        if places:
            raise CheckpointError(
                f"{self.root}: every checkpoint is damaged (they were set aside); restore one from "
                "a copy, or start again in another run_dir"
            )
        return None

    def _write(self, flight: _Flight) -> None:
        """The background's part."""
        try:
            written = write_together(
                flight.share.tensors, flight.share.items, flight.writer, self.group
            )
        except BaseException as error:
            flight.failure = error
            if self._rank == 0 and flight.writer.name is not None:
                self._places.abort(flight.writer.name)
            return
        finally:
            flight.share.tensors.clear()
        if self._rank == 0:
            self._retire()
        flight.saved = Saved(
            written["path"],
            flight.images_seen,
            flight.stall,
            time.perf_counter() - flight.began,
            written["bytes"],
        )

    def _land(self) -> None:
        flight, self._flight = self._flight, None
        assert flight is not None
        failure = flight.failure
        if isinstance(failure, CheckpointException | OSError):
            raise CheckpointError(self._why_not_saved(flight, failure)) from failure
        if isinstance(failure, RuntimeError):  # what torch.distributed raises
            reason = str(failure).partition("\n")[0]
            raise RuntimeError(
                f"{self._name(flight)} was not saved: another process is gone ({reason})"
            ) from failure
        if failure is not None:
            raise failure
        assert flight.saved is not None
        self._ended.append(flight.saved)

    def _why_not_saved(self, flight: _Flight, error: BaseException) -> str:
        rank = 0
        if isinstance(error, CheckpointException):
            rank, (error, _) = min(error.failures.items(), key=lambda item: item[0])
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        if getattr(error, "errno", None) == errno.ENOSPC:
            free = self._places.free_bytes()
            left = "" if free is None else f", {free / 1e6:.0f} MB free"
            reason = f"no space left ({flight.share.total_bytes / 1e6:.0f} MB needed{left})"
        where = f" (process {rank} of {self._processes})" if self._processes > 1 else ""
        return (
            f"{self._name(flight)} could not be saved: {reason}{where}; {self._kept()}. "
            "Make room (or lower checkpoint.keep) and run the same command again"
        )

    def _name(self, flight: _Flight) -> str:
        return f"checkpoint {flight.images_seen:012d} in {self.root}"

    def _kept(self) -> str:
        try:
            places = self._places.listed()
        except OSError as error:
            return f"earlier ones cannot be listed: {error}"
        if not places:
            return "there is no earlier one"
        return f"the newest complete one is {places[-1].folder.path}"

    def _candidates(self) -> list[Place]:
        with readable(self.root):
            self._places.restore()
            return self._places.listed()

    def _damage(self, place: Place) -> str | None:
        """What is wrong with a checkpoint; every process looks at some of its files."""

        def files() -> list[tuple[str, dict[str, Any]]] | str:
            try:
                return sorted(read_marker(place.folder).items())
            except CheckpointError as error:
                return str(error)

        listed = self._from_first(files)
        if isinstance(listed, str):
            return listed
        found, failed = None, None
        try:
            found = damage(place.folder, dict(listed[self._rank :: self._processes]))
        except Exception as error:  # whatever a store raises; the others must not wait for us
            failed = str(error) or type(error).__name__
        everyones = [(found, failed)]
        if self.group is not None:
            everyones *= self._processes
            dist.all_gather_object(everyones, (found, failed), group=self.group)
        for _, failure in everyones:
            if failure is not None:
                raise CheckpointError(
                    f"{place.folder.path}: cannot be read: {failure}. It is left as it is: run the "
                    "same command when it can be, or move it away to go on from the one before"
                )
        return next((why for why, _ in everyones if why is not None), None)

    def _from_first(self, ask: Callable[[], T]) -> T:
        """What the first process finds, on all of them, its errors too."""
        if self.group is None:
            return ask()
        answer: list[Any] = [None, None]
        if self._rank == 0:
            try:
                answer[0] = ask()
            except Exception as error:
                answer[1] = str(error)
        dist.broadcast_object_list(answer, group=self.group, group_src=0)
        if answer[1] is not None:
            raise CheckpointError(answer[1])
        found: T = answer[0]
        return found

    def _retire(self) -> None:
        """Delete what need not stay."""
        if self.keep is None:
            return
        try:
            places = self._places.listed()
            milestones = self._milestones(places)
            for place in places[: -self.keep]:
                if place.images_seen not in milestones:
                    self._places.delete(place)
        except Exception as error:
            # the new one is saved all the same; the next save tries again
            logger.warning("%s: an old checkpoint could not be deleted: %s", self.root, error)

    def _milestones(self, places: list[Place]) -> set[int]:
        """The first checkpoint at or after each multiple of the interval, but for the start."""
        if not self.milestone_images:
            return set()
        first: dict[int, int] = {}
        for place in places:
            first.setdefault(place.images_seen // self.milestone_images, place.images_seen)
        first.pop(0, None)
        return set(first.values())
