"""An invalid URL is one sentence from any command, without any part of a password."""

from __future__ import annotations

import io

import pytest

from tests.cli.running import Here

WRONG = "postgresql://app:s3cr@et:t4il@127.0.0.1:5999/appdb"


@pytest.mark.parametrize(
    "words", [["doctor"], ["serve"], ["status"], ["config"], ["query", "Hello"], ["spend"]]
)
@pytest.mark.parametrize("variable", ["DATABASE_URL", "KOO_STATE_URL"])
def test_no_command_repeats_a_password(
    here: Here, monkeypatch: pytest.MonkeyPatch, words: list[str], variable: str
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO()))
    here.set({variable: WRONG})
    code, out, err = here.run(*words)
    assert code != 0 and variable in out + err and "@ as %40" in out + err
    assert "s3cr" not in out + err and "t4il" not in out + err
