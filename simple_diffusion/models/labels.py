"""What a class label means: names and numbers of the classes that a network was trained on."""

import difflib
from collections.abc import Sequence

SHOWN = 10  # names in an error message


def class_label(given: int | str, names: Sequence[str], num_classes: int) -> int:
    """The label of a class given by name or by number.

    A word is looked up among the names first, and is otherwise read as a number.

    Args:
        given: a name, a label, or a label's decimal digits.
        names: name of each class in the order of their labels; empty where none are known.
        num_classes: classes that the network has room for, the null class not counted.

    Returns:
        The label, in [0, len(names)), or in [0, num_classes) without names.

    Raises:
        ValueError: an unconditional network, an unknown name, or a number out of range.
    """
    if num_classes == 0:
        raise ValueError(f"class {given!r}: this model is unconditional; leave the classes out")
    if isinstance(given, str):
        if given in names:
            return list(names).index(given)
        if not (given.isascii() and given.isdigit()):
            raise ValueError(
                f"unknown class {given!r}; {_what_there_is(given, names, num_classes)}"
            )
    label, count = int(given), len(names) or num_classes
    if not 0 <= label < count:
        raise ValueError(
            f"class {label} is out of range: this model's classes are 0 to {count - 1}"
        )
    return label


def _what_there_is(wanted: str, names: Sequence[str], num_classes: int) -> str:
    if not names:
        return f"this model's classes have no names: give numbers from 0 to {num_classes - 1}"
    close = difflib.get_close_matches(wanted, names, 1)
    if close:
        return f"did you mean {close[0]!r}?"
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"this model's are {', '.join(names[:SHOWN])}{more}"
