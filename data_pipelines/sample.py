"""What a source hands to a build: an image ready to be stored, or why there is none."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Sample:
    """An image ready to be stored.

    Attributes:
        key: Unique name without dots.
        image: The encoded image.
        extension: Its extension, such as "png".
        width: Upright width in pixels.
        height: Upright height in pixels.
        class_: Class name, where known.
        caption: Text, where known.
        synthetic: Whether a model made the image.
        fields: What else is known of it (JSON values), kept in its metadata.
    """

    key: str
    image: bytes
    extension: str
    width: int
    height: int
    class_: str | None = None
    caption: str | None = None
    synthetic: bool = False
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Rejected:
    """A source item that did not become a sample, and why.

    Attributes:
        name: Which one, for people.
        reason: Why; what stands before a colon is the kind of reason that reports count by.
    """

    name: str
    reason: str
