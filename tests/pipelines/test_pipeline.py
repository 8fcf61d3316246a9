"""What a call draws, in every form, and what it refuses."""

import re
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor

from simple_diffusion.diffusion.generate import generate
from simple_diffusion.diffusion.samplers import SAMPLERS
from simple_diffusion.diffusion.spacing import Spacing
from simple_diffusion.pipelines import PixelDiffusionPipeline
from tests.pipelines.conftest import make_pipeline


def draw(pipe: PixelDiffusionPipeline, *arguments: Any, **options: Any) -> Tensor:
    """Images in [-1, 1]."""
    images: Tensor = pipe(*arguments, output_type="pt", **options).images
    return 2.0 * images - 1.0


def expected(
    pipe: PixelDiffusionPipeline,
    labels: list[int] | None,
    indices: list[int],
    *,
    seed: int = 0,
    sampler: str = "ddim",
    steps: int = 4,
    spacing: Spacing = "t",
    guidance: float = 1.5,
    interval: tuple[float, float] = (-3.0, float("inf")),
) -> Tensor:
    return generate(
        pipe.unet,
        pipe.scheduler.schedule,
        "v",
        SAMPLERS[sampler],
        indices=indices,
        seed=seed,
        shape=(3, 8, 8),
        steps=steps,
        device=torch.device("cpu"),
        labels=None if labels is None else torch.tensor(labels),
        null_label=None if labels is None else 4,
        guidance=guidance,
        guidance_interval=interval,
        spacing=spacing,
    )


def assert_same(ours: Tensor, theirs: Tensor) -> None:
    assert theirs.std() > 0.1
    assert (theirs.abs() < 1).float().mean() > 0.2  # not all clipped
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


class TestDrawing:
    def test_defaults_are_the_schedulers(self, pipeline: PixelDiffusionPipeline) -> None:
        assert_same(draw(pipeline, [2, 0]), expected(pipeline, [2, 0], [0, 1]))

    def test_every_option_counts(self, pipeline: PixelDiffusionPipeline) -> None:
        ours = draw(
            pipeline,
            ["stripe", "circle"],
            num_images=5,
            num_inference_steps=3,
            guidance_scale=4.0,
            guidance_interval=(None, 1.0),
            sampler="ddpm",
            spacing="logsnr",
            seed=9,
            first_index=7,
            batch_size=2,
        )
        theirs = expected(
            pipeline,
            [2, 0, 2, 0, 2],
            [7, 8, 9, 10, 11],
            seed=9,
            sampler="ddpm",
            steps=3,
            spacing="logsnr",
            guidance=4.0,
            interval=(-float("inf"), 1.0),
        )
        assert_same(ours, theirs)
        others: list[dict[str, Any]] = [
            {"num_inference_steps": 5},
            {"guidance_scale": 2.0},
            {"guidance_interval": (-1.0, 0.0)},
            {"sampler": "heun"},
            {"spacing": "tau"},
            {"seed": 1},
            {"first_index": 1},
        ]
        usual = draw(pipeline, [1])
        for option in others:
            assert (draw(pipeline, [1], **option) - usual).abs().max() > 1e-3, option

    def test_names_numbers_and_digits_are_one(self, pipeline: PixelDiffusionPipeline) -> None:
        by_number = draw(pipeline, 1)
        for given in ("square", "1", ["square"], [1]):
            assert torch.equal(draw(pipeline, given), by_number)
        assert not torch.equal(draw(pipeline, 0), by_number)

    def test_without_classes_the_null_class(self, pipeline: PixelDiffusionPipeline) -> None:
        theirs = expected(pipeline, [4, 4], [0, 1], guidance=1.0)
        assert_same(draw(pipeline, num_images=2), theirs)
        assert torch.equal(draw(pipeline, num_images=2, guidance_scale=1), draw(pipeline, None, 2))

    def test_unconditional(self, unconditional: PixelDiffusionPipeline) -> None:
        theirs = expected(unconditional, None, [0, 1, 2], guidance=1.0)
        assert_same(draw(unconditional, num_images=3), theirs)

    def test_forms_of_output(self, pipeline: PixelDiffusionPipeline) -> None:
        tensor = pipeline([0, 1], output_type="pt").images
        array = pipeline([0, 1], output_type="np").images
        assert tensor.shape == (2, 3, 8, 8)
        assert 0 <= tensor.min() < tensor.max() <= 1
        np.testing.assert_array_equal(array, tensor.permute(0, 2, 3, 1).numpy())
        pictures = pipeline([0, 1]).images
        assert [picture.size for picture in pictures] == [(8, 8), (8, 8)]
        exact = 255 * array[1].astype(np.float64)
        assert np.abs(np.asarray(pictures[1]) - exact).max() <= 0.5 + 1e-4
        (alone,) = pipeline([0, 1], output_type="pt", return_dict=False)
        assert torch.equal(alone, tensor)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_weights(self, dtype: torch.dtype) -> None:
        pipe = make_pipeline()
        full = draw(pipe, [0, 1], sampler="ddim")
        pipe.unet.to(dtype)
        half = draw(pipe, [0, 1], sampler="ddim")
        assert half.dtype == torch.float32
        assert 0 < (half - full).abs().mean() < 0.05

    def test_progress_counts_steps(
        self, pipeline: PixelDiffusionPipeline, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bars = []
        make = pipeline.progress_bar

        def progress_bar(**options: Any) -> Any:
            bars.append(make(**options))
            return bars[-1]

        monkeypatch.setattr(pipeline, "_progress_bar_config", {"disable": False})
        monkeypatch.setattr(pipeline, "progress_bar", progress_bar)
        pipeline(num_images=5, batch_size=2, num_inference_steps=3, sampler="heun")
        assert [(bar.n, bar.total) for bar in bars] == [(9, 9)]


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"class_labels": ["squar"]}, "did you mean 'square'?"),
            ({"class_labels": ["xyz"]}, "this model's are circle, square, stripe"),
            ({"class_labels": [3]}, "classes are 0 to 2"),  # room for it, but it was never trained
            ({"class_labels": [-1]}, "out of range"),
            ({"class_labels": []}, "nothing to draw"),
            ({"num_images": 0}, "nothing to draw"),
            ({"guidance_scale": 2.0}, "give class_labels"),
            ({"class_labels": [0], "sampler": "dpm"}, "sampler 'dpm' is not one of"),
            ({"class_labels": [0], "spacing": "even"}, "unknown spacing 'even'"),
            ({"class_labels": [0], "guidance_interval": (2.0, 1.0)}, "guidance interval"),
            ({"class_labels": [0], "guidance_interval": (1.0,)}, "guidance_interval"),
            ({"class_labels": [0], "num_inference_steps": 0}, "at least one step"),
            ({"class_labels": [0], "batch_size": 0}, "batch_size"),
            ({"class_labels": [0], "first_index": -1}, "first_index"),
            ({"class_labels": [0], "output_type": "latent"}, "output_type 'latent'"),
        ],
    )
    def test_bad_calls(
        self, pipeline: PixelDiffusionPipeline, options: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(ValueError, match=re.escape(message)):
            pipeline(**options)

    @pytest.mark.parametrize("options", [{"class_labels": [0]}, {"guidance_scale": 2.0}])
    def test_classes_of_an_unconditional_network(
        self, unconditional: PixelDiffusionPipeline, options: dict[str, Any]
    ) -> None:
        with pytest.raises(ValueError, match=r"unconditional|give class_labels"):
            unconditional(**options)

    def test_a_foreign_scheduler(self) -> None:
        pipe = make_pipeline()
        pipe.scheduler = diffusers.DDIMScheduler()
        with pytest.raises(ValueError, match="DDIMScheduler does not know"):
            pipe([0])

    @pytest.mark.parametrize(
        ("id2label", "message"),
        [
            ({"0": "a", "2": "b"}, "without gaps"),
            ({"zero": "a"}, "without gaps"),
            ({str(i): str(i) for i in range(5)}, "5 names for a network of 4"),
        ],
    )
    def test_names_that_do_not_fit(self, id2label: dict[str, str], message: str) -> None:
        pipe = make_pipeline()
        with pytest.raises(ValueError, match=message):
            PixelDiffusionPipeline(pipe.unet, pipe.scheduler, id2label=id2label)
