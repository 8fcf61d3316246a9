"""What devices keep and send: by hand, and as real processes do."""

from dataclasses import replace

import pytest
import torch

from simple_diffusion.plan.counts import meta_network
from simple_diffusion.plan.layouts import Layout, NetworkSizes
from simple_diffusion.plan.traffic import Wires, traffic
from tests.plan.configs import CONV, small_run
from tests.plan.sharing_ranks import MICRO_BATCHES, TEACHER_CALLS, shared
from tests.training.checkpoint_ranks import run_ranks

GB = 10**9
BLOCK, REST = torch.Size([8, 10**7]), torch.Size([8, 10**6])
SIZES = NetworkSizes(blocks=((BLOCK,), (BLOCK,)), rest=(REST,))
BLOCKS_BYTES, REST_BYTES = 2 * 4 * 8 * 10**7, 4 * 8 * 10**6
WHOLE = BLOCKS_BYTES + REST_BYTES
WIRES = Wires(per_node=4, link_gb_s=100.0, node_gbit_s=80.0)  # 10 GB/s out of a node


def layout(devices: int, shards: int) -> Layout:
    return Layout(devices, "ddp" if shards == 1 else "fsdp2", shards, recompute=())


def test_copies_send_all_gradients_once_a_step() -> None:
    found = traffic(layout(4, 1), SIZES, WIRES, micro_batches=5)
    assert found.bytes == pytest.approx(1.5 * WHOLE)
    assert found.seconds == pytest.approx(1.5 * WHOLE / (100 * GB))
    apart = traffic(layout(8, 1), SIZES, WIRES, micro_batches=5)
    assert apart.bytes == pytest.approx(1.75 * WHOLE)
    assert apart.seconds == pytest.approx(1.75 * WHOLE / (10 * GB))


def test_pieces_are_gathered_twice_and_scattered_once_a_micro_batch() -> None:
    once = 3 * BLOCKS_BYTES + 2 * REST_BYTES
    found = traffic(layout(4, 4), SIZES, WIRES, micro_batches=5)
    assert found.bytes == pytest.approx(5 * 0.75 * once)
    assert found.seconds == pytest.approx(5 * 0.75 * once / (100 * GB))


def test_groups_reduce_within_and_then_between() -> None:
    found = traffic(layout(8, 4), SIZES, WIRES, micro_batches=3)
    within = 0.75 * (3 * BLOCKS_BYTES + 2 * REST_BYTES)
    between = WHOLE / 4  # 2 (n-1)/n of a piece, for two copies
    assert found.bytes == pytest.approx(3 * (within + between))
    # Each of a node's four devices sends its piece out through the one adapter.
    assert found.seconds == pytest.approx(3 * (within / (100 * GB) + 4 * between / (10 * GB)))


def test_a_teacher_is_gathered_for_each_call() -> None:
    taught = NetworkSizes(SIZES.blocks, SIZES.rest, teacher_calls=2)
    found = traffic(layout(4, 4), taught, WIRES, micro_batches=5)
    more = 0.75 * (5 * 2 * BLOCKS_BYTES + REST_BYTES)
    alone = traffic(layout(4, 4), SIZES, WIRES, micro_batches=5)
    assert found.bytes == pytest.approx(alone.bytes + more)
    assert found.seconds == pytest.approx(alone.seconds + more / (100 * GB))
    copies = layout(4, 1)
    assert traffic(copies, taught, WIRES, 5) == traffic(copies, SIZES, WIRES, 5)


def test_one_device_sends_nothing() -> None:
    found = traffic(layout(1, 1), SIZES, WIRES, micro_batches=3)
    assert (found.bytes, found.seconds) == (0.0, 0.0)


def test_the_time_of_an_unknown_link_is_not_known() -> None:
    found = traffic(layout(4, 1), SIZES, Wires(4, None, 80.0), micro_batches=1)
    assert found.bytes > 0
    assert found.seconds is None


@pytest.mark.integration
def test_as_real_processes_do() -> None:
    """Bytes of the collectives of four gloo ranks, and what the first of them keeps."""
    sizes = NetworkSizes.of(meta_network(small_run(CONV)))
    first, *others = run_ranks(4, shared)
    for name, way in {
        "fsdp": layout(4, 4),
        "recompute": layout(4, 4),  # blocks that run again are not gathered again
        "hybrid": layout(4, 2),
        "taught": layout(4, 4),
        "ddp": layout(4, 1),
    }.items():
        kept, sent = first[name]
        calls = TEACHER_CALLS if name == "taught" else 0
        ours = replace(sizes, teacher_calls=calls)
        assert kept == sizes.piece(way.shards) * (1 + bool(calls)), name
        assert all(other[name][0] <= kept for other in others)
        assert sent == pytest.approx(traffic(way, ours, WIRES, MICRO_BATCHES).bytes), name
    # 5 classes and the null class on 4 devices: not all rows divide
    assert sizes.piece(4) * 4 > sizes.parameters
