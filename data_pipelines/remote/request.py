"""One request for a remote file through fsspec, which can be left behind when it hangs."""

import asyncio
import contextlib
import os
import queue
import re
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol
from urllib.parse import quote, urlsplit, urlunsplit

import fsspec

_EXTRAS = {"http": "http", "https": "http", "s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
_HTTP = ("http", "https")
_STREAM_BLOCK = 2**20
_RANGE_BLOCK = 8 * 2**20  # each is a request
_MOST_WAITING = 8 * 2**20
_BREATH_S = 0.005
_MOST_REASON = 300  # characters: some quote all that a server sent
# What does not get better by asking again: not there, not allowed, wrong settings, our own faults.
_FINAL = (
    FileNotFoundError,
    PermissionError,
    IsADirectoryError,
    NotADirectoryError,
    ValueError,
    TypeError,
    AttributeError,
    NotImplementedError,
)
_FINAL_NAMES = {
    "NoCredentialsError",
    "PartialCredentialsError",
    "ProfileNotFound",
    "ClientConnectorCertificateError",
    "NonHttpUrlClientError",
}
_URL = re.compile(r"\b\w+://[^\s'\"]+")
_RETRIED_STATUS = (408, 425, 429)
_filesystems: dict[tuple[int, str], Any] = {}

Wait = Callable[[Callable[[float], bool]], None]


class Damaged(Exception):  # noqa: N818
    """The server's bytes or their number are not the manifest's; a new start may help."""


class Stalled(Exception):  # noqa: N818
    """Nothing arrived for too long."""


class TooSlow(Exception):  # noqa: N818
    """Patience with a server is at its end."""


class HttpStatus(Exception):  # noqa: N818
    """An answer other than the file.

    Attributes:
        status: Its code.
        retry_after: Seconds that the server asks for.
    """

    def __init__(self, status: int, text: str, retry_after: float) -> None:
        super().__init__(f"HTTP status {status} {text}".rstrip())
        self.status, self.retry_after = status, retry_after


def is_url(root: str) -> bool:
    """Whether a place is a URL."""
    return "://" in root


def shown(url: str) -> str:
    """The URL for messages: without the user, the password and the query, which may be secret."""
    parts = urlsplit(url)
    query = "..." if parts.query else ""
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, query, ""))


def join_url(root: str, path: str) -> str:
    """The URL of a file of a set.

    Args:
        root: The set's URL. A query stays behind the path, for storage that signs whole folders.
        path: Relative POSIX path, which a manifest has been checked for.

    Raises:
        ValueError: The root is a chain of file systems, or has a fragment.
    """
    if "::" in root:
        raise ValueError(f"{shown(root)}: chained URLs ('::') are not supported")
    scheme, _, rest = root.partition("://")
    if scheme not in _HTTP:
        return f"{scheme}://{rest.rstrip('/')}/{path}"
    parts = urlsplit(root)
    if parts.fragment:
        raise ValueError(f"{shown(root)}: a URL with '#' names no folder")
    whole = f"{parts.path.rstrip('/')}/{quote(path)}"
    return urlunsplit((parts.scheme, parts.netloc, whole, parts.query, ""))


def filesystem(url: str) -> Any:
    """The fsspec file system of a URL, one for each process and protocol.

    Raises:
        ValueError: The protocol is not known, or needs an extra.
    """
    protocol = url.partition("://")[0]
    key = os.getpid(), protocol  # connections do not survive a fork
    if key not in _filesystems:
        try:
            made = fsspec.filesystem(protocol)
        except ImportError as error:
            extra = _EXTRAS.get(protocol)
            remedy = f"pip install 'simple-diffusion[{extra}]'" if extra else str(error)
            raise ValueError(
                f"{shown(url)}: {protocol}:// needs a package that is not installed ({remedy})"
            ) from None
        except ValueError as error:
            raise ValueError(f"{shown(url)}: {error}") from None
        _filesystems.setdefault(key, made)
    return _filesystems[key]


def is_final(error: Exception) -> bool:
    """Whether asking again is of no use."""
    status = getattr(error, "status", getattr(error, "code", None))
    # aiohttp calls an answer that is not HTTP a status 400, with what was wrong as its cause.
    if isinstance(status, int) and error.__cause__ is None:
        return 400 <= status < 500 and status not in _RETRIED_STATUS
    return isinstance(error, _FINAL) or type(error).__name__ in _FINAL_NAMES


def reason(error: Exception, url: str) -> str:
    """What went wrong, for people, without the secrets of this URL or of those it led to."""
    text = _URL.sub(_shown_match, str(error).replace(url, shown(url))).strip()
    text = text if len(text) <= _MOST_REASON else f"{text[:_MOST_REASON]} ..."
    if isinstance(error, FileNotFoundError):
        return "there is no such file on the server"
    if isinstance(error, PermissionError):
        return f"the server does not allow it ({text}); check the credentials"
    if isinstance(error, (Stalled, TooSlow, ConnectionError, HttpStatus)) and text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _shown_match(match: re.Match[str]) -> str:
    try:
        return shown(match[0])
    except ValueError:  # no URL after all, or a server's idea of one
        return "a URL"


class Request(Protocol):
    """A request under way. What it brings is taken in order, by one thread."""

    def opened(self, wait: Wait) -> tuple[int, int | None]:
        """Waits for the answer's head: where its bytes begin, and the whole file's length."""

    def block(self, wait: Wait) -> bytes:
        """Waits for the next bytes; none at the end."""

    def close(self) -> None:
        """Ends it."""


def request(url: str, offset: int, stall_s: float) -> Request:
    """Asks for a file from `offset` on.

    Args:
        url: The file.
        offset: First byte wanted; the answer may begin at 0 all the same.
        stall_s: How long the connection may be silent.

    Raises:
        ValueError: The protocol is not known, or needs an extra.
    """
    source = filesystem(url)
    if url.partition("://")[0] in _HTTP:
        return _HttpRequest(source, url, offset, stall_s)
    return _FileRequest(source, url, offset)


class _Arrivals:
    """What a request brought and nobody took yet."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._taken = self._arrived = 0  # each counted by one thread only

    def put(self, item: Any) -> None:
        if isinstance(item, bytes):
            self._arrived += len(item)
        self._queue.put(item)

    def is_full(self) -> bool:
        return self._arrived - self._taken >= _MOST_WAITING

    def opened(self, wait: Wait) -> tuple[int, int | None]:
        return self._take(wait)

    def block(self, wait: Wait) -> bytes:
        block = self._take(wait)
        self._taken += len(block)
        return block

    def _take(self, wait: Wait) -> Any:
        taken: list[Any] = []

        def ready(seconds: float) -> bool:
            with contextlib.suppress(queue.Empty):
                taken.append(self._queue.get(timeout=seconds))
            return bool(taken)

        wait(ready)
        if isinstance(taken[0], Exception):
            raise taken[0]
        return taken[0]


class _HttpRequest(_Arrivals):
    """One GET, streamed in fsspec's event loop: its length is known beforehand, a cut loses
    nothing of what came before it, and it can be broken off at any time."""

    def __init__(self, source: Any, url: str, offset: int, stall_s: float) -> None:
        super().__init__()
        self._source, self._offset = source, offset
        self._future = asyncio.run_coroutine_threadsafe(self._run(url, stall_s), source.loop)

    def close(self) -> None:
        self._future.cancel()

    async def _run(self, url: str, stall_s: float) -> None:
        try:
            session = await self._source.set_session()
            address = self._source.encode_url(url)
            async with session.get(address, **self._options(stall_s)) as response:
                try:
                    self.put(self._judge(response))
                except Exception:
                    response.close()  # what a lying server sends on would be the next answer
                    raise
                while block := await response.content.readany():
                    self.put(block)
                    while self.is_full():
                        await asyncio.sleep(_BREATH_S)
                self.put(b"")
        except Exception as error:
            self.put(error)

    def _options(self, stall_s: float) -> dict[str, Any]:
        import aiohttp

        options = dict(self._source.kwargs)  # the user's, from fsspec's configuration
        headers = {**options.pop("headers", {}), "Accept-Encoding": "identity"}
        if self._offset:
            headers["Range"] = f"bytes={self._offset}-"
        # A large file takes its time. Silence ends this, but who waits for it notices first.
        silence = 2 * stall_s
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=silence, sock_read=silence)
        return {**options, "headers": headers, "timeout": timeout, "read_bufsize": _STREAM_BLOCK}

    def _judge(self, response: Any) -> tuple[int, int | None]:
        status, headers, offset = response.status, response.headers, self._offset
        if status == 404:
            raise FileNotFoundError(404, "not found")
        if status == 416:
            raise Damaged(f"the server's file ends before byte {offset}")
        if status not in (200, 206):
            after = headers.get("Retry-After", "")
            seconds = float(after) if after.isascii() and after.isdigit() else 0.0
            raise HttpStatus(status, response.reason or "", seconds)
        if headers.get("Content-Encoding", "identity") != "identity":
            raise ValueError("the server compresses the file on its way; have it send it as it is")
        if status == 200:
            return 0, response.content_length
        pattern = r"bytes (\d{1,18})-\d{1,18}/(\d{1,18}|\*)"
        match = re.fullmatch(pattern, headers.get("Content-Range", ""))
        if match is None or int(match[1]) != offset:
            raise ConnectionError(f"asked for bytes from {offset}, got another range")
        return offset, None if match[2] == "*" else int(match[2])


class _FileRequest(_Arrivals):
    """A file object of fsspec, read by ranges in a thread that is left behind if it hangs."""

    def __init__(self, source: Any, url: str, offset: int) -> None:
        super().__init__()
        self._source, self._url, self._offset = source, url, offset
        self._closed = threading.Event()
        threading.Thread(target=self._run, name="shard-read", daemon=True).start()

    def close(self) -> None:
        self._closed.set()

    def _run(self) -> None:
        try:
            options = {"block_size": _RANGE_BLOCK, "cache_type": "none"}
            with self._source.open(self._url, "rb", **options) as file:
                size = getattr(file, "size", None)
                total = size if isinstance(size, int) else None
                self.put((self._offset, total))
                if total is None or self._offset < total:
                    file.seek(self._offset)
                while not self._closed.is_set() and (block := file.read(_RANGE_BLOCK)):
                    self.put(block)
                    while self.is_full() and not self._closed.is_set():
                        time.sleep(_BREATH_S)
                self.put(b"")
        except Exception as error:
            self.put(error)
