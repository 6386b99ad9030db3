"""Repeats that a library makes within one attempt, visible in a failure's requests, answers and counts.

An SDK that repeats by itself multiplies koo's attempts and hides them from breaker, limits and budget. Its client says
so if koo can see it (`sdk_retries.py`); behind an application's own function only the error does. So the error is read
when an attempt has failed, and never after a success. What an error keeps of it:

* the headers of its request: SDKs of one generator number their repeats in `x-stainless-retry-count`
* botocore's `ResponseMetadata`, the history that urllib3 keeps of an answer, counts of LiteLLM, instructor, tenacity
* the frames it went through: tenacity's, under google-genai and others, know the attempt even when they raise the last
  error unchanged
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from types import TracebackType

from koo.ai.foreign.peek import peek

log = logging.getLogger("koo")

LOOKED_AT_MAX = 16
FRAMES_MAX = 64
OF_A_CLIENT = "its client's max_retries=0"
SWITCHES = {
    "google": "retry_options=HttpRetryOptions(attempts=1)",
    "instructor": "max_retries=1, which is one attempt",
    "litellm": "num_retries=0",
    "botocore": 'Config(retries={"total_max_attempts": 1})',
    "aiobotocore": 'Config(retries={"total_max_attempts": 1})',
    "requests": "HTTPAdapter(max_retries=0)",
    "tenacity": "stop=stop_after_attempt(1), or leave its retry out",
    "backoff": "max_tries=1, or leave its decorator out",
}
"""How a library's repeats are switched off, in its own words; the others' clients have `max_retries`."""

_warned: set[str] = set()


def warn_of_repeats(name: str, repeats: Mapping[str, int]) -> None:
    """Log once per service which library repeats, how often, and how to switch that off."""
    if not repeats or name in _warned:
        return
    _warned.add(name)
    who = " and ".join(
        f"{library} repeats calls by itself ({times} times)" for library, times in repeats.items()
    )
    how = "; ".join(f"{library}: {SWITCHES.get(library, OF_A_CLIENT)}" for library in repeats)
    log.warning(
        "%s: %s, and koo repeats too: switch it off (%s), or leave the repeats to it and register the service with "
        "max_retries=0",
        name, who, how,
    )  # fmt: skip


def warn_of_repeats_in(name: str, error: BaseException) -> None:
    """As `warn_of_repeats`, for the repeats that were made before `error` was raised. Never raises."""
    if name in _warned:
        return
    try:
        warn_of_repeats(name, repeats_in(error))
    except Exception:  # whatever the error's parts raise, the error itself must still be judged
        log.debug("%s: a %s could not be read for repeats", name, type(error).__name__, exc_info=True)


def repeats_in(error: BaseException) -> dict[str, int]:
    """How often each library repeated before this error, by the library's name; empty if nothing shows a repeat."""
    found: dict[str, int] = {}
    numbered = False
    for one in _errors_of(error):
        library = type(one).__module__.partition(".")[0]
        times = max(_in_the_answer(one), _counted_by(one))
        # An SDK's error is raised from the error of its HTTP library, with the same request.
        if not numbered and (at_the_request := _at_the_request(one)):
            times, numbered = max(times, at_the_request), True
        for by, counted in ((library, times), *_in_frames(one.__traceback__, library)):
            if counted > 0:
                found[by] = max(found.get(by, 0), counted)
    return found


def _errors_of(error: BaseException) -> Iterator[BaseException]:
    """The error, its causes and contexts, and members of groups; a bounded number of them."""
    waiting, seen = [error], set[int]()
    while waiting and len(seen) < LOOKED_AT_MAX:
        one = waiting.pop(0)
        if id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        if isinstance(one, BaseExceptionGroup):
            waiting += one.exceptions
        waiting += [more for more in (one.__cause__, one.__context__) if more is not None]
        waiting += [more for more in one.args if isinstance(more, BaseException)]


def _at_the_request(error: BaseException) -> int:
    for path in (("request",), ("response", "request"), ("http_response", "request")):
        headers = peek(error, *path, "headers")
        if isinstance(headers, Mapping):
            return _number(headers.get("x-stainless-retry-count"))
    return 0


def _in_the_answer(error: BaseException) -> int:
    response = peek(error, "response")
    if isinstance(response, dict):
        metadata = response.get("ResponseMetadata")
        return _number(metadata.get("RetryAttempts")) if isinstance(metadata, dict) else 0
    history = peek(response, "raw", "retries", "history")
    return len(history) if isinstance(history, tuple) else 0


def _counted_by(error: BaseException) -> int:
    """By the library's own exception; instructor and tenacity count attempts, the first one included."""
    attempts = max(_number(peek(error, "n_attempts")), _number(peek(error, "last_attempt", "attempt_number")))
    return max(attempts - 1, _number(peek(error, "num_retries")))


def _in_frames(trace: TracebackType | None, library: str) -> Iterator[tuple[str, int]]:
    """Values in the frames of libraries that repeat for others, and the library that called them."""
    caller = ""
    for _ in range(FRAMES_MAX):
        if trace is None:
            return
        frame, trace = trace.tb_frame, trace.tb_next
        module = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        times = 0
        if module == "tenacity":
            state = next(
                (value for value in map(frame.f_locals.get, ("retry_state", "rs")) if value is not None), None
            )
            times = _number(peek(state, "attempt_number")) - 1
        elif module == "backoff":
            times = _number(frame.f_locals.get("tries")) - 1
        else:
            caller = module
        yield next((one for one in (library, caller) if one in SWITCHES), module), times


def _number(value: object) -> int:
    if isinstance(value, str) and value.isdecimal():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else 0
