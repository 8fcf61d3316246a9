"""Attention against the written-out softmax, and the refusals of its backends."""

import sys
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from simple_diffusion.models import attention as module
from simple_diffusion.models.attention import attention, check_backend


def explicit(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention in float64, one query at a time."""
    q, k, v = q.double(), k.double(), v.double()
    out = torch.zeros(*q.shape[:3], v.shape[3], dtype=torch.float64)
    for b in range(q.shape[0]):
        for head in range(q.shape[2]):
            for i in range(q.shape[1]):
                scores = k[b, :, head] @ q[b, i, head] / q.shape[-1] ** 0.5
                weights = (scores - scores.max()).exp()
                out[b, i, head] = (weights / weights.sum()) @ v[b, :, head]
    return out


def qkv(dtype: torch.dtype, keys: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.randn(2, 5, 3, 8).to(dtype),
        torch.randn(2, keys, 3, 8).to(dtype),
        torch.randn(2, keys, 3, 8).to(dtype),
    )


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 3e-2)],
)
def test_equals_explicit_softmax(dtype: torch.dtype, tolerance: float) -> None:
    q, k, v = qkv(dtype)
    out = attention(q, k, v)
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), explicit(q, k, v), rtol=0, atol=tolerance)


def test_short_and_long_sequences_agree_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = (x.requires_grad_() for x in qkv(torch.bfloat16))
    results = []
    for limit in (module.PLAIN_TOKENS, 0):
        monkeypatch.setattr(module, "PLAIN_TOKENS", limit)
        out = attention(q, k, v)
        grads = torch.autograd.grad(out.float().square().sum(), (q, k, v))
        results.append((out, *grads))
    for plain, fused in zip(*results, strict=True):
        assert (plain - fused).norm() < 0.02 * fused.norm()


def test_unknown_backend() -> None:
    with pytest.raises(ValueError, match=r"attention: unknown backend 'flash'.*sdpa, xformers"):
        check_backend("flash")


def test_sdpa_always_runs() -> None:
    check_backend("sdpa")
    check_backend("sdpa", "cpu")


def test_xformers_refuses_a_cpu() -> None:
    with pytest.raises(ValueError, match=r"xformers.*device is cpu.*set attention to 'sdpa'"):
        check_backend("xformers", "cpu")
    with pytest.raises(ValueError, match=r"xformers.*on cpu"):
        attention(*qkv(torch.float32), backend="xformers")


def test_xformers_refuses_a_machine_without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="no GPU is available"):
        check_backend("xformers")


def test_xformers_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(sys.modules, "xformers.ops", None)
    with pytest.raises(
        ValueError, match=r"cannot be imported.*install 'simple-diffusion\[xformers"
    ):
        check_backend("xformers")


def test_xformers_present(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = SimpleNamespace(memory_efficient_attention=lambda q, k, v: v)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(sys.modules, "xformers", SimpleNamespace(ops=fake))
    monkeypatch.setitem(sys.modules, "xformers.ops", fake)
    check_backend("xformers")
    check_backend("xformers", "cuda:1")
