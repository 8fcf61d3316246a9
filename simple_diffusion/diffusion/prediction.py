"""Conversions between what a network may predict: eps, x0, v and u.

This is the only module that divides by α or σ. With z = α x0 + σ eps: v = α eps - σ x0 and
u = eps - x0 (the velocity of the straight path; some papers call it v).
Errors move between predictions by a factor of λ alone (`error_factor`); converting two predictions
and subtracting loses most of float32 at the ends.
"""

from typing import Literal, get_args

import torch
from torch import Tensor

from simple_diffusion.diffusion.logsnr import alpha_sigma, at_least_float32, match_dims

Prediction = Literal["eps", "x0", "v", "u"]
PREDICTIONS: tuple[Prediction, ...] = get_args(Prediction)


def diffuse(x0: Tensor, eps: Tensor, logsnr: Tensor) -> Tensor:
    """z = α x0 + σ eps. x0, eps: (B, C, H, W); logsnr: (B,)."""
    alpha, sigma = (match_dims(s, x0) for s in alpha_sigma(logsnr))
    return alpha * x0 + sigma * eps


def target(kind: Prediction, x0: Tensor, eps: Tensor, logsnr: Tensor) -> Tensor:
    """The true value of a prediction, from the clean image and the noise; shape of x0."""
    _check(kind)
    if kind == "eps":
        return eps
    if kind == "x0":
        return x0
    if kind == "u":
        return eps - x0
    alpha, sigma = (match_dims(s, x0) for s in alpha_sigma(logsnr))
    return alpha * eps - sigma * x0


def convert(
    prediction: Tensor, z: Tensor, logsnr: Tensor, source: Prediction, to: Prediction
) -> Tensor:
    """Express one prediction as another, given z; in float32 or better.

    v is the hub: it is a rotation of (x0, eps), so only leaving eps divides by α, and only leaving
    x0 divides by σ.

    Args:
        prediction: what the network said, shape (B, C, H, W).
        z: the noisy image it saw, same shape.
        logsnr: λ of z, shape (B,).
        source: what `prediction` is.
        to: what is wanted.
    """
    _check(source)
    _check(to)
    prediction, z = at_least_float32(prediction), at_least_float32(z)
    if source == to:
        return prediction
    alpha, sigma = (match_dims(s, z) for s in alpha_sigma(logsnr))
    if source == "v":
        v = prediction
    elif source == "eps":
        v = (prediction - sigma * z) / alpha
    elif source == "x0":
        v = (alpha * z - prediction) / sigma
    else:
        v = (prediction - (sigma - alpha) * z) / (alpha + sigma)
    if to == "v":
        return v
    if to == "eps":
        return sigma * z + alpha * v
    if to == "x0":
        return alpha * z - sigma * v
    return (sigma - alpha) * z + (alpha + sigma) * v


def error_factor(logsnr: Tensor, source: Prediction, to: Prediction) -> Tensor:
    """f(λ) with error_to = f · error_source (at the same z); shape of logsnr, sign included."""
    return _factor_from_v(logsnr, to) / _factor_from_v(logsnr, source)


def _factor_from_v(logsnr: Tensor, kind: Prediction) -> Tensor:
    _check(kind)
    alpha, sigma = alpha_sigma(logsnr)
    if kind == "eps":
        return alpha
    if kind == "x0":
        return -sigma
    if kind == "u":
        return alpha + sigma
    return torch.ones_like(alpha)


def _check(kind: str) -> None:
    if kind not in PREDICTIONS:
        raise ValueError(f"unknown prediction {kind!r}; choose one of {', '.join(PREDICTIONS)}")
