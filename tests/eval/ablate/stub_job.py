"""A stand-in for the job of a cell: `python stub_job.py BEHAVIOUR.json FOLDER`.

The file maps cells (by identity, or "*") to what they do: "ok" (the default), "crash", "silent"
(exit 3 without a word), "killed" (by itself, as the kernel does), "empty" (end without a result),
"again" (stop once, then work), "always again", "sleep S" (works for S seconds, and saves and stops
when asked to), "deaf S" (the same, but dies of SIGTERM), "frozen" (for ever, whatever it is asked).
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

RESULT = {
    "format": 1,
    "images": 64,
    "parameters": 1000,
    "train_flops": 2e9,
    "sample_flops": 1e9,
    "seconds": {"train": 4.0, "evaluate": 1.0},
    "device": "stub",
    "threads": 1,
    "images_per_second": 16.0,
    "scores": {"kid_lite0": {"value": 0.5, "floor": 0.0, "matched": 0.4, "error": 0.01}},
    "curve": [],
    "validation": {"logsnr": [0.0], "eps_mse": [0.5]},
    "schedule": {"t": [0.0, 1.0], "logsnr": [15.0, -15.0]},
    "pins": {"num": 8},
    "grid": None,
}


def finish(folder: Path) -> None:
    temporary = folder / "result.tmp"
    temporary.write_text(json.dumps(RESULT))
    temporary.replace(folder / "result.json")


def work(folder: Path, behaviour: str) -> int:
    attempts = len((folder / "starts").read_text().splitlines())
    what, _, seconds = behaviour.partition(" ")
    if what == "crash":
        print(
            "Traceback (most recent call last):\n  somewhere\nValueError: the \x1b[31mreason\x1b[0m"
        )
        return 1
    if what == "silent":
        return 3
    if what == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if behaviour == "always again" or (what == "again" and attempts == 1):
        return 75
    if what in ("sleep", "deaf"):
        if what == "sleep":
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
        (folder / "ready").touch()
        time.sleep(float(seconds))
    if what == "frozen":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        (folder / "ready").touch()
        time.sleep(600)
    if what != "empty":
        finish(folder)
    return 0


def main() -> int:
    behaviours = json.loads(Path(sys.argv[1]).read_text())
    folder = Path(sys.argv[2])
    with (folder / "starts").open("a") as starts:
        starts.write(f"{os.getpid()} {os.environ.get('OMP_NUM_THREADS')}\n")
    mark = folder / "at work"
    try:
        mark.touch(exist_ok=False)
    except FileExistsError:
        (folder / "two at once").touch()
    try:
        return work(folder, behaviours.get(folder.name, behaviours.get("*", "ok")))
    finally:
        mark.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
