"""Which precision this machine computes fastest in."""

from pathlib import Path
from typing import Literal

import torch

# Flags of processors that multiply in bfloat16: x86 with AVX-512 or AMX, and Arm. Others emulate
# it, about ten times slower than float32.
CPU_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}
AUTO = "auto"


def fastest_precision(cpuinfo: Path = Path("/proc/cpuinfo")) -> Literal["fp32", "bf16"]:
    """``bf16`` where the GPU, or without one the processor, has bfloat16 arithmetic.

    Args:
        cpuinfo: what the system says of its processor.
    """
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    try:
        words = set(cpuinfo.read_text().split())
    except OSError:
        return "fp32"
    return "bf16" if words & CPU_FLAGS else "fp32"
