import numpy as np
import pytest
import torch
from torch import Tensor

from eval.moments import ClassMoments, Moments
from tests.eval.feature_sets import normal


def moments(*batches: Tensor) -> Moments:
    found = Moments(batches[0].shape[1])
    for batch in batches:
        found.update(batch)
    return found


def probabilities(n: int, classes: int, seed: int) -> Tensor:
    return (2 * normal(n, classes, seed)).softmax(1)


def test_moments_are_numpys() -> None:
    x = normal(500, 7, 0) @ normal(7, 7, 1) + 3
    found = moments(*x.split(33))
    wide = x.double().numpy()
    np.testing.assert_allclose(found.mean, wide.mean(0), rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(found.covariance(), np.cov(wide.T), rtol=1e-12, atol=1e-12)
    assert torch.equal(found.covariance(), found.covariance().T)


@pytest.mark.parametrize("size", [1, 64, 2000])
def test_an_offset_costs_no_digits(size: int) -> None:
    x = normal(2000, 5, 0).double()
    found = moments(*(x + 1e4).split(size))
    torch.testing.assert_close(found.mean - 1e4, x.mean(0), rtol=0, atol=1e-10)
    torch.testing.assert_close(found.covariance(), x.T.cov(), rtol=1e-9, atol=1e-9)


def test_merging_is_seeing_all() -> None:
    x = normal(300, 6, 0)
    whole = moments(x)
    for order in ([0, 1, 2], [2, 0, 1]):
        merged = Moments(6)
        for part in order:
            merged.merge(moments(*x.tensor_split(3)[part].split(7)))
        merged.merge(Moments(6))
        assert merged.count == 300
        torch.testing.assert_close(merged.mean, whole.mean, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(merged.scatter, whole.scatter, rtol=1e-12, atol=1e-11)


def test_one_row_has_no_covariance() -> None:
    with pytest.raises(ValueError, match="at least 2 images; there are 1"):
        moments(torch.ones(1, 3)).covariance()


def test_inception_score_by_hand() -> None:
    # Perfectly sure and spread over the classes: as many as there are. Never sure: one.
    found = ClassMoments(5)
    found.update(torch.eye(5), 5)
    assert found.inception_score() == pytest.approx(5, rel=1e-12)
    flat = ClassMoments(5)
    flat.update(torch.full((4, 5), 0.2), 4)
    assert flat.inception_score() == pytest.approx(1, rel=1e-7)


def test_inception_score_is_the_double_loop() -> None:
    p = probabilities(40, 6, 0)
    found = ClassMoments(6)
    for batch in p.split(7):
        found.update(batch, len(batch))
    rows = p.double().tolist()
    marginal = [sum(row[c] for row in rows) / 40 for c in range(6)]
    kl = sum(row[c] * np.log(row[c] / marginal[c]) for row in rows for c in range(6)) / 40
    assert found.inception_score() == pytest.approx(np.exp(kl), rel=1e-12)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_inception_score_is_torchmetrics() -> None:
    from torchmetrics.image.inception import InceptionScore

    class Logits(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    logits = 2 * normal(200, 10, 3).double()
    theirs = InceptionScore(feature=Logits(), splits=1, normalize=False)
    theirs.update(logits)
    found = ClassMoments(10)
    found.update(logits.softmax(1), 200)
    assert found.inception_score() == pytest.approx(float(theirs.compute()[0]), rel=1e-9)


def test_merged_probabilities() -> None:
    p = probabilities(50, 4, 1)
    whole, merged = ClassMoments(4), ClassMoments(4)
    whole.update(p, 50)
    for part in reversed(p.split(9)):
        other = ClassMoments(4)
        other.update(part, len(part))
        merged.merge(other)
    assert merged.inception_score() == pytest.approx(whole.inception_score(), rel=1e-12)


@pytest.mark.parametrize(
    "wrong",
    [
        torch.full((2, 3), 0.5),
        torch.tensor([[1.5, -0.5, 0.0]] * 2),
        torch.full((2, 3), torch.nan),
        torch.full((2, 4), 0.25),
    ],
)
def test_what_is_no_probability_is_refused(wrong: Tensor) -> None:
    with pytest.raises(ValueError, match="probabilities"):
        ClassMoments(3).update(wrong, 2)


def test_no_probabilities_no_inception_score() -> None:
    with pytest.raises(ValueError, match="extractor gives none"):
        ClassMoments(0).inception_score()
    with pytest.raises(ValueError, match="there are none"):
        ClassMoments(3).inception_score()
