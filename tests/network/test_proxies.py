"""The choice of a proxy by the environment's variables, compared with Python's own library."""

from __future__ import annotations

import urllib.request
from pathlib import Path

import pytest

from koo.errors import ConfigurationError
from koo.http.proxies import proxy_of, read_proxy
from koo.network_options import NetworkOptions
from koo.settings import Settings

PROXY = "http://proxy.example:3128"


def way(url: str, **variables: str) -> str | None:
    """The proxy for a URL in this environment."""
    settings = Settings(environ=variables, working_directory=Path("/"))
    proxy = proxy_of(url, settings.platform_options().network)
    return None if proxy is None else str(proxy)


@pytest.mark.parametrize(
    ("url", "variables", "taken"),
    [
        ("https://api.example/v1", {}, None),
        ("https://api.example/v1", {"HTTPS_PROXY": PROXY}, PROXY),
        ("https://api.example/v1", {"https_proxy": PROXY}, PROXY),
        ("http://api.example/v1", {"HTTPS_PROXY": PROXY}, None),
        ("http://api.example/v1", {"HTTP_PROXY": PROXY}, PROXY),
        ("https://api.example/v1", {"HTTP_PROXY": PROXY}, None),
        ("https://api.example/v1", {"ALL_PROXY": PROXY}, PROXY),
        ("http://api.example/v1", {"all_proxy": PROXY}, PROXY),
        ("https://api.example/v1", {"ALL_PROXY": "http://other:1", "HTTPS_PROXY": PROXY}, PROXY),
        ("https://api.example/v1", {"HTTPS_PROXY": "http://other:1", "https_proxy": PROXY}, PROXY),
        ("https://api.example/v1", {"HTTPS_PROXY": PROXY, "https_proxy": ""}, None),
        ("https://api.example/v1", {"HTTPS_PROXY": "proxy.example:3128"}, PROXY),
        # in a CGI process a client's header `Proxy: …` arrives as HTTP_PROXY
        ("http://api.example/v1", {"HTTP_PROXY": PROXY, "REQUEST_METHOD": "GET"}, None),
        ("http://api.example/v1", {"http_proxy": PROXY, "REQUEST_METHOD": "GET"}, PROXY),
    ],
)  # fmt: skip
def test_the_schemes_variable_wins_over_all_proxy_and_lower_case_wins_over_upper(
    url: str, variables: dict[str, str], taken: str | None
) -> None:
    assert way(url, **variables) == taken


EXCEPTED = [
    ("api.example", "api.example"),
    ("api.example", "example"),
    ("api.example", ".example"),
    ("api.example", "other, api.example"),
    ("api.example", "other,api.example"),
    ("API.example", "api.EXAMPLE"),
    ("api.example", "*"),
    ("10.1.2.3", "10.1.2.3"),
]
NOT_EXCEPTED = [
    ("api.example", "pi.example"),
    ("api.example", "api"),
    ("api.example", "api.example.org"),
    ("api.example", ""),
    ("10.1.2.3", "10.1.2.4"),
]


@pytest.mark.parametrize(
    ("host", "no_proxy", "direct"),
    [(*one, True) for one in EXCEPTED] + [(*one, False) for one in NOT_EXCEPTED],
)
def test_no_proxy_has_the_same_meaning_as_in_pythons_own_library(
    host: str, no_proxy: str, direct: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", no_proxy)
    assert bool(urllib.request.proxy_bypass_environment(host)) is direct  # type: ignore[attr-defined]
    assert (way(f"https://{host}/v1", HTTPS_PROXY=PROXY, NO_PROXY=no_proxy) is None) is direct


@pytest.mark.parametrize(
    ("url", "no_proxy", "direct"),
    [
        ("https://api.example/v1", "*.example", True),
        ("https://api.example/v1", "one two api.example", True),
        ("https://api.example/v1", "api.example:443", True),
        ("https://api.example/v1", "api.example:8443", False),
        ("https://api.example:8443/v1", "api.example:8443", True),
        ("https://api.example/v1", "https://api.example", True),
        ("https://api.example./v1", "api.example", True),
        ("https://10.1.2.3/v1", "10.0.0.0/8", True),
        ("https://11.1.2.3/v1", "10.0.0.0/8", False),
        ("https://[fd00::5]/v1", "fd00::/8", True),
        ("https://[fd00::5]/v1", "[fd00::5]", True),
        ("https://[fd00::5]:81/v1", "[fd00::5]:81", True),
        ("https://api.example/v1", "10.0.0.0/8, , :, /", False),
    ],
)
def test_no_proxy_accepts_ports_networks_and_addresses(url: str, no_proxy: str, direct: bool) -> None:
    assert (way(url, HTTPS_PROXY=PROXY, NO_PROXY=no_proxy) is None) is direct


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "localhost", "LOCALHOST", "[::1]"])
def test_servers_on_this_machine_are_reached_directly_unless_the_service_has_a_proxy(host: str) -> None:
    url, network = f"http://{host}:8080/v1", NetworkOptions(all_proxy=PROXY)
    assert proxy_of(url, network) is None
    assert str(proxy_of(url, network, "http://own:1")) == "http://own:1"


def test_a_service_may_have_its_own_proxy_or_none() -> None:
    network = NetworkOptions(https_proxy=PROXY, no_proxy="*")
    assert str(proxy_of("https://api.example", network, "https://own:1")) == "https://own:1"
    assert proxy_of("https://api.example", NetworkOptions(https_proxy=PROXY), None) is None
    settings = Settings(
        environ={
            "HTTPS_PROXY": PROXY,
            "AI_SERVICES__CLAUDE__PROXY": "none",
            "AI_SERVICES__OPENAI__PROXY": "http://u:hunter2@own:1",
        },
        working_directory=Path("/"),
    )
    own = {one.name: one.proxy for one in settings.platform_options().services}
    assert (own["claude"], own["openai"], own["gemini"]) == (None, "http://u:hunter2@own:1", "")
    assert "hunter2" not in repr(settings) + repr(settings.platform_options()) + repr(settings.explain())


def test_the_password_is_unquoted_and_never_shown() -> None:
    proxy = read_proxy("http://us%40er:p%2Fw%3A%C3%B6@proxy:3128/")
    assert proxy.credentials == "Basic dXNAZXI6cC93OsO2"
    assert (str(proxy), "dXNA" in repr(proxy)) == ("http://proxy:3128", False)


@pytest.mark.parametrize(
    "text",
    ["socks5://proxy:1", "ftp://proxy", "http://", "http://u:p/w@proxy:1", "http://u:1#w@proxy:1", "http://a b:1",
     "http://proxy:0", "http://proxy:99999", "http://a%3Ab:p@proxy:1"],
)  # fmt: skip
def test_an_unusable_proxy_is_refused_without_showing_its_password(
    text: str,
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        proxy_of("https://api.example", NetworkOptions(all_proxy=text))
    assert str(caught.value).startswith("ALL_PROXY is") and "; expected " in str(caught.value)
    assert "w@proxy" not in str(caught.value)
    # Other programs may need it, so it is refused only if a service would use it.
    assert proxy_of("https://api.example", NetworkOptions(all_proxy=text, https_proxy=PROXY)) is not None
    assert proxy_of("http://localhost", NetworkOptions(all_proxy=text)) is None


def test_an_invalid_proxy_of_a_service_stops_the_start() -> None:
    with pytest.raises(ConfigurationError, match=r'^AI_SERVICES__CLAUDE__PROXY is "…"; expected a URL'):
        Settings(environ={"AI_SERVICES__CLAUDE__PROXY": "socks5://u:secret@h:1"}, working_directory=Path("/"))
