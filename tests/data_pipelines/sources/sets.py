"""Building a set from a source, and reading all of it back."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from data_pipelines.building.build_set import build_set
from data_pipelines.building.report import BuildReport
from data_pipelines.sample import Rejected
from data_pipelines.shards import RawSample, ShardReader
from data_pipelines.sources.base import ImageSource, Item
from data_pipelines.store import LocalStore
from tests.data_pipelines.samples import Pixels


def build(source: ImageSource, out: Path, **options: object) -> BuildReport:
    return build_set(source, out, **{"progress": False, **options})  # type: ignore[arg-type]


def read_all(report: BuildReport) -> dict[str, RawSample]:
    """Samples of the training part by key, in their order."""
    reader = ShardReader(LocalStore(report.out, report.manifest))
    counts = [shard.samples for shard in report.manifest.shards]
    samples = [reader.read(s, i) for s, count in enumerate(counts) for i in range(count)]
    return {sample.key: sample for sample in samples}


def pixels(data: bytes) -> Pixels:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def listed(source: ImageSource) -> list[Item]:
    return [entry for entry in source.items() if isinstance(entry, Item)]


def refused(source: ImageSource) -> dict[str, str]:
    """What the listing leaves out: name -> reason."""
    return {entry.name: entry.reason for entry in source.items() if isinstance(entry, Rejected)}


def tree_bytes(root: Path) -> dict[str, bytes]:
    """All files of a finished set."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }
