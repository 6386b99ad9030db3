"""A separate KOO_HOME for each test of the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.running import Here


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Here:
    """Commands run in this process, in an empty KOO_HOME."""
    return Here(tmp_path, monkeypatch, capsys)
