"""How numbers look on paper."""

from collections.abc import Iterator, Mapping


def si(value: float, unit: str = "") -> str:
    """Three digits and a prefix: 29.2 M, 1.45 TFLOP."""
    for prefix in ("", "k", "M", "G", "T", "P", "E", "Z"):
        if value < 999.5 or prefix == "Z":
            break
        value /= 1000
    return f"{value:.3g} {prefix}{unit}".rstrip()


def row(title: str, *columns: str) -> str:
    """A line with a title, a column of figures, and what else there is to say."""
    first, *others = (*columns, "")
    return f"{title:22}{first:>12}{''.join(others)}".rstrip()


def parameter_lines(parameters: Mapping[str, int]) -> Iterator[str]:
    """How many parameters, and where."""
    total = sum(parameters.values())
    yield row("parameters", si(total))
    for part, count in parameters.items():
        yield row(f"  {part}", si(count), f"{count / total:6.1%}")


def flop_lines(forward: int, step: int) -> Iterator[str]:
    """FLOPs of an image, forward and in a training step."""
    yield row("FLOPs of an image", "", "  (a multiply-add is 2)")
    yield row("  forward", si(forward, "FLOP"))
    yield row("  training step", si(step, "FLOP"), f"  {step / forward:.2f} x forward")


def table(rows: list[list[str]]) -> Iterator[str]:
    """Rows of words as columns: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        words = [word.rjust(width) for word, width in zip(others, widths[1:], strict=True)]
        yield "  ".join([first.ljust(widths[0]), *words]).rstrip()
