"""Progress bars, on terminals only."""

from collections.abc import Iterable
from typing import Any, TypeVar

from tqdm import tqdm

T = TypeVar("T")


def progress_bar(
    items: Iterable[T], total: int | None, title: str, shown: bool, unit: str = "images"
) -> Iterable[T]:
    """Shows progress through `items` on a terminal; silent if `shown` is false or in a log."""
    bar: Iterable[T] = _bar(items, total, title, shown, unit)
    return bar


def manual_bar(
    total: int | None, title: str, shown: bool, unit: str = "images", initial: int = 0
) -> Any:
    """A tqdm bar for the caller to move, and to close by `with`; shown as `progress_bar`'s."""
    return _bar(None, total, title, shown, unit, initial)


def _bar(
    items: Iterable[T] | None,
    total: int | None,
    title: str,
    shown: bool,
    unit: str,
    initial: int = 0,
) -> Any:
    hidden = None if shown else True
    return tqdm(items, total=total, unit=f" {unit}", desc=title, disable=hidden, initial=initial)
