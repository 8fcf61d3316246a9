from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from eval.statistics import FeatureStatistics, describe, image_digests
from tests.eval.fake_extractor import CLASSES, DIM, FakeExtractor
from tests.eval.feature_sets import digests, normal, statistics


def pictures(n: int, seed: int = 0) -> Tensor:
    return torch.randint(
        0, 256, (n, 3, 8, 8), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8
    )


def measured(n: int = 30, keep: int = 12) -> FeatureStatistics:
    p = normal(n, 4, 2).softmax(1)
    return statistics(normal(n, 5, 1), 3, keep, probabilities=p, labels=torch.arange(n) % 3)


# Digests


def test_equal_images_and_only_those_have_equal_digests() -> None:
    images = pictures(200)
    found = image_digests(images)
    assert found.dtype == np.uint64
    assert len(set(found.tolist())) == 200
    order = torch.randperm(200)
    assert (image_digests(images[order]) == found[order.numpy()]).all()
    changed = images.clone()
    changed[:, 2, 7, 7] ^= 1
    assert not (image_digests(changed) == found).any()
    assert not (image_digests(images.reshape(200, 3, 4, 16)) == found).any()


def test_digests_fill_their_range_evenly() -> None:
    # Bottom-k is a fair sample only if digests are uniform: mean 1/2, sd 1 / sqrt(12 n).
    found = image_digests(pictures(2000)).astype(np.float64) / 2.0**64
    assert abs(found.mean() - 0.5) < 4 / np.sqrt(12 * 2000)


def test_a_digest_is_fixed_for_ever() -> None:
    # Caches and floors depend on it.
    image = torch.arange(48, dtype=torch.uint8).reshape(1, 3, 4, 4)
    assert image_digests(image).tolist() == [2614862651782946745]


def test_digests_of_strided_images() -> None:
    images = pictures(3)
    assert (image_digests(images.permute(0, 1, 3, 2)) == image_digests(images.mT.clone())).all()


@pytest.mark.parametrize("wrong", [torch.rand(2, 3, 4, 4), torch.zeros(3, 4, 4).byte()])
def test_digests_of_other_things_are_refused(wrong: Tensor) -> None:
    with pytest.raises(ValueError, match="uint8"):
        image_digests(wrong)


# Any order, any split


@st.composite
def cut_sets(draw: st.DrawFn) -> tuple[list[int], list[int], int]:
    n = draw(st.integers(1, 24))
    order = draw(st.permutations(range(n)))
    cuts = sorted(draw(st.lists(st.integers(0, n), max_size=5)))
    return list(order), cuts, draw(st.integers(2, 30))


@settings(max_examples=50, deadline=None)
@given(cut_sets(), st.booleans())
def test_order_and_split_change_nothing(case: tuple[list[int], list[int], int], few: bool) -> None:
    order, cuts, keep = case
    n = len(order)
    features = normal(n, 3, 0) + 10
    # With few different digests and labels there are ties, of which some features are equal too.
    found = digests(n, 1) % np.uint64(4) if few else digests(n, 1)
    labels = torch.arange(n) % 2 - 1
    if few:
        features[n // 2 :] = features[: n - n // 2].clone()
    whole = FeatureStatistics(3, 0, keep)
    whole.update(features, found, labels=labels)
    merged = FeatureStatistics(3, 0, keep)
    for part in np.split(np.array(order), cuts):
        piece = FeatureStatistics(3, 0, keep)
        for rows in np.array_split(part, 2):
            piece.update(features[rows], found[rows], labels=labels[rows])
        merged.merge(piece)
    assert merged.count == whole.count == n
    assert torch.equal(merged.kept, whole.kept)
    assert torch.equal(merged.kept_labels, whole.kept_labels)
    assert (merged.kept_digests == whole.kept_digests).all()
    torch.testing.assert_close(merged.mean, whole.mean, rtol=1e-12, atol=0)
    if n >= 2:
        torch.testing.assert_close(merged.covariance(), whole.covariance(), rtol=1e-12, atol=1e-12)


def test_the_smallest_digests_are_kept() -> None:
    features, found = normal(100, 4, 0), digests(100, 1)
    stats = FeatureStatistics(4, 0, 10)
    for rows in np.array_split(np.arange(100), 13):
        stats.update(features[rows], found[rows], labels=torch.from_numpy(rows))
    smallest = np.argsort(found)[:10]
    assert (stats.kept_digests == found[smallest]).all()
    assert torch.equal(stats.kept, features[smallest])
    assert torch.equal(stats.kept_labels, torch.from_numpy(smallest))
    assert stats.count == 100


def test_later_changes_of_what_was_given_do_not_matter() -> None:
    features, found = normal(5, 3, 0), digests(5, 0)
    stats = FeatureStatistics(3)
    stats.update(features, found)
    before = features.clone()
    features.zero_()
    found[:] = 0
    assert torch.equal(stats.kept.sort(0).values, before.sort(0).values)


def test_subset_is_the_statistics_of_its_rows() -> None:
    stats = measured(30, 12)
    rows = torch.tensor([7, 2, 11])
    part = stats.subset(rows)
    kept = stats.kept[rows].double()
    assert part.count == 3
    torch.testing.assert_close(part.mean, kept.mean(0))
    torch.testing.assert_close(part.covariance(), kept.T.cov())
    assert (part.kept_digests == np.sort(stats.kept_digests[[7, 2, 11]])).all()
    assert torch.equal(part.kept, stats.kept[rows.sort().values])
    assert torch.equal(part.kept_labels, stats.kept_labels[rows.sort().values])


# Splits


def test_without_copies_parts_follow_the_digests() -> None:
    stats = measured()
    assert torch.equal(stats.split_order(), torch.arange(12))


def test_copies_are_spread_over_parts() -> None:
    n = 400
    found = digests(n, 0)
    found[:100] = found[0]  # a quarter of the set is one image
    stats = FeatureStatistics(2)
    stats.update(normal(n, 2, 0), found)
    order = stats.split_order()
    assert sorted(order.tolist()) == list(range(n))
    copies = torch.from_numpy((stats.kept_digests == found[0])[order.numpy()])
    # Hypergeometric: 25 +- 3.8 in each quarter, 50 +- 4.3 in each half.
    assert all(abs(int(quarter.sum()) - 25) < 15 for quarter in copies.chunk(4))
    assert abs(int(copies[::2].sum()) - 50) < 17


def test_pairs_are_parted_by_chance() -> None:
    # Were the copies of each pair dealt to different halves, a floor would be far too low.
    n = 1000
    found = np.repeat(digests(n // 2, 0), 2)
    stats = FeatureStatistics(1)
    stats.update(torch.zeros(n, 1), found)
    half = set(stats.kept_digests[stats.split_order()[::2].numpy()].tolist())
    # Pairs wholly in the other half: 125 +- 10.
    assert 85 < n // 2 - len(half) < 165


# Memory


def test_derived_values_are_remembered_until_there_is_more() -> None:
    stats, calls = measured(), []
    for _ in range(2):
        assert stats.memo("sum", lambda: calls.append(1) or len(calls)) == 1
    stats.update(
        normal(1, 5, 9), digests(1, 9), probabilities=torch.eye(4)[:1], labels=torch.tensor([1])
    )
    assert stats.memo("sum", lambda: calls.append(1) or len(calls)) == 2
    stats.merge(measured())
    assert stats.memo("sum", lambda: calls.append(1) or len(calls)) == 3


# Refusals


def test_what_is_not_finite_is_refused() -> None:
    features = normal(4, 3, 0)
    features[2, 1] = torch.nan
    with pytest.raises(ValueError, match=r"1 of 4 images are not finite \(first: row 2"):
        FeatureStatistics(3).update(features, digests(4, 0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": normal(4, 2, 0)}, "should be .4, 3."),
        ({"features": normal(5, 3, 0)}, "should be .4, 3."),
        ({"digests": digests(4, 0).astype(np.int64)}, "uint64"),
        ({"labels": torch.zeros(3).long()}, "labels must be 4"),
        ({"labels": torch.zeros(4)}, "integers"),
        ({"labels": torch.tensor([0, 1, -2, 0])}, "labels"),
        ({"probabilities": torch.eye(4)}, "0 classes"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict, message: str) -> None:
    given_ = {"features": normal(4, 3, 0), "digests": digests(4, 0)} | change
    stats = FeatureStatistics(3)
    with pytest.raises(ValueError, match=message):
        stats.update(given_.pop("features"), given_.pop("digests"), **given_)
    assert stats.count == len(stats.kept) == 0


def test_classes_need_probabilities() -> None:
    with pytest.raises(ValueError, match="2 classes"):
        FeatureStatistics(3, 2).update(normal(4, 3, 0), digests(4, 0))


def test_unlike_statistics_do_not_merge() -> None:
    for other in (FeatureStatistics(4, 2, 9), FeatureStatistics(3, 1, 9), FeatureStatistics(3, 2)):
        with pytest.raises(ValueError, match="cannot be merged"):
            FeatureStatistics(3, 2, 9).merge(other)


def test_labels_of_small_types() -> None:
    stats = FeatureStatistics(3)
    stats.update(normal(2, 3, 0), digests(2, 0), labels=torch.tensor([255, 3], dtype=torch.uint8))
    assert sorted(stats.kept_labels.tolist()) == [3, 255]


# Files


@pytest.mark.parametrize("which", ["full", "empty", "no classes"])
def test_round_trip_through_a_file(tmp_path: Path, which: str) -> None:
    stats = {
        "full": measured,
        "empty": lambda: FeatureStatistics(5, 4, 12),
        "no classes": lambda: statistics(normal(6, 5, 0)),
    }[which]()
    save_file(stats.to_tensors(), tmp_path / "s.safetensors")
    back = FeatureStatistics.from_tensors(load_file(tmp_path / "s.safetensors"))
    assert (back.dim, back.classes, back.keep) == (stats.dim, stats.classes, stats.keep)
    ours, theirs = stats.to_tensors(), back.to_tensors()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    if which == "full":
        assert back.inception_score() == stats.inception_score()
        more = measured(20)
        back.merge(more)
        stats.merge(more)
        assert torch.equal(back.covariance(), stats.covariance())
        assert torch.equal(back.kept, stats.kept)


def changed(name: str, value) -> dict[str, Tensor]:
    tensors = measured().to_tensors()
    tensors[name] = value(tensors[name]) if callable(value) else value
    return tensors


def put(index, value):
    def change(tensor: Tensor) -> Tensor:
        tensor = tensor.clone()
        tensor[index] = value
        return tensor

    return change


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("header", torch.tensor([1, 5, 4])),
        ("header", torch.tensor([2, 5, 4, 12])),
        ("header", torch.tensor([1, 10**9, 4, 12])),
        ("header", torch.tensor([1, -5, 4, 12])),
        ("header", torch.tensor([1, 5, -4, 12])),
        ("header", torch.tensor([1, 5, 3, 12])),
        ("header", torch.tensor([1, 5, 4, 1])),
        ("header", torch.tensor([1, 5, 4, 13])),
        ("header", torch.tensor([1.0, 5, 4, 12])),
        ("mean", torch.zeros(10**6, dtype=torch.float64)),
        ("mean", lambda t: t.float()),
        ("mean", put(0, torch.inf)),
        ("scatter", lambda t: t[:4]),
        ("scatter", lambda t: -t),
        ("scatter", put((0, 0), torch.nan)),
        ("scatter", put((0, 1), 1e6)),
        ("scatter", lambda t: put((0, 1), float(t[0, 1]) + 1)(t)),
        ("count", torch.tensor(-1)),
        ("count", torch.tensor(5)),
        ("count", torch.tensor(1)),
        ("count", torch.tensor([30])),
        ("count", torch.tensor(30.0)),
        ("class_sum", put(0, -1.0)),
        ("class_sum", put(0, 1e9)),
        ("class_sum", put(0, torch.nan)),
        ("p_log_p", torch.tensor(1.0, dtype=torch.float64)),
        ("p_log_p", torch.tensor(-1e9, dtype=torch.float64)),
        ("p_log_p", torch.tensor(torch.nan, dtype=torch.float64)),
        ("kept", lambda t: t[:11]),
        ("kept", lambda t: t.double()),
        ("kept", torch.tensor(1.0)),
        ("kept", put((3, 3), torch.nan)),
        ("kept_labels", lambda t: t[:11]),
        ("kept_labels", put(0, -2)),
        ("kept_digests", lambda t: t.flip(0)),
        ("kept_digests", lambda t: t.int()),
        ("more", torch.zeros(1)),
    ],
)
def test_damaged_or_malicious_tensors_are_refused(name: str, value) -> None:
    with pytest.raises(ValueError, match=r"statistics"):
        FeatureStatistics.from_tensors(changed(name, value))


def test_sizes_are_not_taken_on_a_files_word() -> None:
    # Eight terabytes, if believed.
    tensors = changed("header", torch.tensor([1, 10**6, 4, 12]))
    tensors["mean"] = torch.zeros(10**6, dtype=torch.float64)
    with pytest.raises(ValueError, match="header says dim 1000000"):
        FeatureStatistics.from_tensors(tensors)


@pytest.mark.parametrize("name", sorted(measured().to_tensors()))
def test_a_missing_tensor_is_refused(name: str) -> None:
    tensors = measured().to_tensors()
    del tensors[name]
    with pytest.raises(ValueError, match="not statistics"):
        FeatureStatistics.from_tensors(tensors)


# Streams


def test_describe_measures_a_stream_once() -> None:
    images = pictures(20)
    labels = torch.arange(20) % 4
    extractor, seen = FakeExtractor(), []
    found = describe(
        ((images[i : i + 6], labels[i : i + 6]) for i in range(0, 20, 6)),
        extractor,
        keep=7,
        on_batch=seen.append,
    )
    whole = FakeExtractor()(images)
    assert seen == [6, 6, 6, 2]
    assert (found.dim, found.classes, found.keep, found.count) == (DIM, CLASSES, 7, 20)
    torch.testing.assert_close(found.mean, whole.features.double().mean(0))
    first = image_digests(images).argsort()[:7]
    assert torch.equal(found.kept_labels, labels[first])
    assert found.inception_score() > 1


def test_describe_an_empty_stream_and_no_labels() -> None:
    assert describe([], FakeExtractor()).count == 0
    found = describe([(pictures(3), None)], FakeExtractor())
    assert found.kept_labels.tolist() == [-1, -1, -1]
