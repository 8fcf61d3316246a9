"""The folder of a shard set: what may be replaced, what is there already, room on the disk."""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data_pipelines.building.writer import SHARD_NAME
from data_pipelines.manifest import MANIFEST_NAME, Manifest, ShardSetError

VALIDATION = "validation"
PLAN_NAME = "plan.json"  # marks an OUT.partial that `build_set` can continue
RESERVE_BYTES = 16 * 2**20  # left free on the disk
Parts = tuple[Manifest, Manifest | None]


def destination(out: Path | str, sources: Iterable[Path] = ()) -> Path:
    """The absolute path of a set that is to be made.

    Args:
        out: Its folder, as it was given.
        sources: Folders and files that are read for it.

    Raises:
        ShardSetError: It cannot be given a name there, or making it would touch a source.
    """
    path = Path(os.path.abspath(out))
    for folder in (path, partial_folder(path)):
        if folder.is_symlink():
            raise ShardSetError(
                f"{folder}: is a link, which cannot be replaced; name the folder that it leads to "
                f"({folder.resolve()}), or remove it"
            )
        if os.path.ismount(folder):
            raise ShardSetError(
                f"{folder}: is a mount point, which cannot be replaced; name a folder inside it"
            )
        for source in sources:
            ours, theirs = folder.resolve(), source.resolve()
            if ours in (theirs, *theirs.parents) or theirs in ours.parents:
                raise ShardSetError(
                    f"{folder}: is, holds or lies in the source {source}; choose another folder"
                )
    return path


def partial_folder(out: Path) -> Path:
    """Where a set is made before it gets its name."""
    return out.with_name(out.name + ".partial")


def share_of(text: str) -> float:
    """Maps a key or a group to [0, 1]: it is held out at every size and in every build alike."""
    return key_hash(text) / 2**64


def key_hash(text: str) -> int:
    """A hash of a key: the first 64 bits of its SHA-256."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big")


def check_share(validation: float) -> None:
    """Raises ValueError unless `validation` is a share."""
    if not 0.0 <= validation < 1.0:
        raise ValueError(f"validation is {validation}; it must be a share in [0, 1)")


def existing_set(out: Path, recipe: Mapping[str, Any], overwrite: bool) -> Parts | None:
    """Returns the complete set at `out` if it can be reused, None if one is to be built.

    Raises:
        ShardSetError: `out` is something that may not be replaced.
    """
    if not out.exists():
        return None
    if not out.is_dir():
        raise ShardSetError(f"{out}: is a file; choose another folder")
    if not any(out.iterdir()):
        return None
    foreign = [path for path in sorted(out.rglob("*")) if not _is_ours(path, out)]
    if foreign:
        raise ShardSetError(
            f"{out}: holds other things than a shard set built here (such as "
            f"{foreign[0].relative_to(out)}); choose another folder"
        )
    if overwrite:
        return None
    try:
        manifest = Manifest.load(out)
        held = Manifest.load(out / VALIDATION) if (out / VALIDATION).exists() else None
    except ShardSetError as error:
        raise ShardSetError(f"{error}. To build it anew, add --overwrite") from None
    changes = recipe_changes(manifest.recipe, recipe)
    if changes:
        raise ShardSetError(
            f"{out}: holds a set built otherwise ({changes}); choose another folder, or replace it "
            "with --overwrite"
        )
    return manifest, held


def recipe_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Says in which keys two recipes differ; empty if in none."""
    new = json.loads(json.dumps(new))
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    return ", ".join(f"{key}: {old.get(key)!r} -> {new.get(key)!r}" for key in keys)


def remove_set(out: Path) -> None:
    """Removes a set that `existing_set` found to hold nothing but our files, manifests first."""
    if not out.exists():
        return
    for name in (MANIFEST_NAME, f"{VALIDATION}/{MANIFEST_NAME}"):
        (out / name).unlink(missing_ok=True)
    for path in sorted(out.rglob("*"), reverse=True):
        if path.is_dir():
            path.rmdir()
        elif SHARD_NAME.fullmatch(path.name):
            path.unlink()
    out.rmdir()


def check_room(folder: Path, expected: float, out: Path, left: str) -> None:
    """Looks ahead whether so many bytes more will fit on the disk.

    Args:
        folder: Where they are to be written.
        expected: How many.
        out: The set, for the message.
        left: What is left of the build when it stops here, for the message.

    Raises:
        ShardSetError: They will not fit.
    """
    needed = int(expected) + RESERVE_BYTES
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ShardSetError(
            f"{out}: about {needed / 2**20:.0f} MiB more are needed but the disk has "
            f"{free / 2**20:.0f} MiB free; free some or choose another folder. {left}"
        )


@contextmanager
def disk_errors(out: Path, partial: Path, left: str) -> Iterator[None]:
    """Turns errors of a full disk or of a folder that is not ours into clear ones.

    Other files that may not be read or written, those of the source, are no matter of the set's.

    Raises:
        ShardSetError: The disk is full, or the folder cannot be written.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ShardSetError(
                f"{out}: no space left on the disk ({error.strerror}); free some or choose another "
                f"folder. {left}"
            ) from None
        refused = error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)
        if refused and _concerns(error, out, partial):
            raise ShardSetError(
                f"{out}: cannot be written ({error.strerror}: {error.filename}); choose another "
                "folder or change its permissions"
            ) from None
        raise


def _concerns(error: OSError, out: Path, partial: Path) -> bool:
    """Whether an error is of a set's folder, what is in it, or a folder that it is to lie in."""
    if not isinstance(error.filename, str | os.PathLike):
        return False
    path = Path(error.filename)
    return path in out.parents or any(ours in (path, *path.parents) for ours in (out, partial))


def _is_ours(path: Path, out: Path) -> bool:
    inside = path.relative_to(out).parts
    if inside[0] == VALIDATION:
        inside = inside[1:]
        if not inside:
            return path.is_dir()
    return len(inside) == 1 and bool(inside[0] == MANIFEST_NAME or SHARD_NAME.fullmatch(inside[0]))
