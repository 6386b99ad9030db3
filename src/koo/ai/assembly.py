"""Builds the services from the options: each with its vendor's adapter, its address and its classifier."""

from __future__ import annotations

from collections.abc import Callable

from koo.ai.credentials import digest_of
from koo.ai.providers.anthropic import AnthropicProvider
from koo.ai.providers.base import Provider
from koo.ai.providers.forms import Form
from koo.ai.providers.gemini import GeminiProvider
from koo.ai.providers.local import LocalProvider
from koo.ai.providers.openai import OpenAIProvider
from koo.ai.providers.openai_compatible import OpenAICompatibleProvider
from koo.ai.providers.perplexity import PerplexityProvider
from koo.ai.registration import compose
from koo.ai.service import AIService, Service, guard_options
from koo.clock import Clock
from koo.deadlines import Deadlines
from koo.errors import ConfigurationError
from koo.events import Event
from koo.http.client import HttpClient
from koo.http.plain_http import warn_of_plain_http, warn_of_proxy
from koo.http.proxies import Proxy, proxy_of
from koo.logs.calls import CallLog
from koo.monitoring.shapes import ServiceConfiguration
from koo.network_options import NetworkOptions
from koo.options import KEY_HEADERS, PlatformOptions, ServiceOptions
from koo.policies.pacer import PILOTS
from koo.storage.base import Allowance

HOSTED: dict[str, Callable[..., Provider]] = {
    "anthropic": AnthropicProvider,
    "openai": OpenAIProvider,
    "openai_compatible": OpenAICompatibleProvider,
    "gemini": GeminiProvider,
    "perplexity": PerplexityProvider,
}
"""The adapters for services on the network, by kind of service."""
ADDRESSES = {
    "anthropic": AnthropicProvider.vendor.base_url,
    "openai": OpenAIProvider.vendor.base_url,
    "gemini": GeminiProvider.vendor.base_url,
    "perplexity": PerplexityProvider.vendor.base_url,
}
"""The vendors' default addresses. A self-hosted server always has its address set."""


def assemble(
    options: PlatformOptions,
    *,
    http: HttpClient,
    clock: Clock,
    deadlines: Deadlines,
    publish: Callable[[Event], None],
    calls: CallLog | None = None,
) -> dict[str, AIService]:
    """Build every service in the options, keyed by name. Makes no connection. Raises `ConfigurationError`."""
    ai_services = {}
    for one in options.services:
        service = Service(
            one.name,
            guard_options(one),
            default_model=one.model,
            clock=clock,
            deadlines=deadlines,
            classify=compose(None, one.name),
            publish=publish,
            allowance=Allowance(one.daily_budget_usd, one.budget_is_explicit),
            slot_settings=tuple(
                f"AI_SERVICES__{one.name.upper()}__{name}" for name in ("CONCURRENCY", "QUEUE_LENGTH")
            ),
            checkable=True,
            free=one.free,
            pilots=0 if one.free else PILOTS,
            credential=digest_of(one.api_key) if one.api_key else "",
            calls=calls,
        )
        proxy = _proxy(one, options.network)
        if one.configured:
            _warn_of_secrets_in_the_clear(one, proxy)
        provider = make_provider(one, options, http.by_way_of(proxy), clock)
        ai_services[one.name] = AIService(service, provider, one, proxy)
        ai_services[one.name].look()
    return ai_services


def make_provider(one: ServiceOptions, options: PlatformOptions, http: HttpClient, clock: Clock) -> Provider:
    """Make the adapter of one service. Raises `ConfigurationError` for an unknown kind."""
    if one.kind == "local":
        return LocalProvider(one.name, model_path=options.local_model_path, queue_max=one.queue_length)
    adapter = HOSTED.get(one.kind)
    if adapter is None:
        raise ConfigurationError(one.name, f"no adapter exists for services of kind {one.kind!r}")
    return adapter(
        one.name,
        http,
        base_url=one.base_url,
        api_key=one.api_key,
        clock=clock,
        headers=one.headers,
        body=one.body,
        form=Form(frozenset(one.leave_out), one.tokens_parameter),
    )


def _proxy(one: ServiceOptions, network: NetworkOptions) -> Proxy | None:
    """The proxy between koo and a service, if any. Raises `ConfigurationError` if koo cannot use it."""
    address = one.base_url or ADDRESSES.get(one.kind)
    if address is None or not one.configured:
        return None
    try:
        return proxy_of(address, network, one.proxy)
    except ConfigurationError as error:
        raise ConfigurationError(one.name, error.reason) from None


def _warn_of_secrets_in_the_clear(one: ServiceOptions, proxy: Proxy | None) -> None:
    if one.api_key or not KEY_HEADERS.isdisjoint(one.headers):
        warn_of_plain_http(f"the key of {one.name}", one.base_url or "", proxy)
    else:
        warn_of_proxy(proxy)


def describe(one: AIService) -> ServiceConfiguration:
    """The settings in force for a service, for display: never a key, a password or a header's content."""
    options = one.options
    return {
        "kind": options.kind,
        "model": options.model,
        "base_url": options.base_url,
        "proxy": None if one.proxy is None else str(one.proxy),
        "headers": sorted(options.headers),
        "body": sorted(options.body),
        "has_key": options.api_key is not None,
        "max_tokens": options.max_tokens,
        "timeout": options.timeout_s,
        "attempt_timeout": options.attempt_timeout_s,
        "first_token_timeout": options.first_token_timeout_s,
        "stall_timeout": options.stall_timeout_s,
        "slow_call": options.slow_s,
        "concurrency": options.concurrency_max,
        "queue_length": options.queue_length,
        "max_retries": options.retry.attempts_max - 1,
        "failure_threshold": options.breaker.failure_threshold,
        "recovery_timeout": options.breaker.recovery_s,
        "success_threshold": options.breaker.success_threshold,
        "price_as": options.price_as,
        "input_price": None if options.input_price is None else str(options.input_price),
        "output_price": None if options.output_price is None else str(options.output_price),
    }
