"""Memory of a device under each way of sharing, against sums by hand."""

from array import array
from typing import Any

import pytest
import torch

from simple_diffusion.plan.layouts import (
    Layout,
    Moments,
    NetworkSizes,
    evaluation_parts,
    layouts,
    training_parts,
)
from simple_diffusion.plan.live import PARTS

BLOCK, BIAS, REST = torch.Size([6, 100]), torch.Size([6]), torch.Size([2, 50])
SIZES = NetworkSizes(blocks=((BLOCK, BIAS), (BLOCK, BIAS)), rest=(REST,))
PARAMETERS = 2 * 606 + 100
ALONE = Layout(1, "ddp", 1, ())
DDP = Layout(4, "ddp", 1, ())
FSDP2 = Layout(4, "fsdp2", 4, ())
HYBRID = Layout(4, "fsdp2", 2, ())


def moments(*rows: tuple[int, int, int]) -> Moments:
    """From moments of (gradients, batch, activations)."""
    flat = array("q")
    for gradients, batch, activations in rows:
        values = dict.fromkeys(PARTS, 0) | {
            "gradients": gradients,
            "batch": batch,
            "activations": activations,
        }
        flat.extend(values[part] for part in PARTS)
    return Moments.of(flat)


# The end of the forward pass, the middle and the end of the backward pass.
STEP = moments((0, 10, 9000), (2624, 10, 8000), (5248, 10, 100))


def test_pieces_are_the_first_devices() -> None:
    assert SIZES.parameters == PARAMETERS
    assert SIZES.piece(1) == PARAMETERS
    assert SIZES.piece(2) == PARAMETERS / 2
    # six rows on four devices: two for the first; two rows: one for each of the first two
    assert SIZES.piece(4) == 2 * (200 + 2) + 50


def test_gradients_that_come_and_go_are_counted_when_the_sum_is_largest() -> None:
    assert STEP.largest(1.0) == (2624, 10, 8000)
    assert STEP.largest(0.25) == (0, 10, 9000)
    assert moments((0, 5, 1), (0, 5, 7), (0, 1, 8)).largest(1.0) == (0, 5, 7)


@pytest.mark.parametrize(
    ("layout", "accumulates", "expected"),
    [
        (ALONE, False, {"gradients": 2624, "activations": 8000}),
        (ALONE, True, {"gradients": 5248, "activations": 9000}),
        # the buckets that are sent are there always
        (DDP, False, {"gradients": 5248, "activations": 9000}),
        (DDP, True, {"gradients": 5248, "activations": 9000}),
        (HYBRID, False, {"gradients": 1312, "activations": 8000}),
        (HYBRID, True, {"gradients": 2624, "activations": 9000}),
    ],
)
def test_parts_of_a_training_step(
    layout: Layout, accumulates: bool, expected: dict[str, int]
) -> None:
    parts = training_parts(layout, SIZES, STEP, averages=3, accumulates=accumulates)
    piece = 4 * SIZES.piece(layout.shards)
    fixed = {"weights": piece, "optimiser": 2 * piece, "averages": 3 * piece, "batch": 10}
    gathered = 0
    if layout.strategy == "fsdp2":
        # the rest, two blocks; gradients of the rest and, twice, of a block
        gathered = 4 * (100 + 2 * 606 + 100 + 2 * 606)
    assert parts == fixed | expected | {"gathered": gathered}


@pytest.mark.parametrize(("layout", "pieces"), [(DDP, 0), (HYBRID, 1)])
def test_a_teacher_has_pieces_of_its_own(layout: Layout, pieces: int) -> None:
    taught = NetworkSizes(SIZES.blocks, SIZES.rest, teacher_calls=2)
    for parts in (
        lambda sizes: training_parts(layout, sizes, STEP, averages=3, accumulates=False),
        lambda sizes: evaluation_parts(layout, sizes, STEP, averages=3),
    ):
        more = {name: size - parts(SIZES)[name] for name, size in parts(taught).items()}
        assert more.pop("weights") == pieces * 4 * SIZES.piece(2)
        assert more.pop("gathered") == pieces * 4 * 100  # what is outside the blocks
        assert not any(more.values())
    training = training_parts(layout, taught, STEP, averages=3, accumulates=False)
    assert training["gathered"] == pieces * 4 * (2 * 100 + 2 * 606 + 100 + 2 * 606)


def test_what_is_gathered_is_padded() -> None:
    block, rest = 4 * 202, 4 * 50
    assert SIZES.gathered(4) == rest + 2 * block + (rest + 2 * block)
    small = NetworkSizes(blocks=(), rest=(REST,))
    assert small.gathered(2) == 100 + 2 * 100


def test_evaluation_puts_pieces_together() -> None:
    whole = evaluation_parts(FSDP2, SIZES, STEP, averages=2)
    assert whole["gathered"] == 4 * PARAMETERS
    assert whole["gradients"] == 0
    assert whole["activations"] == 9000
    copies = evaluation_parts(DDP, SIZES, STEP, averages=2)
    assert copies["gathered"] == 0
    assert copies["gradients"] == 4 * PARAMETERS


def choices(**changed: Any) -> list[tuple[str, tuple[int, ...], bool]]:
    given = {"strategy": "ddp", "shards": None, "recompute": (), "devices": 16, "per_node": 8}
    ways = layouts(**{**given, "levels": 2, **changed})
    return [(one.name, one.recompute, one.chosen) for one in ways]


def test_choices_hold_the_configs_own() -> None:
    assert choices() == [
        ("DDP", (), True),
        ("DDP", (0, 1), False),
        ("FSDP2", (), False),
        ("FSDP2", (0, 1), False),
        ("FSDP2 by 8", (), False),
        ("FSDP2 by 8", (0, 1), False),
    ]
    own = choices(strategy="fsdp2", shards=4, recompute=[1])
    assert ("FSDP2 by 4", (1,), True) in own
    assert [name for name, _, _ in own].count("FSDP2 by 4") == 3
    assert sum(chosen for _, _, chosen in own) == 1
    assert [one[0] for one in choices(devices=8)] == ["DDP", "DDP", "FSDP2", "FSDP2"]
    assert [one[0] for one in choices(devices=1)] == ["alone", "alone"]
