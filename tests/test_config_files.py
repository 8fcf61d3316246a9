"""Configs: what is written is what is read, and mistakes are named."""

from pathlib import Path

import pytest

from simple_diffusion.config import RunConfig
from simple_diffusion.config_files import ConfigError, dump_config, load_config
from simple_diffusion.config_noise import CosineConfig, InterpolatedConfig, ShiftedConfig


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_defaults_round_trip(tmp_path: Path) -> None:
    path = write(tmp_path / "c.yaml", dump_config(RunConfig()))
    assert load_config(path) == RunConfig()


def test_overlay_chain_and_overrides(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    write(tmp_path / "base.yaml", "seed: 3\noptim: {lr: 1e-3, eps: 1e-6}\n")
    write(tmp_path / "middle.yaml", "base: base.yaml\noptim: {lr: 2.0e-3}\n")
    top = write(tmp_path / "sub" / "top.yaml", "base: ../middle.yaml\ntrain: {batch_size: 8}\n")
    config = load_config(top, ["--optim.clip_norm=0.5", "--model.channels", "[8, 16]"])
    assert (config.seed, config.optim.lr, config.optim.eps) == (3, 2e-3, 1e-6)
    assert (config.train.batch_size, config.optim.clip_norm) == (8, 0.5)
    assert config.model.channels == (8, 16)


def test_changing_a_type_replaces_its_section(tmp_path: Path) -> None:
    path = write(
        tmp_path / "c.yaml",
        "schedule: {type: shifted, reference: 32, base: {type: cosine, logsnr_min: -10}}\n",
    )
    base = CosineConfig(logsnr_min=-10.0)
    assert load_config(path).schedule == ShiftedConfig(base=base, reference=32)
    same = load_config(path, ["--schedule.reference=16"])
    assert same.schedule == ShiftedConfig(base=base, reference=16)
    other = load_config(path, ["--schedule.type=interpolated", "--schedule.low=16"])
    assert other.schedule == InterpolatedConfig(base=CosineConfig(), low=16)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--optim.lrr=1", "unknown key optim.lrr; did you mean optim.lr?"),
        ("--lr=1", "unknown key lr; did you mean optim.lr?"),
        ("--optim.lr=fast", "optim.lr: Couldn't parse 'fast' into a float"),
        ("--optim.lr=null", "optim.lr must not be null"),
        ("--optim.lr=true", "optim.lr must be float, not True"),
        ("--train.batch_size=1.5", "train.batch_size: Couldn't parse '1.5' into an int"),
        ("--train.batch_size=0", "train.batch_size must be at least 1"),
        ("--model=3", "model is a section"),
        ("--seed.x=3", "seed is a value, not a section"),
        ("--model.channels=3", "model.channels must be a list"),
        ("--schedule.type=cosin", "not one of cosine, .*did you mean cosine?"),
        ("--schedule={low: 3}", "unknown key schedule.low"),
        ("--objective.prediction=w", "objective.prediction: .*eps, x0, v, u"),
        ("--sampling.sampler=x", "sampling.sampler must be one of ddpm"),
        ("--ema.lengths=[0.1, 0.1]", "ema.lengths must be different"),
        ("--seed", "--seed needs a value"),
        ("--seed=-3", "seed must lie in"),
        ("--schedule.type=[a]", "not one of cosine"),
        ("--data.path=[a]", "data.path must be one value"),
        ("--sampling.guidance_interval=[1, -5]", "must be .lowest"),
        ("--train.micro_batch_size=-1", "train.micro_batch_size must be at least 1"),
        ("--validation.wiener_images=5000", "validation.wiener_images must be 0"),
        ("--optim.lr=.inf", "optim.lr must be positive and finite"),
        ("seed=1", "unexpected 'seed=1'; overrides are --section.key=value"),
        ("--seed=[", "not valid YAML"),
    ],
)
def test_mistakes_on_the_command_line(tmp_path: Path, override: str, message: str) -> None:
    path = write(tmp_path / "c.yaml", "schedule: {type: cosine}\n")
    with pytest.raises(ConfigError, match="command line.*" + message.replace("?", r"\?")):
        load_config(path, [override])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optim: {learning_rate: 1}", "unknown key optim.learning_rate; .*lr"),
        ("a: &x 1\nb: *x", "aliases"),
        ("seed: 1\nseed: 2", "'seed' stands twice"),
        ("- 1", "must be a mapping"),
        ("base: missing.yaml", "missing.yaml: no such config file"),
        ("base: c.yaml", "lead back to itself"),
        ("base: [1]", "base must be the path"),
        ("!!python/object/apply:os.system ['true']", "not valid YAML"),
        ("schedule: {logsnr_min: -3}", "schedule needs a type: one of cosine"),
        ("[" * 2000, "not valid YAML"),
    ],
)
def test_mistakes_in_a_file_name_it(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path / "c.yaml", text)
    with pytest.raises(ConfigError, match=message) as error:
        load_config(path)
    assert ".yaml: " in str(error.value)
    assert "\n" not in str(error.value)


def test_a_key_from_a_base_is_traced_to_it(tmp_path: Path) -> None:
    write(tmp_path / "base.yaml", "train: {batch_sise: 8}\n")
    with pytest.raises(ConfigError, match=r"base\.yaml: unknown key train\.batch_sise"):
        load_config(write(tmp_path / "top.yaml", "base: base.yaml\n"))


def test_missing_and_huge_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such config file"):
        load_config(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="larger than"):
        load_config(write(tmp_path / "big.yaml", "#" * 1_000_001))
