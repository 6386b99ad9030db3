"""Fixtures that import this process's platform and the names bound to it again for each test."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import koo
from koo.testing.providers import FakeAnthropic
from tests.cli.running import KEYS, OURS, settings_of

BACKEND = Path(__file__).parents[2] / "backend"
MODULES = ("core", "services", "api", "main", "koo.default", "koo.web.session_dep")


def forget_backend() -> None:
    """Make the next import of a backend module the first one, and resolve the bound names of `koo` again."""
    for name in [
        one for one in sys.modules if f"{one}.".startswith(tuple(f"{module}." for module in MODULES))
    ]:
        del sys.modules[name]
    for name, place in vars(koo)["_PLACES"].items():
        if place.startswith(MODULES):
            vars(koo).pop(name, None)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeAnthropic]:
    """A separate KOO_HOME in which `claude` is this fake provider; no bound name is imported yet."""
    for name in list(os.environ):
        if name.startswith(OURS) or name in KEYS:
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(BACKEND))
    forget_backend()
    with FakeAnthropic() as server:
        for name, value in settings_of(server, KOO_HOME=str(tmp_path)).items():
            monkeypatch.setenv(name, value)
        yield server
    forget_backend()
