"""What the sources share: reading one image, turning it into a sample, and making plain keys."""

import errno
import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterable
from pathlib import Path, PurePath
from typing import Any

from data_pipelines.decode import DecodeError, probe
from data_pipelines.sample import Rejected, Sample
from data_pipelines.shards import MAX_IMAGE_BYTES, MAX_TEXT_BYTES
from data_pipelines.sources.base import Item
from data_pipelines.sources.storage import Filters, Storage

MAX_KEY = 80  # a ustar name holds 100 bytes, extension included
MAX_FIELD = MAX_TEXT_BYTES // 4
_MAX_CLASS_NUMBER = 2**16
# Errors of the item itself. All others may pass (a network disk that is away, no memory): to leave
# the item out would make the set depend on the day it was built.
ITS_OWN_ERRORS = {
    None,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EACCES,
    errno.EPERM,
    errno.ELOOP,
    errno.ENAMETOOLONG,
}


def stored_sample(
    item: Item,
    name: str,
    read: Callable[[], bytes],
    storage: Storage,
    filters: Filters,
    group: str | None = None,
) -> Sample | Rejected:
    """Reads one image, checks it, and converts it by the storage policy.

    Args:
        item: Its key, class and caption.
        name: What to call it when it is left out.
        read: Reads its bytes; may raise OSError or DecodeError.
        storage: How it is stored.
        filters: Which are wanted.
        group: Name of the field that the item's group is kept as, if it has one: to split the set
            by it later.

    Raises:
        OSError: It cannot be read now, though perhaps later.
    """
    reason = refuse_text(item) or filters.refuse_caption(item.caption)
    if reason is not None:
        return Rejected(name, reason)
    try:
        data = read()
        if not data:
            return Rejected(name, "unreadable image: the file is empty")
        if filters.by_size:
            reason = filters.refuse_size(*probe(data)[:2])
            if reason is not None:
                return Rejected(name, reason)
        stored = storage.store(data)
    except DecodeError as error:
        return Rejected(name, f"unreadable image: {error}")
    except OSError as error:
        if error.errno not in ITS_OWN_ERRORS:
            raise
        return Rejected(name, f"unreadable file: {error.strerror or error}")
    fields = {} if group is None or item.group is None else {group: item.group}
    return Sample(item.key, *stored, item.class_, item.caption, fields=fields)


def refuse_text(item: Item) -> str | None:
    """Why an item's class or caption cannot be stored; None if they can."""
    for kind, text in (("class", item.class_), ("caption", item.caption)):
        if text is None:
            continue
        try:
            length = len(text.encode())
        except UnicodeEncodeError:
            return f"bad text: its {kind} holds half a surrogate pair"
        if length > MAX_FIELD:
            return f"bad text: its {kind} is longer than {MAX_FIELD} bytes"
    return None


def read_image(path: Path) -> bytes:
    """Reads an image's file; what is no file, or larger than any image may be, is refused.

    Raises:
        DecodeError: It is refused.
        OSError: It cannot be read.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise DecodeError("it is not a regular file")
    if status.st_size > MAX_IMAGE_BYTES:
        raise DecodeError(f"the file is larger than {MAX_IMAGE_BYTES} bytes")
    return path.read_bytes()


def file_size(path: Path) -> int | None:
    """A file's size in bytes; None if there is none, or none that may be looked at.

    Raises:
        OSError: It cannot be told now, though perhaps later.
    """
    try:
        return path.stat().st_size
    except OSError as error:
        if error.errno not in ITS_OWN_ERRORS:
            raise
        return None


def file_digests(paths: Iterable[Path]) -> list[str | None]:
    """SHA-256 of each file; None for one that is refused, which `read_image` will tell of.

    Raises:
        OSError: One cannot be read now, though perhaps later.
    """
    digests: list[str | None] = []
    for path in paths:
        try:
            digests.append(hashlib.sha256(read_image(path)).hexdigest())
        except DecodeError:
            digests.append(None)
        except OSError as error:
            if error.errno not in ITS_OWN_ERRORS:
                raise
            digests.append(None)
    return digests


def inner_path(path: str, *, allow_absolute: bool) -> str:
    """Normalises a path that a table or a data set names.

    Links inside the folder are followed: they are its owner's, not the table's.

    Raises:
        ValueError: It leads out of the folder, or is no path.
    """
    if not path or "\0" in path:
        raise ValueError("bad path: empty, or with a zero byte")
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        raise ValueError("bad path: not valid text") from None
    plain = os.path.normpath(path)
    if not allow_absolute and os.path.isabs(plain):
        raise ValueError(f"outside path: {plain[:200]} is absolute; allow it with --allow_absolute")
    if not os.path.isabs(plain) and PurePath(plain).parts[:1] == ("..",):
        raise ValueError(f"outside path: {plain[:200]} leads out of the folder")
    return plain


def plain_key(stem: str, identity: str, *, shared: bool = False) -> str:
    """Makes a legible key: it stays the same when other images are added.

    It is the stem, if that is plain and short; else a shortened one with a hash of the identity.

    Args:
        stem: A path without its extension, or a name.
        identity: What no other image has: the whole path.
        shared: Whether another one has the same stem, letter case aside.
    """
    plain = re.sub(r"[^A-Za-z0-9_/-]", "_", stem)
    if plain != stem or len(plain) > MAX_KEY or plain.startswith("/") or shared:
        digest = hashlib.sha256(os.fsencode(identity)).hexdigest()[:10]
        plain = f"{plain[-(MAX_KEY - 11) :].lstrip('/')}-{digest}"
    return plain


def text_or_none(value: Any, what: str) -> str | None:
    """A table's value as text: numbers become their digits, nothing and empty text become None.

    Raises:
        ValueError: It is something else, or too long.
    """
    if value is None or value == "":
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise ValueError(f"bad text: its {what} is a {type(value).__name__}, not text")
    if len(value) > MAX_FIELD:
        raise ValueError(f"bad text: its {what} is longer than {MAX_FIELD} bytes")
    return value


def numbered_classes(names: Iterable[str], where: str) -> tuple[str, ...] | None:
    """The order of the classes if all are numbers: 0, 1, ... without gaps, so they stay the labels.

    None if any is not a number; they are then ordered by name.

    Args:
        names: The classes of the samples.
        where: What they are from, for the message.

    Raises:
        ValueError: A number is too large to be a label.
    """
    found = set(names)
    if not found or not all(name.isascii() and name.isdigit() for name in found):
        return None
    if any(name != str(int(name[:20])) for name in found):
        return None  # 007 is a name
    greatest = max(int(name) for name in found)
    if greatest >= _MAX_CLASS_NUMBER:
        raise ValueError(
            f"{where}: class number {greatest} is too large; numbers must be below "
            f"{_MAX_CLASS_NUMBER}"
        )
    return tuple(str(number) for number in range(greatest + 1))
