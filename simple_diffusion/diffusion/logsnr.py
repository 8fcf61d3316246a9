"""Noise levels as functions of log-SNR λ: α, σ and the straight path's time τ."""

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """Promote half precision (and integers) to float32; leave float32 and float64 alone."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def alpha_sigma(logsnr: Tensor) -> tuple[Tensor, Tensor]:
    """Signal and noise scale of the variance-preserving path, α² = S(λ), σ² = S(-λ).

    Args:
        logsnr: λ of any shape; ±inf are valid.

    Returns:
        (α, σ), each of the shape of `logsnr`, in float32 or better. Small values keep their
        relative precision: both are exponentials of log-sigmoids, never 1 minus something.
    """
    logsnr = at_least_float32(logsnr)
    log_sigmoid = torch.nn.functional.logsigmoid
    return torch.exp(0.5 * log_sigmoid(logsnr)), torch.exp(0.5 * log_sigmoid(-logsnr))


def path_scale(logsnr: Tensor) -> Tensor:
    """α + σ = 1/√(τ² + (1-τ)²): z = (α+σ) y, with y on the straight path; shape of `logsnr`."""
    alpha, sigma = alpha_sigma(logsnr)
    return alpha + sigma


def tau_from_logsnr(logsnr: Tensor) -> Tensor:
    """Time of the straight path, τ = σ/(α+σ) = S(-λ/2): 0 = data, 1 = noise."""
    return torch.sigmoid(-0.5 * at_least_float32(logsnr))


def logsnr_from_tau(tau: Tensor) -> Tensor:
    """λ = 2 log((1-τ)/τ), the inverse of `tau_from_logsnr`."""
    return -2.0 * torch.logit(at_least_float32(tau))


def match_dims(x: Tensor, like: Tensor) -> Tensor:
    """View x of shape (B,) as (B, 1, ..., 1) so that it broadcasts over `like`."""
    return x.reshape(x.shape + (1,) * (like.ndim - x.ndim))
