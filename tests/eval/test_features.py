import subprocess
import sys
from pathlib import Path

import pytest
import torch

from eval.features import EXTRACTORS, WeightsMissingError, figure_name, open_extractor

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("wrong", "near"), [("lite", "lite0"), ("Inception", "inception"), ("dino", "dinov2")]
)
def test_a_misspelt_extractor_is_corrected(wrong: str, near: str) -> None:
    with pytest.raises(ValueError, match=f"did you mean '{near}'.* inception, dinov2, clip"):
        open_extractor(wrong, device=CPU)


def test_a_name_like_no_other_lists_them_all() -> None:
    with pytest.raises(ValueError, match=r"'zzz': there are lite0, inception, dinov2, clip$"):
        open_extractor("zzz", device=CPU)


def test_figures_carry_their_extractor() -> None:
    assert figure_name("kid", "lite0") == "kid_lite0"
    assert figure_name("fd", "dinov2") == "fd_dinov2"
    assert figure_name("kid", "inception") == "kid_inception"
    assert figure_name("fd", "inception") == "fid"
    assert figure_name("is", "inception") == "is"
    assert figure_name("mmd", "clip") == "cmmd"


def test_only_inception_gives_fid() -> None:
    metrics = ("fd", "kid", "mmd", "precision", "recall", "density", "coverage", "is")
    names = {
        (metric, extractor): figure_name(metric, extractor)
        for metric in metrics
        for extractor in EXTRACTORS
    }
    assert len(set(names.values())) == len(names)  # no two figures share a name
    assert [pair for pair, name in names.items() if "fid" in name] == [("fd", "inception")]


@pytest.mark.parametrize("name", sorted(EXTRACTORS))
def test_missing_weights_are_told_at_once(name: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsMissingError) as caught:
        open_extractor(name, weights=tmp_path / "nothing", device=CPU)
    assert name in str(caught.value)
    assert "install" in str(caught.value) or "fetch" in str(caught.value)  # the remedy


def test_naming_the_extractors_does_not_load_them() -> None:
    program = (
        "import sys, eval.features\n"
        "loaded = [m for m in sys.modules if m.startswith('eval.extractors.')]\n"
        "sys.exit(loaded != ['eval.extractors.base'])"
    )
    root = Path(__file__).resolve().parents[2]
    assert subprocess.run([sys.executable, "-c", program], cwd=root, timeout=60).returncode == 0
