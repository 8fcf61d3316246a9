"""What every feature extractor is, states about itself, and refuses."""

import hashlib
import pickle
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

# How a user says where the weights lie; named in messages.
WEIGHTS_OPTION = (
    "`evaluate --extractor_weights`, `scores.weights` in a config, `measure.weights` in a study"
)


@dataclass(frozen=True)
class ExtractorFacts:
    """What pins a figure to its extractor; stored beside every figure.

    Attributes:
        name: of the extractor, as `open_extractor` takes it.
        weights: file name or model id of the weights, never an absolute path.
        sha256: of the weights: of the file's bytes, or for models made of several files of the
            tensors in order of their names (`state_dict_sha256`).
        input_size: side of the square that the network sees, in pixels.
        resize: how an image gets there, in words exact enough to repeat it.
        dim: number of features.
        classes: number of class probabilities, 0 where none are given.
    """

    name: str
    weights: str
    sha256: str
    input_size: int
    resize: str
    dim: int
    classes: int


@dataclass(frozen=True)
class Features:
    """What an extractor sees in n images.

    Attributes:
        features: float32, shape (n, dim), on the CPU.
        probabilities: of the classes, rows sum to one; float32, shape (n, classes), on the CPU.
            None where the extractor gives none.
    """

    features: Tensor
    probabilities: Tensor | None


class Extractor(Protocol):
    """A callable from uint8 images of shape (n, 3, H, W), on any device, to their `Features`."""

    @property
    def facts(self) -> ExtractorFacts: ...

    def __call__(self, images: Tensor) -> Features: ...


class WeightsMissingError(ValueError):
    """The weights of an extractor are absent, damaged or not the ones meant; says the remedy."""


class NetworkExtractor:
    """An `Extractor` made of a network and of the rule that prepares its input.

    Runs in float32 whatever autocast or TF32 settings are in force, without gradients, in pieces
    of bounded size, so that features depend on the image alone up to the rounding of sums.

    Args:
        facts: what the extractor states about itself.
        network: maps prepared images to features (n, dim) and to class logits or None.
        prepare: maps uint8 images (n, 3, H, W) to float32 of shape (n, 3, input_size, input_size).
        device: where to compute.
    """

    def __init__(
        self,
        facts: ExtractorFacts,
        network: Callable[[Tensor], tuple[Tensor, Tensor | None]],
        prepare: Callable[[Tensor], Tensor],
        device: torch.device,
    ) -> None:
        self.facts = facts
        self._network = network
        self._prepare = prepare
        self._device = device
        # A CPU's caches hold the maps of a few images; an accelerator wants more to do.
        self._most = 4 if device.type == "cpu" else 64

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.facts}, device={str(self._device)!r})"

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Features:
        """Features of uint8 images, shape (n, 3, H, W), n at least 1, any size, any device.

        Raises:
            ValueError: images of another type or shape.
        """
        check_images(images, self.facts.name)
        features, probabilities = [], []
        with full_precision(self._device):
            for piece in images.split(self._most):
                found, logits = self._network(self._prepare(piece.to(self._device)))
                features.append(found.float().cpu())
                if logits is not None:
                    probabilities.append(logits.float().softmax(1).cpu())
        # Inference tensors may not be saved for a backward pass or changed in place outside;
        # the copies that cat makes are kept ordinary instead.
        with torch.inference_mode(False):
            return Features(
                torch.cat(features).clone(),
                torch.cat(probabilities).clone() if probabilities else None,
            )


def check_images(images: Tensor, name: str) -> None:
    """Refuse anything but uint8 images of shape (n, 3, H, W).

    Raises:
        ValueError: with what was given, and how to make it right.
    """
    if images.dtype != torch.uint8:
        raise ValueError(
            f"the extractor {name} takes uint8 images with values 0 to 255, not {images.dtype}: "
            "quantise them first, as saving them would"
        )
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
        raise ValueError(
            f"the extractor {name} takes RGB images of shape (n, 3, H, W), not "
            f"{tuple(images.shape)}: channels come second, and grey images are repeated thrice"
        )


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Float32 arithmetic inside: no autocast, no TF32, no choice of kernels by timing."""
    matmul = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with (
            torch.autocast(device.type, enabled=False),
            torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False),
        ):
            yield
    finally:
        torch.set_float32_matmul_precision(matmul)


def ready(network: nn.Module, device: torch.device) -> None:
    """Make a convolutional network ready for inference on a device, in the layout it likes."""
    network.requires_grad_(False).eval()
    network.to(device)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def state_dict_sha256(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over name, type, shape and bytes of all tensors, in order of their names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def checked_file(path: Path, sha256: str, name: str, remedy: str) -> Path:
    """The same path, once it is certain that the file is there and is the one meant.

    Args:
        path: the file.
        sha256: what its bytes must hash to.
        name: of the extractor, for messages.
        remedy: how to get the right file, a clause.

    Raises:
        WeightsMissingError: no such file, or another one.
    """
    if not path.is_file():
        raise WeightsMissingError(f"extractor {name}: no weights at {path}; {remedy}")
    found = file_sha256(path)
    if found != sha256:
        raise WeightsMissingError(
            f"extractor {name}: {path} is not the file meant, or is damaged: its SHA-256 is "
            f"{found}, it should be {sha256}; {remedy}"
        )
    return path


def load_tensors(path: Path, module: nn.Module, name: str) -> None:
    """Fill a module with the tensors of a `.pth` file; nothing but tensors is ever unpickled.

    Counters of batch normalisation, which older files lack and inference has no use for, may be
    missing; every other name and shape must agree.

    Raises:
        WeightsMissingError: the file is not a dictionary of tensors that fits the module.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        missing, unexpected = module.load_state_dict(state, strict=False)
    except pickle.UnpicklingError as error:  # its own message would advise to load it all the same
        raise WeightsMissingError(f"extractor {name}: {path} is no file of tensors") from error
    except Exception as error:  # a damaged file raises almost anything
        raise WeightsMissingError(
            f"extractor {name}: {path} does not hold its weights: {error}"
        ) from error
    missing = [key for key in missing if not key.endswith("num_batches_tracked")]
    if missing or unexpected:
        raise WeightsMissingError(
            f"extractor {name}: {path} does not hold its weights: missing {missing[:3]}, "
            f"not known {unexpected[:3]}"
        )
