"""The table of accelerators, and how their names are read."""

import pytest

from simple_diffusion.devices import CPU, DEVICES, find_device, peak_tflops


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ("H100", "H100 SXM"),
        ("NVIDIA H100 80GB HBM3", "H100 SXM"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("h100-pcie", "H100 PCIe"),
        ("NVIDIA H100 NVL", "H100 NVL"),
        ("NVIDIA H200", "H200 SXM"),
        ("NVIDIA GH200 480GB", "GH200"),
        ("NVIDIA A100-SXM4-40GB", "A100 SXM 40GB"),
        ("NVIDIA A100-SXM4-80GB", "A100 SXM 80GB"),
        ("NVIDIA A100-PCIE-40GB", "A100 PCIe 40GB"),
        ("NVIDIA A100 80GB PCIe", "A100 PCIe 80GB"),
        ("NVIDIA A10", "A10"),
        ("NVIDIA A10G", "A10G"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("RTX4090", "RTX 4090"),
        ("NVIDIA RTX A6000", "RTX A6000"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX 6000 Ada"),
        ("Tesla V100-SXM2-32GB", "V100 SXM 32GB"),
        ("Tesla T4", "T4"),
        ("NVIDIA B200", "B200"),
        ("AMD Instinct MI300X", "MI300X"),
    ],
)
def test_names_that_torch_and_people_use(said: str, name: str) -> None:
    found = find_device(said)
    assert found is not None
    assert found.name == name


@pytest.mark.parametrize(
    "said",
    [
        "",
        "H1000",
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",  # a slice
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA GeForce RTX 3090 Ti",
        "H100 H200",
        "80GB",
    ],
)
def test_other_devices_are_not_taken_for_those_of_the_table(said: str) -> None:
    assert find_device(said) is None
    assert peak_tflops(said, "bf16") is None


def test_every_device_is_found_by_its_own_name() -> None:
    for device in DEVICES:
        assert find_device(device.name) is device
    assert len({device.name for device in DEVICES}) == len(DEVICES)


def test_peaks_are_dense_and_of_the_precision() -> None:
    assert peak_tflops("NVIDIA H100 80GB HBM3", "bf16") == 989  # not the sheet's 1979
    assert peak_tflops("NVIDIA H100 80GB HBM3", "fp32") == 67  # not TF32
    assert peak_tflops("NVIDIA A100-SXM4-40GB", "bf16") == 312
    assert peak_tflops("Tesla V100-SXM2-16GB", "bf16") is None
    assert peak_tflops("Tesla V100-SXM2-16GB", "fp32") == 15.7


def test_a_cpu_is_a_device_of_which_nothing_is_known() -> None:
    assert find_device("cpu") is CPU
    assert peak_tflops("cpu", "fp32") is None
    assert CPU.memory_gb is None


def test_figures_hang_together() -> None:
    for device in DEVICES:
        assert device.tflops_fp32 is not None
        if device.tflops_bf16 is not None and device.tflops_tf32 is not None:
            # tensor cores do TF32 at half the rate of bfloat16
            assert device.tflops_bf16 / device.tflops_tf32 == pytest.approx(2, rel=0.02)
            assert device.tflops_tf32 >= device.tflops_fp32
        assert device.memory_gb is not None
        assert device.memory_gb_s is not None
        assert 0.005 < device.memory_gb / device.memory_gb_s < 0.1  # seconds to read all of it
