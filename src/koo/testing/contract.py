"""What koo expects of your own adapter, as a list of rules for a parametrized test.

    CASE = AdapterCase(AcmeProvider, FakeAcme, "acme-1")

    @pytest.mark.parametrize("rule", koo.testing.rules(), ids=str)
    def test_the_adapter_keeps(rule):
        rule.check(CASE)

The adapter talks to a fake of its vendor over real sockets, so a case needs both. Each rule has a sentence that
explains what goes wrong otherwise, and fails with an AssertionError. koo's own adapters are tested by the same rules.
"""

from __future__ import annotations

from koo.ai.providers.base import Completion, Pace
from koo.errors import ExternalServiceError, Kind
from koo.testing import contract_errors, contract_streams
from koo.testing.contract_base import PROMPT, TEXT, AdapterCase, Rule, Rules, read

__all__ = ["AdapterCase", "Rule", "rules"]

rule = Rules()


def rules() -> tuple[Rule, ...]:
    """All rules for your own adapter."""
    return (*rule.all, *contract_streams.rule.all, *contract_errors.rule.all)


# ── whole answers ─────────────────────────────────────────────────────────────────────────────────────────────────


@rule("the caller gets the server's text, and the name of the model")
async def _a_whole_answer_is_read(case: AdapterCase) -> None:
    async with case.talk() as (provider, fake):
        fake.answers(TEXT)
        got = await provider.complete(case.asking())
        assert isinstance(got, Completion) and got.text == TEXT and got.model


@rule("tokens that are counted twice or not at all make a wrong bill: the classes of `Usage` are disjoint")
async def _the_counted_tokens_are_those_billed(case: AdapterCase) -> None:
    async with case.talk() as (provider, fake):
        fake.answers(TEXT, input_tokens=40, output_tokens=9, cache_read_tokens=7)
        usage = (await provider.complete(case.asking())).usage
        assert not usage.estimated and usage.output_tokens == 9, usage
        assert usage.read_tokens == fake.bills[-1].input_tokens, (usage, fake.bills[-1])


@rule("without usage in the response, the bill must be estimated, or it is booked too low")
async def _an_answer_without_usage_is_estimated(case: AdapterCase) -> None:
    async with case.talk() as (provider, fake):
        fake.answers(TEXT, usage=False)
        usage = (await provider.complete(case.asking())).usage
        assert usage.estimated and usage.input_tokens > 0 and usage.output_tokens > 0, usage


@rule("the budget holds the cost of `max_tokens`, so the server must receive that limit")
async def _max_tokens_is_always_sent(case: AdapterCase) -> None:
    async with case.talk() as (provider, fake):
        await provider.complete(case.asking(max_tokens=33))
        assert fake.max_tokens_of(fake.queries[-1]) == 33


@rule("the amount held before a call must not be less than the bill")
async def _the_prompt_is_bounded_from_above(case: AdapterCase) -> None:
    async with case.talk() as (provider, fake):
        for prompt in (PROMPT, "é" * 300, "x"):
            asked = case.asking(prompt=prompt, system="Be brief.")
            await provider.complete(asked)
            assert provider.bound_input_tokens(asked) >= fake.bills[-1].input_tokens


@rule("koo sends less before a limit is reached, if it can see the limit in the headers of a response")
async def _the_rate_limit_headers_are_read(case: AdapterCase) -> None:
    async with case.talk() as (provider, fake):
        fake.answers(TEXT, headers=LIMITS)
        _check_pace((await provider.complete(case.asking())).pace, "complete()")
        chunks = await read(provider, case.asking())
        _check_pace(tuple(pace for chunk in chunks for pace in chunk.pace), "stream()")


LIMITS = {
    "x-ratelimit-limit-requests": "4711",
    "x-ratelimit-remaining-requests": "4710",
    "x-ratelimit-reset-requests": "12s",
}
"""The most common headers for a rate limit. Gateways in front of any vendor send them."""


def _check_pace(found: tuple[Pace, ...], where: str) -> None:
    assert any((pace.limit, pace.remaining) == (4711, 4710) for pace in found), (
        f"{where} does not return the limit in the headers: set `pace`, as in pace=self._wire.pace(response.headers)"
    )


@rule("the prompt and the system text reach the model, and nothing else does")
async def _the_prompt_reaches_the_server(case: AdapterCase) -> None:
    async with case.talk() as (provider, fake):
        await provider.complete(case.asking(system="Be brief."))
        assert fake.queries[-1].prompt in ("Be brief." + PROMPT, PROMPT + "Be brief.")
        assert fake.model_of(fake.queries[-1]) == case.model


# ── the check ─────────────────────────────────────────────────────────────────────────────────────────────────────


@rule("the check runs all the time: it must cost nothing, and must detect a wrong key")
async def _the_check_is_not_billed_and_needs_the_key(case: AdapterCase) -> None:
    async with case.talk() as (provider, fake):
        await provider.check()
        assert not fake.bills and not fake.queries and fake.requests
    async with case.talk(key="another key") as (provider, fake):
        try:
            await provider.check()
        except ExternalServiceError as error:
            assert error.kind is Kind.AUTH, error.kind  # noqa: PT017 - this is not a pytest test
        else:
            raise AssertionError("a wrong key was not detected")


@rule("the check must detect a server that is down")
async def _the_check_finds_an_outage(case: AdapterCase) -> None:
    async with case.talk() as (provider, fake):
        fake.fails(500)
        try:
            await provider.check()
        except ExternalServiceError:
            return
        raise AssertionError("an outage was not detected")
