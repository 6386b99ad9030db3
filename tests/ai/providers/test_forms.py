"""koo learns the accepted form of a request from the refusals of many servers."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from koo.ai.providers.base import Request
from koo.ai.providers.forms import Form, Forms
from koo.ai.providers.openai_errors import parse_error

ASKED = 4096
REQUEST = Request(prompt="capital of France?", model="m", max_tokens=ASKED, temperature=0.5)
SENT = b'{"max_tokens":4096,"temperature":0.5,"stream_options":{"include_usage":true}}'


def says(message: str, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "param": param, "code": code}}


def learned(document: object, status: int = 400, sent: bytes = SENT, forms: Forms | None = None) -> Form:
    """The form of the model after this refusal."""
    forms = forms or Forms("svc", has_two_names=True)
    forms.learn(REQUEST, parse_error(status, {}, document), sent)
    return forms.of("m")


@pytest.mark.parametrize(
    ("message", "room"),
    [
        # A limit for prompt and answer together, with the prompt's count.
        (
            "This model's maximum context length is 4096 tokens. However, you requested 4120 tokens (24 in the "
            "messages, 4096 in the completion). Please reduce the length of the messages or completion.",
            4072,
        ),
        (
            "'max_tokens' or 'max_completion_tokens' is too large: 4096. This model's maximum context length is 4096 "
            "tokens and your request has 24 input tokens (4096 > 4096 - 24).",
            4072,
        ),
        (
            "This model's maximum context length is 4096 tokens. However, you requested 4096 output tokens and your "
            "prompt contains 24 input tokens, for a total of 4120 tokens.",
            4072,
        ),
        (
            "Requested token count exceeds the model's maximum context length of 4096 tokens. You requested a total of "
            "4120 tokens: 24 tokens from the input messages and 4096 tokens for the completion.",
            4072,
        ),
        (
            "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096. Given: 24 `inputs` tokens and "
            "4096 `max_new_tokens`",
            4072,
        ),
        (
            "This endpoint's maximum context length is 4096 tokens. However, you requested about 4120 tokens (24 of "
            "text input, 4096 in the output). Please reduce the length of either one",
            4072,
        ),
        ("input length and `max_tokens` exceed context limit: 24 + 4096 > 4096, decrease input length", 4072),
        (
            "Prompt contains 24 tokens and 0 draft tokens, too large for model with 4096 maximum context length",
            4072,
        ),
        (
            "maximum context length is 4,096 tokens, however you requested 4,120 tokens (24 in your prompt)",
            4072,
        ),
        # Only the sum is stated, but the requested answer is known.
        (
            "This model's maximum context length is 4096 tokens, but 4120 were asked: you requested 4120 tokens",
            4072,
        ),
        # Each of these messages names a limit for the answer alone.
        ("max_tokens is too large: 4096. This model supports at most 2048 completion tokens.", 2048),
        ("`max_tokens` must be less than or equal to `2048`, the maximum value for `max_tokens`", 2048),
        ("Invalid max_tokens value, the valid range of max_tokens is [1, 2048]", 2048),
        ("<400> InternalError.Algo.InvalidParameter: Range of max_tokens should be [1, 2048]", 2048),
        ("max_tokens: 4096 > 2048, which is the maximum allowed number of output tokens for m", 2048),
        (
            "it has a maxOutputTokens value of 4096 but the supported range is from 1 (inclusive) to 2049 (exclusive)",
            2048,
        ),
        (
            "The maximum tokens you requested exceeds the model limit of 2049. Try a value that is lower than 2049",
            2048,
        ),
        ("too many tokens: max tokens must be less than or equal to 2048", 2048),
        ("max_tokens (4096) cannot exceed 2048", 2048),
        ("max_completion_tokens is too large: 4096. Maximum value is 2048", 2048),
        ("max_tokens参数非法：限制范围[1,2048]", 2048),
        ("field MaxTokens invalid, should be in [1, 2048]", 2048),
        ("max_tokens (current value: 4096) must be between 0 and 2,048 ", 2048),
        (
            "The parameter max_tokens specified in the request is not valid: expected a value <= 2048, but got 4096",
            2048,
        ),
        # Nothing helps if the prompt alone does not fit, or if there are no numbers.
        (
            "This model's maximum context length is 4096 tokens. However, your messages resulted in 5000 tokens.",
            ASKED,
        ),
        ("prompt is too long: 210000 tokens > 200000 maximum", ASKED),
        ("max_tokens is too large", ASKED),
        ("max_tokens is not an integer; temperature must be between 0 and 2", ASKED),
        ("max_tokens is required, top_p must be <= 1", ASKED),
        ("Rate limit: Limit 6000, Requested 14137", ASKED),
    ],
)
def test_the_limit_in_a_refusal_is_learned(message: str, room: int) -> None:
    assert learned(says(message)).max_tokens(REQUEST) == room


def test_a_partially_counted_prompt_is_estimated() -> None:
    message = (
        "This model's maximum context length is 4096 tokens. However, you requested 4096 output tokens and your prompt "
        "contains at least 1 input tokens, for a total of at least 4097 tokens."
    )
    forms = Forms("svc")
    first = learned(says(message), forms=forms).max_tokens(REQUEST)
    second = learned(says(message), sent=b'{"max_tokens":%d}' % first, forms=forms).max_tokens(REQUEST)
    assert 3900 < second < first < 4040


def test_other_prompts_are_estimated_from_a_refusal_and_an_answer_keeps_one_token() -> None:
    form = learned(
        says("maximum context length is 4096 tokens. You requested 4120 tokens (24 in the messages)")
    )
    longer = Request(prompt="word " * 800, model="m", max_tokens=ASKED)
    assert 2800 < form.max_tokens(longer) < 3200
    assert form.max_tokens(Request(prompt="word " * 8000, model="m", max_tokens=ASKED)) == 1
    assert form.max_tokens(Request(prompt="Hi", model="m", max_tokens=10)) == 10


UNKNOWN = {
    "type": "extra_forbidden",
    "loc": ["body", "stream_options"],
    "msg": "Extra inputs are not permitted",
}


@pytest.mark.parametrize(
    ("document", "without"),
    [
        (
            says("Unknown parameter: 'stream_options'.", "unknown_parameter", "stream_options"),
            "stream_options",
        ),
        (says("Unrecognized request argument supplied: stream_options"), "stream_options"),
        (says("stream_options: Extra inputs are not permitted"), "stream_options"),
        (says('json: unknown field "stream_options"'), "stream_options"),
        (says("stream_options.include_usage is not supported"), "stream_options"),
        ({"error": "property 'stream_options' is unsupported"}, "stream_options"),
        ({"detail": [UNKNOWN]}, "stream_options"),
        (
            {"object": "error", "message": {"detail": [UNKNOWN]}, "type": "invalid_request_error"},
            "stream_options",
        ),
        (
            says(
                "Unsupported value: 'temperature' does not support 0.5 with this model. Only the default (1) value is "
                "supported.",
                "unsupported_value",
                "temperature",
            ),
            "temperature",
        ),
        (says("litellm.UnsupportedParamsError: gpt-5 models don't support temperature=0.5."), "temperature"),
        (says("`temperature` may only be set to 1 when thinking is enabled"), "temperature"),
        (says("`temperature` is deprecated for this model."), "temperature"),
        (says("invalid temperature: only 1 is allowed for this model"), "temperature"),
        (
            {"message": "Malformed input request: extraneous key [temperature] is not permitted"},
            "temperature",
        ),
        # A value that is wrong for every model is the caller's mistake.
        (says("temperature must be between 0 and 2"), None),
        (
            says(
                "Invalid 'temperature': decimal above maximum value.",
                "decimal_above_max_value",
                "temperature",
            ),
            None,
        ),
        (says("messages.0: text content blocks must be non-empty"), None),
        (says("something went wrong" + " " * 400 + "temperature is not supported"), None),
    ],
)
def test_a_refused_parameter_is_left_out(document: object, without: str | None) -> None:
    assert learned(document).without == ({without} if without else set())


@pytest.mark.parametrize(
    "message",
    [
        "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
        "Unrecognized request argument supplied: max_tokens",
        "property 'max_tokens' is unsupported, did you mean 'max_completion_tokens'",
        "Please use max_completion_tokens instead of max_tokens, which is deprecated",
    ],
)
def test_max_tokens_is_sent_under_its_other_name(message: str) -> None:
    assert learned(says(message)).tokens_name == "max_completion_tokens"
    # One of the two names is always sent, because the budget depends on it.
    assert learned(says(message), forms=Forms("svc")).tokens_name is None


def test_the_old_name_is_used_again_if_the_server_refuses_the_new_one() -> None:
    message = "property 'max_completion_tokens' is unsupported, did you mean 'max_tokens'"
    assert learned(says(message), sent=b'{"max_completion_tokens":4096}').tokens_name == "max_tokens"


def test_a_complaint_about_an_omitted_parameter_restores_it() -> None:
    forms = Forms("svc")
    complaint = says("temperature is not supported")
    assert learned(complaint, forms=forms).without == {"temperature"}
    assert learned(complaint, sent=b'{"max_tokens":4096}', forms=forms).without == set()


def test_a_parameter_that_the_operator_omits_stays_omitted() -> None:
    forms = Forms("svc", Form(frozenset({"temperature"})))
    assert forms.fit(REQUEST).temperature is None
    form = learned(says("temperature is not supported"), sent=b'{"max_tokens":4096}', forms=forms)
    assert form.without == {"temperature"}


@pytest.mark.parametrize(
    ("document", "stream"),
    [
        (says("This model only support stream mode, please enable the stream parameter to access the model."), True),
        (says("parameter.enable_thinking must be set to false for non-streaming calls"), True),
        (says("enable thinking can not be support when `stream=False`."), True),
        ({"detail": "Stream must be set to true"}, True),
        (says("Requests with max_tokens > 4096 must have stream=true"), True),
        (says("Your organization must be verified to stream this model.", "unsupported_value", "stream"), False),
        (says("Unsupported value: 'stream' does not support true with this model."), False),
        (says("Streaming is not supported for this model"), False),
        (says("stream_options.foo is not supported"), None),
        (says("the upstream only accepts short prompts"), None),
        (says("the bit-stream must be valid"), None),
    ],
)  # fmt: skip
def test_the_only_accepted_value_of_stream_is_learned(document: object, stream: bool | None) -> None:
    sent = b'{"max_tokens":4096,"stream":true}' if stream is False else b'{"max_tokens":4096}'
    assert learned(document, sent=sent).stream is stream


def test_a_server_that_refuses_both_values_of_stream_teaches_nothing_more() -> None:
    forms = Forms("svc")
    assert (
        learned(says("only streams are supported: stream must be true"), sent=b"{}", forms=forms).stream
        is True
    )
    assert learned(says("stream is not supported"), sent=b'{"stream":true}', forms=forms).stream is True


def test_models_learn_separately() -> None:
    forms = Forms("svc")
    learned(says("temperature is not supported"), forms=forms)
    assert forms.fit(REQUEST).temperature is None
    other = Request(prompt="Hi", model="other", max_tokens=10, temperature=0.5)
    assert forms.fit(other) is other


@pytest.mark.parametrize("status", [200, 401, 404, 429, 500])
def test_only_refusals_are_learned_from(status: int) -> None:
    assert learned(says("temperature is not supported"), status).without == set()


@given(st.text(max_size=300), st.integers(1, 10_000))
def test_no_message_raises_or_yields_an_absurd_limit(message: str, number: int) -> None:
    form = learned(says(f"{message} max_tokens context length {number} tokens requested {message}"))
    assert 1 <= form.max_tokens(REQUEST) <= ASKED
