"""Text of file names, which need not be valid Unicode, for places that take nothing else."""

import sys
from collections.abc import Mapping
from typing import Any


def printable(text: str) -> str:
    """The text with what standard output cannot show written as escapes: \\udcff for a byte 255."""
    return _escaped(text, getattr(sys.stdout, "encoding", None) or "utf-8")


def storable(value: Any) -> Any:
    """A JSON value with what is not valid Unicode in its texts written as escapes."""
    if isinstance(value, str):
        return _escaped(value, "utf-8")
    if isinstance(value, Mapping):
        return {storable(name): storable(one) for name, one in value.items()}
    return [storable(one) for one in value] if isinstance(value, list | tuple) else value


def _escaped(text: str, encoding: str) -> str:
    return text.encode(encoding, "backslashreplace").decode(encoding)
