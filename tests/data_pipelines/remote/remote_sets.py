"""Shard sets to be served over HTTP or S3, made of random bytes or of real samples."""

import hashlib
from pathlib import Path

import numpy as np

from data_pipelines.manifest import Manifest, Shard
from data_pipelines.shard_index import ShardIndex, index_path
from tests.data_pipelines.samples import write_numbered_tars


def random_set(root: Path, sizes: list[int]) -> Manifest:
    """Writes files of random bytes in place of tars; no two are equal."""
    root.mkdir(parents=True, exist_ok=True)
    shards = []
    for number, size in enumerate(sizes):
        data = np.random.default_rng(number).bytes(size)
        (root / f"{number:02d}.tar").write_bytes(data)
        shards.append(Shard(f"{number:02d}.tar", 1, size, hashlib.sha256(data).hexdigest()))
    manifest = Manifest(tuple(shards), (), (), "", "random bytes")
    manifest.save(root)
    return manifest


def sample_set(root: Path, counts: list[int]) -> Manifest:
    """Writes tars of small pictures with their indices."""
    write_numbered_tars(root, counts)
    shards = []
    for path in sorted(root.glob("*.tar")):
        data = path.read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        index = ShardIndex.scan(path)
        sizes = np.full(len(index), 8, dtype=np.int32)
        saved = index.described(sizes, sizes, digest).save(index_path(path))
        shards.append(Shard(path.name, len(index), len(data), digest, saved))
    total = sum(counts)
    classes = tuple(f"class {number}" for number in range(3))
    per_class = tuple(len(range(number, total, 3)) for number in range(3))
    manifest = Manifest(tuple(shards), classes, per_class, "", "numbered pictures")
    manifest.save(root)
    return manifest
