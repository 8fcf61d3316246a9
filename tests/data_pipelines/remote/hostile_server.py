"""An HTTP server on the loopback that misbehaves as it is told, and writes down what it sent."""

import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import unquote, urlsplit

_LONGEST_STALL_S = 30.0
_PIECE = 16 * 2**10


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one answer.

    Attributes:
        status: Answer with this code instead of the file.
        headers: Further headers of the answer, or other values for the usual ones.
        cut_after: Close the connection after so many bytes of the body.
        stall_after: Send nothing more after so many bytes of the body, and do not close.
        damage_at: Change the byte at this place of the file.
        content: Send this instead of the file.
        no_ranges: Send the whole file whatever range is asked for.
        drip_s: Wait so long after every single byte of the body.
        garbage: Answer with something that is not HTTP.
        no_length: Do not say how long the file is; its end is that of the connection.
    """

    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    cut_after: int | None = None
    stall_after: int | None = None
    damage_at: int | None = None
    content: bytes | None = None
    no_ranges: bool = False
    drip_s: float = 0.0
    garbage: bool = False
    no_length: bool = False


@dataclass
class Request:
    """One request, and the bytes of the body that were sent for it."""

    path: str
    query: str
    start: int | None  # of the range asked for
    headers: Mapping[str, str]
    sent: int = 0
    status: int = 0


class HostileServer:
    """Serves the files of a folder; a context manager.

    Args:
        root: The folder.

    Attributes:
        once: Faults of the next answers for a path, used up one a request.
        always: A fault of every answer for a path that `once` has nothing for.
        log: All requests, in order.
        sending: Set when the body of any file is on its way.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.once: dict[str, list[Fault]] = {}
        self.always: dict[str, Fault] = {}
        self.log: list[Request] = []
        self.sending = threading.Event()
        self.over = threading.Event()
        self._lock = threading.Lock()

        class Handler(_Handler):
            owner = self

        self._http = _QuietServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)

    @property
    def url(self) -> str:
        """The folder's URL."""
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    def sent(self, suffix: str = ".tar") -> int:
        """Bytes of bodies sent so far for paths with this ending."""
        return sum(request.sent for request in self.log if request.path.endswith(suffix))

    def requests(self, suffix: str = ".tar") -> int:
        """Requests so far for paths with this ending."""
        return sum(request.path.endswith(suffix) for request in self.log)

    def fault(self, path: str) -> Fault:
        """Takes the fault of the next answer."""
        with self._lock:
            waiting = self.once.get(path)
            return waiting.pop(0) if waiting else self.always.get(path, Fault())

    def __enter__(self) -> "HostileServer":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: object, trace: TracebackType | None
    ) -> None:
        self.over.set()
        self._http.shutdown()
        self._http.server_close()


class _QuietServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:  # clients that break off are what it is for
        pass


class _Handler(BaseHTTPRequestHandler):
    owner: HostileServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        path = unquote(url.path)
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        request = Request(path, url.query, int(match[1]) if match else None, self.headers)
        self.owner.log.append(request)
        fault = self.owner.fault(path)
        try:
            self._answer(request, fault)
        except OSError:  # the client has gone
            self.close_connection = True

    def _answer(self, request: Request, fault: Fault) -> None:
        file = self.owner.root / request.path.lstrip("/")
        if fault.garbage:
            self.wfile.write(b"what is this? " * 10_000 + b"\r\n\r\n")
            self.close_connection = True
            return
        if not fault.status and not file.is_file():
            fault = Fault(status=404)
        if fault.status:
            self._head(request, fault.status, 0, fault)
            return
        data = file.read_bytes() if fault.content is None else fault.content
        if fault.damage_at is not None:
            data = bytearray(data)
            data[fault.damage_at] ^= 0xFF
        start = None if fault.no_ranges else request.start
        if start is None:
            self._head(request, 200, len(data), fault)
        elif start >= len(data):
            self._head(request, 416, 0, fault)
            return
        else:
            span = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
            self._head(request, 206, len(data) - start, fault, span)
        self._body(request, bytes(data[start or 0 :]), fault)

    def _head(
        self,
        request: Request,
        status: int,
        length: int,
        fault: Fault,
        more: Mapping[str, str] | None = None,
    ) -> None:
        request.status = status
        self.send_response(status)
        headers = {"Content-Length": str(length), **(more or {}), **fault.headers}
        if fault.no_length:
            headers = {"Connection": "close"}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _body(self, request: Request, data: bytes, fault: Fault) -> None:
        ends = [end for end in (fault.cut_after, fault.stall_after) if end is not None]
        announced = fault.headers.get("Content-Length", "")
        if announced:  # what is more would be taken for the next answer
            ends.append(int(announced))
        last = min([len(data), *ends])
        piece = 1 if fault.drip_s else _PIECE
        while request.sent < last:
            block = data[request.sent : min(last, request.sent + piece)]
            # Counted first: the client may have it, and ask for the count, before we go on.
            request.sent += len(block)
            try:
                self.wfile.write(block)
            except OSError:
                request.sent -= len(block)
                raise
            self.owner.sending.set()
            if fault.drip_s and self.owner.over.wait(fault.drip_s):
                break
        if fault.stall_after is not None:
            self.owner.over.wait(_LONGEST_STALL_S)
        self.close_connection |= bool(ends)
