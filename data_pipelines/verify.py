"""Checks a shard set from checksums to pixels."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_pipelines.build import progress_bar
from data_pipelines.decode import DecodeError, decode_pixels, probe
from data_pipelines.index import checksum
from data_pipelines.manifest import Manifest, ShardSetError
from data_pipelines.shards import RawSample, SampleError, TarIndex


@dataclass(frozen=True)
class VerifyReport:
    """What verifying found.

    Attributes:
        root: The set's folder.
        samples: Number of samples that were decoded without complaint.
        problems: One line for each damage, naming shard and key.
    """

    root: Path
    samples: int
    problems: tuple[str, ...]

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def __str__(self) -> str:
        verdict = "sound" if self.sound else f"{len(self.problems)} problem(s)"
        lines = [f"{self.root}: {self.samples} samples decoded, {verdict}"]
        lines += [f"  {problem}" for problem in self.problems[:100]]
        if len(self.problems) > 100:
            lines.append(f"  and {len(self.problems) - 100} more")
        return "\n".join(lines)


def verify(root: Path | str, *, progress: bool = True) -> VerifyReport:
    """Compares every tar with the manifest and decodes every sample at full size.

    Raises:
        ShardSetError: There is no manifest that can be read. All else is reported.
    """
    root = Path(root)
    manifest = Manifest.parse(root)
    problems: list[str] = []
    counts: Counter[str] = Counter()
    good = synthetic = 0
    samples = _samples(root, manifest, problems)
    for shard, sample in progress_bar(samples, manifest.num_samples, str(root), progress):
        synthetic += sample.synthetic
        if sample.class_ is not None:
            counts[str(sample.class_)] += 1
        problem = _problem(sample, manifest.classes)
        if problem is None:
            good += 1
        else:
            problems.append(f"{shard}: sample {sample.key!r}: {problem}")
    if manifest.num_samples == 0:
        problems.append("the manifest names no samples")
    for name, stated in zip(manifest.classes, manifest.class_counts, strict=True):
        if counts[name] != stated:
            problems.append(f"class {name!r}: {counts[name]} samples; the manifest says {stated}")
    if synthetic != manifest.synthetic:
        problems.append(f"{synthetic} synthetic samples; the manifest says {manifest.synthetic}")
    return VerifyReport(root, good, tuple(problems))


def _samples(
    root: Path, manifest: Manifest, problems: list[str]
) -> Iterator[tuple[str, RawSample]]:
    """Yields all samples that can be read, with their shard; adds the rest to `problems`."""
    for shard in manifest.shards:
        path = root / shard.path
        try:
            size = path.stat().st_size
            if size != shard.bytes:
                problems.append(f"{path}: {size} bytes; the manifest says {shard.bytes}")
            elif checksum(path) != shard.sha256:
                problems.append(f"{path}: its checksum is not the manifest's")
            index = TarIndex(path)
        except ShardSetError as error:
            problems.append(str(error))
            continue
        except OSError as error:
            problems.append(f"{path}: cannot be read ({error.strerror})")
            continue
        if len(index) != shard.samples:
            problems.append(f"{path}: {len(index)} samples; the manifest says {shard.samples}")
        for number in range(len(index)):
            try:
                yield shard.path, index.read(number, shard.path)
            except SampleError as error:
                problems.append(str(error))
        index.close()


def _problem(sample: RawSample, classes: Sequence[str]) -> str | None:
    """Decodes a sample and compares it with its metadata; returns what is wrong."""
    if sample.class_ is not None and str(sample.class_) not in classes:
        return f"class {str(sample.class_)!r} is not in the manifest"
    try:
        decode_pixels(sample.image, covering=None)
        actual = probe(sample.image)
    except DecodeError as error:
        return str(error)
    stated = (sample.width, sample.height)
    if None not in stated and stated != (actual.width, actual.height):
        return f"{actual.width} x {actual.height} pixels; its .json says {stated[0]} x {stated[1]}"
    return None
