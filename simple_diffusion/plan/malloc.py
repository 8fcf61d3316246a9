"""What the C library's allocator takes from the system for a program's blocks, holes included.

Freed blocks of up to 32 MiB go back to a heap, not to the system, and what comes next does not fit
into them exactly. How much is lost depends on the allocator and on the order of events, so the
events are played to the allocator itself, in a process of its own. Nothing is written to the
blocks, so that they cost address space only.

Only tensors are played. The small objects that a real run puts between them pin further holes, and
its code and kernels' caches take some 50 MB: real runs grew to 1.1-1.3 times this footprint, the
less the larger their tensors (benchmarks/memory.py measures it).
"""

import ctypes
import json
import subprocess
import sys
from array import array
from collections.abc import Sequence

ALIGNMENT = 64  # of torch's CPU tensors
TIMEOUT = 120.0


class _Mallinfo2(ctypes.Structure):
    """glibc's struct of that name: `arena` bytes in the heap, `hblkhd` in blocks mapped singly."""

    _fields_ = [
        *((name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd")),
        *((name, ctypes.c_size_t) for name in ("usmblks", "fsmblks", "uordblks", "fordblks")),
        ("keepcost", ctypes.c_size_t),
    ]


def footprints(traces: Sequence["array[int]"]) -> list[int] | None:
    """The largest footprint during each of several stretches of one program, in bytes.

    Args:
        traces: see `live.LiveMemory.trace`; int64.

    Returns:
        One number for each trace; None where the C library does not tell (it is not glibc 2.33 or
        newer), or where the system refuses that much address space.
    """
    events = array("q")
    for trace in traces:
        events.extend(trace)
        events.extend((0, 0))
    result = subprocess.run(
        [sys.executable, "-I", __file__],
        input=events.tobytes(),
        capture_output=True,
        timeout=TIMEOUT,
        check=True,
    )
    sizes: list[int] | None = json.loads(result.stdout)
    return sizes


def replay(events: "array[int]") -> list[int] | None:
    """Play events to this process's allocator; (0, 0) ends a stretch. Returns as `footprints`."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallinfo2"):
        return None
    libc.mallinfo2.restype = _Mallinfo2
    libc.free.argtypes = [ctypes.c_void_p]

    def taken() -> int:
        info = libc.mallinfo2()
        return int(info.arena + info.hblkhd)

    before, peak, peaks = taken(), 0, []
    pointer, blocks = ctypes.c_void_p(), {}
    for number, size in zip(events[::2], events[1::2], strict=True):
        if size > 0:
            if libc.posix_memalign(ctypes.byref(pointer), ALIGNMENT, ctypes.c_size_t(size)):
                return None
            blocks[number] = pointer.value
            peak = max(peak, taken() - before)
        elif size < 0:
            libc.free(blocks.pop(number))
        else:
            peaks.append(peak)
            peak = taken() - before
    return peaks


if __name__ == "__main__":
    print(json.dumps(replay(array("q", sys.stdin.buffer.read()))))
