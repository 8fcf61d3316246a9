"""What a build came to: counts, sizes, shapes, and what was rejected for which kinds of reasons."""

from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_pipelines.building.printable import printable
from data_pipelines.manifest import Manifest, ShardSetError
from data_pipelines.sample import Rejected, Sample

EXAMPLES = 20  # kept of each kind of reason
_SHOWN = 3  # of them in a report of many
_MAX_KINDS = 100
_MANY_KINDS = "other reasons"
# Least short sides in pixels of the rows of the table.
_SIDES = (64, 128, 256, 512, 768, 1024, 2048)
# Least width / height of the rows but the first.
_SHAPES = (1 / 2, 3 / 4, 4 / 3, 2.0)
_SHAPE_NAMES = (
    "taller than 1:2",
    "1:2 to 3:4",
    "about square",
    "4:3 to 2:1",
    "2:1 and wider",
)


@dataclass
class Tally:
    """Counts of what became samples and what did not; parts of a build add up.

    Attributes:
        samples: Number of samples.
        image_bytes: Bytes of their encoded images.
        sides: Short side in pixels -> number of samples, in steps: the least side of each.
        shapes: Place in the table of shapes -> number of samples.
        formats: Extension -> number of samples.
        unlabelled: Samples without a class.
        rejected: Kind of reason -> number of items that were left out.
        examples: Kind of reason -> the first few of them.
    """

    samples: int = 0
    image_bytes: int = 0
    sides: Counter[int] = field(default_factory=Counter)
    shapes: Counter[int] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)
    unlabelled: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[Rejected]] = field(default_factory=dict)

    def add(self, item: Sample | Rejected) -> None:
        """Counts one item."""
        if isinstance(item, Rejected):
            self._reject(kind_of(item.reason), 1, [item])
            return
        self.samples += 1
        self.image_bytes += len(item.image)
        self.sides[bisect_right(_SIDES, min(item.width, item.height))] += 1
        self.shapes[bisect_right(_SHAPES, item.width / item.height)] += 1
        self.formats[item.extension] += 1
        self.unlabelled += item.class_ is None

    def merge(self, other: "Tally") -> None:
        """Adds the counts of another part; the order of parts decides which examples are kept."""
        self.samples += other.samples
        self.image_bytes += other.image_bytes
        self.sides += other.sides
        self.shapes += other.shapes
        self.formats += other.formats
        self.unlabelled += other.unlabelled
        for kind, count in other.rejected.items():
            self._reject(kind, count, other.examples.get(kind, []))

    def _reject(self, kind: str, count: int, examples: Sequence[Rejected]) -> None:
        if kind not in self.rejected and len(self.rejected) >= _MAX_KINDS:
            kind = _MANY_KINDS
        self.rejected[kind] += count
        kept = self.examples.setdefault(kind, [])
        kept += examples[: EXAMPLES - len(kept)]

    def document(self) -> dict[str, Any]:
        """The counts as JSON values."""
        return {
            **vars(self),
            "sides": sorted(self.sides.items()),
            "shapes": sorted(self.shapes.items()),
            "formats": dict(self.formats),
            "rejected": dict(self.rejected),
            "examples": {
                kind: [[one.name, one.reason] for one in kept]
                for kind, kept in self.examples.items()
            },
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> "Tally":
        """The inverse of `document`."""
        return cls(
            samples=document["samples"],
            image_bytes=document["image_bytes"],
            sides=Counter(dict(document["sides"])),
            shapes=Counter(dict(document["shapes"])),
            formats=Counter(document["formats"]),
            unlabelled=document["unlabelled"],
            rejected=Counter(document["rejected"]),
            examples={
                kind: [Rejected(name, reason) for name, reason in kept]
                for kind, kept in document["examples"].items()
            },
        )

    def lines(self) -> list[str]:
        """The tables of a report."""
        lines = []
        if self.samples:
            mean = self.image_bytes / self.samples
            formats = ", ".join(f"{n} {name}" for name, n in self.formats.most_common())
            lines.append(f"  stored: {formats}; {_size(mean)} an image on average")
            sides = [(_side_name(row), count) for row, count in sorted(self.sides.items())]
            lines += _table("short side", sides, self.samples)
            shapes = [(_SHAPE_NAMES[row], count) for row, count in sorted(self.shapes.items())]
            lines += _table("width to height", shapes, self.samples)
        return lines + self._rejected_lines()

    def _rejected_lines(self) -> list[str]:
        if not self.rejected:
            return []
        lines = [f"  rejected: {self.rejected.total()}"]
        for kind, count in self.rejected.most_common():
            kept = self.examples[kind]
            shown = kept[: EXAMPLES if len(self.rejected) == 1 else _SHOWN]
            if count == 1:
                lines.append(f"    {kept[0].name}: {kept[0].reason}")
                continue
            lines.append(f"    {count} of the kind '{kind}':")
            lines += [f"      {one.name}: {one.reason}" for one in shown]
            if count > len(shown):
                lines.append(f"      and {count - len(shown)} more")
        return lines


@dataclass(frozen=True)
class BuildReport:
    """What a build wrote, or found written already.

    Attributes:
        out: The set's folder.
        manifest: Manifest of the training part.
        validation: Manifest of the held-out part, if there is one.
        tally: Counts of this build; empty where there was nothing to do.
        reused: Whether a complete set of the same recipe was there already.
        notes: Remarks for people, a line each.
    """

    out: Path
    manifest: Manifest
    validation: Manifest | None
    tally: Tally
    reused: bool
    notes: tuple[str, ...] = ()

    @property
    def rejected(self) -> tuple[Rejected, ...]:
        """Items that were left out: the first EXAMPLES of each kind; `tally` has the numbers."""
        return tuple(one for kept in self.tally.examples.values() for one in kept)

    def __str__(self) -> str:
        lines = [f"{self.out}: complete already, nothing to do" if self.reused else f"{self.out}:"]
        for name, manifest in (("training", self.manifest), ("validation", self.validation)):
            if manifest is not None:
                made = f", {manifest.synthetic} synthetic" if manifest.synthetic else ""
                lines.append(
                    f"  {name}: {manifest.num_samples} images in {len(manifest.shards)} shard(s), "
                    f"{_size(sum(shard.bytes for shard in manifest.shards))}, "
                    f"{sum(map(bool, manifest.class_counts))} classes{made}"
                )
        counts = Counter[str]()
        for manifest in filter(None, (self.manifest, self.validation)):
            counts += Counter(dict(zip(manifest.classes, manifest.class_counts, strict=True)))
        if len(counts) > 1:
            (most, high), *_, (least, low) = counts.most_common()
            lines.append(f"  images of a class: {low} ({least}) to {high} ({most})")
        if self.tally.unlabelled and counts:
            lines.append(f"  without a class: {self.tally.unlabelled}")
        lines += [f"  {note}" for note in self.notes]
        return printable("\n".join(lines + self.tally.lines()))


def check_parts(source: str, train: int, held: int, share: float, tally: Tally) -> None:
    """Refuses a set that has no training part, or not the held-out one that was asked for.

    Args:
        source: Where the images come from, for people.
        train: Number of shards, or of items to be, of the training part.
        held: Of the held-out part.
        share: What was to be held out.
        tally: What became of the items.

    Raises:
        ShardSetError: One of these.
    """
    if held and not train:
        raise ShardSetError(
            f"a validation share of {share} of {source} leaves no images to train on; use a "
            "smaller share"
        )
    if not train:
        examples = [one for kept in tally.examples.values() for one in kept]
        raise ShardSetError(
            f"no usable image came from {source}"
            + "".join(f"; {item.name}: {item.reason}" for item in examples[:5])
        )
    if share and not held:
        raise ShardSetError(
            f"a validation share of {share} of {source} came to no images; use a larger share"
        )


def kind_of(reason: str) -> str:
    """What stands before the details of a reason: its first colon or bracket."""
    return reason.partition(":")[0].partition(" (")[0].strip()[:80]


def _table(title: str, rows: Sequence[tuple[str, int]], total: int) -> list[str]:
    cells = [f"{name} {count} ({100 * count / total:.3g}%)" for name, count in rows]
    return [f"  {title}: {', '.join(cells)}"]


def _side_name(row: int) -> str:
    low = f"{_SIDES[row - 1]}" if row else ""
    high = f"{_SIDES[row] - 1}" if row < len(_SIDES) else ""
    return f"{low}-{high} px" if low and high else f"{low} px up" if low else f"up to {high} px"


def _size(count: float) -> str:
    for unit in ("B", "KiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} MiB"
