"""A driver of its own process: `python -m tests.eval.ablate.drive STUDY OUT BEHAVIOUR JOBS`."""

import sys
from pathlib import Path

from eval.ablate.cells import expand
from eval.ablate.driver import run_cells
from eval.ablate.executors import LocalExecutor
from eval.ablate.study_file import read_study_file

STUB = Path(__file__).with_name("stub_job.py")


def main() -> int:
    study, out, behaviour, jobs = sys.argv[1:]
    executor = LocalExecutor(int(jobs), [sys.executable, str(STUB), behaviour])
    received = run_cells(expand(read_study_file(Path(study))), Path(out), executor)
    print("received", None if received is None else received.name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
