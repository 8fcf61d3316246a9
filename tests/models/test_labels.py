"""Classes by name and by number."""

import re

import pytest

from simple_diffusion.models.labels import class_label

NAMES = ("cat", "dog", "7", "bird")


@pytest.mark.parametrize(
    ("given", "label"), [("cat", 0), ("bird", 3), (1, 1), ("1", 1), ("7", 2), ("003", 3)]
)
def test_names_come_before_digits(given: int | str, label: int) -> None:
    assert class_label(given, NAMES, 9) == label


@pytest.mark.parametrize("given", [0, 8, "8"])
def test_without_names_numbers_reach_the_room(given: int | str) -> None:
    assert class_label(given, (), 9) == int(given)


@pytest.mark.parametrize(
    ("given", "names", "num_classes", "message"),
    [
        ("catt", NAMES, 9, "did you mean 'cat'?"),
        ("zebra", NAMES, 9, "this model's are cat, dog, 7, bird"),
        ("zebra", [f"class{i}" for i in range(30)], 30, "class9 and 20 more"),
        ("cat", (), 9, "no names: give numbers from 0 to 8"),
        (4, NAMES, 9, "classes are 0 to 3"),
        (9, (), 9, "classes are 0 to 8"),
        (-1, NAMES, 9, "out of range"),
        ("-1", NAMES, 9, "unknown class '-1'"),
        ("²", NAMES, 9, "unknown class"),
        ("cat", (), 0, "unconditional"),
    ],
)
def test_refusals(given: int | str, names: tuple[str, ...], num_classes: int, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        class_label(given, names, num_classes)
