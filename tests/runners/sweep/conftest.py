"""Shared by the tests of sweeps."""

from __future__ import annotations

import pytest
from helpers import SMALL_SUITE


@pytest.fixture
def suite_file(tmp_path, tiny):
    """A file with `SMALL_SUITE`; a test file with another suite has a fixture of its own."""
    path = tmp_path / "small.toml"
    path.write_text(SMALL_SUITE)
    return path
