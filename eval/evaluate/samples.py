"""The samples of a run as a set of images: image i is the same wherever it is drawn."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from simple_diffusion.config import SamplingConfig
from simple_diffusion.diffusion.generate import to_uint8
from simple_diffusion.training.assemble_evaluator import make_sampling, sample_settings
from simple_diffusion.training.grids import grid_labels
from simple_diffusion.training.saved_run import SavedRun


class Samples:
    """A set of samples, drawn when asked for.

    Args:
        saved: the run and its weights.
        sampling: how to draw.
        seed: names the set.
        device: where to draw.
    """

    def __init__(
        self, saved: SavedRun, sampling: SamplingConfig, seed: int, device: torch.device
    ) -> None:
        self._saved, self._config, self._seed = saved, sampling, seed
        self._network = saved.network(device)
        self._sampling = make_sampling(
            saved.config, self._network, device, sample_settings(sampling)
        )

    def labels(self, indices: Sequence[int]) -> Tensor | None:
        """The classes of some images, int64 (n,); None for an unconditional network."""
        counts = self._saved.data.class_counts
        return grid_labels(self._seed, indices, counts, self._sampling.null_label)

    def images(self, indices: Sequence[int]) -> Tensor:
        """Some images, uint8 (n, 3, H, W), on the device."""
        drawn = self._sampling.images(self._network, indices, self.labels(indices), seed=self._seed)
        if not drawn.isfinite().all():
            raise ValueError(
                f"{self._saved.path}: {self._saved.weights} draws values that are not finite; the "
                "model has diverged, take an earlier --checkpoint"
            )
        return to_uint8(drawn)

    def pins(self, num: int) -> dict[str, Any]:
        """All that the images 0 to num - 1 depend on, as JSON values."""
        saved = self._saved
        # Which folder a run lies in, its data and what it writes change no image.
        config = asdict(saved.config)
        used = [config["model"], saved.config.schedule]
        used += [saved.config.data.image_size, saved.config.objective.prediction]
        sampling = asdict(self._config)
        if self._sampling.null_label is None:
            sampling["guidance"] = 1.0
        low, high = sampling.pop("guidance_interval")
        return {
            "run": saved.path.resolve().name,
            "weights": saved.weights,
            "weights_sha256": _digest(saved.state_dict()),
            "images_seen": saved.images_seen,
            "num": num,
            "seed": self._seed,
            **sampling,
            "guidance_interval": [str(low), str(high)],  # infinities are no JSON
            "device": self._sampling.device.type,  # each kind draws noise of its own
            "classes": "as often as in the training data"
            if self._sampling.null_label is not None
            else "none",
            "config_sha256": hashlib.sha256(repr(used).encode()).hexdigest(),
        }


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
