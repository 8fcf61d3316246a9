"""What accelerators can do at best, from their vendors' data sheets.

Rates are for dense matrices; sheets that print rates with 2:4 sparsity are halved. bfloat16 is with
float32 accumulation, which GeForce cards do at half of the headline rate. `tflops_fp32` is plain
float32, at which matrix products run under torch's default settings (which let convolutions take
TF32 for float32: a run in fp32 with many of them can beat it). TF32, 19 bits that tensor cores take
for float32 where allowed to, has a column of its own.
"""

import re
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Device:
    """One accelerator as torch sees it (a card with two dies counts as two).

    Attributes:
        name: family, form and memory where these differ within the family.
        tflops_bf16: dense bfloat16 matrix products, in 10^12 FLOP/s (a multiply-add is 2); None for
            a device without bfloat16 arithmetic of its own, or of which nothing is known.
        tflops_tf32: the same for TF32; None for a device without it.
        tflops_fp32: plain float32.
        memory_gb: its memory as it is sold, in GB; None for a CPU.
        memory_gb_s: bandwidth of that memory, in GB/s.
        link_gb_s: to the devices of the same node, in GB/s in one direction: NVLink, Infinity
            Fabric, or a PCIe slot of 16 lanes.
    """

    name: str
    tflops_bf16: float | None
    tflops_tf32: float | None
    tflops_fp32: float | None
    memory_gb: float | None
    memory_gb_s: float | None
    link_gb_s: float | None


PCIE3, PCIE4, PCIE5 = 16.0, 32.0, 64.0

CPU = Device("cpu", None, None, None, None, None, None)

# A bare family name (A100) means the first of the family.
# Columns: bf16, TF32, fp32, memory, its bandwidth, link.
DEVICES: tuple[Device, ...] = (
    Device("B200", 2250.0, 1125.0, 75.0, 180, 7700.0, 900.0),
    Device("H200 SXM", 989.0, 494.5, 67.0, 141, 4800.0, 450.0),
    Device("H200 NVL", 835.5, 418.0, 60.0, 141, 4800.0, 450.0),
    Device("GH200", 990.0, 494.5, 67.0, 96, 4000.0, 450.0),
    Device("H100 SXM", 989.0, 494.5, 67.0, 80, 3350.0, 450.0),
    Device("H100 PCIe", 756.0, 378.0, 51.0, 80, 2000.0, PCIE5),
    Device("H100 NVL", 835.5, 418.0, 60.0, 94, 3900.0, 300.0),
    Device("A100 SXM 80GB", 312.0, 156.0, 19.5, 80, 2039.0, 300.0),
    Device("A100 SXM 40GB", 312.0, 156.0, 19.5, 40, 1555.0, 300.0),
    Device("A100 PCIe 80GB", 312.0, 156.0, 19.5, 80, 1935.0, PCIE4),
    Device("A100 PCIe 40GB", 312.0, 156.0, 19.5, 40, 1555.0, PCIE4),
    Device("A30", 165.0, 82.0, 10.3, 24, 933.0, PCIE4),
    Device("A40", 149.7, 74.8, 37.4, 48, 696.0, PCIE4),
    Device("A10", 125.0, 62.5, 31.2, 24, 600.0, PCIE4),
    Device("A10G", 70.0, 35.0, 35.0, 24, 600.0, PCIE4),
    Device("L4", 121.0, 60.0, 30.3, 24, 300.0, PCIE4),
    Device("L40", 181.0, 90.5, 90.5, 48, 864.0, PCIE4),
    Device("L40S", 362.0, 183.0, 91.6, 48, 864.0, PCIE4),
    Device("RTX A6000", 154.8, 77.4, 38.7, 48, 768.0, PCIE4),
    Device("RTX 6000 Ada", 364.2, 182.1, 91.1, 48, 960.0, PCIE4),
    Device("RTX 5090", 209.5, 104.8, 104.8, 32, 1792.0, PCIE5),
    Device("RTX 4090", 165.2, 82.6, 82.6, 24, 1008.0, PCIE4),
    Device("RTX 3090", 71.0, 35.6, 35.6, 24, 936.0, PCIE4),
    Device("V100 SXM 16GB", None, None, 15.7, 16, 900.0, 150.0),
    Device("V100 SXM 32GB", None, None, 15.7, 32, 900.0, 150.0),
    Device("V100 PCIe 16GB", None, None, 14.0, 16, 900.0, PCIE3),
    Device("V100 PCIe 32GB", None, None, 14.0, 32, 900.0, PCIE3),
    Device("T4", None, None, 8.1, 16, 320.0, PCIE3),
    Device("MI300X", 1307.4, 653.7, 163.4, 192, 5300.0, 448.0),
    Device("MI325X", 1307.4, 653.7, 163.4, 256, 6000.0, 448.0),
    Device("MI250X", 191.5, None, 23.9, 64, 1638.0, 200.0),
)

# Words of a device's full name that do not tell it from others.
_MAKERS = {"NVIDIA", "AMD", "TESLA", "GEFORCE", "INSTINCT", "GENERATION"}
_DETAIL = re.compile(r"\d+GB|HBM\d*E?|SXM|PCIE|OAM")


def find_device(name: str) -> Device | None:
    """The device of a name: `H100`, `h100-pcie`, or what `torch.cuda.get_device_name` says.

    A name with a word that is not understood (a laptop's chip, a Ti, a slice of a device) is not
    taken for the device without it.

    Returns:
        The device, `CPU` for "cpu", or None where the table has none.
    """
    words = _words(name)
    if words == {"CPU"}:
        return CPU
    best: Device | None = None
    matched = -1
    for device in DEVICES:
        own = _words(device.name)
        said = {word for word in own if _DETAIL.fullmatch(word)}
        rest = words - own
        if own - said <= words and all(_DETAIL.fullmatch(word) for word in rest):
            score = len(words & own)
            if score > matched:
                best, matched = device, score
    return best


def peak_tflops(device_name: str, precision: Literal["fp32", "bf16"]) -> float | None:
    """Dense peak of a device in training's precision, in 10^12 FLOP/s; None where not known.

    Args:
        device_name: as for `find_device`.
        precision: of the network's matrix products; fp32 is plain float32, without TF32.
    """
    device = find_device(device_name)
    if device is None:
        return None
    return device.tflops_bf16 if precision == "bf16" else device.tflops_fp32


def _words(name: str) -> set[str]:
    upper = re.sub(r"RTX(?=A?\d)", "RTX ", name.upper())
    upper = re.sub(r"SXM\d", "SXM", upper)
    return set(re.findall(r"[A-Z0-9]+", upper)) - _MAKERS
