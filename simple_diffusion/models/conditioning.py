"""From what the network is told (noise level, class) to one vector that steers every block."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from simple_diffusion.models.layers import full_precision, linear, tag

# Half a wave of the slowest feature spans λ in [-30, 30], so no two noise levels look alike; the
# fastest repeats every 2 units of λ, fine enough for any step and too slow to memorise.
LOGSNR_FREQUENCIES = (math.pi / 60, math.pi)
# Of step sizes in [0, 1]: half a wave spans them, and the fastest feature turns by 45 degrees
# between 0 and 1/128.
STEP_FREQUENCIES = (math.pi / 2, 32 * math.pi)


def lowest_logsnr_told(image_size: int) -> float:
    """The log-SNR below which networks with a step condition are told no difference.

    Few-step objectives differentiate along the path, where dλ/dτ = -2/(τ (1-τ)) has no bound
    towards pure noise: what the embedding makes of λ there would drown the rest, though z hardly
    changes any more. Told no less than this, |dλ/dτ| is 110 at most at 64px, four times that with
    every doubling. (Lu & Song 2024, sCM, tell the network a bounded time for this reason.) At 64px
    an image is lost in noise at -8, a larger one at a level lower by its schedule shift.
    """
    return -8.0 - 2.0 * math.log(max(image_size, 64) / 64)


class ScalarEmbedding(nn.Module):
    """A number per image -> Fourier features -> a two-layer MLP.

    Runs in float32 or better under autocast: bfloat16 has 8 bits, and λ = 20.03 is not 20.

    Args:
        width: size of the embedding.
        lowest: smallest angular frequency, in radians per unit of the scalar.
        highest: largest angular frequency.
        features: number of Fourier features, sines and cosines together.
        zero: start with an embedding of zero, whatever the number.
    """

    def __init__(
        self, width: int, lowest: float, highest: float, features: int = 256, *, zero: bool = False
    ) -> None:
        super().__init__()
        assert features % 2 == 0
        assert 0 < lowest < highest
        self.width, self.lowest, self.highest, self.features = width, lowest, highest, features
        self.inner = linear(features, width)
        self.outer = linear(width, width, zero=zero)

    def forward(self, value: Tensor) -> Tensor:
        """Shape (B,) -> (B, width)."""
        with full_precision(value):
            waves = self.fourier(value).to(self.inner.weight.dtype)
            result: Tensor = self.outer(F.silu(self.inner(waves)))
        return result

    def fourier(self, value: Tensor) -> Tensor:
        """Cosines and sines at frequencies in geometric progression, shape (B, features)."""
        value = value.to(torch.promote_types(value.dtype, torch.float32))
        count = self.features // 2
        steps = torch.arange(count, device=value.device, dtype=value.dtype) / max(count - 1, 1)
        frequencies = self.lowest * torch.exp(steps * math.log(self.highest / self.lowest))
        angles = value[:, None] * frequencies
        return torch.cat((angles.cos(), angles.sin()), dim=-1)

    def extra_repr(self) -> str:
        return (
            f"width={self.width}, features={self.features}, "
            f"frequencies=[{self.lowest:.4g}, {self.highest:.4g}]"
        )


class ClassEmbedding(nn.Module):
    """A vector per class and one more, the last, for "no class given".

    Args:
        num_classes: number of real classes, at least 1; label `num_classes` is the null class.
        width: size of the embedding.
    """

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        self.num_classes, self.width = num_classes, width
        self.table = nn.Parameter(torch.empty(num_classes + 1, width))
        # About the size of the noise embedding it is added to, so that neither drowns the other.
        nn.init.normal_(tag(self.table, "no_decay"), std=0.5)

    def forward(self, labels: Tensor) -> Tensor:
        """Labels of shape (B,), int64 in [0, num_classes] -> (B, width).

        Raises:
            ValueError: a label is out of range (checked on CPU in eager mode only: on a GPU
                looking would stall the queue, and the device's own assertion stops the run).
        """
        if labels.device.type == "cpu" and not torch.compiler.is_compiling() and labels.numel():
            low, high = int(labels.min()), int(labels.max())
            if low < 0 or high > self.num_classes:
                raise ValueError(
                    f"labels: got values from {low} to {high}, but this network has "
                    f"num_classes={self.num_classes}: give 0 to {self.num_classes - 1}, "
                    f"or {self.num_classes} for the null class"
                )
        return F.embedding(labels, self.table)

    def extra_repr(self) -> str:
        return f"num_classes={self.num_classes}, width={self.width}"


class Conditioner(nn.Module):
    """Sum of the embeddings of all conditions, passed through SiLU once for all blocks.

    Each condition is one more term of the sum.

    Args:
        width: size of the conditioning vector.
        num_classes: 0 for an unconditional network.
        step_condition: whether there is a step size too. Its embedding starts at zero, so that it
            changes nothing before it is trained, but for noise levels below the lowest told.
        lowest_logsnr: lower log-SNRs look like this one, if there is a step size.
    """

    def __init__(
        self,
        width: int,
        num_classes: int,
        step_condition: bool = False,
        lowest_logsnr: float = -math.inf,
    ) -> None:
        super().__init__()
        self.width, self.lowest_logsnr = width, lowest_logsnr
        self.logsnr = ScalarEmbedding(width, *LOGSNR_FREQUENCIES)
        self.label = ClassEmbedding(num_classes, width) if num_classes else None
        self.step = ScalarEmbedding(width, *STEP_FREQUENCIES, zero=True) if step_condition else None

    def forward(self, logsnr: Tensor, labels: Tensor | None, step: Tensor | None = None) -> Tensor:
        """Log-SNR (B,), labels (B,) and step sizes (B,) -> conditioning vector (B, width).

        Raises:
            ValueError: labels missing, not asked for, or out of range; a step not asked for.
        """
        told = logsnr if self.step is None else logsnr.clamp(min=self.lowest_logsnr)
        total: Tensor = self.logsnr(told)
        if self.step is not None:
            total = total + self.step(torch.zeros_like(logsnr) if step is None else step)
        elif step is not None:
            raise ValueError("step: given to a network without step_condition; pass None")
        if self.label is None:
            if labels is not None:
                raise ValueError(
                    "labels: given to an unconditional network (num_classes=0); pass None"
                )
        elif labels is None:
            raise ValueError(
                f"labels: this network has num_classes={self.label.num_classes}; pass int64 "
                f"labels of shape (B,), {self.label.num_classes} meaning no class"
            )
        else:
            total = total + self.label(labels)
        return F.silu(total)

    def extra_repr(self) -> str:
        return f"width={self.width}"
