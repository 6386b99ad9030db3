"""Headers and fields that an operator adds to a service's requests: they are sent, koo's win, no value is shown."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from koo import Platform, Query
from koo.ai.assembly import HOSTED
from koo.ai.providers.base import Request
from koo.ai.providers.extras import ExtraFields
from koo.errors import ConfigurationError
from koo.http.client import HttpClient
from koo.options import PlatformOptions, ServiceOptions
from koo.settings import Settings
from koo.testing.providers import FakeAnthropic, FakeCompatible, FakeGemini, FakeProvider
from tests.network.support import ask, failure

SECRET = "s3cret-9f8e7d"
FAKES: dict[str, tuple[type[FakeProvider], str, str]] = {
    "anthropic": (FakeAnthropic, "claude-sonnet-5-5", ""),
    "openai": (FakeCompatible, "lab", "/v1"),
    "gemini": (FakeGemini, "gemini-3.8-flash", ""),
}


def options(home: Path, server: FakeProvider, kind: str = "openai", **own: str) -> PlatformOptions:
    _, model, path = FAKES[kind]
    settings = {"KIND": kind, "MODEL": model, "BASE_URL": server.url + path, "API_KEY": "test-key"}
    settings |= {"INPUT_PRICE": "1", "OUTPUT_PRICE": "1"} | own
    variables = {f"AI_SERVICES__LAB__{name}": value for name, value in settings.items()}
    return Settings(environ=variables | {"KOO_HOME": str(home)}).platform_options()


def lab(home: Path, server: FakeProvider, kind: str = "openai", **own: str) -> Platform:
    return Platform(options(home, server, kind, **own))


@pytest.mark.parametrize(
    ("kind", "fields", "path", "value"),
    [
        ("anthropic", {"BODY__METADATA__USER_ID": "u1"}, "metadata", {"user_id": "u1"}),
        ("openai", {"BODY__METADATA__USER_ID": "u1"}, "metadata", {"user_id": "u1"}),
        ("gemini", {"BODY__LABELS": '{"user": "u1"}'}, "labels", {"user": "u1"}),
        (
            "gemini",
            {"BODY__GENERATION_CONFIG__topK": "40"},
            "generationConfig",
            {"maxOutputTokens": 50, "topK": 40},
        ),
    ],
)
def test_headers_and_fields_are_sent_with_each_request_of_the_service(
    kind: str, fields: dict[str, str], path: str, value: object, tmp_path: Path
) -> None:
    with FAKES[kind][0]() as server:
        assert ask(lab(tmp_path, server, kind, HEADERS__X_TITLE="my app", **fields), service="lab").text
        seen = server.queries[0]
        assert (seen.headers["x-title"], seen.body[path]) == ("my app", value)


def test_headers_and_fields_are_sent_with_a_stream_too(tmp_path: Path) -> None:
    with FakeCompatible() as server:
        koo = lab(tmp_path, server, HEADERS__X_TITLE="my app", BODY__SEED="7")

        async def main() -> str:
            async with koo:
                return "".join(
                    [str(piece) async for piece in koo.stream(Query(service="lab", prompt="Hello."))]
                )

        assert asyncio.run(main())
        seen = server.queries[0]
        assert (seen.headers["x-title"], seen.body["seed"], seen.body["stream"]) == ("my app", 7, True)


def test_a_header_of_the_vendor_can_be_replaced(tmp_path: Path) -> None:
    with FakeAnthropic(key=None) as server:
        koo = lab(
            tmp_path, server, "anthropic", HEADERS__ANTHROPIC_VERSION="2026-10-21", HEADERS__X_API_KEY="other"
        )
        assert ask(koo, service="lab").text
        headers = server.queries[0].headers
        assert (headers["anthropic-version"], headers["x-api-key"]) == ("2026-10-21", "other")


@pytest.mark.parametrize(
    ("text", "value"),
    [("0.5", 0.5), ("true", True), ("null", None), ('["a", "b"]', ["a", "b"]), ("plain words", "plain words"),
     ('"42"', "42"), ("NaN", "NaN"), ("{broken", "{broken"), ('{"a": {"b": 1}}', {"a": {"b": 1}})],
)  # fmt: skip
def test_a_field_is_json_if_it_can_be_parsed_and_text_otherwise(
    text: str, value: Any, tmp_path: Path
) -> None:
    with FakeCompatible() as server:
        body = options(tmp_path, server, BODY__FIELD=text).services[-1].body
        assert body == {"field": value} and type(body["field"]) is type(value)


def test_a_name_in_upper_case_is_lowered_and_any_other_is_kept(tmp_path: Path) -> None:
    with FakeCompatible() as server:
        own = options(
            tmp_path, server, BODY__TOP_P="1", BODY__safetySettings="[]", BODY__PROVIDER__ALLOW="true"
        )
        assert own.services[-1].body == {"top_p": 1, "safetySettings": [], "provider": {"allow": True}}


def test_a_querys_own_value_overrides_the_operators_field(tmp_path: Path) -> None:
    with FakeCompatible() as server:
        koo = lab(tmp_path, server, BODY__TEMPERATURE="0.1")
        ask(koo, service="lab")
        ask(koo, service="lab", temperature=0.9)
        assert [one.body["temperature"] for one in server.queries] == [0.1, 0.9]


def test_a_querys_value_takes_precedence_inside_objects_and_under_either_spelling() -> None:
    fields = ExtraFields({"generation_config": {"top_k": 4, "max_output_tokens": 9}, "tools": [1]})
    merged = fields.into(b'{"generationConfig":{"maxOutputTokens":5},"contents":[{"parts":[]}],"tools":[2]}')
    assert (
        merged
        == b'{"generationConfig":{"maxOutputTokens":5,"top_k":4},"contents":[{"parts":[]}],"tools":[2]}'
    )


@pytest.mark.parametrize("kind", ["anthropic", "openai_compatible", "gemini", "perplexity"])
def test_the_token_bound_includes_the_operators_fields(kind: str) -> None:
    request = Request(prompt="Capital of France?", model="m", max_tokens=10)
    plain = HOSTED[kind]("lab", HttpClient(), base_url="http://h").bound_input_tokens(request)
    more = HOSTED[kind]("lab", HttpClient(), base_url="http://h", body={"tools": "x" * 1000})
    assert more.bound_input_tokens(request) >= plain + 1000


@pytest.mark.parametrize(
    "name",
    ["MODEL", "MESSAGES", "SYSTEM", "STREAM", "MAX_TOKENS", "max_completion_tokens", "N", "best_of", "CANDIDATE_COUNT",
     "generationConfig__maxOutputTokens", "GENERATION_CONFIG__CANDIDATE_COUNT"],
)  # fmt: skip
def test_a_field_that_the_token_bound_depends_on_stops_the_start(name: str, tmp_path: Path) -> None:
    with (
        FakeCompatible() as server,
        pytest.raises(ConfigurationError, match=r"^AI_SERVICES__LAB__BODY__.* cannot be"),
    ):
        options(tmp_path, server, **{f"BODY__{name}": "3"})


@pytest.mark.parametrize(
    "name", ["HOST", "CONTENT_LENGTH", "TRANSFER_ENCODING", "ACCEPT_ENCODING", "a header", ""]
)
def test_a_header_that_describes_the_connection_or_the_body_stops_the_start(
    name: str, tmp_path: Path
) -> None:
    with FakeCompatible() as server, pytest.raises(ConfigurationError, match="AI_SERVICES__LAB__HEADERS"):
        options(tmp_path, server, **{f"HEADERS__{name}": SECRET})


def test_a_field_inside_a_field_that_is_not_an_object_stops_the_start(tmp_path: Path) -> None:
    with (
        FakeCompatible() as server,
        pytest.raises(ConfigurationError, match="AI_SERVICES__LAB__BODY") as caught,
    ):
        options(tmp_path, server, BODY__PROVIDER=SECRET, BODY__PROVIDER__ORDER="[]")
    assert SECRET not in str(caught.value)


def test_a_self_hosted_server_with_a_key_in_a_header_is_not_free(tmp_path: Path) -> None:
    variables = {"AI_SERVICES__LAB__BASE_URL": "http://h/v1", "AI_SERVICES__LAB__HEADERS__API_KEY": SECRET}
    for more, free in ((variables, False), ({"AI_SERVICES__LAB__BASE_URL": "http://h/v1"}, True)):
        one = Settings(environ=more, working_directory=tmp_path).platform_options().services[-1]
        assert (one.input_price is not None) is free and one.has_credentials is not free


def test_options_created_in_code_with_a_key_in_a_header_are_not_free() -> None:
    plain = ServiceOptions(name="lab", kind="openai_compatible", declared=True)
    keyed = ServiceOptions(name="lab", kind="openai_compatible", declared=True, headers={"API-Key": SECRET})
    assert (plain.free, keyed.free) == (True, False)


def test_a_field_that_turns_on_reasoning_implies_hidden_reasoning() -> None:
    from koo.ai.models import may_think_unseen

    plain = ServiceOptions(name="lab", kind="anthropic", model="claude-haiku-4-5")
    asked = ServiceOptions(name="lab", kind="anthropic", body={"thinking": {"type": "enabled"}})
    assert (may_think_unseen(plain, "claude-haiku-4-5"), may_think_unseen(asked, "claude-haiku-4-5")) == (
        False,
        True,
    )


def test_values_are_never_shown_but_names_are(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with FakeCompatible() as server:
        server.fails(500)
        own = options(tmp_path, server, HEADERS__X_GATEWAY_KEY=SECRET, BODY__USER=SECRET)
        koo = Platform(own)
        found = failure(koo, service="lab", timeout_s=3)
        shown = koo.service_health("lab")["configuration"]
        assert (shown["headers"], shown["body"]) == (["x-gateway-key"], ["user"])
        views = [
            repr(own),
            str(found),
            repr(found),
            repr(koo.services_status()),
            caplog.text,
            repr(koo.services),
        ]
        assert [view for view in views if SECRET in view] == []
        assert server.queries[0].headers["x-gateway-key"] == SECRET
