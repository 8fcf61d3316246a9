"""Randomness as a pure function of (seed, purpose, position).

`position` is the number of a sample in the whole run (or the index of an image to sample), so what
is drawn depends neither on ranks, nor on accumulation, nor on where a run was resumed.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def hash64(seed: int, purpose: str, positions: Tensor | Sequence[int]) -> np.ndarray:
    """Independent-looking uint64 numbers, one for each position.

    Two rounds of the splitmix64 finaliser (Steele et al. 2014) over a digest of (seed, purpose).
    """
    digest = hashlib.blake2b(f"{seed}/{purpose}".encode(), digest_size=8).digest()
    x = np.asarray(positions, dtype=np.int64).astype(np.uint64)
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is meant
        x = x * np.uint64(0x9E3779B97F4A7C15) + np.uint64(int.from_bytes(digest, "little"))
        for _ in range(2):
            x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            x = x ^ (x >> np.uint64(31))
    return x


def uniforms(seed: int, purpose: str, positions: Tensor | Sequence[int]) -> Tensor:
    """Uniform numbers in [0, 1), float64, one for each position, on the CPU."""
    return torch.from_numpy((hash64(seed, purpose, positions) >> np.uint64(11)) * 2.0**-53)


def permutation(seed: int, purpose: str, count: int) -> Tensor:
    """A permutation of 0..count-1, int64, on the CPU."""
    keys = hash64(seed, purpose, range(count))
    return torch.from_numpy(np.argsort(keys, kind="stable"))


def generators(
    seed: int, purpose: str, positions: Tensor | Sequence[int], device: torch.device
) -> list[torch.Generator]:
    """One generator for each position. Streams of CPU and CUDA generators differ."""
    seeds = hash64(seed, purpose, positions) >> np.uint64(1)
    return [torch.Generator(device).manual_seed(int(s)) for s in seeds]


def normals(
    each: Sequence[torch.Generator], shape: Sequence[int], dtype: torch.dtype = torch.float32
) -> Tensor:
    """Standard normal noise, shape (len(each), *shape): row i from generator i, on its device."""
    rows = [torch.randn(*shape, generator=g, device=g.device, dtype=dtype) for g in each]
    return torch.stack(rows)
