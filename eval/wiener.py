"""The Wiener denoiser: the best linear guess of a clean image, as a yardstick for validation loss.

A network that denoises worse than a linear filter fitted to the same images has learnt less than
second-order statistics. The filter is the posterior mean under a Gaussian with the images' mean
and covariance: with z = α x0 + σ eps (variance preserving, λ = log α²/σ²) and covariance
U diag(d) Uᵀ,

    x0_hat = m + U diag(α d / (α² d + σ²)) Uᵀ (z - α m).

Images have far more pixels than a data set has images, so the sample covariance is useless as it
stands: it claims zero variance in most directions. Two cures are combined here.

*Held-out variances.* Every fifth image is set aside. The others give orthonormal directions, the
ones set aside give the variance d along each. For a given U that is the filter with the least
expected error on new images, so there is no rank and no shrinkage strength to tune (Bartz 2016,
"Cross-validation based nonlinear shrinkage").

*Two bases.* `whole`: principal components of the whole image, other directions sharing one
variance; best where noise is strong. `bands`: the image's cosine transform cut into bands of
frequency, principal components within each band; best where noise is weak and the fine detail
counts that no global component reaches. At each λ the one with less held-out error is used.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_HOLD_OUT = 5  # one image in five gives variances, the others directions
_RANK_TOLERANCE = 1e-6  # relative to the largest eigenvalue: float32 Gram matrices hold no more
_ROUNDING_VARIANCE = (2 / 255) ** 2 / 12  # of 8-bit pixels on [-1, 1]
_CHUNK_FLOATS = 2**24  # 64 MiB of float32 at a time when images are analysed


@dataclass(frozen=True)
class _Block:
    """A Gaussian over the coefficients [start, stop): components, and one variance for the rest.

    Attributes:
        vectors: orthonormal columns, shape (stop - start, k).
        variances: along each column, float64, shape (k,).
        rest: variance of each of the stop - start - k directions that no column spans.
    """

    start: int
    stop: int
    vectors: Tensor
    variances: Tensor
    rest: float

    @property
    def rest_dims(self) -> int:
        return self.stop - self.start - self.vectors.shape[1]

    def filter(self, coefficients: Tensor, alpha: float, sigma: float, *, eps: bool) -> Tensor:
        """Apply diag(α d / (α² d + σ²)), or diag(σ / (α² d + σ²)) for eps, in this block's basis.

        With `eps` that is (z - α x0_hat) / σ without its division by a vanishing σ.
        """
        variances = torch.cat([self.variances, self.variances.new_tensor([self.rest])])
        numerator = torch.full_like(variances, sigma) if eps else alpha * variances
        gains = (numerator / (alpha**2 * variances + sigma**2)).to(coefficients.dtype)
        part = coefficients[:, self.start : self.stop]
        return (
            gains[-1] * part + ((part @ self.vectors) * (gains[:-1] - gains[-1])) @ self.vectors.T
        )

    def energies(self, centred: Tensor) -> tuple[Tensor, float]:
        """Mean square along each component and, per direction, in the rest; (N, D) -> (k,), ()."""
        part = centred[:, self.start : self.stop]
        along = torch.zeros(self.vectors.shape[1], dtype=torch.float64)
        total = 0.0
        for rows in part.split(256):
            along += (rows @ self.vectors).double().square().sum(0)
            total += float(rows.double().square().sum())
        along /= len(part)
        if not self.rest_dims:
            return along, 0.0
        return along, max(total / len(part) - float(along.sum()), 0.0) / self.rest_dims

    def eps_error(self, snr: float, energies: Tensor, rest_energy: float) -> float:
        """Expected squared eps error summed over the block, for images of the given energies.

        The error of eps_hat is -(α/σ) times that of x0_hat; along a direction of variance d and
        energy v (s = α²/σ²) its bias is s v / (1 + s d)² and its variance (s d / (1 + s d))².
        """
        d, v = snr * self.variances, snr * energies
        rest_d, rest_v = snr * self.rest, snr * rest_energy
        components = float(((v + d.square()) / (1 + d).square()).sum())
        return components + self.rest_dims * (rest_v + rest_d**2) / (1 + rest_d) ** 2


class WienerDenoiser:
    """Linear-Gaussian denoiser fitted to images; make one with `fit`.

    Attributes:
        shape: of an image, (3, H, W).
        images: how many images it was fitted to.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        images: int,
        mean: Tensor,
        bases: Sequence[Sequence[_Block]],
    ) -> None:
        self.shape = shape
        self.images = images
        self._mean = mean
        self._bases = bases

    def __repr__(self) -> str:
        return f"WienerDenoiser(shape={self.shape}, images={self.images})"

    @classmethod
    def fit(
        cls,
        batches: Iterable[Tensor],
        *,
        max_images: int = 4096,
        band_size: int = 3072,
        memory_gb: float = 4.0,
    ) -> "WienerDenoiser":
        """Fit to the first `max_images` images, which ought to be in random order.

        Args:
            batches: uint8 images, each tensor of shape (B, 3, H, W); all of one size.
            max_images: cost grows with its cube; 4096 at 64px take about half a minute on a core.
            band_size: largest number of coefficients in a band of the `bands` basis.
            memory_gb: about the most memory to use. Large images then mean fewer images and
                narrower bands: about 320 of each at 512px with the default.

        Raises:
            ValueError: tensors of another type or shape, or fewer than ten images.
        """
        stream = _checked(batches)
        first = next(stream, None)
        if first is None:
            raise ValueError("the Wiener denoiser was given no images: check the data set")
        shape = (int(first.shape[1]), int(first.shape[2]), int(first.shape[3]))
        dims = math.prod(shape)
        # Coefficients take a quarter of the memory; components of the whole image, while they are
        # orthonormalised, up to another half; the bands' bases the last quarter.
        quarter = int(memory_gb * 1e9 / 4 / 4 / dims)
        limit = min(max_images, quarter)
        if limit < 10:
            raise ValueError(
                f"the Wiener denoiser would be fitted to {limit} images of shape {shape}, and needs"
                f" ten: raise max_images ({max_images}) or memory_gb ({memory_gb})"
            )
        fitted, held_out = _collect(first, stream, shape, limit)
        images = len(fitted) + len(held_out)
        mean = fitted.double().mean(0).float()
        fitted -= mean
        held_out -= mean
        sizes = {dims, min(band_size, len(fitted), quarter, dims)}
        bases = [_fit_basis(fitted, held_out, size) for size in sorted(sizes)]
        return cls(shape, images, mean, bases)

    def denoise(self, z: Tensor, logsnr: float | Tensor) -> Tensor:
        """Estimate x0 from z at log-SNR λ, a number or one per image; (B, 3, H, W) both."""
        return self._estimate(z, logsnr, eps=False)

    def predict_eps(self, z: Tensor, logsnr: float | Tensor) -> Tensor:
        """Estimate eps = (z - α x0_hat) / σ at log-SNR λ; accurate also where σ vanishes."""
        return self._estimate(z, logsnr, eps=True)

    def eps_mse(self, batches: Iterable[Tensor], logsnr: Sequence[float]) -> list[float]:
        """Mean squared error of predict_eps on uint8 images, for each λ.

        The expectation over eps is taken in closed form, so the figures carry no sampling noise.
        Averaged over images, channels and pixels, as a validation loss is.

        Raises:
            ValueError: no images, or images of another size than those fitted.
        """
        count = 0
        sums = [[(torch.zeros_like(b.variances), 0.0) for b in basis] for basis in self._bases]
        for batch in _checked(batches, self.shape):
            for images in batch.split(_chunk(self.shape)):
                centred = _analyse(images) - self._mean
                count += len(centred)
                for basis, row in zip(self._bases, sums, strict=True):
                    for i, block in enumerate(basis):
                        along, rest = block.energies(centred)
                        row[i] = (row[i][0] + along * len(centred), row[i][1] + rest * len(centred))
        if not count:
            raise ValueError("the Wiener denoiser was given no images to be measured on")
        errors = []
        for value in logsnr:
            chosen = self._best(value)
            pairs = zip(self._bases[chosen], sums[chosen], strict=True)
            snr = _snr(value)
            total = sum(b.eps_error(snr, v / count, rest / count) for b, (v, rest) in pairs)
            errors.append(total / math.prod(self.shape))
        return errors

    def _best(self, logsnr: float) -> int:
        """Index of the basis with the least held-out error at this λ."""
        snr = _snr(logsnr)
        errors = [
            sum(b.eps_error(snr, b.variances, b.rest) for b in basis) for basis in self._bases
        ]
        return errors.index(min(errors))

    def _estimate(self, z: Tensor, logsnr: float | Tensor, *, eps: bool) -> Tensor:
        if tuple(z.shape[1:]) != self.shape:
            raise ValueError(f"z has shape {tuple(z.shape)}; the images fitted have {self.shape}")
        values = torch.as_tensor(logsnr, dtype=torch.float64).expand(len(z))
        result = torch.empty(z.shape, dtype=torch.float32)
        for value in values.unique().tolist():
            rows = values == value
            alpha, sigma = (math.sqrt(_sigmoid(s * value)) for s in (1, -1))
            centred = _analyse(z[rows]) - alpha * self._mean
            blocks = self._bases[self._best(value)]
            parts = [b.filter(centred, alpha, sigma, eps=eps) for b in blocks]
            offset = 0.0 if eps else self._mean
            result[rows] = _synthesise(torch.cat(parts, 1) + offset, self.shape)
        return result


def yardstick(
    train: Iterable[Tensor],
    held_out: Iterable[Tensor],
    logsnr: Sequence[float],
    *,
    max_images: int = 4096,
) -> dict[str, Any]:
    """Fit to training images, measure on held-out ones: the content of a run's `wiener.json`.

    Args:
        train: uint8 images, each tensor of shape (B, 3, H, W), in random order.
        held_out: likewise; all of them are measured.
        logsnr: the noise levels λ, in nats.
        max_images: no more than this many of `train` are read, fewer where memory asks for it
            (see `WienerDenoiser.fit`); a longer stream is cut there, and `images` tells.

    Returns:
        `logsnr` and `eps_mse`, lists of equal length, and `images`, how many were fitted.
    """
    denoiser = WienerDenoiser.fit(train, max_images=max_images)
    errors = denoiser.eps_mse(held_out, logsnr)
    return {"logsnr": list(logsnr), "eps_mse": errors, "images": denoiser.images}


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0


def _snr(logsnr: float) -> float:
    # Beyond ±60 only the limits are left, and squares would overflow before their ratio is taken.
    return math.exp(min(max(logsnr, -60.0), 60.0))


def _chunk(shape: tuple[int, int, int]) -> int:
    return max(1, _CHUNK_FLOATS // math.prod(shape))


def _checked(
    batches: Iterable[Tensor], shape: tuple[int, int, int] | None = None
) -> Iterator[Tensor]:
    for batch in batches:
        if batch.dtype != torch.uint8 or batch.ndim != 4 or batch.shape[1] != 3:
            raise ValueError(
                "the Wiener denoiser takes uint8 images of shape (B, 3, H, W), not"
                f" {batch.dtype} of shape {tuple(batch.shape)}"
            )
        shape = shape or (3, int(batch.shape[2]), int(batch.shape[3]))
        if tuple(batch.shape[1:]) != shape:
            raise ValueError(f"images of shape {tuple(batch.shape[1:])} among those of {shape}")
        yield batch


def _collect(
    first: Tensor, stream: Iterator[Tensor], shape: tuple[int, int, int], limit: int
) -> tuple[Tensor, Tensor]:
    """Coefficients of up to `limit` images: those for directions and those for variances."""
    rows = torch.empty(limit, math.prod(shape))
    count = 0
    batch: Tensor | None = first
    while batch is not None and count < limit:
        for images in batch[: limit - count].split(_chunk(shape)):
            rows[count : count + len(images)] = _analyse(images)
            count += len(images)
        batch = next(stream, None) if count < limit else None
    if count < 10:
        raise ValueError(f"the Wiener denoiser needs at least ten images and was given {count}")
    held_out = torch.arange(count) % _HOLD_OUT == _HOLD_OUT - 1
    return rows[:count][~held_out], rows[:count][held_out]


def _fit_basis(fitted: Tensor, held_out: Tensor, size: int) -> list[_Block]:
    """Cut the coefficients into blocks of `size`; components from `fitted`, variances held out."""
    blocks = []
    for start in range(0, fitted.shape[1], size):
        stop = min(start + size, fitted.shape[1])
        vectors = _components(fitted[:, start:stop])
        bare = _Block(start, stop, vectors, torch.empty(0, dtype=torch.float64), 0.0)
        variances, rest = bare.energies(held_out)
        # One more observation, of rounding alone: no direction is ever held to be exactly constant.
        n = len(held_out)
        variances = (n * variances + _ROUNDING_VARIANCE) / (n + 1)
        rest = (n * rest + _ROUNDING_VARIANCE) / (n + 1)
        blocks.append(_Block(start, stop, vectors, variances, rest))
    return blocks


def _components(centred: Tensor) -> Tensor:
    """Orthonormal principal directions of the rows, strongest first; (N, p) -> (p, k)."""
    count, dims = centred.shape
    if dims <= count:
        return torch.linalg.eigh(centred.T @ centred)[1].flip(1).contiguous()
    # Fewer images than dimensions: through the small matrix of inner products. The variances are
    # measured afterwards, so directions need not be exact eigenvectors, but must be orthonormal.
    values, weights = torch.linalg.eigh(centred @ centred.T)
    kept = values > _RANK_TOLERANCE * values[-1]
    directions = centred.T @ (weights[:, kept] / values[kept].sqrt()).flip(1)
    return torch.linalg.qr(directions)[0] if directions.shape[1] else directions


def _cosines(n: int) -> Tensor:
    """Orthonormal cosine transform (DCT-II) as a matrix, rows are frequencies; (n, n)."""
    i = torch.arange(n, dtype=torch.float64)
    matrix = torch.cos(math.pi / n * torch.outer(i, i + 0.5)) * math.sqrt(2 / n)
    matrix[0] /= math.sqrt(2)
    return matrix.float()


def _by_frequency(shape: tuple[int, int, int]) -> Tensor:
    """Coefficient indices from coarse to fine, the three channels of a frequency together."""
    _, height, width = shape
    vertical = torch.arange(height, dtype=torch.float64)[:, None] / height
    horizontal = torch.arange(width, dtype=torch.float64)[None, :] / width
    radius = (vertical**2 + horizontal**2).flatten().repeat(3)
    return torch.argsort(radius, stable=True)


def _analyse(images: Tensor) -> Tensor:
    """Orthonormal coefficients, coarse to fine; (B, 3, H, W) -> (B, D). uint8 becomes [-1, 1]."""
    x = images.float() / 127.5 - 1 if images.dtype == torch.uint8 else images.float()
    _, height, width = shape = (int(x.shape[1]), int(x.shape[2]), int(x.shape[3]))
    return (_cosines(height) @ x @ _cosines(width).T).flatten(1)[:, _by_frequency(shape)]


def _synthesise(coefficients: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Inverse of `_analyse`; (B, D) -> (B, 3, H, W)."""
    x = torch.empty_like(coefficients)
    x[:, _by_frequency(shape)] = coefficients
    return _cosines(shape[1]).T @ x.view(-1, *shape) @ _cosines(shape[2])
