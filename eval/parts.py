"""A set of images measured part by part: on any number of processes, and again after a stop.

A set is cut into parts of a fixed size by the images' numbers. Whoever measures a part writes its
features to a file; the figures are computed from the files in order. So they do not depend on how
many processes there were, and what was measured before an interruption is not measured again.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from eval.features import Extractor, ExtractorFacts
from eval.statistics import FeatureStatistics, image_digests

Images = tuple[Tensor, Tensor | None]  # uint8 (n, 3, H, W), and int64 (n,) labels where known


class PartError(ValueError):
    """A part that is missing or is not what was to be measured."""


@dataclass(frozen=True)
class Parts:
    """Files of features of the images 0 to num - 1.

    Attributes:
        folder: where the files are; made when the first is written.
        num: images in the set.
        size: images in a part; the last one may be smaller.
        facts: of the extractor.
    """

    folder: Path
    num: int
    size: int
    facts: ExtractorFacts

    def __len__(self) -> int:
        return -(-self.num // self.size)

    def indices(self, part: int) -> range:
        """The numbers of a part's images."""
        return range(part * self.size, min((part + 1) * self.size, self.num))

    def path(self, part: int) -> Path:
        """The file of a part."""
        return self.folder / f"part-{part:06d}.safetensors"

    def missing(self, rank: int = 0, processes: int = 1) -> list[int]:
        """This process's share of the parts that are not there yet or cannot be read."""
        mine = range(rank, len(self), processes)
        return [part for part in mine if not self._is_there(part)]

    def measure(
        self,
        parts: Sequence[int],
        images: Iterable[Images],
        extractor: Extractor,
        *,
        done: Callable[[], None] = lambda: None,
    ) -> None:
        """Measure some parts and write their files.

        Args:
            parts: which.
            images: the images of each, in the same order.
            extractor: makes the features.
            done: called after each part.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        for part, (pixels, labels) in zip(parts, images, strict=True):
            assert len(pixels) == len(self.indices(part))
            found = extractor(pixels)
            tensors = {
                "features": found.features,
                "digests": torch.from_numpy(image_digests(pixels.cpu()).view(np.int64)),
            }
            if found.probabilities is not None:
                tensors["probabilities"] = found.probabilities
            if labels is not None:
                tensors["labels"] = labels.cpu()
            temporary = self.path(part).with_suffix(".tmp")
            try:
                save_file({name: t.contiguous() for name, t in tensors.items()}, temporary)
            except SafetensorError as error:
                raise OSError(f"{temporary}: cannot be written ({error})") from None
            temporary.replace(self.path(part))
            done()

    def statistics(self, keep: int) -> FeatureStatistics:
        """Statistics of all parts together, in the order of their numbers.

        Args:
            keep: as in `FeatureStatistics`.

        Raises:
            PartError: a part is missing or damaged.
        """
        whole = FeatureStatistics(self.facts.dim, self.facts.classes, keep)
        for part in range(len(self)):
            tensors = self.read(part)
            whole.update(
                tensors["features"],
                tensors["digests"].numpy().view(np.uint64),
                probabilities=tensors.get("probabilities"),
                labels=tensors.get("labels"),
            )
        return whole

    def features(self) -> Tensor:
        """The features of all images in the order of their numbers, float32 (num, dim)."""
        return torch.cat([self.read(part)["features"] for part in range(len(self))])

    def read(self, part: int) -> dict[str, Tensor]:
        """The tensors of a part.

        Raises:
            PartError: it is missing or damaged.
        """
        path, count = self.path(part), len(self.indices(part))
        try:
            tensors = load_file(path)
        except (OSError, SafetensorError, ValueError) as error:
            raise PartError(
                f"{path}: cannot be read ({error}); remove it to measure it again"
            ) from None
        shapes = {
            "features": ((count, self.facts.dim), torch.float32),
            "digests": ((count,), torch.int64),
            "probabilities": ((count, self.facts.classes), torch.float32),
            "labels": ((count,), torch.int64),
        }
        needed = {"features", "digests"} | ({"probabilities"} if self.facts.classes else set())
        fits = needed <= set(tensors) <= set(shapes) and all(
            (tuple(t.shape), t.dtype) == shapes[name] for name, t in tensors.items()
        )
        if not fits:
            raise PartError(
                f"{path}: holds other tensors than expected; remove it to measure again"
            )
        return tensors

    def remove(self) -> None:
        """Delete the files, and the folder if nothing else is in it."""
        for path in self.folder.glob("part-*"):
            path.unlink(missing_ok=True)
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _is_there(self, part: int) -> bool:
        if not self.path(part).is_file():
            return False
        try:
            self.read(part)
        except PartError:
            return False
        return True


def with_progress(
    parts: Parts, mine: Sequence[int], images: Iterable[Images], extractor: Extractor, title: str
) -> None:
    """`Parts.measure` with a bar that counts this process's images."""
    with tqdm(total=sum(len(parts.indices(p)) for p in mine), desc=title, unit="img") as bar:
        sizes: Iterator[int] = (len(parts.indices(part)) for part in mine)
        parts.measure(mine, images, extractor, done=lambda: bar.update(next(sizes)) and None)
