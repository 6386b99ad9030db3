"""An error is shown as one short line without secrets, whatever its source."""

from __future__ import annotations

import pytest

from koo.errors import Kind, ServiceFailed
from koo.failures import CODE_MAX, SENTENCE_MAX, failure_of, safe


def test_the_failure_of_a_koo_error_has_kind_status_code_and_sentence() -> None:
    detail = {"status": 500, "code": None, "type": "api_error", "request_id": "req_1"}
    failure = failure_of(ServiceFailed("claude", "it failed (status 500)", detail=detail), Kind.SERVER_ERROR)
    assert (failure.kind, failure.status, failure.code) == (Kind.SERVER_ERROR, 500, "api_error")
    assert failure.sentence == "it failed (status 500)" and failure.brief == "status 500, api_error"


def test_without_a_status_the_brief_form_is_the_sentence() -> None:
    failure = failure_of(ServiceFailed("claude", "the connection was refused"), Kind.CONNECTION)
    assert failure.status is None and failure.brief == "the connection was refused"


def test_the_status_of_a_response_that_began_with_200_is_left_out() -> None:
    detail = {"status": 200, "code": None, "type": "overloaded_error"}
    failure = failure_of(ServiceFailed("claude", "it is overloaded", detail=detail), Kind.OVERLOADED)
    assert failure.status is None and failure.brief == "it is overloaded"


def test_only_the_class_of_an_unknown_error_is_named() -> None:
    failure = failure_of(ConnectionResetError("peer of user:hunter2@db said: my prompt"), Kind.CONNECTION)
    assert failure.sentence == "it raised ConnectionResetError"


def test_an_error_with_odd_details_still_becomes_a_failure() -> None:
    odd = ServiceFailed("claude", "it failed", detail={"status": "500", "code": 7})
    assert failure_of(odd, Kind.SERVER_ERROR).brief == "it failed"


@pytest.mark.parametrize(
    "hostile",
    [
        "two\nlines\r\nand\x1b[31m red\x1b[0m",
        "turned \u202e around \u2066 and hidden \u200b",
        "a paragraph\u2029 and a line\u2028 of its own\x85",
        "bytes \x00 \x07 \x7f \ud800",
    ],
)
def test_a_shown_text_is_one_line_without_control_characters(hostile: str) -> None:
    shown = safe(hostile)
    assert shown.isprintable() and "  " not in shown and shown.strip() == shown


@pytest.mark.parametrize(
    "secret",
    [
        "sk-ant-api03-Abcdefghijklmnop_qrst",
        "sk-proj-0123456789abcdefghij",
        "pplx-0123456789abcdefghij",
        "AIzaSyA0123456789abcdefghijklmnop",
        "gsk_0123456789abcdefghij",
    ],
)
@pytest.mark.parametrize(
    "words", ["Incorrect API key provided: {}.", "{}", 'no "{}"', "Bearer {}", "x-api-key: {}"]
)
def test_text_that_looks_like_a_key_is_masked(secret: str, words: str) -> None:
    assert secret[8:] not in safe(words.format(secret)) and "…" in safe(words.format(secret))


@pytest.mark.parametrize("secret", ["hunter2", "p%40ss"])
@pytest.mark.parametrize(
    "words", ["postgresql://app:{}@db/shop", "password={}", "api_key={}, gone", "token={}"]
)
def test_text_in_the_place_of_a_password_is_masked(secret: str, words: str) -> None:
    assert secret not in safe(words.format(secret))


def test_a_long_text_is_cut_before_it_is_processed() -> None:
    assert len(safe("long " * 1_000_000)) <= SENTENCE_MAX and len(safe("x" * 500, CODE_MAX)) == CODE_MAX
