"""Finding and opening the checkpoints of a run without training it: nothing is changed there."""

import logging
from pathlib import Path
from typing import Any

from simple_diffusion.training.checkpoint_places import (
    CheckpointError,
    Folder,
    folder_of,
    places_of,
)
from simple_diffusion.training.checkpoint_reading import (
    Checkpoint,
    damage,
    open_verified,
    read_marker,
)

logger = logging.getLogger(__name__)


def find_checkpoint(root: str | Path, images_seen: int | None = None) -> Checkpoint:
    """A checkpoint to read from; nothing is changed, so training may go on meanwhile.

    Args:
        root: the folder of checkpoints, or its URL.
        images_seen: which one; None for the newest that is whole. Newer, damaged ones are reported.

    Raises:
        CheckpointError: there is none, not this one, or it is damaged.
        ValueError: the URL's protocol is not known, or needs an extra.
    """
    places = places_of(root)
    with readable(root):
        candidates = places.listed()
    if not candidates:
        raise CheckpointError(f"{root}: no checkpoint there yet; train the run first")
    if images_seen is not None:
        wanted = [place for place in candidates if place.images_seen == images_seen]
        if not wanted:
            there = ", ".join(str(place.images_seen) for place in candidates)
            raise CheckpointError(
                f"{root}: no checkpoint at image {images_seen}; there are {there}"
            )
        return _open_whole(wanted[-1].folder)
    for place in reversed(candidates):
        why = _damage_alone(place.folder)
        if why is None:
            return open_verified(place.folder)
        logger.warning("CHECKPOINT DAMAGED: %s; trying the one before", why)
    raise CheckpointError(f"{root}: every checkpoint is damaged; restore one from a copy")


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a checkpoint folder, or one at a URL.

    Raises:
        CheckpointError: it is no complete checkpoint, or a newer version wrote it.
        ValueError: the URL's protocol is not known, or needs an extra.
    """
    return _open_whole(folder_of(path))


def _open_whole(folder: Folder) -> Checkpoint:
    why = _damage_alone(folder)
    if why is not None:
        raise CheckpointError(why)
    return open_verified(folder)


def _damage_alone(folder: Folder) -> str | None:
    try:
        return damage(folder, read_marker(folder))
    except (CheckpointError, OSError) as error:
        return str(error)


class readable:  # noqa: N801 - used as a statement
    """Turns a place that cannot be listed into an error with its name."""

    def __init__(self, root: Path | str) -> None:
        self._root = root

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, OSError):
            raise CheckpointError(f"{self._root}: cannot be read: {error}") from None
