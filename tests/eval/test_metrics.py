import math

import numpy as np
import pytest
import torch
from torch import Tensor

import eval.metrics
from eval.frechet import frechet_distance
from eval.kernels import gaussian, mmd_squared, polynomial
from eval.manifold import manifold_scores, squared_radii
from eval.metrics import METRICS, check_metrics, score, score_by_class
from eval.statistics import FeatureStatistics
from tests.eval.feature_sets import digests, normal, statistics

SETS = [name for name, metric in METRICS.items() if metric.needs_reference]
DIM = 6


def direct(name: str, x: Tensor, y: Tensor) -> float:
    """A metric of samples x against a reference y, without statistics."""
    if name == "fd":
        x, y = x.double(), y.double()
        return frechet_distance(x.mean(0), x.T.cov(), y.mean(0), y.T.cov())
    if name == "kid":
        return mmd_squared(x, y, polynomial).value
    if name == "mmd":
        return 1000 * mmd_squared(x, y, gaussian).value
    return manifold_scores([name], x, y, squared_radii(x), squared_radii(y))[name]


def in_order(features: Tensor, found: np.ndarray) -> Tensor:
    return features[np.argsort(found)]


def samples(n: int = 40, seed: int = 10, **more) -> FeatureStatistics:
    return statistics(1.2 * normal(n, DIM, seed) + 0.2, seed, **more)


def reference(n: int = 101, seed: int = 11, **more) -> FeatureStatistics:
    return statistics(normal(n, DIM, seed), seed, **more)


def test_the_metrics() -> None:
    assert set(METRICS) == {"fd", "kid", "mmd", "precision", "recall", "density", "coverage", "is"}
    assert all(metric.name == name and metric.title for name, metric in METRICS.items())
    lower = {name for name, metric in METRICS.items() if not metric.higher_is_better}
    assert lower == {"fd", "kid", "mmd"}
    assert set(METRICS) - set(SETS) == {"is"}


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("n", [40, 300])
def test_value_floor_and_matched(name: str, n: int) -> None:
    x, y = 1.2 * normal(n, DIM, 0) + 0.2, normal(101, DIM, 1)
    dx, dy = digests(n, 2), digests(101, 3)
    ours, real = FeatureStatistics(DIM), FeatureStatistics(DIM)
    ours.update(x, dx)
    real.update(y, dy)
    found = score([name], ours, real)[name]
    x, y = in_order(x, dx), in_order(y, dy)
    a, b = y[0::2], y[1::2]
    h = min(n, 50)
    assert found.value == pytest.approx(direct(name, x, y), rel=1e-9)
    assert found.floor == pytest.approx(direct(name, b[:h], a), rel=1e-9)
    assert found.matched == pytest.approx(direct(name, x[:h], a), rel=1e-9)


@pytest.mark.parametrize("kernel", ["kid", "mmd"])
def test_kernel_distances_come_with_their_error(kernel: str) -> None:
    found = score(SETS, samples(), reference())
    ours, real = samples().kept, reference().kept
    one = mmd_squared(ours, real, polynomial if kernel == "kid" else gaussian)
    assert found[kernel].error == pytest.approx(one.error * (1 if kernel == "kid" else 1000))
    assert all(found[name].error is None for name in SETS if name not in ("kid", "mmd"))


def test_frechet_is_of_all_images_and_the_rest_of_those_kept() -> None:
    x, y = normal(200, DIM, 0) + 0.1, normal(300, DIM, 1)
    ours, real = statistics(x, 0, keep=50), statistics(y, 1, keep=60)
    found = score(["fd", "kid"], ours, real)
    assert found["fd"].value == pytest.approx(direct("fd", x, y), rel=1e-9)
    assert found["kid"].value == pytest.approx(direct("kid", ours.kept, real.kept), rel=1e-9)
    a, b = real.kept[0::2], real.kept[1::2]
    assert found["fd"].floor == pytest.approx(direct("fd", b, a), rel=1e-9)
    assert found["fd"].matched == pytest.approx(direct("fd", ours.kept[:30], a), rel=1e-9)


def test_fewer_images_than_features() -> None:
    x, y = normal(20, 50, 0), normal(31, 50, 1)
    found = score(["fd"], statistics(x, 0), statistics(y, 1))["fd"]
    assert found.value == pytest.approx(direct("fd", x, y), rel=1e-9)


def test_few_images_kept_of_many() -> None:
    # Fewer rows than features do not stand for the whole set.
    x, y = normal(200, 30, 0), normal(300, 30, 1)
    found = score(["fd"], statistics(x, 0, keep=20), statistics(y, 1, keep=20))["fd"]
    assert found.value == pytest.approx(direct("fd", x, y), rel=1e-9)


def test_perfect_samples_score_like_the_floor() -> None:
    # Both are then the same metric of fresh draws; over many sets their means agree.
    floors, matched = [], []
    for i in range(60):
        found = score(
            ["fd"],
            statistics(normal(30, 4, 3 * i), i),
            statistics(normal(60, 4, 3 * i + 1), i + 999),
        )
        floors.append(found["fd"].floor)
        matched.append(found["fd"].matched)
    error = math.hypot(np.std(floors), np.std(matched)) / math.sqrt(60)
    assert abs(np.mean(floors) - np.mean(matched)) < 4 * error
    assert error < 0.1 * np.mean(floors)


def test_any_order_gives_the_same_figures() -> None:
    x, y = normal(60, DIM, 0), normal(80, DIM, 1)
    dx, dy = digests(60, 0), digests(80, 1)
    found = []
    for seed in range(3):
        sets = []
        for features, keys in ((x, dx), (y, dy)):
            order = np.random.default_rng(seed).permutation(len(keys))
            merged = FeatureStatistics(DIM, 0, 50)
            for rows in np.array_split(order, 1 + seed):
                part = FeatureStatistics(DIM, 0, 50)
                part.update(features[rows], keys[rows])
                merged.merge(part)
            sets.append(merged)
        found.append(score(SETS, *sets))
    for other in found[1:]:
        assert other["fd"].value == pytest.approx(found[0]["fd"].value, rel=1e-10)
        assert other["fd"].floor == found[0]["fd"].floor
        assert all(other[name] == found[0][name] for name in SETS if name != "fd")


def test_copies_of_one_sample_do_not_fill_or_flee_the_matched_set() -> None:
    # Half of the samples are one image. The first 50 by digest would hold all of them or none.
    x, keys = normal(200, DIM, 0), digests(200, 0)
    for place in (0, 199):  # the copied image has the smallest digest, or the largest
        order = np.argsort(keys)
        features, found = x.clone(), keys.copy()
        found[order[50:150]] = np.sort(keys)[place]
        features[order[50:150]] = 5.0
        ours = FeatureStatistics(DIM)
        ours.update(features, found)
        one = score(["kid"], ours, reference(100))["kid"]
        assert one.matched == pytest.approx(one.value, rel=0.4)


def test_only_what_is_asked_for_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("not asked for")

    for name in ("distance_of_factors", "manifold_scores", "squared_radii"):
        monkeypatch.setattr(eval.metrics, name, refuse)
    assert list(score(["kid"], samples(), reference())) == ["kid"]
    with pytest.raises(AssertionError):
        score(["kid", "fd"], samples(), reference())


def test_what_the_reference_gives_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    for name in ("own_sums", "squared_radii", "cross_sums", "covariance_factor"):
        real = getattr(eval.metrics, name)
        monkeypatch.setattr(
            eval.metrics, name, lambda *a, real=real: (seen.append(len(a[0])), real(*a))[1]
        )
    fixed, names = reference(), ["kid", "recall", "coverage", "fd"]
    first = score(names, samples(), fixed)
    before = len(seen)
    again = score(names, samples(), fixed)
    assert again == first
    # Of the samples (once whole: 40 < 50): sums, radii, factor; sums across twice.
    assert len(seen) - before == 5
    fixed.update(normal(10, DIM, 5), digests(10, 5))
    assert score(["kid"], samples(), fixed)["kid"] != first["kid"]


def test_the_inception_score_needs_no_reference() -> None:
    p = (3 * normal(40, 5, 0)).softmax(1)
    ours = samples(probabilities=p)
    found = score(["is"], ours)["is"]
    assert found.value == ours.inception_score() > 1
    assert (found.floor, found.matched, found.error) == (None, None, None)
    assert set(score(["is", "kid"], ours, reference())) == {"is", "kid"}
    with pytest.raises(ValueError, match="class probabilities"):
        score(["is"], samples(), reference())


def test_small_sets_have_no_floor() -> None:
    found = score(SETS, samples(9), reference(9))
    assert found["coverage"].floor is found["coverage"].matched is None  # halves of four
    assert found["recall"].floor is not None
    assert found["kid"].floor is not None


# Refusals


def test_unknown_names_are_refused_with_the_nearest() -> None:
    for wrong, right in (("KID", "kid"), ("precison", "precision"), ("covarage", "coverage")):
        with pytest.raises(ValueError, match=f"unknown metric {wrong!r}: did you mean {right!r}"):
            check_metrics([wrong])
        with pytest.raises(ValueError, match="unknown metric"):
            score(["kid", wrong], samples(), reference())
        with pytest.raises(ValueError, match="unknown metric"):
            score_by_class([wrong], samples(), reference())
    with pytest.raises(ValueError, match="unknown metric 'xyzw': there are fd, kid"):
        check_metrics(["xyzw"])
    with pytest.raises(ValueError, match="no metrics: choose"):
        check_metrics([])
    check_metrics(list(METRICS))


def test_classes_are_needed_for_some() -> None:
    check_metrics(["kid", "is"], classes=10)
    check_metrics(["kid", "is"])  # not known yet
    check_metrics(["kid"], classes=0)
    with pytest.raises(ValueError, match="leave it out"):
        check_metrics(["kid", "is"], classes=0)


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("fd", 2),
        ("kid", 2),
        ("mmd", 2),
        ("precision", 4),
        ("recall", 4),
        ("density", 6),
        ("coverage", 6),
    ],
)
def test_too_few_images_are_refused(name: str, least: int) -> None:
    assert math.isfinite(score([name], samples(least), reference(least))[name].value)
    message = f"{name} needs at least {least} images in each set; the "
    with pytest.raises(ValueError, match=message + f"samples have {least - 1}"):
        score([name], samples(least - 1), reference())
    with pytest.raises(ValueError, match=message + f"reference has {least - 1}"):
        score([name], samples(), reference(least - 1))


def test_sets_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(ValueError, match="6 features and a reference with 7"):
        score(["kid"], samples(), statistics(normal(20, 7, 0)))
    with pytest.raises(ValueError, match="kid compares samples with a reference"):
        score(["kid"], samples())


# Classes


def labelled() -> tuple[FeatureStatistics, FeatureStatistics, Tensor, Tensor, Tensor, Tensor]:
    x, y = normal(120, DIM, 0), normal(160, DIM, 1)
    # In class 2 there are few samples, in class 3 few real images, class 4 has no samples.
    lx = torch.tensor([0] * 50 + [1] * 40 + [2] * 5 + [3] * 20 + [-1] * 5)
    ly = torch.tensor([0] * 50 + [1] * 50 + [2] * 40 + [3] * 6 + [4] * 14)
    x[lx == 1] += 2
    return statistics(x, 0, labels=lx), statistics(y, 1, labels=ly), x, y, lx, ly


def test_classes_are_scored_apart() -> None:
    ours, real, x, y, lx, ly = labelled()
    found = score_by_class(SETS, ours, real)
    assert list(found) == [0, 1]
    for label, values in found.items():
        assert list(values) == SETS
        for name, value in values.items():
            expected = direct(name, x[lx == label], y[ly == label])
            assert value == pytest.approx(expected, rel=1e-9)
    assert found[1]["kid"] > 10 * abs(found[0]["kid"])


def test_classes_with_too_few_images_are_left_out() -> None:
    ours, real, *_ = labelled()
    assert list(score_by_class(["fd"], ours, real, least=5)) == [0, 1, 2, 3]
    assert list(score_by_class(["fd"], ours, real, least=6)) == [0, 1, 3]
    assert list(score_by_class(["fd", "density"], ours, real, least=2)) == [0, 1, 3]
    assert score_by_class(["fd"], ours, real, least=51) == {}
    assert score_by_class(["is"], ours, real) == {}


def test_classes_need_labels() -> None:
    ours, real, *_ = labelled()
    with pytest.raises(ValueError, match="none in the samples"):
        score_by_class(["kid"], samples(), real)
    with pytest.raises(ValueError, match="none in the reference"):
        score_by_class(["kid"], ours, reference())
