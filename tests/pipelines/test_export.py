"""Exported folders: complete, reloaded as they were, never over something else."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from diffusers import DiffusionPipeline
from safetensors import SafetensorError

from simple_diffusion.pipelines import PixelDiffusionPipeline
from simple_diffusion.pipelines.export import ExportError, export_pipeline
from simple_diffusion.pipelines.model_card import CardFacts
from tests.pipelines.conftest import make_pipeline

FACTS = CardFacts(
    name="shapes",
    weights="ema_0.050",
    images_seen=12345,
    data_source="drawn | here\n<script>alert(1)</script>",
    data_licence="CC0",
    data_images=90,
    licence=None,
)
FILES = {
    "README.md",
    "model_index.json",
    "scheduler/scheduler_config.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
}


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_round_trip(pipeline: PixelDiffusionPipeline, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "shapes"
    export_pipeline(pipeline, out, FACTS)
    assert files(out) == FILES
    assert [path.name for path in out.parent.iterdir()] == ["shapes"]
    reloaded = DiffusionPipeline.from_pretrained(out)
    assert type(reloaded) is PixelDiffusionPipeline
    assert reloaded.class_names == ["circle", "square", "stripe"]
    assert not reloaded.unet.training
    before, after = pipeline.unet.state_dict(), reloaded.unet.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    reloaded.set_progress_bar_config(disable=True)
    ours, theirs = (pipe(["square"], 2, output_type="pt").images for pipe in (pipeline, reloaded))
    assert torch.equal(ours, theirs)
    reloaded.save_pretrained(tmp_path / "again")
    first, again = (
        json.loads((folder / "model_index.json").read_text())
        for folder in (out, tmp_path / "again")
    )
    assert again == {**first, "_name_or_path": str(out)}


def test_no_list_of_names_in_the_index(pipeline: PixelDiffusionPipeline, tmp_path: Path) -> None:
    """The hub's download takes every list there for a part of the pipeline."""
    export_pipeline(pipeline, tmp_path / "out", FACTS)
    index = json.loads((tmp_path / "out" / "model_index.json").read_text())
    assert {key for key, value in index.items() if isinstance(value, list)} == {"scheduler", "unet"}


def test_overwriting(pipeline: PixelDiffusionPipeline, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export_pipeline(make_pipeline(0), out, FACTS)
    (out / ".git").mkdir()
    (out / ".git" / "HEAD").write_text("ref")
    (out / "unet" / "stale.safetensors").write_text("old")
    with pytest.raises(ExportError, match="--overwrite"):
        export_pipeline(pipeline, out, FACTS)
    export_pipeline(pipeline, out, FACTS, overwrite=True)
    assert files(out) == FILES | {".git/HEAD"}
    assert DiffusionPipeline.from_pretrained(out).unet.num_classes == 4


@pytest.mark.parametrize("content", ["thesis.txt", "model_index.json"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_other_folders_are_left_alone(
    pipeline: PixelDiffusionPipeline, tmp_path: Path, content: str, overwrite: bool
) -> None:
    (tmp_path / content).write_text('{"_class_name": "DDPMPipeline"}')
    with pytest.raises(ExportError, match="other than an export"):
        export_pipeline(pipeline, tmp_path, FACTS, overwrite=overwrite)
    assert files(tmp_path) == {content}


def test_a_file_is_no_folder(pipeline: PixelDiffusionPipeline, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(ExportError, match="is a file"):
        export_pipeline(pipeline, tmp_path / "out", FACTS)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SafetensorError("disk full")])
def test_a_failed_export_leaves_what_was_there(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    export_pipeline(make_pipeline(0), out, FACTS)
    before = {name: (out / name).read_bytes() for name in files(out)}

    def fail(self: object, folder: Path, **options: object) -> None:
        folder.mkdir()
        (folder / "half").write_text("")
        raise error

    monkeypatch.setattr(PixelDiffusionPipeline, "save_pretrained", fail)
    with pytest.raises((KeyboardInterrupt, ExportError)):
        export_pipeline(make_pipeline(), out, FACTS, overwrite=True)
    assert {name: (out / name).read_bytes() for name in files(tmp_path / "out")} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


class TestCard:
    @staticmethod
    def card(pipe: PixelDiffusionPipeline, folder: Path, facts: CardFacts = FACTS) -> str:
        export_pipeline(pipe, folder / "out", facts)
        return (folder / "out" / "README.md").read_text()

    def test_front_matter(self, pipeline: PixelDiffusionPipeline, tmp_path: Path) -> None:
        _, front, _ = self.card(pipeline, tmp_path).split("---\n", 2)
        values = yaml.safe_load(front)
        assert values["license"] == "unknown"
        assert values["library_name"] == "diffusers"
        assert "class-conditional" in values["tags"]

    def test_facts(self, pipeline: PixelDiffusionPipeline, tmp_path: Path) -> None:
        text = self.card(pipeline, tmp_path)
        parameters = sum(p.numel() for p in pipeline.unet.parameters())
        for fact in (
            "8 x 8",
            f"{parameters:,}",
            "3: circle, square, stripe",
            "`ema_0.050`, after 12,345 images",
            "cosine(logsnr_min=-15, logsnr_max=15)",
            "`ddim`, 4 steps even in `t`, guidance 1.5 for λ in [-3, ∞]",
            "90 images",
            "CC0",
        ):
            assert fact in text

    def test_notes_cannot_break_out(self, pipeline: PixelDiffusionPipeline, tmp_path: Path) -> None:
        text = self.card(pipeline, tmp_path)
        assert "<script>" not in text
        (row,) = (line for line in text.splitlines() if line.startswith("| training data"))
        assert r"drawn \| here" in row

    @pytest.mark.parametrize("num_classes", [0, 4])
    def test_the_snippet_runs(
        self, num_classes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        text = self.card(make_pipeline(num_classes), tmp_path)
        code = text.split("```python\n")[1].split("```")[0].replace("'shapes'", "'out'")
        monkeypatch.chdir(tmp_path)
        exec(compile(code, "README.md", "exec"), {})
        assert (tmp_path / "image.png").stat().st_size > 100
