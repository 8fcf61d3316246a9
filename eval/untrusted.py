"""Values out of JSON that nobody vouches for; one of another kind than expected is absent."""

import math
from collections.abc import Mapping
from typing import Any

MAX_TEXT = 80  # characters of a device's name and the like


def number_of(value: object) -> float:
    """A float; nan for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return math.nan
    return float(value) if abs(value) < 1e300 else math.nan


def count_of(record: Mapping[str, Any], key: str) -> int | None:
    """A whole number, from 0 on."""
    value = record.get(key)
    return value if type(value) is int and 0 <= value < 2**63 else None


def text_of(record: Mapping[str, Any], key: str) -> str:
    """A text, cut to `MAX_TEXT` characters; empty for anything else."""
    value = record.get(key)
    return value[:MAX_TEXT] if isinstance(value, str) else ""
