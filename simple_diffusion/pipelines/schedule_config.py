"""Noise schedules as nested dicts of JSON values, and back."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from simple_diffusion.diffusion import schedules

TYPES: dict[str, type[schedules.Schedule]] = {
    "cosine": schedules.Cosine,
    "rectified_flow": schedules.RectifiedFlow,
    "linear_beta": schedules.LinearBeta,
    "shifted": schedules.Shifted,
    "interpolated": schedules.Interpolated,
}
MAX_DEPTH = 8  # schedules in schedules


def schedule_to_dict(schedule: schedules.Schedule) -> dict[str, Any]:
    """`type` and every field of the schedule; a `base` is a dict of the same kind.

    Raises:
        ValueError: a schedule of a class that this module does not know.
    """
    names = [name for name, kind in TYPES.items() if type(schedule) is kind]
    if not names:
        raise ValueError(f"{type(schedule).__name__} is no schedule that can be exported")
    tree: dict[str, Any] = {"type": names[0]}
    for field in fields(TYPES[names[0]]):  # type: ignore[arg-type]
        value = getattr(schedule, field.name)
        nested = isinstance(value, schedules.Schedule)
        tree[field.name] = schedule_to_dict(value) if nested else value
    return tree


def schedule_from_dict(
    tree: Mapping[str, Any], where: str = "schedule", depth: int = 1
) -> schedules.Schedule:
    """The schedule that `schedule_to_dict` described.

    Args:
        tree: its dict, not trusted: every field must be there, and nothing else.
        where: name of the dict, for messages.
        depth: how many schedules deep the dict is.

    Raises:
        ValueError: an unknown type, a missing, unknown or ill-typed field, or a refused value.
    """
    if not isinstance(tree, Mapping) or depth > MAX_DEPTH:
        raise ValueError(f"{where}: must be a dict with a type, at most {MAX_DEPTH} deep")
    kind = TYPES.get(str(tree.get("type")))
    if kind is None:
        raise ValueError(f"{where}.type: {tree.get('type')!r} is not one of {', '.join(TYPES)}")
    types = {field.name: field.type for field in fields(kind)}  # type: ignore[arg-type]
    if set(tree) != {"type", *types}:
        raise ValueError(f"{where}: {tree['type']} has {', '.join(types)}, not {sorted(tree)}")
    values: dict[str, Any] = {}
    for name, wanted in types.items():
        value = tree[name]
        if wanted is schedules.Schedule:
            value = schedule_from_dict(value, f"{where}.{name}", depth + 1)
        elif isinstance(value, bool) or not isinstance(
            value, int if wanted is int else int | float
        ):
            raise ValueError(f"{where}.{name}: must be a number, not {value!r}")
        values[name] = value
    return kind(**values)
