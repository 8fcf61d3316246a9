"""Rebuilt averages against averages that were tracked."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from simple_diffusion.config import RunConfig
from simple_diffusion.config_cluster import CheckpointConfig
from simple_diffusion.config_files import parse_config
from simple_diffusion.training.ema import Ema, ema_name
from simple_diffusion.training.posthoc import (
    _fit,
    list_snapshots,
    posthoc_weights,
    profile_products,
    reconstruct,
)
from simple_diffusion.training.run_folder import RunError, snapshot_root
from simple_diffusion.training.state import CheckpointError, CheckpointStore

STEPS, BATCH, TRACKED = 1024, 8, (0.05, 0.10)
NEW = (0.03, 0.04, 0.075, 0.15, 0.20)


def products(a: Sequence[float], b: Sequence[float]) -> float:
    one, two = (np.array([[value] for value in pair]) for pair in (a, b))
    return float(profile_products(one[0], one[1], two[0], two[1])[0])


@pytest.mark.parametrize("a", [(1.0, 17.0), (0.6, 6.9)])
@pytest.mark.parametrize("b", [(1.0, 6.9), (0.35, 17.0), (0.6, 30.0)])
def test_products_are_integrals(a: tuple[float, float], b: tuple[float, float]) -> None:
    t = (np.arange(1_000_000) + 0.5) / 1_000_000
    p, q = ((g + 1) * t**g / end ** (g + 1) * (t < end) for end, g in (a, b))
    assert products(a, b) == pytest.approx(float((p * q).mean()), rel=1e-6)
    assert products(a, b) == pytest.approx(products(b, a), rel=1e-12)


class TestWeights:
    stored = tuple((1000.0 * k, length) for k in range(1, 33) for length in TRACKED)

    def test_a_stored_one_is_itself(self) -> None:
        weights = posthoc_weights(self.stored, 32_000, 0.05)
        expected = np.zeros(64)
        expected[62] = 1.0
        assert np.allclose(weights, expected, atol=1e-6)

    def test_they_sum_to_one_and_do_not_depend_on_the_unit_of_time(self) -> None:
        weights = posthoc_weights(self.stored, 32_000, 0.075)
        assert weights.dtype == np.float64
        assert weights.sum() == pytest.approx(1.0, abs=1e-12)
        longer = [(1e5 * images, length) for images, length in self.stored]
        assert np.allclose(posthoc_weights(longer, 32_000e5, 0.075), weights, atol=1e-9)

    @pytest.mark.parametrize("gap", [1e-3, 1e-7, 0.0])
    def test_snapshots_that_nearly_coincide_do_no_harm(self, gap: float) -> None:
        """The last regular one and the one at the end, for one. Their difference is rounding."""
        doubled = [*self.stored, *((32_000 * (1.0 - gap), length) for length in TRACKED)]
        for length in NEW:
            alone = posthoc_weights(self.stored, 32_000, length)
            weights, error = _fit(doubled, 32_000, length)
            assert np.abs(weights).sum() < 1.5 * np.abs(alone).sum()
            assert error <= 1.01 * _fit(self.stored, 32_000, length)[1]

    def test_nothing_can_be_said_of_what_comes_after(self) -> None:
        with pytest.raises(ValueError, match="ends at image 32001 cannot be rebuilt"):
            posthoc_weights(self.stored, 32_001, 0.05)

    def test_the_error_falls_as_the_square_of_their_number(self) -> None:
        def error(count: int) -> float:
            stored = [(k / count, length) for k in range(1, count + 1) for length in TRACKED]
            return _fit(stored, 1.0, 0.075)[1]

        assert error(16) < 5e-3
        assert error(16) / error(64) > 12
        assert error(64) / error(256) > 12


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A run whose weights walk at random, with 64 snapshots and what `NEW` would have tracked."""
    root = tmp_path_factory.mktemp("walk")
    config = parse_config("ema: {lengths: [0.05, 0.10]}\n", "test")
    config = replace(config, run_dir=str(root))
    walk(config, snapshots=64)
    return config


def walk(config: RunConfig, snapshots: int) -> None:
    generator = torch.Generator().manual_seed(0)
    weights = {"a": torch.randn(20, 10, generator=generator), "b": torch.zeros(50)}
    ema = Ema(weights, TRACKED, every_steps=1)
    direct = Ema(weights, NEW, every_steps=1)
    store = CheckpointStore(snapshot_root(config), keep=None)
    for step in range(1, STEPS + 1):
        for tensor in weights.values():
            tensor.add_(torch.randn(tensor.shape, generator=generator), alpha=STEPS**-0.5)
        seen = step * BATCH
        ema.update(weights, step, seen)
        direct.update(weights, step, seen)
        if step % (STEPS // snapshots) == 0:
            state = {"images_seen": seen, "ema_updated_at": ema.state()["updated_at"]}
            store.save(seen, {name: ema.tensors(name) for name in ema.names}, state)
            store.wait()
        if step in (STEPS // 2, STEPS):
            torch.save((weights, direct), tracked_path(config, seen))


def tracked_path(config: RunConfig, images: int) -> Path:
    return Path(config.run_dir) / f"tracked-{images}.pt"


def tracked(config: RunConfig, images: int, length: float) -> tuple[Tensor, Tensor]:
    """The average that was tracked, and the weights at that moment."""
    weights, direct = torch.load(tracked_path(config, images), weights_only=False)
    return flat(direct.tensors(ema_name(length))), flat(weights)


def flat(tensors: dict[str, Tensor]) -> Tensor:
    return torch.cat([tensors[name].flatten() for name in ("a", "b")]).double()


@pytest.mark.parametrize("images", [None, STEPS * BATCH // 2])
def test_a_length_never_stored_is_the_one_that_was_tracked(
    config: RunConfig, images: int | None
) -> None:
    """Within 1e-3 of the distance that averaging moves the weights, which is the stricter measure
    than their own size. (At the half there are 32 snapshots.)
    """
    rebuilt = reconstruct(config, NEW, images)
    assert list(rebuilt) == [ema_name(length) for length in NEW]
    for length, average in zip(NEW, rebuilt.values(), strict=True):
        expected, now = tracked(config, images or STEPS * BATCH, length)
        actual = flat(average.tensors)
        error = (actual - expected).norm()
        assert error / expected.norm() < 1e-3, length
        assert error / (expected - now).norm() < (1e-3 if images is None else 4e-3), length
        assert (average.images_seen, average.length) == (images or STEPS * BATCH, length)


def test_wrong_weights_would_be_noticed(config: RunConfig) -> None:
    """Another length, by as little as a tenth, is further away than the tolerance."""
    expected, _ = tracked(config, STEPS * BATCH, 0.075)
    other = flat(reconstruct(config, [0.08])["ema_0.080"].tensors)
    assert (other - expected).norm() / expected.norm() > 5e-3


def test_the_time_of_a_snapshot_is_that_of_its_averages(tmp_path: Path) -> None:
    """Updated every 48 steps, and kept every 64: some are older than their name says."""
    config = replace(parse_config("ema: {lengths: [0.05, 0.10]}", "t"), run_dir=str(tmp_path))
    generator = torch.Generator().manual_seed(0)
    weights = {"a": torch.zeros(500)}
    ema, direct = Ema(weights, TRACKED, every_steps=48), Ema(weights, [0.075], every_steps=48)
    store = CheckpointStore(snapshot_root(config), keep=None)
    for step in range(1, 2049):
        weights["a"].add_(torch.randn(500, generator=generator))
        ema.update(weights, step, step)
        direct.update(weights, step, step)
        if step % 64 == 0:
            state = {"images_seen": step, "ema_updated_at": ema.state()["updated_at"]}
            store.save(step, {name: ema.tensors(name) for name in ema.names}, state)
            store.wait()
    times = [(snapshot.images_seen, snapshot.updated_at) for snapshot in list_snapshots(config)]
    assert (times[0], times[-1]) == ((64, 48), (2048, 2016))
    expected = direct.tensors("ema_0.075")["a"]
    average = reconstruct(config, [0.075])["ema_0.075"]
    assert average.images_seen == 2048
    assert (average.tensors["a"] - expected).norm() < 1e-3 * (expected - weights["a"]).norm()


def test_early_snapshots_that_do_not_count_are_not_read(config: RunConfig) -> None:
    first = list_snapshots(config)[0].checkpoint
    tensors = next(Path(str(first.path)).glob("*.safetensors"))
    content = tensors.read_bytes()
    try:
        tensors.write_bytes(b"")
        assert reconstruct(config, [0.05])["ema_0.050"].snapshots == 64
        with pytest.raises(CheckpointError, match="remove this snapshot"):
            reconstruct(config, [0.25])
    finally:
        tensors.write_bytes(content)


def test_without_snapshots(tmp_path: Path) -> None:
    config = replace(parse_config("seed: 0", "test"), run_dir=str(tmp_path))
    with pytest.raises(RunError, match=r"set ema\.snapshot_images"):
        reconstruct(config, [0.05])


def test_snapshots_elsewhere(config: RunConfig, tmp_path: Path) -> None:
    where = CheckpointConfig(path=config.run_dir)
    moved = replace(config, run_dir=str(tmp_path), checkpoint=where)
    assert len(list_snapshots(moved)) == 64


def test_a_moment_without_snapshot(config: RunConfig) -> None:
    with pytest.raises(RunError, match=r"no snapshot at image 4000.* 3968, 4096"):
        reconstruct(config, [0.05], 4000)


def test_lengths_that_cannot_be(config: RunConfig) -> None:
    with pytest.raises(ValueError, match="must lie in"):
        reconstruct(config, [0.3])
    with pytest.raises(ValueError, match="first three decimals"):
        reconstruct(config, [0.05, 0.0501])
