"""The rules for an adapter's errors: how it reports a refusal or a broken connection, and handles a cancellation."""

from __future__ import annotations

import asyncio

import msgspec

from koo.ai.providers.base import Provider, Request
from koo.errors import ExternalServiceError, Kind
from koo.policies.treatment import fault_of
from koo.policies.verdict import FAILURE
from koo.testing.contract_base import (
    KEY,
    LATE_STATUSES,
    LONG_TEXT,
    PROMPT,
    STATUSES,
    TOKENS_MAX,
    AdapterCase,
    Rules,
    error_of,
)
from koo.testing.providers.script import Answer, Cut, Failure, Hang, Nothing, Raw, html
from koo.testing.providers.server import FakeProvider

rule = Rules()


@rule("koo's reaction (a repeat, a pause, another service) depends on the kind")
async def _each_status_has_its_kind(case: AdapterCase) -> None:
    async with case.talk() as (_, fake):
        usual = {status: fake.failure(status) for status in STATUSES}
    for status, kinds in STATUSES.items():
        for streamed in (False, True):
            error = await error_of(case, usual[status], streamed=streamed)
            assert error.kind in kinds, f"{status} is {error.kind}, not {', '.join(sorted(kinds))}"


@rule("calls must stay away for the time that the server names, and not less")
async def _the_retry_after_time_is_read(case: AdapterCase) -> None:
    async with case.talk() as (_, fake):
        usual = fake.failure(429)
    late = Failure(429, usual.type, code=usual.code, headers={"retry-after": "17"})
    error = await error_of(case, late)
    assert error.retry_after_s is not None and 16 <= error.retry_after_s <= 60, error.retry_after_s


@rule("a connection that breaks is the provider's failure, and the call may be repeated")
async def _a_broken_connection_is_a_failure(case: AdapterCase) -> None:
    for step in (Nothing(), Cut(40), Cut(400, Answer(LONG_TEXT))):
        error = await error_of(case, step)
        assert fault_of(error).verdict is FAILURE, (step, error)


@rule("a web page from an intermediary, and a body that is cut or empty, are errors")
async def _a_web_page_or_a_broken_body_is_an_error(case: AdapterCase) -> None:
    for step in (html(502), html(200), Raw(body=b""), Raw(body=b"{"), Raw(body=b"[1, 2]")):
        await error_of(case, step)


@rule("some servers send an error with status 200, and koo's reaction depends on its kind")
async def _an_error_with_status_200_is_an_error(case: AdapterCase) -> None:
    for status in LATE_STATUSES:
        async with case.talk() as (_, fake):
            body = msgspec.json.encode(fake.error_body(fake.failure(status)))
        error = await error_of(case, Raw(body=body))
        assert error.kind in STATUSES[status], f"{body!r} with status 200 is {error.kind}"


@rule("a 403 with a web page comes from a proxy or firewall, and koo must not block the key for it")
async def _a_forbidden_page_says_nothing_about_the_key(case: AdapterCase) -> None:
    for streamed in (False, True):
        error = await error_of(case, html(403), streamed=streamed)
        assert error.kind not in (Kind.AUTH, Kind.PERMISSION, Kind.BILLING), (
            f"a web page with status 403 is {error.kind}: add FORBIDDEN_ON_THE_WAY to the fault table"
        )


@rule("a server that supports no `temperature` still answers: the next request must leave it out")
async def _a_refused_parameter_is_left_out(case: AdapterCase) -> None:
    asked = case.asking(temperature=0.5)
    async with case.talk() as (provider, fake):
        message = "Unsupported parameter: 'temperature' is not supported with this model."
        error = await _refused(provider, fake, asked, message, param="temperature")
        if b'"temperature":' not in fake.queries[-1].raw:
            return  # koo recognises refused parameters by the names that most vendors use
        assert error.anew, "the error is not marked as one to repeat in another form (`anew`)"
        fake.forget()
        await provider.complete(asked)
        assert b'"temperature":' not in fake.queries[-1].raw, (
            "it was sent again: use `self._forms.fit(request)`"
        )


@rule("a model with a lower limit still answers: the next request must keep to the limit that it states")
async def _a_stated_limit_of_tokens_is_kept(case: AdapterCase) -> None:
    asked = case.asking(max_tokens=TOKENS_MAX)
    async with case.talk() as (provider, fake):
        message = f"max_tokens is too large: {TOKENS_MAX}. This model supports at most 32 completion tokens."
        error = await _refused(provider, fake, asked, message, param="max_tokens")
        assert error.anew, (
            "the same request would be sent again: use `self._forms.fit(request)` in `encode`, "
            "and read the message of an error"
        )
        fake.forget()
        await provider.complete(asked)
        assert fake.max_tokens_of(fake.queries[-1]) == 32


async def _refused(
    provider: Provider, fake: FakeProvider, asked: Request, message: str, *, param: str
) -> ExternalServiceError:
    usual = fake.failure(400)
    fake.script(Failure(400, usual.type, message, code=usual.code, param=param))
    try:
        await provider.complete(asked)
    except ExternalServiceError as error:
        return error
    raise AssertionError(f"no error was raised for a refusal of {param}")


@rule("errors are logged and displayed, so they must not contain a key or a prompt")
async def _no_error_shows_the_key_or_the_prompt(case: AdapterCase) -> None:
    async with case.talk() as (_, fake):
        usual = [fake.failure(status) for status in (400, 401, 403, 404, 429, 500)]
    for one in usual:
        said = Failure(one.status, one.type, f"{KEY} asked: {PROMPT}", code=one.code)
        error = await error_of(case, said)
        chain: BaseException | None = error
        while chain is not None:
            shown = f"{chain} {chain!r} {vars(chain)}"
            assert "4711" not in shown, shown
            chain = chain.__cause__ or chain.__context__


@rule("a caller that gives up must not leave a request running that costs money")
async def _a_cancelled_call_is_closed_at_the_server(case: AdapterCase) -> None:
    async with case.talk() as (provider, fake):
        fake.script(Hang())
        asked = asyncio.create_task(provider.complete(case.asking()))
        while not fake.queries:  # noqa: ASYNC110 - the request arrives at the fake, which sets no event
            await asyncio.sleep(0.001)
        asked.cancel()
        try:
            await asked
        except asyncio.CancelledError:
            pass
        else:
            raise AssertionError("the cancellation was swallowed")
        while not fake.abandoned:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
