"""How megatron-energon is told to make batches; imported where it is installed."""

from collections.abc import Callable
from typing import Any

import torch
from megatron.energon import (
    Cooker,
    DefaultTaskEncoder,
    Sample,
    SampleDecoder,
    basic_sample_keys,
    edataclass,
    stateless,
)


@edataclass
class Picture(Sample):
    """A picture with its class."""

    image: torch.Tensor
    label: str


class Pictures(DefaultTaskEncoder):
    """Pillow pictures to tensors by a function; batches are stacked by its default."""

    decoder = SampleDecoder(image_decode="pilrgb")

    def __init__(self, to_tensor: Callable[[Any], torch.Tensor]) -> None:
        super().__init__()
        self.cookers = [Cooker(self.cook)]
        self._to_tensor = to_tensor

    @stateless
    def cook(self, sample: dict[str, Any]) -> Picture:
        """A sample of a WebDataset shard as a picture."""
        return Picture(
            **basic_sample_keys(sample),
            image=self._to_tensor(sample["jpg"].convert("RGB")),
            label=sample["json"]["class"],
        )
