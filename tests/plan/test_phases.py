"""Memory of the phases against arithmetic, and against the allocator of a real step."""

from dataclasses import replace
from typing import Any

import psutil
import pytest
import torch

from simple_diffusion.config import ModelConfig, RunConfig, build_network, build_objective
from simple_diffusion.plan.counts import count_parameters
from simple_diffusion.plan.live import Parts
from simple_diffusion.plan.phases import Rehearsal, rehearse
from simple_diffusion.training.draws import Draws
from simple_diffusion.training.ema import Ema
from simple_diffusion.training.optim import adamw
from tests.plan.configs import CONV, VIT, small_run

SHALLOW = replace(VIT, depth=1)


def training(config: RunConfig) -> Parts:
    return Rehearsal(config, devices=1).training()


def test_what_stays_between_steps_is_exact() -> None:
    config = small_run(CONV, ema={"lengths": (0.05, 0.1, 0.2)}, train={"batch_size": 6})
    rehearsal = Rehearsal(config, devices=1)
    rehearsal.training()
    parameters = sum(count_parameters(config).values())
    tensors = len(list(rehearsal.network.parameters()))
    kept = rehearsal.memory.live
    assert kept["weights"] == 4 * parameters
    assert kept["averages"] == 3 * 4 * parameters
    assert kept["optimiser"] == 2 * 4 * parameters + 4 * tensors  # each has its step count
    assert kept["gradients"] == 0
    assert kept["batch"] == 6 * 3 * 16 * 16  # decoded images, 8 bits
    assert kept["activations"] == 0


def test_parts_at_the_peak_of_a_step() -> None:
    # Two micro-batches, so that the second one's peak finds gradients.
    config = small_run(CONV, train={"batch_size": 16, "micro_batch_size": 8})
    peak = training(config)
    parameters = sum(count_parameters(config).values())
    assert peak["gradients"] == 4 * parameters
    assert peak["batch"] == 16 * (3 * 16 * 16 * (1 + 4 + 4) + 4 + 8)


def test_activations_grow_with_the_batch() -> None:
    few, twice, more = (
        training(small_run(SHALLOW, train={"batch_size": size, "precision": "fp32"}))["activations"]
        for size in (16, 32, 48)
    )
    assert more - twice == pytest.approx(twice - few, rel=0.01)
    assert twice == pytest.approx(2 * few, rel=0.05)


def test_micro_batches_lower_the_peak() -> None:
    whole = training(small_run(CONV, train={"batch_size": 32}))
    parts = training(small_run(CONV, train={"batch_size": 32, "micro_batch_size": 8}))
    assert parts["activations"] < 0.35 * whole["activations"]
    assert parts["batch"] == whole["batch"]


def test_more_devices_share_the_batch() -> None:
    alone = Rehearsal(small_run(CONV, train={"batch_size": 32}), devices=4).training()
    assert alone == training(small_run(CONV, train={"batch_size": 8}))


def test_lower_precision_lowers_activations() -> None:
    large = {"batch_size": 32}
    half = training(small_run(SHALLOW, train=large))
    full = training(small_run(SHALLOW, train={**large, "precision": "fp32"}))
    assert 0.5 * full["activations"] < half["activations"] < 0.95 * full["activations"]


def test_phases_follow_the_config() -> None:
    quiet = rehearse(small_run(CONV, validation={"images": 0}))
    assert list(quiet) == ["training", "drawing"]
    config = small_run(CONV, validation={"images": 5, "batch_size": 64}, grids={"final_num": 40})
    phases = rehearse(config)
    assert list(phases) == ["training", "validation", "drawing"]
    image = 3 * 16 * 16
    trained = 8 * image  # the loop's decoded images
    assert phases["validation"].parts["batch"] == trained + 5 * image * (1 + 4 + 4)
    # The samples and the sheet's tiles, in float32.
    assert phases["drawing"].parts["activations"] >= 2 * 40 * image * 4
    for memory in phases.values():
        assert memory.total >= sum(memory.parts.values())


def test_guidance_doubles_the_sampling_batch() -> None:
    sampling: dict[str, Any] = {"batch_size": 32}
    grids = {"num": 32, "final_num": 32}
    once = rehearse(small_run(SHALLOW, sampling=sampling, grids=grids))["drawing"]
    twice = rehearse(small_run(SHALLOW, sampling={**sampling, "guidance": 2.0}, grids=grids))
    assert twice["drawing"].parts["activations"] > 1.5 * once.parts["activations"]


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "heun", "dpm++2m"])
def test_every_sampler_can_be_rehearsed(sampler: str) -> None:
    model = replace(SHALLOW, num_classes=0)
    config = small_run(model, sampling={"sampler": sampler, "steps": 2, "batch_size": 3})
    assert rehearse(config)["drawing"].parts["activations"] > 0


def test_a_large_model_is_not_allocated() -> None:
    model = ModelConfig(
        patch_size=16, channels=(4096,), blocks=(), depth=6, num_classes=1000, condition_width=1024
    )
    config = small_run(model, 256, train={"batch_size": 64}, grids={"num": 4, "final_num": 4})
    before = psutil.Process().memory_info().rss
    memory = rehearse(config)["training"]
    assert memory.parts["weights"] > 5e9
    assert memory.total > 20e9
    assert psutil.Process().memory_info().rss - before < 5e8


@pytest.mark.parametrize(
    "config",
    [
        small_run(CONV, train={"batch_size": 16}),
        small_run(VIT, train={"batch_size": 16}, data={"flip": True}),
        small_run(
            replace(CONV, skips="level", positions="rotary", num_classes=0, dropout=0.1),
            32,
            train={"batch_size": 16, "precision": "fp32"},
            objective={"multiscale_from": 8, "prediction": "x0"},
        ),
    ],
    ids=["conv", "vit", "residual"],
)
def test_a_real_step_takes_as_much_from_the_allocator(config: RunConfig) -> None:
    planned = training(config)
    size, batch = config.data.image_size, config.train.batch_size
    network = build_network(config.model, size)
    objective = build_objective(config)
    optimizer = adamw(network, lr=1e-4, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.0)
    parameters = dict(network.named_parameters())
    averages = Ema(parameters, config.ema.lengths, every_steps=1)
    draws = Draws(
        seed=0,
        batch_size=batch,
        times=config.objective.times.build(),
        flip=config.data.flip,
        label_drop=0.1,
        null_label=network.num_classes or None,
        device=torch.device("cpu"),
    )
    images = torch.zeros(batch, 3, size, size, dtype=torch.uint8)

    def step(number: int) -> None:
        positions = torch.arange(batch) + number * batch
        labels = torch.zeros(batch, dtype=torch.int64)
        drawn = draws.batch(images, labels, positions, number * batch)
        bf16 = config.train.precision == "bf16"

        def model(*inputs: torch.Tensor | None) -> torch.Tensor:
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                result: torch.Tensor = network(*inputs)
            return result

        losses = objective(model, drawn)
        (losses.loss.sum() / batch).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        averages.update(parameters, number + 1, (number + 1) * batch)

    step(0)
    with torch.profiler.profile(profile_memory=True) as profile:
        step(1)
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    weights = [parameter.nbytes for parameter in network.parameters()]
    optimiser = 2 * sum(weights) + 4 * len(weights)  # each has its step count
    kept = (1 + len(config.ema.lengths)) * sum(weights) + optimiser + images.nbytes
    step_alone = sum(planned.values()) - planned["checkpoint"]  # none is written here
    assert step_alone == pytest.approx(kept + peak, rel=0.02)
