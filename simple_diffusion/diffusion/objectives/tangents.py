"""Derivatives along the straight path, for objectives that differentiate their teacher.

They are taken by forward-mode differentiation, which fused attention kernels do not have: attention
runs as plain products meanwhile (torch's `math` back end).
"""

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from simple_diffusion.diffusion.guidance import Network
from simple_diffusion.diffusion.logsnr import alpha_sigma, match_dims, tau_from_logsnr
from simple_diffusion.diffusion.prediction import Prediction, convert


def along_path(z: Tensor, logsnr: Tensor, velocity: Tensor) -> tuple[Tensor, Tensor]:
    """(dz/dτ, dλ/dτ) for a point that moves on the straight path with dy/dτ = `velocity`.

    z = (α+σ) y and α + σ = 1/√(τ² + (1-τ)²) give dz/dτ = (α+σ)(u - (σ-α) z), which is (α+σ)² v.
    """
    alpha, sigma = (match_dims(one, z) for one in alpha_sigma(logsnr))
    dz = (alpha + sigma) * (velocity - (sigma - alpha) * z)
    dlogsnr = -2.0 / (tau_from_logsnr(logsnr) * tau_from_logsnr(-logsnr))
    return dz, dlogsnr


def velocity_and_derivative(
    network: Network,
    prediction: Prediction,
    at: tuple[Tensor, Tensor, Tensor],
    labels: Tensor | None,
    tangents: tuple[Tensor, Tensor, Tensor],
) -> tuple[Tensor, Tensor]:
    """A network's ū and dū/dτ.

    Args:
        network: (z, λ, labels, step) -> prediction.
        prediction: what it predicts.
        at: z, λ and step sizes.
        labels: their classes.
        tangents: of these three, per unit of τ.

    Returns:
        Both of the shape of z.
    """

    def velocity(z: Tensor, logsnr: Tensor, step: Tensor) -> Tensor:
        return convert(network(z, logsnr, labels, step), z, logsnr, prediction, "u")

    with sdpa_kernel(SDPBackend.MATH):
        value, derivative, *_ = torch.func.jvp(velocity, at, tangents)
    return value, derivative
