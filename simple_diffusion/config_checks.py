"""Refusing values of a config that are of the right type but make no sense."""


class RefusedValueError(ValueError):
    """A value of the right type that makes no sense; the message starts with its dotted key."""


def require(condition: bool, message: str) -> None:
    """Raise RefusedValueError with this message unless the condition holds."""
    if not condition:
        raise RefusedValueError(message)
