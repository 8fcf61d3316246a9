"""Networks that start from another run's weights: what is copied, resampled, new, and refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from simple_diffusion.config import ModelConfig, build_network
from simple_diffusion.config_few_step import MeanFlowConfig
from simple_diffusion.config_files import dump_config, parse_config
from simple_diffusion.models.uvit import UViT
from simple_diffusion.training.init_from import InitReport, init_network
from simple_diffusion.training.run_folder import RunError
from simple_diffusion.training.saved_run import SavedRun, open_run
from simple_diffusion.training.state import CheckpointStore

SMALL = ModelConfig(
    patch_size=2,
    channels=(8, 16, 32),
    blocks=(1, 1),
    depth=2,
    head_dim=16,
    num_classes=3,
    condition_width=16,
)
VIT = replace(SMALL, channels=(32,), blocks=(), patch_size=4, bottleneck=6)
DATA = {"source": "s", "licence": "l", "images": 1, "classes": ["a"], "class_counts": [1]}


def random_network(model: ModelConfig, size: int, seed: int) -> UViT:
    """A network no parameter of which is zero: an untrained one returns zero whatever it holds."""
    network = build_network(model, size)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return network


def saved(folder: Path, network: UViT, model: ModelConfig, size: int) -> SavedRun:
    """A run of 64 images with two sets of weights; the average is the network's."""
    config = parse_config(f"data: {{image_size: {size}}}\nrun_dir: {folder}\n", "test")
    few_step = MeanFlowConfig() if model.step_condition else config.few_step
    config = replace(config, model=model, few_step=few_step)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(dump_config(config))
    average = {name: p.detach() for name, p in network.named_parameters()}
    groups = {"model": {name: p + 1.0 for name, p in average.items()}, "ema_0.100": average}
    store = CheckpointStore(folder / "checkpoints")
    store.save(64, groups, {"images_seen": 64, "data": DATA})
    store.wait()
    return open_run(folder)


def grow(
    folder: Path,
    was: tuple[ModelConfig, int],
    now: tuple[ModelConfig, int],
    prediction: Any = None,
) -> tuple[UViT, UViT, InitReport]:
    """Both networks, and the report."""
    old, new = random_network(*was, seed=1), random_network(*now, seed=2)
    source = saved(folder / "old", old, *was)
    wanted = prediction or source.config.objective.prediction
    report = init_network(new, source, model=now[0], prediction=wanted)
    named = set(dict(new.named_parameters()))
    told = [*report.taken, *report.resized, *report.new]
    assert sorted(told) == sorted(named), "every key has one fate"
    return old, new, report


def call(network: UViT, size: int) -> Tensor:
    z = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        return network.eval()(z, torch.tensor([-1.0, 2.0]), torch.tensor([0, 3]))


@pytest.mark.parametrize("model", [SMALL, VIT], ids=["levels", "vit"])
@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_the_same_backbone_on_a_larger_grid_is_the_same_function(
    tmp_path: Path, model: ModelConfig, positions: Any
) -> None:
    """Of images of either size: it resamples its positions by itself."""
    model = replace(model, positions=positions)
    old, new, report = grow(tmp_path, (model, 16), (model, 32))
    resized = {"positions.table"} if positions == "learned" else set()
    assert (set(report.resized), report.new, report.dropped) == (resized, {}, {})
    assert torch.allclose(call(new, 32), call(old, 32), atol=1e-5)
    assert not torch.allclose(call(new, 32), call(random_network(model, 32, 2), 32), atol=0.1)


def test_the_weights_taken_are_those_asked_for(tmp_path: Path) -> None:
    old = random_network(SMALL, 16, seed=1)
    saved(tmp_path / "old", old, SMALL, 16)
    new = random_network(SMALL, 16, seed=2)
    source = open_run(tmp_path / "old", "model")
    report = init_network(new, source, model=SMALL, prediction=source.config.objective.prediction)
    assert (report.weights, report.images_seen) == ("model", 64)
    theirs = dict(old.named_parameters())
    for name, parameter in new.named_parameters():
        assert torch.equal(parameter, theirs[name] + 1.0), name


@pytest.mark.parametrize("model", [SMALL, VIT], ids=["levels", "vit"])
@pytest.mark.parametrize("bottleneck", [None, 6])
def test_a_larger_patch_sees_means_and_paints_alike(
    tmp_path: Path, model: ModelConfig, bottleneck: int | None
) -> None:
    """On an image whose pixels come in equal fours, it is the old network on one of each four."""
    model = replace(model, bottleneck=bottleneck)
    larger = replace(model, patch_size=2 * model.patch_size)
    old, new, report = grow(tmp_path, (model, 16), (larger, 32))
    end = "embedding.conv" if bottleneck is None else "embedding.narrow"
    head = "head.conv" if model is SMALL or model.channels[:-1] else "head.out"
    assert set(report.resized) == {f"{end}.weight", f"{head}.weight", f"{head}.bias"}
    z = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    told = (torch.tensor([-1.0, 2.0]), torch.tensor([0, 3]))
    noise = torch.randn(2, 3, 16, 1, 16, 1, generator=torch.Generator().manual_seed(4))
    quads = z.repeat_interleave(2, 2).repeat_interleave(2, 3)
    pair = torch.tensor([1.0, -1.0])
    unseen = noise * pair[:, None, None] * pair  # of mean zero in each four
    with torch.no_grad():
        expected = old.eval()(z, *told).repeat_interleave(2, 2).repeat_interleave(2, 3)
        actual = new.eval()(quads + unseen.reshape(2, 3, 32, 32), *told)
    assert torch.allclose(actual, expected, atol=1e-4)


def test_a_smaller_patch_undoes_a_larger_one(tmp_path: Path) -> None:
    larger = replace(SMALL, patch_size=8)
    source = saved(tmp_path / "old", random_network(SMALL, 16, 1), SMALL, 16)
    wanted = source.config.objective.prediction
    between = build_network(larger, 64)
    init_network(between, source, model=larger, prediction=wanted)
    back, again = build_network(SMALL, 16), saved(tmp_path / "larger", between, larger, 64)
    init_network(back, again, model=SMALL, prediction=wanted)
    for name, tensor in source.state_dict().items():
        assert torch.allclose(dict(back.named_parameters())[name], tensor, atol=1e-6), name


def test_a_level_on_top(tmp_path: Path) -> None:
    """Levels are matched from below: what was the highest is the second one now."""
    taller = replace(SMALL, channels=(4, 8, 16, 32), blocks=(1, 1, 1))
    old, new, report = grow(tmp_path, (SMALL, 16), (taller, 32))
    theirs, ours = dict(old.named_parameters()), dict(new.named_parameters())
    for name in report.taken:
        was = name.replace("levels.1.", "levels.0.").replace("levels.2.", "levels.1.")
        assert torch.equal(ours[name], theirs[was]), name
    assert {name.split(".")[0] for name in report.new} == {"embedding", "head", "levels"}
    assert {name[:8] for name in report.new if name.startswith("levels")} == {"levels.0"}
    assert {name.split(".")[0] for name in report.dropped} == {"embedding", "head"}
    assert sum(name.startswith("levels.") for name in report.taken) == sum(
        name.startswith("levels.") for name in theirs
    )


def test_a_level_fewer(tmp_path: Path) -> None:
    taller = replace(SMALL, channels=(4, 8, 16, 32), blocks=(1, 1, 1))
    old, new, report = grow(tmp_path, (taller, 32), (SMALL, 16))
    assert torch.equal(
        new.get_parameter("levels.0.downsample.conv.weight"),
        old.get_parameter("levels.1.downsample.conv.weight"),
    )
    assert any(name.startswith("levels.0.") for name in report.dropped)
    assert not any(name.startswith("levels.") for name in report.new)


def test_other_classes_start_anew(tmp_path: Path) -> None:
    fresh = random_network(replace(SMALL, num_classes=5), 16, seed=2)
    _, new, report = grow(tmp_path, (SMALL, 16), (replace(SMALL, num_classes=5), 16))
    table = "conditioner.label.table"
    assert report.new == {table: "model.num_classes 3 -> 5"}
    assert report.dropped == {table: "model.num_classes is now 5"}
    assert torch.equal(new.get_parameter(table), fresh.get_parameter(table))


def test_a_network_without_classes_drops_them(tmp_path: Path) -> None:
    _, _, report = grow(tmp_path, (SMALL, 16), (replace(SMALL, num_classes=0), 16))
    assert (set(report.dropped), report.new) == ({"conditioner.label.table"}, {})


def test_a_plain_denoiser_learns_few_steps(tmp_path: Path) -> None:
    """The embedding of step sizes is new; the network says what it said, whatever the step.

    But at noise levels so low that they are told alike: there, what it said at the lowest told.
    """
    stepped = replace(SMALL, step_condition=True)
    old = random_network(SMALL, 16, seed=1)
    source = saved(tmp_path / "old", old, SMALL, 16)
    new = build_network(stepped, 16)
    report = init_network(new, source, model=stepped, prediction="v")
    assert set(report.new.values()) == {"model.step_condition false -> true"}
    assert len(report.new) == 4
    assert not report.dropped
    z, labels = torch.randn(2, 3, 16, 16), torch.tensor([0, 1])
    for level, same in ((0.0, 0.0), (10.0, 10.0), (-7.9, -7.9), (-12.0, -8.0)):
        logsnr = torch.full((2,), level)
        expected = old.eval()(z, torch.full((2,), same), labels)
        assert torch.equal(new.eval()(z, logsnr, labels), expected)
        assert torch.equal(new(z, logsnr, labels, torch.tensor([0.25, 1.0])), expected)


def test_a_few_step_network_becomes_a_plain_denoiser(tmp_path: Path) -> None:
    _, _, report = grow(tmp_path, (replace(SMALL, step_condition=True), 16), (SMALL, 16))
    assert set(report.dropped.values()) == {"model.step_condition true -> false"}
    assert (len(report.dropped), report.new) == (4, {})


def test_another_prediction_needs_another_head(tmp_path: Path) -> None:
    old, new, report = grow(tmp_path, (SMALL, 16), (SMALL, 16), prediction="x0")
    assert {name.split(".")[0] for name in report.new} == {"head"}
    assert set(report.dropped) == set(report.new)
    assert "objective.prediction v -> x0" in report.new["head.conv.weight"]
    assert torch.equal(
        new.get_parameter("embedding.conv.weight"), old.get_parameter("embedding.conv.weight")
    )


def test_another_stem_means_other_ends(tmp_path: Path) -> None:
    """Wavelets have the shapes of patches, and other meanings."""
    _, _, report = grow(tmp_path, (SMALL, 16), (replace(SMALL, stem="haar"), 16))
    assert {name.split(".")[0] for name in report.new} == {"embedding", "head"}
    assert set(report.new.values()) == {"model.stem patch -> haar"}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"depth": 3}, r"transformer\.2\.\S+ .*not there -> "),
        ({"depth": 1}, r"transformer\.1\.\S+.* -> not there"),
        ({"channels": (8, 16, 48), "head_dim": 16}, r"transformer\.\*\.\S+ \(2 times\): 96x32 -> "),
        ({"channels": (12, 16, 32)}, r"levels\.0\."),
        ({"blocks": (2, 1)}, r"levels\.0\.down_blocks\.1\."),
        ({"condition_width": 24}, "conditioner.logsnr.inner.weight: 16x256 -> 24x256"),
        ({"head_dim": 8}, "model.head_dim: 16 -> 8"),
        ({"norm": "post"}, "model.norm: pre -> post"),
        ({"skips": "level"}, "model.skips: block -> level"),
        ({"positions": "rotary"}, "model.positions: learned -> rotary"),
        ({"mlp": "swiglu"}, "model.mlp: gelu -> swiglu"),
        ({"bottleneck": 4}, "embedding.narrow.weight: not there -> "),
    ],
)
def test_another_backbone_is_refused_and_nothing_is_changed(
    tmp_path: Path, change: dict[str, Any], told: str
) -> None:
    source = saved(tmp_path / "old", random_network(SMALL, 16, 1), SMALL, 16)
    model = replace(SMALL, **change)
    network = random_network(model, 32, seed=2)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    with pytest.raises(RunError, match=f"(?s)has another backbone.*{told}") as caught:
        init_network(network, source, model=model, prediction="v")
    assert len(str(caught.value).splitlines()) < 25
    for name, parameter in network.named_parameters():
        assert torch.equal(parameter, before[name]), name


def test_the_report_is_written_and_says_what_was_not_copied(tmp_path: Path) -> None:
    _, _, report = grow(tmp_path, (SMALL, 16), (replace(SMALL, num_classes=5), 32))
    report.write(tmp_path)
    read = json.loads((tmp_path / "init_from.json").read_text())
    assert read["resized"] == {"positions.table": "32x2x2 -> 32x4x4 (bicubic)"}
    assert read["taken"] == list(report.taken)
    summary = report.summary()
    assert f"{len(report.taken)} tensors taken, 1 resized, 1 new, 1 dropped" in summary
    assert "ema_0.100 after 64 images" in summary
    assert "new conditioner.label.table: model.num_classes 3 -> 5" in summary


def test_positions_are_resampled_as_the_network_does(tmp_path: Path) -> None:
    old, new, _ = grow(tmp_path, (SMALL, 16), (SMALL, 48))
    table: Tensor = old.get_parameter("positions.table").detach()
    expected = F.interpolate(table[None], (6, 6), mode="bicubic")[0]
    assert torch.equal(new.get_parameter("positions.table"), expected)


def test_parameters_stay_the_optimisers(tmp_path: Path) -> None:
    """Filled in place: an optimiser that holds them, or a tag on them, must not be lost."""
    source = saved(tmp_path / "old", random_network(SMALL, 16, 1), SMALL, 16)
    network = build_network(SMALL, 32)
    held: list[nn.Parameter] = list(network.parameters())
    init_network(network, source, model=SMALL, prediction="v")
    assert all(a is b for a, b in zip(held, network.parameters(), strict=True))
    assert all(hasattr(parameter, "optim_group") for parameter in network.parameters())
