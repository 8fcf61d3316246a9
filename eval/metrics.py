"""The figures: what each is called, which way is better, and how two sets are scored."""

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from eval.frechet import covariance_factor, distance_of_factors, rows_factor
from eval.kernels import (
    GAUSSIAN_SCALE,
    Kernel,
    KernelSums,
    cross_sums,
    discrepancy,
    gaussian,
    own_sums,
    polynomial,
)
from eval.manifold import (
    DENSITY_COVERAGE_K,
    PRECISION_RECALL_K,
    manifold_scores,
    squared_radii,
)
from eval.statistics import FeatureStatistics

Estimate = tuple[float, float | None]  # value, standard error where known
LEAST_OF_CLASS = 20  # images of a class, in each set, below which it has no figures of its own


@dataclass(frozen=True)
class Score:
    """One figure of samples against a reference.

    Attributes:
        value: samples against the whole reference.
        floor: one half of the reference against the other: what perfect samples would get, and how
            far from perfect their number alone makes them look. None where the metric compares no
            sets, or there are too few images.
        matched: as many samples against that same half, hence comparable with the floor.
        error: standard error of `value`, where it is known.
    """

    value: float
    floor: float | None
    matched: float | None
    error: float | None


@dataclass(frozen=True)
class Metric:
    """What a metric is.

    Attributes:
        name: in options and, with the extractor's, in figures.
        title: for people.
        higher_is_better: which way.
        needs_reference: compares samples with a reference, rather than judging them alone.
        least: images that each set must have.
        compute: (names, samples, reference) -> estimates, for all names that share it at once. The
            reference is not looked at where it is not needed.
    """

    name: str
    title: str
    higher_is_better: bool
    needs_reference: bool
    least: int
    compute: Callable[
        [Sequence[str], FeatureStatistics, FeatureStatistics | None], dict[str, Estimate]
    ]


def _frechet(
    names: Sequence[str], samples: FeatureStatistics, reference: FeatureStatistics | None
) -> dict[str, Estimate]:
    assert reference is not None
    ours, real = _factor(samples), _factor(reference)
    distance = distance_of_factors(samples.mean, ours, reference.mean, real)
    return dict.fromkeys(names, (distance, None))


def _factor(statistics: FeatureStatistics) -> Tensor:
    def make() -> Tensor:
        if statistics.count == len(statistics.kept) <= statistics.dim:
            return rows_factor(statistics.kept)
        return covariance_factor(statistics.covariance())

    return statistics.memo("covariance factor", make)


def _kernel_distance(name: str, kernel: Kernel, scale: float) -> Callable[..., dict[str, Estimate]]:
    def own(statistics: FeatureStatistics) -> KernelSums:
        return statistics.memo(f"{name} sums", lambda: own_sums(statistics.kept, kernel))

    def compute(
        names: Sequence[str], samples: FeatureStatistics, reference: FeatureStatistics | None
    ) -> dict[str, Estimate]:
        assert reference is not None
        cross = cross_sums(samples.kept, reference.kept, kernel)
        found = discrepancy(own(samples), own(reference), cross)
        error = None if found.error is None else scale * found.error
        return dict.fromkeys(names, (scale * found.value, error))

    return compute


def _manifold(
    names: Sequence[str], samples: FeatureStatistics, reference: FeatureStatistics | None
) -> dict[str, Estimate]:
    assert reference is not None
    found = manifold_scores(
        names,
        samples.kept,
        reference.kept,
        _radii(samples) if "recall" in names else {},
        _radii(reference) if set(names) != {"recall"} else {},
    )
    return {name: (value, None) for name, value in found.items()}


def _radii(statistics: FeatureStatistics) -> dict[int, Tensor]:
    return statistics.memo("squared radii", lambda: squared_radii(statistics.kept))


def _inception(
    names: Sequence[str], samples: FeatureStatistics, reference: FeatureStatistics | None
) -> dict[str, Estimate]:
    return dict.fromkeys(names, (samples.inception_score(), None))


def _metrics() -> dict[str, Metric]:
    kid = _kernel_distance("kid", polynomial, 1.0)
    mmd = _kernel_distance("mmd", gaussian, GAUSSIAN_SCALE)
    three, five = PRECISION_RECALL_K + 1, DENSITY_COVERAGE_K + 1
    return {
        one.name: one
        for one in (
            Metric("fd", "Fréchet distance", False, True, 2, _frechet),
            Metric("kid", "kernel distance", False, True, 2, kid),
            Metric("mmd", "Gaussian MMD² × 1000", False, True, 2, mmd),
            Metric("precision", "precision", True, True, three, _manifold),
            Metric("recall", "recall", True, True, three, _manifold),
            Metric("density", "density", True, True, five, _manifold),
            Metric("coverage", "coverage", True, True, five, _manifold),
            Metric("is", "Inception score", True, False, 2, _inception),
        )
    }


METRICS: dict[str, Metric] = _metrics()


def check_metrics(names: Sequence[str], classes: int | None = None) -> None:
    """Refuse what cannot be measured, before anything is.

    Args:
        names: of the metrics.
        classes: how many the extractor tells apart, 0 for none; None where it is not known yet.

    Raises:
        ValueError: an unknown name, with the nearest known one, no name at all, or a metric that
            needs class probabilities of an extractor that has none.
    """
    if not names:
        raise ValueError(f"no metrics: choose some of {', '.join(METRICS)}")
    for name in names:
        if name not in METRICS:
            near = difflib.get_close_matches(name.lower(), METRICS, 1, 0.4)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(f"unknown metric {name!r}: {hint}there are {', '.join(METRICS)}")
    if "is" in names and classes == 0:
        raise ValueError(
            "metric 'is' needs class probabilities, which this extractor does not give; leave it "
            "out, or choose an extractor that classifies, such as lite0 or inception"
        )


def score(
    names: Sequence[str],
    samples: FeatureStatistics,
    reference: FeatureStatistics | None = None,
) -> dict[str, Score]:
    """Score samples against a reference, computing what was asked for and nothing else.

    The Fréchet distance is of all images' moments; metrics that compare image with image see the
    rows kept. For `floor` and `matched` the reference's kept rows are dealt to two halves A and B,
    alternately in the order of their digests, and with h = min(samples kept, rows in B)

        floor = metric(first h of B, A)        matched = metric(first h samples, A).

    What depends on the reference alone is remembered in it: scoring again costs less.

    Args:
        names: in `METRICS`.
        samples: of the images to judge.
        reference: of real images; may be None if no metric asked for needs one.

    Raises:
        ValueError: an unknown name, no reference where one is needed, too few images, or sets
            measured in different features.
    """
    check_metrics(names)
    names = list(dict.fromkeys(names))
    _check_sets(names, samples, reference)
    whole = _compute(names, samples, reference)
    floors: dict[str, Estimate] = {}
    matched: dict[str, Estimate] = {}
    if reference is not None:
        floors, matched = _compare_halves(names, samples, reference)
    return {
        name: Score(
            value=whole[name][0],
            floor=floors[name][0] if name in floors else None,
            matched=matched[name][0] if name in matched else None,
            error=whole[name][1],
        )
        for name in names
    }


def score_by_class(
    names: Sequence[str],
    samples: FeatureStatistics,
    reference: FeatureStatistics,
    *,
    least: int = LEAST_OF_CLASS,
) -> dict[int, dict[str, float]]:
    """Score the samples of each class against the real images of that class, on the rows kept.

    Metrics that compare no sets have no such variant and are left out, as are classes with fewer
    than `least` images (or fewer than a metric needs) in either set. Most metrics depend on the
    number of images: compare classes of like numbers, or one class between models.

    Args:
        names: in `METRICS`.
        samples: of the images to judge, with labels.
        reference: of real images, with labels.
        least: see above.

    Returns:
        For each class with figures, in ascending order, the value of each metric.

    Raises:
        ValueError: an unknown name, a set without labels, or sets measured in different features.
    """
    check_metrics(names)
    names = [name for name in dict.fromkeys(names) if METRICS[name].needs_reference]
    _check_dims(samples, reference)
    for what, one in (("samples", samples), ("reference", reference)):
        if not bool((one.kept_labels >= 0).any()):
            raise ValueError(f"figures by class need labels: there are none in the {what}")
    least = max([least, *(METRICS[name].least for name in names)])
    found = {}
    for label in sorted(set(samples.kept_labels.tolist()) - {-1}) if names else []:
        ours, real = (
            (one.kept_labels == label).nonzero().flatten() for one in (samples, reference)
        )
        if min(len(ours), len(real)) >= least:
            estimates = _compute(names, samples.subset(ours), reference.subset(real))
            found[label] = {name: value for name, (value, _) in estimates.items()}
    return found


def _compute(
    names: Sequence[str], samples: FeatureStatistics, reference: FeatureStatistics | None
) -> dict[str, Estimate]:
    families: dict[Callable[..., dict[str, Estimate]], list[str]] = {}
    for name in names:
        families.setdefault(METRICS[name].compute, []).append(name)
    found: dict[str, Estimate] = {}
    for compute, family in families.items():
        found |= compute(family, samples, reference)
    return found


def _compare_halves(
    names: Sequence[str], samples: FeatureStatistics, reference: FeatureStatistics
) -> tuple[dict[str, Estimate], dict[str, Estimate]]:
    """Floors, and the samples' figures against the same half."""
    h = min(len(samples.kept), len(reference.kept) // 2)
    compared = [n for n in names if METRICS[n].needs_reference and METRICS[n].least <= h]
    if not compared:
        return {}, {}
    a, b = _halves(reference)
    floors = reference.memo(
        ("floor", tuple(compared), h), lambda: _compute(compared, _first(b, h), a)
    )
    return floors, _compute(compared, _first(samples, h), a)


def _halves(reference: FeatureStatistics) -> tuple[FeatureStatistics, FeatureStatistics]:
    order = reference.split_order()
    return reference.memo(
        "halves", lambda: (reference.subset(order[0::2]), reference.subset(order[1::2]))
    )


def _first(statistics: FeatureStatistics, count: int) -> FeatureStatistics:
    if statistics.count == count:
        return statistics
    rows = statistics.split_order()[:count]
    return statistics.memo(("first", count), lambda: statistics.subset(rows))


def _check_sets(
    names: Sequence[str], samples: FeatureStatistics, reference: FeatureStatistics | None
) -> None:
    for name in names:
        least = METRICS[name].least
        sets = [("samples", samples)]
        if METRICS[name].needs_reference:
            if reference is None:
                raise ValueError(f"{name} compares samples with a reference: give one")
            sets.append(("reference", reference))
        for what, one in sets:
            if len(one.kept) < least:
                raise ValueError(
                    f"{name} needs at least {least} images in each set; the {what} "
                    f"{'has' if what == 'reference' else 'have'} {len(one.kept)}"
                )
    if reference is not None:
        _check_dims(samples, reference)


def _check_dims(samples: FeatureStatistics, reference: FeatureStatistics) -> None:
    if samples.dim != reference.dim:
        raise ValueError(
            f"samples with {samples.dim} features and a reference with {reference.dim} cannot be "
            "compared: measure both with one extractor"
        )
