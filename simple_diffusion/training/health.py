"""Steps whose numbers are not finite, and gradients much larger than before.

Found on the device; what the host is told of a step arrives a little later, so that it never waits.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor

RECENT = 100  # gradient norms that a new one is compared with
FEWEST = 20  # before which nothing is called a spike
SAMPLES_TOLD = 8  # of a skipped step, from each process


@dataclass(frozen=True)
class Sample:
    """One training image: its global number in the run, and its key in the shards."""

    position: int
    key: str


@dataclass(frozen=True)
class _Step:
    """What the device will have to say of a step."""

    number: int
    images_seen: int
    samples: Sequence[Sample]
    norm: Tensor
    losses: Tensor
    arrived: torch.cuda.Event | None


class Health:
    """Counts skipped steps, and notes what may have caused them.

    All processes count alike, since the gradient norm is the same on all of them.

    Args:
        max_skipped: skipped steps in a row that end a run.
        spike_factor: gradient norms above so many times the recent median are noted.

    Attributes:
        skipped: skipped steps so far, as far as is known to the host.
        in_row: of these, how many at the end.
        notes: lines for the metrics file, oldest first; whoever writes them takes them out. Those
            of skipped steps have `samples`, the images of this process that were not finite.
    """

    def __init__(self, max_skipped: int, spike_factor: float) -> None:
        self._max_skipped, self._spike_factor = max_skipped, spike_factor
        self.skipped = self.in_row = 0
        self.notes: list[dict[str, Any]] = []
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._pending: deque[_Step] = deque()

    @property
    def diverged(self) -> bool:
        """Whether too many steps in a row were skipped."""
        return self.in_row >= self._max_skipped

    def take(
        self, number: int, images_seen: int, samples: Sequence[Sample], norm: Tensor, losses: Tensor
    ) -> None:
        """Remember a step until its numbers arrive.

        Args:
            number: of the step.
            images_seen: at its end.
            samples: this process's images.
            norm: gradient norm of the step, 0-d, the same on all processes.
            losses: of `samples`, in their order.
        """
        arrived = None
        if norm.is_cuda:
            norm, losses = (one.to("cpu", non_blocking=True) for one in (norm, losses))
            arrived = torch.cuda.Event()
            arrived.record()
        self._pending.append(_Step(number, images_seen, samples, norm, losses, arrived))
        self.poll()

    def poll(self, *, wait: bool = False) -> None:
        """Read the numbers of the steps that have ended; with `wait`, of all."""
        while self._pending:
            step = self._pending[0]
            if step.arrived is not None:
                if wait:
                    step.arrived.synchronize()
                elif not step.arrived.query():
                    return
            self._pending.popleft()
            self._read(step)

    def _read(self, step: _Step) -> None:
        norm = step.norm.item()
        line = {"step": step.number, "images_seen": step.images_seen}
        if not step.norm.isfinite():
            self.skipped += 1
            self.in_row += 1
            bad = (~step.losses.isfinite()).nonzero().flatten().tolist()
            told = [vars(step.samples[index]) for index in bad[:SAMPLES_TOLD]]
            self.notes.append({"kind": "skipped", **line, "samples": told})
            return
        self.in_row = 0
        usual = median(self._recent) if len(self._recent) >= FEWEST else norm
        if norm > self._spike_factor * usual:
            self.notes.append({"kind": "spike", **line, "grad_norm": norm, "median": usual})
        self._recent.append(norm)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"skipped": self.skipped, "in_row": self.in_row, "recent": list(self._recent)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what a checkpoint kept."""
        self.skipped, self.in_row = int(state["skipped"]), int(state["in_row"])
        self._recent.clear()
        self._recent.extend(float(norm) for norm in state["recent"])


def poison(loss: Tensor) -> Tensor:
    """The gradient to start backward with: 1, or NaN where the loss is not finite.

    An infinite loss may have finite gradients. NaN spreads through the sum over the processes, so
    that all of them skip the step, with no message of its own.
    """
    return torch.where(loss.isfinite(), 1.0, torch.nan).to(loss.dtype)
