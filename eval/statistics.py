"""Statistics of a set of images' features: one pass, mergeable, whatever the order.

Two things are kept of each set. The moments of *all* features, in float64, for metrics that model a
set by its mean and covariance. And a bounded sample of the features themselves, for metrics that
compare image with image: those of the images with the smallest content digests ("bottom-k"
sampling, Cohen and Kaplan 2007). A digest is as good as a random number drawn once per image, and
depends on nothing but the image, so that any order, any batches and any number of processes keep
the same rows.
"""

import hashlib
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, Protocol, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from eval.bottom_k import Rows, checked_rows, random_order, smallest
from eval.moments import ClassMoments, Moments

KEEP = 10_000  # features kept by default
_FORMAT = 1
_HEADER = ("format", "dim", "classes", "keep")
T = TypeVar("T")


class _Found(Protocol):
    @property
    def features(self) -> Tensor: ...
    @property
    def probabilities(self) -> Tensor | None: ...


class _Facts(Protocol):
    @property
    def dim(self) -> int: ...
    @property
    def classes(self) -> int: ...


class FeatureExtractor(Protocol):
    """What `describe` needs of an extractor; those of `eval.features` have it."""

    @property
    def facts(self) -> _Facts: ...
    def __call__(self, images: Tensor) -> _Found: ...


def image_digests(images: Tensor) -> np.ndarray:
    """A 64-bit hash of each image's content: of its shape and pixels, nothing else.

    Args:
        images: uint8, shape (n, 3, H, W).

    Returns:
        uint64, shape (n,). Equal images have equal digests.

    Raises:
        ValueError: images of another type or shape.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(
            f"image digests are of uint8 images of shape (n, 3, H, W), not {images.dtype} of shape "
            f"{tuple(images.shape)}: quantise them first, as saving them would"
        )
    pixels = images.detach().cpu().contiguous().numpy()
    start = hashlib.blake2b(repr(pixels.shape[1:]).encode(), digest_size=8)
    digests = bytearray()
    for image in pixels:
        digest = start.copy()
        digest.update(image.data)
        digests += digest.digest()
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)


class FeatureStatistics:
    """Moments of all features of a set, and the features of a bounded sample of it.

    The sample is unbiased as long as copies of an image are few: all copies share a digest, so
    beyond `keep` images they are kept or dropped together. Sets of up to `keep` images are kept
    whole.

    Args:
        dim: number of features.
        classes: number of class probabilities; 0 where there are none.
        keep: most rows of features kept.

    Attributes:
        dim, classes, keep: as given.
    """

    def __init__(self, dim: int, classes: int = 0, keep: int = KEEP) -> None:
        if dim < 1 or classes < 0 or keep < 2:
            raise ValueError(
                f"statistics need dim >= 1, classes >= 0 and keep >= 2, not dim {dim}, "
                f"classes {classes}, keep {keep}"
            )
        self.dim, self.classes, self.keep = dim, classes, keep
        self._moments = Moments(dim)
        self._class_moments = ClassMoments(classes)
        self._sample = Rows.empty(dim)
        self._pending: list[Rows] = []
        self._memo: dict[Hashable, Any] = {}

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(count={self.count}, dim={self.dim}, classes={self.classes}, "
            f"keep={self.keep})"
        )

    @property
    def count(self) -> int:
        """Images seen."""
        return self._moments.count

    @property
    def mean(self) -> Tensor:
        """Mean of all features, float64, shape (dim,)."""
        return self._moments.mean

    def covariance(self) -> Tensor:
        """Covariance of all features, divided by n - 1; float64, shape (dim, dim).

        Raises:
            ValueError: fewer than two images.
        """
        return self._moments.covariance()

    def inception_score(self) -> float:
        """exp(mean KL(p(y|x) || p(y))) over all images (Salimans et al. 2016), without splits.

        Raises:
            ValueError: there are no probabilities, or no images.
        """
        return self._class_moments.inception_score()

    @property
    def kept(self) -> Tensor:
        """The features kept, in ascending order of digests; float32, shape (m, dim)."""
        return self._compacted().features

    @property
    def kept_labels(self) -> Tensor:
        """Labels of the rows of `kept`, int64, shape (m,); -1 where there is none."""
        return torch.from_numpy(self._compacted().labels.copy())

    @property
    def kept_digests(self) -> np.ndarray:
        """Digests of the rows of `kept`, uint64, shape (m,)."""
        return self._compacted().digests.copy()

    def update(
        self,
        features: Tensor,
        digests: np.ndarray,
        *,
        probabilities: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> None:
        """Add images.

        Args:
            features: shape (n, dim); taken as float32.
            digests: of the images, uint64, shape (n,).
            probabilities: of the classes, shape (n, classes); given if and only if there are any.
            labels: non-negative integers, shape (n,), or -1 where unknown.

        Raises:
            ValueError: shapes that do not fit, features that are not finite, or rows of
                probabilities that are none.
        """
        features = features.detach().to("cpu", torch.float32)
        if features.shape != (len(digests), self.dim) or digests.dtype != np.uint64:
            raise ValueError(
                f"features of shape {tuple(features.shape)} for {len(digests)} digests of type "
                f"{digests.dtype}: they should be ({len(digests)}, {self.dim}), the digests uint64"
            )
        bad = (~features.isfinite().all(1)).nonzero()
        if len(bad):
            raise ValueError(
                f"the features of {len(bad)} of {len(features)} images are not finite (first: row "
                f"{int(bad[0])}): check the extractor, and the images of a diverged model"
            )
        if (probabilities is None) != (self.classes == 0):
            raise ValueError(f"{self.classes} classes: probabilities must be given exactly if > 0")
        numbers = _label_array(labels, len(features))
        if probabilities is not None:
            self._class_moments.update(probabilities.detach(), len(features))
        self._moments.update(features)
        self._add(Rows(features.clone(), numbers, digests.copy()))

    def merge(self, other: "FeatureStatistics") -> None:
        """Add another set's images, as though they had been given to `update`.

        Raises:
            ValueError: the other set has another `dim`, `classes` or `keep`.
        """
        for name in ("dim", "classes", "keep"):
            ours, theirs = getattr(self, name), getattr(other, name)
            if ours != theirs:
                raise ValueError(
                    f"statistics with {name} {ours} and {theirs} cannot be merged: measure both "
                    "sets alike"
                )
        self._class_moments.merge(other._class_moments)
        self._moments.merge(other._moments)
        self._add(other._compacted())

    def subset(self, rows: Tensor | Sequence[int]) -> "FeatureStatistics":
        """Statistics of some of the rows of `kept` alone, without class probabilities.

        Args:
            rows: indices into `kept`.
        """
        index = torch.as_tensor(rows)
        assert index.dtype == torch.int64  # a mask would be taken for zeros and ones
        sample = self._compacted()
        part = FeatureStatistics(self.dim, 0, max(2, len(index)))
        part.update(
            sample.features[index],
            sample.digests[index.numpy()],
            labels=torch.from_numpy(sample.labels[index.numpy()]),
        )
        return part

    def split_order(self) -> Tensor:
        """Rows of `kept` in an order fit for cutting into random parts; int64, shape (m,).

        That of the digests, but for copies of an image, which are dealt to pseudo-random places:
        in the order of digests they would lie side by side, and parts would hold all or none of
        them, or one each.
        """
        return self.memo("split order", lambda: random_order(self._compacted().digests))

    def memo(self, key: Hashable, make: Callable[[], T]) -> T:
        """A value derived from the statistics, computed once until they change."""
        if key not in self._memo:
            self._memo[key] = make()
        value: T = self._memo[key]
        return value

    def to_tensors(self) -> dict[str, Tensor]:
        """Everything, as tensors to be saved; `from_tensors` gives back exactly this."""
        sample = self._compacted()
        header = [_FORMAT, self.dim, self.classes, self.keep]
        return {
            "header": torch.tensor(header),
            "kept": sample.features.clone(),
            "kept_labels": self.kept_labels,
            "kept_digests": torch.from_numpy(self.kept_digests.view(np.int64)),
            **self._moments.to_tensors(),
            **self._class_moments.to_tensors(),
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        """Statistics from `to_tensors`; the tensors may come from anywhere, and are checked.

        Raises:
            ValueError: the tensors are not statistics.
        """
        dim, classes, keep = _checked_header(tensors)
        found = cls(dim, classes, keep)
        expected = {name: (t.dtype, tuple(t.shape)) for name, t in found.to_tensors().items()}
        if set(tensors) != set(expected):
            raise ValueError(f"not statistics: tensors {sorted(tensors)}, not {sorted(expected)}")
        rows = len(tensors["kept"]) if tensors["kept"].ndim else 0
        for name, (dtype, shape) in expected.items():
            if name.startswith("kept"):
                shape = (rows, *shape[1:])
            if tensors[name].dtype != dtype or tensors[name].shape != shape:
                raise ValueError(
                    f"not statistics: {name} is {tensors[name].dtype} of shape "
                    f"{tuple(tensors[name].shape)}, not {dtype} of shape {shape}"
                )
        found._moments = Moments.from_tensors(tensors)
        found._class_moments = ClassMoments.from_tensors(tensors, found.count)
        found._sample = checked_rows(tensors, min(found.count, keep))
        return found

    def _add(self, sample: Rows) -> None:
        self._memo.clear()
        if len(self._sample.digests) == self.keep:  # most of a long set is dropped at once
            sample = sample.rows((sample.digests <= self._sample.digests[-1]).nonzero()[0])
        self._pending.append(sample)
        if sum(len(s.digests) for s in self._pending) >= self.keep:
            self._compacted()

    def _compacted(self) -> Rows:
        if self._pending:
            parts = [self._sample, *self._pending]
            self._pending = []
            self._sample = smallest(parts, self.keep)
        return self._sample


def _label_array(labels: Tensor | None, count: int) -> np.ndarray:
    if labels is None:
        return np.full(count, -1, np.int64)
    found = labels.detach().cpu().long()
    if labels.shape != (count,) or labels.is_floating_point() or bool((found < -1).any()):
        raise ValueError(
            f"labels must be {count} integers >= 0, or -1 where unknown; not {labels.dtype} of "
            f"shape {tuple(labels.shape)}"
        )
    return found.numpy().copy()


def _checked_header(tensors: Mapping[str, Tensor]) -> tuple[int, int, int]:
    header = tensors.get("header")
    if header is None or header.dtype != torch.int64 or header.shape != (len(_HEADER),):
        raise ValueError("not statistics: no header")
    version, dim, classes, keep = header.tolist()
    if version != _FORMAT:
        raise ValueError(f"statistics of format {version}; this version reads {_FORMAT}")
    # Sizes are believed only as far as the tensors bear them out: no memory on a file's word.
    shapes = {"mean": (dim,), "scatter": (dim, dim), "class_sum": (classes,)}
    if any(name not in tensors or tensors[name].shape != shape for name, shape in shapes.items()):
        raise ValueError(f"not statistics: the header says dim {dim} and classes {classes}")
    return dim, classes, keep


def describe(
    batches: Iterable[tuple[Tensor, Tensor | None]],
    extractor: FeatureExtractor,
    *,
    keep: int = KEEP,
    on_batch: Callable[[int], object] | None = None,
) -> FeatureStatistics:
    """Statistics of a stream of images, in one pass.

    Args:
        batches: uint8 images of shape (n, 3, H, W), and labels of shape (n,) or None.
        extractor: makes the features.
        keep: as in `FeatureStatistics`.
        on_batch: called after each batch with its number of images.

    Returns:
        The statistics; of no images where the stream is empty, as a process's share may be.

    Raises:
        ValueError: images or labels that do not fit, or features that are not finite.
    """
    found = FeatureStatistics(extractor.facts.dim, extractor.facts.classes, keep)
    for images, labels in batches:
        seen = extractor(images)
        found.update(
            seen.features, image_digests(images), probabilities=seen.probabilities, labels=labels
        )
        if on_batch is not None:
            on_batch(len(images))
    return found
