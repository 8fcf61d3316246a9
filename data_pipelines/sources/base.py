"""What a build asks of a source of images: a listing, and each listed image when its turn comes."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from data_pipelines.sample import Rejected, Sample


@dataclass(frozen=True)
class Item:
    """One image that is to be stored: as cheap to list as possible.

    Attributes:
        key: Unique name without dots; its hash decides whether it is held out.
        place: Where the source finds it again (a path, a row's number, [tar, index]): a JSON value.
        class_: Class name, where the listing knows it.
        caption: Text, where the listing knows it.
        group: Value of the field that is to be split by (a photographer, ...), where asked for.
    """

    key: str
    place: str | int | list[Any]
    class_: str | None = None
    caption: str | None = None
    group: str | None = None


class ImageSource(Protocol):
    """A source of images: picklable, as workers and jobs on other machines get a copy of it.

    Every shard is a pure function of the source and the shard's items; `sample` may therefore
    depend on nothing else.
    """

    @property
    def title(self) -> str:
        """Where the images come from, for people: the manifest's `source`."""

    @property
    def licence(self) -> str:
        """Note on what the images may be used for."""

    def recipe(self) -> Mapping[str, Any]:
        """All that decides the samples, with a hash of what the listing is made from: JSON."""

    def items(self) -> Iterator[Item | Rejected]:
        """The listing, in a fixed order, with what is left out before anything is read."""

    def sample(self, item: Item) -> Sample | Rejected:
        """Reads one image, checks that it decodes, and converts it by the storage policy.

        Raises:
            OSError: It cannot be read; counted as a rejected item. So is a `DecodeError`.
        """


@runtime_checkable
class LabelledSource(Protocol):
    """A source whose classes have an order of their own."""

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Class names in the order of their labels; None to sort those of the samples."""


@runtime_checkable
class LocalSource(Protocol):
    """A source of files of this machine."""

    @property
    def read_paths(self) -> tuple[Path, ...]:
        """Folders and files that the set may not be made in, nor replace."""


@runtime_checkable
class ScannedSource(Protocol):
    """A source that has to look at its images before it can list them, to drop duplicates, say."""

    def prepared(self, folder: Path, *, workers: int, progress: bool) -> ImageSource:
        """Looks at the images, by several processes.

        Args:
            folder: Where to keep what is found, part by part, for this call and those that go on
                after an interruption; no other recipe is given the same folder.
            workers: Processes.
            progress: Show a progress bar.

        Returns:
            The source whose `items` use what was found.
        """
