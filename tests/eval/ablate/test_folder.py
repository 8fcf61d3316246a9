"""A cell's folder: its lock, its last words, and damaged files."""

import subprocess
import sys
from pathlib import Path

import pytest

from eval.ablate import folder as files
from eval.ablate import results
from eval.ablate.folder import (
    BusyError,
    Failure,
    claim_log,
    is_busy,
    last_line,
    read_failure,
    write_failure,
)


def test_one_name_for_the_result() -> None:
    assert files.RESULT == results.RESULT


def test_the_lock_lasts_as_long_as_whoever_inherited_the_log(tmp_path: Path) -> None:
    assert not is_busy(tmp_path)
    log = claim_log(tmp_path)
    assert is_busy(tmp_path)
    with pytest.raises(BusyError):
        claim_log(tmp_path)
    words = [sys.executable, "-c", "input()"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=log, stderr=log) as child:
        log.close()
        assert is_busy(tmp_path)
        child.communicate(b"\n")
    assert not is_busy(tmp_path)
    claim_log(tmp_path).close()


@pytest.mark.parametrize(
    ("written", "line"),
    [
        (b"", ""),
        (b"one\n\n  two  \n \n", "two"),
        (b"bar 1%\rbar 2%\r", "bar 2%"),
        (b"\x1b[31mred\x1b[0m\x00\x07", "red"),
        (b"\xff\xfe", "��"),
        (b"x" * 1000, "x" * 300),
        (b"early\n" + b" " * 100_000, ""),
    ],
)
def test_last_line(tmp_path: Path, written: bytes, line: str) -> None:
    log = tmp_path / "log.txt"
    log.write_bytes(written)
    assert last_line(log, 0) == line


def test_last_line_of_this_attempt(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_bytes(b"an old error\n")
    assert last_line(log, log.stat().st_size) == ""
    assert last_line(log, 3) == "old error"


def test_failures_round_trip(tmp_path: Path) -> None:
    assert read_failure(tmp_path) is None
    write_failure(tmp_path, Failure("what", -9))
    assert read_failure(tmp_path) == Failure("what", -9)


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"error": 1, "exit": "x"}', "[" * 10_000])
def test_a_damaged_failure_is_still_one(tmp_path: Path, text: str) -> None:
    (tmp_path / files.FAILED).write_text(text)
    failure = read_failure(tmp_path)
    assert failure is not None
    assert "cannot be read" in failure.error
