import hashlib
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from eval.extractors.base import (
    ExtractorFacts,
    NetworkExtractor,
    WeightsMissingError,
    checked_file,
    file_sha256,
    full_precision,
    load_tensors,
    state_dict_sha256,
)

CPU = torch.device("cpu")
FACTS = ExtractorFacts("toy", "toy.pth", "00", 4, "none", dim=3, classes=2)


class Toy:
    """Channel means as features; notes what it was given."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.modes: list[bool] = []

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        self.sizes.append(len(x))
        self.modes.append(torch.is_autocast_enabled("cpu") or torch.is_grad_enabled())
        features = x.mean((2, 3))
        return features, features[:, :2]


def toy() -> tuple[NetworkExtractor, Toy]:
    network = Toy()
    return NetworkExtractor(FACTS, network, lambda images: images.float(), CPU), network


def images(count: int = 11) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, 5, 7), dtype=torch.uint8, generator=generator)


def test_features_are_those_of_each_image_in_order() -> None:
    extractor, network = toy()
    found = extractor(images())
    expected = images().double().mean((2, 3))
    torch.testing.assert_close(found.features.double(), expected, rtol=1e-6, atol=0)
    assert found.probabilities is not None
    torch.testing.assert_close(
        found.probabilities.double(), expected[:, :2].softmax(1), rtol=1e-4, atol=1e-12
    )
    assert sum(network.sizes) == 11
    assert max(network.sizes) < 11  # memory is bounded


def test_an_extractor_without_classes_gives_no_probabilities() -> None:
    extractor = NetworkExtractor(FACTS, lambda x: (x.mean((2, 3)), None), lambda i: i.float(), CPU)
    assert extractor(images()).probabilities is None


def test_neither_autocast_nor_gradients_reach_the_network() -> None:
    extractor, network = toy()
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.enable_grad():
        features = extractor(images()).features
    assert not any(network.modes)
    assert features.dtype == torch.float32
    # ordinary tensors: may be changed in place and used in a graph
    features += 1
    assert (features * torch.ones(3, requires_grad=True)).sum().requires_grad


def test_full_precision_is_undone() -> None:
    before = torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high")
    try:
        with full_precision(CPU):
            assert torch.get_float32_matmul_precision() == "highest"
            assert not torch.backends.cudnn.allow_tf32
        assert torch.get_float32_matmul_precision() == "high"
        assert torch.backends.cudnn.allow_tf32 == before
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (torch.zeros(2, 3, 4, 4), "uint8 images.*not torch.float32"),
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), r"shape \(n, 3, H, W\), not \(2, 1, 4, 4\)"),
        (torch.zeros(2, 4, 4, 3, dtype=torch.uint8), "channels come second"),
        (torch.zeros(3, 4, 4, dtype=torch.uint8), r"not \(3, 4, 4\)"),
        (torch.zeros(0, 3, 4, 4, dtype=torch.uint8), r"not \(0, 3, 4, 4\)"),
    ],
)
def test_what_is_no_image_is_refused(wrong: Tensor, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        toy()[0](wrong)


def test_the_hash_of_tensors_depends_on_all_that_matters_and_on_nothing_else() -> None:
    one, two = torch.arange(6.0), torch.ones(2)
    state = {"a": one, "b": two}
    same = {"b": two.clone(), "a": torch.arange(12.0)[::2] / 2}  # other order, not contiguous
    assert state_dict_sha256(state) == state_dict_sha256(same)
    others = [
        {"a": two, "b": one},
        {"a": one, "c": two},
        {"a": one.view(2, 3), "b": two},
        {"a": one.double(), "b": two},
        {"a": one + torch.tensor([0, 0, 0, 0, 0, 1e-6]), "b": two},
        {"a": one},
    ]
    assert len({state_dict_sha256(other) for other in [state, *others]}) == 7


def test_a_scalar_can_be_hashed() -> None:
    assert state_dict_sha256({"n": torch.tensor(3)}) != state_dict_sha256({"n": torch.tensor(4)})


def test_a_file_is_taken_by_its_hash(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(b"abc")
    digest = hashlib.sha256(b"abc").hexdigest()
    assert file_sha256(path) == digest
    assert checked_file(path, digest, "toy", "remedy") == path
    path.write_bytes(b"abd")
    with pytest.raises(WeightsMissingError, match=r"not the file meant.*should be ba78.*do this"):
        checked_file(path, digest, "toy", "do this")
    with pytest.raises(WeightsMissingError, match=r"no weights at .*gone.pth; do this"):
        checked_file(tmp_path / "gone.pth", digest, "toy", "do this")


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))


def test_tensors_are_loaded_with_or_without_counters(tmp_path: Path) -> None:
    state = {k: torch.rand_like(v.float()) for k, v in network().state_dict().items()}
    del state["1.num_batches_tracked"]
    torch.save(state, tmp_path / "a.pth")
    loaded = network()
    load_tensors(tmp_path / "a.pth", loaded, "toy")
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in state.items())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda state: state.pop("0.bias"), r"missing \['0.bias'\]"),
        (lambda state: state.update(more=torch.ones(1)), r"not known \['more'\]"),
        (lambda state: state.update({"0.bias": torch.ones(4)}), "size mismatch"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(
    change: Callable[[dict[str, Tensor]], object], said: str, tmp_path: Path
) -> None:
    state = dict(network().state_dict())
    change(state)
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(WeightsMissingError, match=said):
        load_tensors(tmp_path / "a.pth", network(), "toy")


class Intruder:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("save", [torch.save, lambda what, path: path.write_bytes(b"garbage")])
def test_code_and_garbage_in_weights_are_refused(
    save: Callable[[object, Path], object], tmp_path: Path
) -> None:
    trace = tmp_path / "executed"
    pickle.loads(pickle.dumps(Intruder(trace)))
    assert trace.exists()  # it would work if it were let
    trace.unlink()
    save({"0.weight": Intruder(trace)}, tmp_path / "a.pth")
    with pytest.raises(WeightsMissingError, match="no file of tensors") as caught:
        load_tensors(tmp_path / "a.pth", network(), "toy")
    assert not trace.exists()
    assert "weights_only" not in str(caught.value)  # nobody is advised to load it all the same
