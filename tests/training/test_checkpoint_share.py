"""Who writes what of a checkpoint: everything once, in parts that are about equal."""

import pytest
import torch

from simple_diffusion.training.checkpoint_share import copy_share, flatten


def groups_of(*sizes: int) -> dict[str, dict[str, torch.Tensor]]:
    half = len(sizes) // 2
    named = {f"w{n:02d}": torch.full((size,), float(n)) for n, size in enumerate(sizes)}
    names = list(named)
    return {
        "model": {name: named[name] for name in names[:half]},
        "ema": {name: named[name] for name in names[half:]},
    }


@pytest.mark.parametrize("processes", [1, 2, 3, 8])
def test_every_tensor_is_written_by_one(processes: int) -> None:
    groups = groups_of(5, 7, 1, 0, 9, 30)
    shares = [copy_share(groups, rank, processes) for rank in range(processes)]
    written = [name for share in shares for name in share.tensors]
    assert sorted(written) == sorted(flatten(groups))
    for share in shares:
        assert share.total_bytes == 4 * 52
        assert [item.index.fqn for item in share.items] == list(share.tensors)
        for name, copy in share.tensors.items():
            assert torch.equal(copy, flatten(groups)[name])


def test_each_goes_to_the_one_with_least() -> None:
    """By size in the order of names: 4 to the first, 3 and then 2 to the second, 2 to the first."""
    groups = {"a": {name: torch.zeros(n) for name, n in (("k", 4), ("l", 3), ("m", 2), ("n", 2))}}
    first, second = (copy_share(groups, rank, 2) for rank in (0, 1))
    assert list(first.tensors) == ["a/k", "a/n"]
    assert list(second.tensors) == ["a/l", "a/m"]


def test_a_share_is_a_copy() -> None:
    groups = groups_of(3, 4)
    share = copy_share(groups, 0, 1)
    groups["model"]["w00"].fill_(99.0)
    assert torch.equal(share.tensors["model/w00"], torch.zeros(3))
    assert share.tensors["model/w00"].is_contiguous()


def test_strided_tensors_are_copied_in_order() -> None:
    tensor = torch.arange(6.0).reshape(2, 3).T
    share = copy_share({"a": {"w": tensor}}, 0, 1)
    assert share.tensors["a/w"].is_contiguous()
    assert share.tensors["a/w"].tolist() == [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]
