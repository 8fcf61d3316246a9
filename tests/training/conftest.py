"""What all tests of training have."""

import pytest

from simple_diffusion.training.evaluator import Evaluator


@pytest.fixture
def drawn_reports() -> None:
    """For a test that looks at the report of a run."""


@pytest.fixture(autouse=True)
def _no_reports(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing the report takes longer than a run of a few images."""
    if "drawn_reports" not in request.fixturenames:
        monkeypatch.setattr(Evaluator, "_report", lambda self: None)
