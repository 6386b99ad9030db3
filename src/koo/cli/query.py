"""`koo query`: one query from this process. No server is needed, and the cost is recorded in the same store."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from koo.ai.checking import PROMPT_BYTES_MAX
from koo.ai.stream import AnswerStream
from koo.ai.types import Answer, Query
from koo.cli.terminal import (
    CommandFailed,
    Exit,
    Progress,
    code_of,
    progress,
    put_json,
    put_whole,
    run_async,
    say,
)
from koo.cli.text import name
from koo.cli.words import latency, usd
from koo.errors import KooError
from koo.platform import Platform
from koo.settings import Settings


def query(service: str, prompt: str | None, *, as_json: bool, stream: bool, **options: Any) -> Exit:
    """Send a query, print the text as it arrives, and print a summary to standard error."""
    asked = Query(service=service, prompt=_read_prompt(prompt), **options)
    platform = Platform(Settings().platform_options())
    with _said_by_the_command():
        if as_json:
            return run_async(_query_json(platform, asked))
        answer = run_async(_query_text(platform, asked, stream=stream))
    say(summary(answer))
    return Exit.OK


@contextmanager
def _said_by_the_command() -> Iterator[None]:
    """Silence the log: the command itself prints how the query ended."""
    log = logging.getLogger("koo")
    log.addFilter(_is_other)
    try:
        yield
    finally:
        log.removeFilter(_is_other)


def _is_other(record: logging.LogRecord) -> bool:
    return "what" not in vars(record)


async def _query_json(platform: Platform, asked: Query) -> Exit:
    from koo.web.problems import problem_of
    from koo.web.views import answer_view

    # The progress line covers opening the platform too: a state store may be far away or not respond.
    with progress(f"waiting for {asked.service}"):
        async with platform:
            try:
                document: object = answer_view(await platform.query(asked))
                code = Exit.OK
            except KooError as error:
                problem = problem_of(error).model_dump(mode="json", exclude_none=True, exclude={"instance"})
                document, code = {"error": problem}, code_of(error)
    put_json(document)
    return code


async def _query_text(platform: Platform, asked: Query, *, stream: bool) -> Answer:
    with progress(f"waiting for {asked.service}") as shown:
        async with platform:
            if not stream:
                answer = await platform.query(asked)
                shown.stop()
                put_whole(f"{answer.text}\n")
                return answer
            async with platform.stream(asked) as chunks:
                return await _print_stream(chunks, shown)


async def _print_stream(chunks: AnswerStream, shown: Progress) -> Answer:
    """Print each chunk as it arrives. End the line even if the stream breaks off."""
    last = ""
    try:
        async for chunk in chunks:
            shown.stop()
            last = chunk.text or last
            put_whole(chunk.text)
    finally:
        if last and not last.endswith("\n"):
            put_whole("\n")
    assert chunks.answer is not None
    return chunks.answer


def summary(answer: Answer) -> str:
    """Tokens, cost, time and model in one line."""
    usage = answer.usage
    about = "about " if usage.estimated else ""
    read = usage.input_tokens + usage.cache_read_tokens + usage.cache_write_tokens
    attempts = f", {answer.attempts} attempts" if answer.attempts > 1 else ""
    clamped = f" (at most {answer.max_tokens}, to fit)" if answer.clamped else ""
    return (
        f"{about}{read} tokens read, {usage.output_tokens} written{clamped}; {usd(str(answer.cost_usd))}; "
        f"{latency(answer.latency_s)}{attempts}; {answer.service} {name(answer.model)}"
    )


def _read_prompt(given: str | None) -> str:
    """Return the given prompt, or all of standard input. Raises `CommandFailed` if that is not text."""
    if given not in (None, "-"):
        return given
    if sys.stdin is None:
        raise CommandFailed("no prompt; pass one as an argument or pipe it in", Exit.USAGE, "invalid_request")
    if sys.stdin.isatty():
        say("type the prompt; Ctrl-D on an empty line ends it")
    content = sys.stdin.buffer.read(4 * PROMPT_BYTES_MAX + 1)
    try:
        return content.decode()
    except UnicodeDecodeError:
        sentence = "the prompt on standard input is not UTF-8 text"
        raise CommandFailed(sentence, Exit.USAGE, "invalid_request") from None
