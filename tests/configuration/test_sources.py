"""A `.env` is read as python-dotenv reads it, but nothing in it is ever skipped or expanded."""

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
from koo.settings import Settings

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
def test_lines_are_parsed_as_documented(text: str, value: str, env_file: Path) -> None:
    env_file.write_bytes(text.encode())
    assert read_env_file(env_file)["A"] == value


@pytest.mark.parametrize(("text", "line"), BROKEN.items())
def test_a_line_that_cannot_be_parsed_is_reported_by_its_number(text: str, line: int, env_file: Path) -> None:
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
def test_every_accepted_line_has_the_meaning_that_python_dotenv_gives_it(lines: list[str]) -> None:
    """python-dotenv is the oracle. koo may refuse any line, but a line that it accepts must have the same meaning."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ".env"
        path.write_text("\n".join(lines))
        try:
            ours = read_env_file(path)
        except ConfigurationError:
            return
        assert ours == dotenv_values(path, interpolate=False)


def test_an_unclosed_quote_is_reported_by_its_first_line(env_file: Path) -> None:
    env_file.write_text("A=1\n\nB='open\nC=3\n")
    with pytest.raises(
        ConfigurationError, match="line 3: this is not NAME=value, or its quote is not closed"
    ):
        read_env_file(env_file)


def test_a_file_that_is_not_text_stops_the_start(env_file: Path) -> None:
    env_file.write_bytes(b"A=\xff\xfe")
    with pytest.raises(ConfigurationError, match="is not UTF-8 text"):
        read_env_file(env_file)


def test_a_file_without_read_permission_stops_the_start(env_file: Path) -> None:
    env_file.write_text("A=1")
    env_file.chmod(0)
    if os.access(env_file, os.R_OK):
        pytest.skip("this user can read all files")
    with pytest.raises(ConfigurationError, match="cannot be read: Permission denied"):
        read_env_file(env_file)


def test_a_missing_file_sets_nothing(env_file: Path) -> None:
    assert read_env_file(env_file) == {}
    env_file.mkdir()
    assert read_env_file(env_file) == {}


def test_the_environment_overrides_and_hides_the_file(env_file: Path) -> None:
    env_file.write_text("A=file\nB=file\nC=file")
    found = gather({"A": "process", "B": "  "}, env_file)
    assert {name: (one.value, one.source) for name, one in found.items()} == {
        "A": ("process", "environment"),
        "B": ("", "environment"),
        "C": ("file", ".env"),
    }
    assert "process" not in repr(found)


def test_without_a_file_the_home_is_the_working_directory(tmp_path: Path) -> None:
    assert find_home("", tmp_path) == tmp_path


def test_an_unusual_name_has_no_nearest_name() -> None:
    assert nearest("KOO_PROT", {"KOO_PORT", "KOO_HOST"}) == "KOO_PORT"
    assert nearest("XYZ", {"KOO_PORT"}) is None


# ── service links ─────────────────────────────────────────────────────────────────────────────────────────────────────


def links(service: str, port: int = 8000) -> dict[str, str]:
    """The variables that the kubelet sets for a Service with one port."""
    one = f"{service}_PORT_{port}_TCP"
    return {
        f"{service}_SERVICE_HOST": "10.96.12.34",
        f"{service}_SERVICE_PORT": str(port),
        f"{service}_SERVICE_PORT_HTTP_API": str(port),
        f"{service}_PORT": f"tcp://10.96.12.34:{port}",
        one: f"tcp://10.96.12.34:{port}",
        f"{one}_PROTO": "tcp",
        f"{one}_PORT": str(port),
        f"{one}_ADDR": "10.96.12.34",
    }


@pytest.mark.parametrize(
    "service", ["KOO", "DATABASE", "AI", "DB", "AI_SERVICES", "KOO_STATE", "DATABASE_URL"]
)
def test_service_links_are_neither_settings_nor_unknown_variables(service: str, tmp_path: Path) -> None:
    settings = Settings(environ=links(service), working_directory=tmp_path)
    assert settings.unknown_variables == ()
    assert settings.koo_port == Settings(environ={}, working_directory=tmp_path).koo_port


def test_a_value_from_the_pods_manifest_overrides_a_link(tmp_path: Path) -> None:
    settings = Settings(environ=links("KOO") | {"KOO_PORT": "8123"}, working_directory=tmp_path)
    assert settings.koo_port == 8123


@pytest.mark.parametrize("wrong", ["eighty", "8000/tcp", "http://10.96.12.34:8000", "tcp://10.96.12.34"])
def test_a_wrong_port_stops_the_start_even_with_links(wrong: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="KOO_PORT is"):
        Settings(environ=links("KOO") | {"KOO_PORT": wrong}, working_directory=tmp_path)


def test_a_misspelt_variable_is_found_among_links(tmp_path: Path) -> None:
    settings = Settings(environ=links("DATABASE") | {"DATABASE_POOL_SIZ": "3"}, working_directory=tmp_path)
    assert [one.meant for one in settings.unknown_variables] == ["DATABASE_POOL_SIZE"]


def test_a_link_in_an_env_file_is_a_wrong_value(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("KOO_PORT=tcp://10.96.12.34:8000\n")
    with pytest.raises(ConfigurationError, match="KOO_PORT is"):
        Settings(environ={}, working_directory=tmp_path)


# ── text that another program should have processed ───────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("variable", ["AI_SERVICES__CLAUDE__MODEL", "KOO_TOKEN", "DATABASE_URL", "KOO_HOST"])
@pytest.mark.parametrize(
    "text",
    [
        '"value-of-16-chars"',
        "'value-of-16-chars'",
        "“value-of-16-chars”",
        "${MODEL}",
        "a${MODEL}b",
        "${MODEL:-other}",
        "${MODEL?not set}",
        "$MODEL",
        "$(MODEL)",
        "{{ model }}",
    ],
)
def test_quotes_and_unreplaced_names_stop_the_start(variable: str, text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=f"{variable} is .*(without quotes|koo does not expand)"):
        Settings(environ={variable: text}, working_directory=tmp_path)


def test_names_in_an_env_file_are_not_replaced_either(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("AI_SERVICES__CLAUDE__MODEL=${MODEL}\n")
    with pytest.raises(ConfigurationError, match=r"write the value itself, .* \(set in "):
        Settings(environ={"MODEL": "claude-x"}, working_directory=tmp_path)


@pytest.mark.parametrize("text", ["vendor/model:free@2025", "p$word", "o'brien", "a$", "100%"])
def test_quotes_and_dollars_that_may_be_meant_are_kept(text: str, tmp_path: Path) -> None:
    settings = Settings(environ={"AI_SERVICES__CLAUDE__MODEL": text}, working_directory=tmp_path)
    assert settings.ai_services["claude"].model == text


def test_a_body_field_may_have_quotes_because_it_is_json(tmp_path: Path) -> None:
    settings = Settings(environ={"AI_SERVICES__CLAUDE__BODY__user": '"ada"'}, working_directory=tmp_path)
    assert settings.ai_services["claude"].body["user"].get_secret_value() == '"ada"'


LONG = "/" + "a" * 5000
PATHS = {
    "KOO_HOME": "{}",
    "DATABASE_URL": "sqlite:///{}",
    "KOO_STATE_URL": "sqlite:///{}",
    "SSL_CERT_FILE": "{}",
    "SSL_CERT_DIR": "{}",
    "AI_SERVICES__LOCAL__MODEL": "{}",
}


@pytest.mark.parametrize("variable", PATHS)
@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("~a-user-that-does-not-exist/x", "a path without ~, because its home folder is unknown"),
        (LONG, "a path that can be followed, but: File name too long"),
        ("circle/x", "a path whose links do not form a loop"),
    ],
    ids=["no home folder", "too long", "a loop of links"],
)
def test_a_path_that_leads_nowhere_is_refused_with_its_variable(
    variable: str, path: str, expected: str, tmp_path: Path
) -> None:
    if variable == "AI_SERVICES__LOCAL__MODEL" and path == LONG:
        pytest.skip("too long for the name of any model")
    (tmp_path / "circle").symlink_to("circle")
    environ = {"KOO_HOME": str(tmp_path), variable: PATHS[variable].format(path)}
    with pytest.raises(ConfigurationError) as refused:
        Settings(environ=environ, working_directory=tmp_path)
    assert str(refused.value).startswith(f"{variable} is ")
    assert str(refused.value).endswith(f"; expected {expected}")
