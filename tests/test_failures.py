"""What is shown of an error is one short line without secrets, whoever wrote it."""

from __future__ import annotations

import pytest

from koo.errors import Kind, ServiceFailed
from koo.failures import CODE_MAX, SENTENCE_MAX, failure_of, safe


def test_an_error_of_koo_says_kind_status_word_and_sentence() -> None:
    detail = {"status": 500, "code": None, "type": "api_error", "request_id": "req_1"}
    failure = failure_of(ServiceFailed("claude", "it failed (status 500)", detail=detail), Kind.SERVER_ERROR)
    assert (failure.kind, failure.status, failure.code) == (Kind.SERVER_ERROR, 500, "api_error")
    assert failure.sentence == "it failed (status 500)" and failure.brief == "status 500, api_error"


def test_without_a_status_the_sentence_says_it() -> None:
    failure = failure_of(ServiceFailed("claude", "the connection was refused"), Kind.CONNECTION)
    assert failure.status is None and failure.brief == "the connection was refused"


def test_the_status_of_an_answer_that_began_well_says_nothing() -> None:
    detail = {"status": 200, "code": None, "type": "overloaded_error"}
    failure = failure_of(ServiceFailed("claude", "it is overloaded", detail=detail), Kind.OVERLOADED)
    assert failure.status is None and failure.brief == "it is overloaded"


def test_of_an_error_that_koo_does_not_know_only_its_class_is_named() -> None:
    failure = failure_of(ConnectionResetError("peer of user:hunter2@db said: my prompt"), Kind.CONNECTION)
    assert failure.sentence == "it raised ConnectionResetError"


def test_an_error_whose_details_are_odd_is_a_failure_all_the_same() -> None:
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
def test_what_is_shown_is_one_line_without_control_characters(hostile: str) -> None:
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
def test_what_looks_like_a_key_is_not_shown(secret: str, words: str) -> None:
    assert secret[8:] not in safe(words.format(secret)) and "…" in safe(words.format(secret))


@pytest.mark.parametrize("secret", ["hunter2", "p%40ss"])
@pytest.mark.parametrize(
    "words", ["postgresql://app:{}@db/shop", "password={}", "api_key={}, gone", "token={}"]
)
def test_what_stands_where_a_password_stands_is_not_shown(secret: str, words: str) -> None:
    assert secret not in safe(words.format(secret))


def test_a_megabyte_is_cut_before_it_is_read() -> None:
    assert len(safe("long " * 1_000_000)) <= SENTENCE_MAX and len(safe("x" * 500, CODE_MAX)) == CODE_MAX
