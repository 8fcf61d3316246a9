"""Fetching one file of weights: once, whole, checked, and never for ever."""

import hashlib
import http.client
import os
import tempfile
import urllib.request
from pathlib import Path

from eval.extractors.base import WeightsMissingError

OFFLINE = "HF_HUB_OFFLINE"  # what people set to forbid downloads; one wish for all extractors
_SECONDS = 20  # without any byte; unreachable networks are silent rather than refused
_CHUNK = 2**20


def is_offline() -> bool:
    """Whether the environment forbids downloads (HF_HUB_OFFLINE set to 1, on, yes or true)."""
    return os.environ.get(OFFLINE, "").upper() in ("1", "ON", "YES", "TRUE")


def download(url: str, path: Path, sha256: str, *, most_bytes: int, remedy: str) -> None:
    """Fetch `url` into `path`, which appears whole and right or not at all.

    Processes that fetch the same file at once do not disturb each other.

    Args:
        url: where it is.
        path: where it goes; folders are made.
        sha256: what its bytes must hash to, as hexadecimal digits.
        most_bytes: more than that are not read.
        remedy: for messages: for whom the file is, and how to get it otherwise.

    Raises:
        WeightsMissingError: downloads are forbidden, fail, or bring another file.
    """
    if is_offline():
        raise WeightsMissingError(f"no download while {OFFLINE} is set; {remedy}")
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with (
            os.fdopen(handle, "wb") as file,
            urllib.request.urlopen(url, timeout=_SECONDS) as reply,
        ):
            digest, size = hashlib.sha256(), 0
            while chunk := reply.read(_CHUNK):
                size += len(chunk)
                if size > most_bytes:
                    raise OSError(f"more than {most_bytes:,} bytes")
                digest.update(chunk)
                file.write(chunk)
        if digest.hexdigest() != sha256:
            raise OSError(f"it brought SHA-256 {digest.hexdigest()}, not {sha256}")
        os.replace(temporary, path)
    except (OSError, http.client.HTTPException) as error:  # URLError and time-outs are OSErrors
        raise WeightsMissingError(f"{url} could not be fetched: {error}; {remedy}") from error
    finally:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)
