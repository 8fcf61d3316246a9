"""Every shipped config loads, takes an override, and builds its network and objective."""

from pathlib import Path

import pytest
import torch

from simple_diffusion.config import build_denoising, build_network, build_objective
from simple_diffusion.config_files import dump_config, load_config
from simple_diffusion.diffusion.multiscale import halvings, scales
from simple_diffusion.training.train_data import image_shapes

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))
# Parameters in millions that the config's comment or its paper states, and the tolerance.
SIZES = {
    "imagenet_128": (2000, 0.1),
    "imagenet_256": (2000, 0.1),
    "imagenet_512": (2000, 0.1),
    "jit_b16_256": (131, 0.02),
    "sid2_512": (301, 0.02),
}


def test_configs_were_found() -> None:
    names = {path.stem for path in CONFIGS}
    assert names >= {"quickstart", "icons_128", "icons_256", "icons_512", *SIZES}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_builds(path: Path, tmp_path: Path) -> None:
    config = load_config(path, ["--seed=7", "--optim.lr=3e-4"])
    assert (config.seed, config.optim.lr) == (7, 3e-4)
    saved = tmp_path / "config.yaml"
    saved.write_text(dump_config(config))
    assert load_config(saved) == config

    with torch.device("meta"):
        network = build_network(config.model, config.data.image_size)
    side = config.data.image_size
    assert side % network.multiple == 0
    millions = sum(p.numel() for p in network.parameters()) / 1e6
    if path.stem in SIZES:
        expected, tolerance = SIZES[path.stem]
        assert millions == pytest.approx(expected, rel=tolerance)

    schedule = config.schedule.build(side)
    build_objective(config)  # refuses what does not fit together
    objective = build_denoising(config.objective, schedule)
    t = torch.linspace(0.001, 0.999, 101, dtype=torch.float64)
    assert (schedule(t).diff() < 0).all()
    assert torch.isfinite(objective.weights(t)).all()
    if objective.multiscale_from is not None:
        assert scales(side, objective.multiscale_from)[-1] == side
    for height, width in image_shapes(config, network.multiple) or ():
        assert height % network.multiple == width % network.multiple == 0
        if objective.multiscale_from is not None:
            assert halvings(height, width, objective.multiscale_from) >= 0
    batch, micro = config.train.batch_size, config.train.micro_batch_size
    assert micro is None or batch % micro == 0
