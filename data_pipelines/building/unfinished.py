"""The folder of a build under way: whose turn it is, what is in it, what may go."""

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data_pipelines.building.make_shard import read_result
from data_pipelines.building.plan import Plan
from data_pipelines.building.set_folder import PLAN_NAME, VALIDATION, recipe_changes
from data_pipelines.building.slurm import FAILED, JOBS, LOGS, stop_left_over
from data_pipelines.building.tasks import RESULTS, SET, TASKS
from data_pipelines.building.writer import SHARD_NAME, UNFINISHED
from data_pipelines.manifest import MANIFEST_NAME, ShardSetError

_SCAN = "scan-"  # begins the name of the folder of what a source looked up
_LOCK = "driver.lock"
_LOG = logging.getLogger(__name__)


@contextmanager
def locked(partial: Path, out: Path) -> Iterator[None]:
    """Holds the folder of the unfinished build, which is made if need be, for this process.

    Raises:
        ShardSetError: Another process has it.
    """
    partial.mkdir(parents=True, exist_ok=True)
    with open(partial / _LOCK, "a", encoding="ascii") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            there = os.stat(partial / _LOCK)  # or its holder has just removed the folder
            if not os.path.samestat(there, os.fstat(file.fileno())):
                raise BlockingIOError
        except (BlockingIOError, FileNotFoundError):
            raise ShardSetError(
                f"{out}: another process is building it; wait for that one, or stop it"
            ) from None
        except OSError as error:
            _LOG.warning(
                "%s: its file system has no locks (%s); see to it that no second process builds "
                "the same set",
                partial,
                error.strerror,
            )
        yield


def existing_plan(partial: Path, recipe: Mapping[str, Any], overwrite: bool) -> Plan | None:
    """The plan of an unfinished build of this recipe, if there is one; its jobs are stopped.

    Raises:
        ShardSetError: It is of another recipe or damaged, and not to be overwritten.
    """
    stop_left_over(partial)
    if not _has_plan(partial):
        return None
    try:
        plan = Plan.load(partial)
        changes = recipe_changes(plan.recipe, recipe)
        if overwrite and not changes:
            for task in plan.tasks():
                read_result(partial, task)
    except ShardSetError:
        if not overwrite:
            raise
        return None
    if not changes:
        remove_unfinished(partial)
        return plan
    if not overwrite:
        raise ShardSetError(
            f"{partial}: holds an unfinished build of another recipe ({changes}); go on with that "
            "one, remove the folder, or replace it with --overwrite"
        )
    return None


def clear(partial: Path, recipe: Mapping[str, Any]) -> None:
    """Empties the folder of an unfinished build, except for what a scan for this recipe found.

    Raises:
        ShardSetError: It holds something else.
    """
    for path in _foreign(partial):
        raise ShardSetError(
            f"{partial}: holds other things than an unfinished build (such as {path.name}); "
            "remove it or choose another folder"
        )
    for path in partial.iterdir():
        if path in (partial / _LOCK, scan_folder(partial, recipe)):
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def tidy(partial: Path, out: Path, recipe: Mapping[str, Any]) -> None:
    """As `remove_left_over`, if nobody is building; that it cannot be removed is no harm."""
    if _is_left_over(partial, recipe):
        with contextlib.suppress(ShardSetError, OSError), locked(partial, out):
            remove_left_over(partial, recipe)


def remove_left_over(partial: Path, recipe: Mapping[str, Any]) -> None:
    """Removes what the build of a set that is complete has left, if the folder is `locked`."""
    if _is_left_over(partial, recipe):
        shutil.rmtree(partial)


def _is_left_over(partial: Path, recipe: Mapping[str, Any]) -> bool:
    """Whether the folder holds neither what a build can go on with nor what is not ours."""
    if not partial.is_dir() or _has_plan(partial) or any(_foreign(partial)):
        return False
    return all(path == scan_folder(partial, recipe) for path in partial.glob(f"{_SCAN}*"))


def _has_plan(partial: Path) -> bool:
    """Whether there is a plan, with the folders that belong to it."""
    return all((partial / name).exists() for name in (PLAN_NAME, TASKS, RESULTS, SET))


def _foreign(partial: Path) -> Iterator[Path]:
    """What no build has put there."""
    known = {_LOCK, PLAN_NAME, TASKS, RESULTS, SET, LOGS, JOBS, VALIDATION, MANIFEST_NAME}
    for path in partial.iterdir():
        if not (
            path.name in known
            or path.name.startswith((_SCAN, f".{PLAN_NAME}"))
            or path.name.endswith((UNFINISHED, FAILED))
            or SHARD_NAME.fullmatch(path.name)
        ):
            yield path


def scan_folder(partial: Path, recipe: Mapping[str, Any]) -> Path:
    """Where a source may keep what it looked up for this recipe."""
    text = json.dumps(recipe, sort_keys=True)
    return partial / (_SCAN + hashlib.sha256(text.encode()).hexdigest()[:16])


def remove_unfinished(partial: Path) -> None:
    """Removes what killed workers have left half written: shards and index files."""
    for path in (partial / SET).rglob(".*"):
        path.unlink(missing_ok=True)
