"""Overlays of a study: what they are called, and how they may be written."""

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from simple_diffusion.config_files import merge

Overlay = dict[str, Any]

_NAME = re.compile(r"[A-Za-z0-9_.+-]{1,60}")


class StudyError(ValueError):
    """A study that cannot be run; the message names the file, the key and the remedy."""


def nearest(name: str, known: Iterable[str]) -> str:
    """What to try instead of an unknown name."""
    names = [str(one) for one in known]
    close = difflib.get_close_matches(name, names, 1)
    if close:
        return f"did you mean {close[0]}?"
    return f"there is {', '.join(names)}" if names else "there is none"


def checked_name(value: object, where: str) -> str:
    """The name of an axis or of one of its values, as text.

    Raises:
        StudyError: not a name that can stand in a file name and on a command line.
    """
    if isinstance(value, bool):
        raise StudyError(f"{where}: quote the name: YAML reads on, off, yes and no as {value}")
    name = value if isinstance(value, str) else value_name(value)
    if name is None or not _NAME.fullmatch(name):
        raise StudyError(
            f"{where}: {value!r} is no name: letters, digits and . _ + - (60 at the most) are"
        )
    return name


def value_name(value: object) -> str | None:
    """What a config value is called: ``true``, ``null``, ``0.5``, ``64-128``; None if nothing."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (str, int, float)):
        return str(value)
    if isinstance(value, list):
        parts = [value_name(part) for part in value]
        return None if None in parts else "-".join(map(str, parts))
    return None


def read_overlay(value: object, where: str) -> Overlay:
    """Config sections to lay over the base; a dotted key stands for nested sections.

    Raises:
        StudyError: not a mapping, or a key that the study itself sets.
    """
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise StudyError(
            f"{where}: must hold config sections, such as {{optim: {{lr: 1e-3}}}}, not {value!r}"
        )
    overlay: Overlay = {}
    for key, inner in value.items():
        *sections, leaf = str(key).split(".")
        branch: Overlay = {leaf: inner}
        for section in reversed(sections):
            branch = {section: branch}
        overlay = merge(overlay, branch)
    for key, setter in (("run_dir", "the study's --out"), ("seed", "`seeds`")):
        if key in overlay:
            raise StudyError(f"{where}: {key} is set by {setter}; take it out")
    return overlay


def read_axis(name: str, value: object, where: str) -> Mapping[str, Overlay]:
    """The values of an axis: name -> overlay.

    Args:
        name: of the axis; where `value` is a list, the dotted config key that takes its values.
        value: a mapping of names to overlays, or a list of values.
        where: what to blame.

    Raises:
        StudyError: no values, or values without a name.
    """
    if isinstance(value, dict) and value:
        return {
            checked_name(key, where): read_overlay(inner, f"{where}.{key}")
            for key, inner in value.items()
        }
    if not isinstance(value, list) or not value:
        raise StudyError(f"{where}: give a list of values, or a mapping of names to overlays")
    axis: dict[str, Overlay] = {}
    for inner in value:
        called = value_name(inner)
        if called is None:
            raise StudyError(f"{where}: {inner!r} has no short name; use names: {{name: overlay}}")
        called = checked_name(called, where)
        if called in axis:
            raise StudyError(f"{where}: {called} stands twice")
        axis[called] = read_overlay({name: inner}, f"{where}: {called}")
    return axis
