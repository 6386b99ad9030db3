"""The `.env` is read as everybody's tools read it, but nothing in it is ever skipped or expanded."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from dotenv import dotenv_values
from hypothesis import example, given
from hypothesis import strategies as st

from koo.configuration.names import nearest
from koo.configuration.sources import find_home, gather, read_env_file
from koo.errors import ConfigurationError

CASES = {
    "A=1": "1",
    "  A = 1  ": "1",
    "export A=1": "1",
    "A=": "",
    "A=a b # comment": "a b",
    "A=a#b": "a#b",
    "A=# comment": "# comment",
    "A= # comment": "",
    "A='a b' # comment": "a b",
    "A='#x'": "#x",
    'A="a\\nb"': "a\nb",
    'A="a\nb"': "a\nb",
    "A='a\\nb'": "a\\nb",
    "A='it\\'s'": "it's",
    'A="say \\"hi\\""': 'say "hi"',
    "A=pa$$w${PATH}d": "pa$$w${PATH}d",
    "A=x=y": "x=y",
    "A=é": "é",
    "\ufeffA=1": "1",
    "A=1\r\n": "1",
    "A=1\nA=2": "2",
    "# A=0\n\n  # B\nA=1": "1",
}
BROKEN = {
    "A": 1,
    "A=1\nB C=2": 2,
    "A='open": 1,
    'A="open\nB=2': 1,
    "A='a' b": 1,
    "\n\n=x": 3,
    "A=1\n1B=2": 2,
    "export\nA=1": 1,
}


@pytest.fixture
def env_file(tmp_path: Path) -> Path:
    return tmp_path / ".env"


@pytest.mark.parametrize(("text", "value"), CASES.items())
def test_what_a_line_means(text: str, value: str, env_file: Path) -> None:
    env_file.write_bytes(text.encode())
    assert read_env_file(env_file)["A"] == value


@pytest.mark.parametrize(("text", "line"), BROKEN.items())
def test_a_line_that_cannot_be_read_is_named_by_its_number(text: str, line: int, env_file: Path) -> None:
    env_file.write_text(text)
    with pytest.raises(ConfigurationError, match=f"line {line}: this is not NAME=value"):
        read_env_file(env_file)


LINES = st.lists(
    st.one_of(
        st.text(alphabet="AB=' \"#\\n$x{}\t", max_size=12),
        st.builds("{}={}".format, st.sampled_from(["A", "B"]), st.text(alphabet="ab='\"# \\n$", max_size=10)),
    ),
    max_size=4,
)


@given(LINES)
@example(["A='a\\\\'"])
@example(['A="\\\\n"'])
@example(["export =1"])
@example(["A= 'x'", "B=\t#"])
def test_whatever_is_read_is_read_as_python_dotenv_reads_it(lines: list[str]) -> None:
    """The oracle: what we refuse may be anything, but what we accept means what it means to others."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ".env"
        path.write_text("\n".join(lines))
        try:
            ours = read_env_file(path)
        except ConfigurationError:
            return
        assert ours == dotenv_values(path, interpolate=False)


def test_a_quote_that_is_not_closed_is_named_by_the_line_it_opens_in(env_file: Path) -> None:
    env_file.write_text("A=1\n\nB='open\nC=3\n")
    with pytest.raises(
        ConfigurationError, match="line 3: this is not NAME=value, or its quote is not closed"
    ):
        read_env_file(env_file)


def test_a_file_that_is_not_text_is_told(env_file: Path) -> None:
    env_file.write_bytes(b"A=\xff\xfe")
    with pytest.raises(ConfigurationError, match="is not UTF-8 text"):
        read_env_file(env_file)


def test_a_file_that_may_not_be_read_is_told(env_file: Path) -> None:
    env_file.write_text("A=1")
    env_file.chmod(0)
    if os.access(env_file, os.R_OK):
        pytest.skip("this user may read everything")
    with pytest.raises(ConfigurationError, match="cannot be read: Permission denied"):
        read_env_file(env_file)


def test_no_file_is_no_setting(env_file: Path) -> None:
    assert read_env_file(env_file) == {}
    env_file.mkdir()
    assert read_env_file(env_file) == {}


def test_the_environment_wins_and_hides(env_file: Path) -> None:
    env_file.write_text("A=file\nB=file\nC=file")
    found = gather({"A": "process", "B": "  "}, env_file)
    assert {name: (one.value, one.source) for name, one in found.items()} == {
        "A": ("process", "environment"),
        "B": ("", "environment"),
        "C": ("file", ".env"),
    }
    assert "process" not in repr(found)


def test_without_any_file_the_home_is_the_working_directory(tmp_path: Path) -> None:
    assert find_home("", tmp_path) == tmp_path


def test_a_name_like_no_other_has_no_nearest() -> None:
    assert nearest("KOO_PROT", {"KOO_PORT", "KOO_HOST"}) == "KOO_PORT"
    assert nearest("XYZ", {"KOO_PORT"}) is None
