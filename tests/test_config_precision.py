"""`precision: auto`: what the machine is fastest in, said outright in what is saved."""

from pathlib import Path

import pytest
import torch

from simple_diffusion import config_files
from simple_diffusion.config_files import ConfigError, dump_config, load_config
from simple_diffusion.config_precision import fastest_precision


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("flags : fpu avx2 avx512f avx512_bf16 avx512_fp16", "bf16"),
        ("flags : fpu avx2 amx_bf16 amx_tile", "bf16"),
        ("Features : fp asimd bf16 i8mm", "bf16"),
        ("flags : fpu avx2 avx512f avx512_vnni", "fp32"),
        ("flags : not_avx512_bf16 bf16x", "fp32"),
    ],
)
def test_processors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    path = tmp_path / "cpuinfo"
    path.write_text(f"processor : 0\n{flags}\n")
    assert fastest_precision(path) == expected


def test_a_system_that_does_not_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert fastest_precision(tmp_path / "missing") == "fp32"


@pytest.mark.parametrize("native", [True, False])
def test_gpus_without_it_do_not_emulate(monkeypatch: pytest.MonkeyPatch, native: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    asked: list[bool] = []

    def supported(including_emulation: bool) -> bool:
        asked.append(including_emulation)
        return native

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert fastest_precision() == ("bf16" if native else "fp32")
    assert asked == [False]


@pytest.mark.parametrize("found", ["fp32", "bf16"])
def test_what_is_saved_is_definite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: str
) -> None:
    monkeypatch.setattr(config_files, "fastest_precision", lambda: found)
    path = tmp_path / "run.yaml"
    path.write_text("train: {precision: auto, batch_size: 8}\nsampling: {precision: fp32}\n")
    config = load_config(path)
    assert (config.train.precision, config.sampling.precision) == (found, "fp32")
    assert config.train.batch_size == 8
    assert "auto" not in dump_config(config)
    overridden = load_config(path, ["--sampling.precision=auto"])
    assert overridden.sampling.precision == found


def test_auto_is_for_precision_only(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("train: {batch_size: auto}\n")
    with pytest.raises(ConfigError, match="batch_size"):
        load_config(path)
