"""Scaled dot-product attention behind one function, with an explicit choice of backend."""

import importlib
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

Backend = Literal["sdpa", "xformers"]

# Up to this many tokens the score matrix is small, and plain products beat torch's fused kernel
# on a CPU in half precision: its backward took ten times as long (64 tokens, torch 2.13).
PLAIN_TOKENS = 256


def attention(q: Tensor, k: Tensor, v: Tensor, backend: Backend = "sdpa") -> Tensor:
    """Softmax(q kᵀ / √d) v for every image and head.

    Args:
        q: queries, shape (B, L, heads, d); the last axis must be contiguous.
        k: keys, shape (B, M, heads, d).
        v: values, shape (B, M, heads, d).
        backend: ``sdpa`` is torch's own (written out as plain products for short sequences in
            half precision on a CPU); ``xformers`` needs that package and a GPU.

    Returns:
        Tensor of shape (B, L, heads, d).

    Raises:
        ValueError: unknown backend, or one that cannot run here.
    """
    if backend == "sdpa":
        # This layout is what the qkv projection yields; sdpa's is a view of it.
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        half_on_cpu = q.device.type == "cpu" and q.dtype.itemsize == 2
        if half_on_cpu and max(q.shape[2], k.shape[2]) <= PLAIN_TOKENS:
            return _plain_products(q, k, v).transpose(1, 2)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
    if backend != "xformers":
        check_backend(backend)  # raises: the name is unknown
    if q.device.type != "cuda":
        raise ValueError(_cannot_run(f"the tensors are on {q.device.type}, it needs a GPU"))
    result: Tensor = _memory_efficient_attention()(q, k, v)
    return result


def _plain_products(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    return scores.softmax(dim=-1).to(v.dtype) @ v


def check_backend(name: str, device: torch.device | str | None = None) -> None:
    """Refuse an attention backend that cannot run.

    Args:
        name: ``sdpa`` or ``xformers``.
        device: where the network will run; None means wherever this machine can.

    Raises:
        ValueError: unknown name, package missing or without its GPU kernels, or no GPU.
    """
    if name not in get_args(Backend):
        raise ValueError(
            f"attention: unknown backend {name!r}; choose one of {', '.join(get_args(Backend))}"
        )
    if name == "sdpa":
        return
    if device is not None and torch.device(device).type not in ("cuda", "meta"):
        raise ValueError(_cannot_run(f"the device is {torch.device(device).type}, it needs a GPU"))
    if not torch.cuda.is_available():
        raise ValueError(_cannot_run("no GPU is available to torch"))
    _memory_efficient_attention()


def _memory_efficient_attention() -> Callable[..., Any]:
    try:
        ops = importlib.import_module("xformers.ops")
    except ImportError as error:
        raise ValueError(
            _cannot_run(f"it cannot be imported ({error}); install 'simple-diffusion[xformers]'")
        ) from error
    function: Callable[..., Any] = ops.memory_efficient_attention
    return function


def _cannot_run(reason: str) -> str:
    return f"attention: backend 'xformers' cannot run: {reason}. Or set attention to 'sdpa'."
