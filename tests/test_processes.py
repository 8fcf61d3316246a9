"""Modules that the tests' processes are forked with are there."""

import importlib

import pytest

from tests.processes import PRELOAD


@pytest.mark.parametrize("name", PRELOAD)
def test_it_can_be_imported(name: str) -> None:
    """Where one cannot, the server goes on without it, and every process imports by itself."""
    importlib.import_module(name)
