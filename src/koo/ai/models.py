"""The default model of each vendor: its current mid-priced general model.

Chosen on 2026-11-23 among the models that the vendor's own SDK names and the price table prices: the middle of the
vendor's current family, between the small fast one and the largest. Prices in comments: USD per million tokens, input /
output.
"""

from __future__ import annotations

import re
from functools import lru_cache

from koo.options import ServiceOptions

DEFAULT_MODELS: dict[str, str] = {
    "claude": "claude-sonnet-5-5",  # 2 / 10; haiku 0.1 / 0.5, opus 4 / 20
    "openai": "gpt-6.1-terra",  # 1 / 5; luna 0.1 / 0.5, sol 2 / 10
    "gemini": "gemini-3.8-flash",  # 0.75 / 3.75; flash-lite 0.3 / 2.5, argon 2 / 10
    "perplexity": "perplexity/sonar",  # 0.25 / 2.5, and 2.5 for a thousand searches
}

KEY_VARIABLES: dict[str, str] = {
    "claude": "ANTHROPIC_API_KEY",
    "openai": "OPENAI_API_KEY",
    "gemini": "GEMINI_API_KEY",
    "perplexity": "PERPLEXITY_API_KEY",
}
"""The variable that makes a hosted service configured, for the sentence of an error; what reads it is `Settings`."""


SAYS_ALL = re.compile(
    r"claude-(2|3|instant|v1)|claude-(opus|sonnet|haiku)-4"  # these think only if asked to, and koo does not ask
    r"|gpt-(3\.5|4)|chatgpt-4o|gemini-(1|2\.0)|gemini-(pro|flash)-1|gemma-[123]"
    r"|(codestral|ministral|mistral-(7b|nemo|tiny|small-2|large-2))|(open-)?mi[sx]tral-8x|llama-?[23](?!.*nemotron)"
)
"""Models that show everything that is paid for (looked up on 2026-11-23). Others may think before they answer, or
between two words, and show nothing or a summary of it: the visible part of their streams says little about the bill."""

MODELS_KEPT = 1024
"""Models remembered: each call asks, and callers choose their names."""


def may_think_unseen(service: ServiceOptions, model: str) -> bool:
    """Whether it may bill hidden output. By the service's setting, else by the model; an unknown one may."""
    if service.thinks_unseen is not None:
        return service.thinks_unseen
    if service.body and any("think" in name or "reason" in name for name in map(str.lower, service.body)):
        return True  # the operator requests thinking, whatever the model does by default
    return not _says_all(model)


@lru_cache(MODELS_KEPT)
def _says_all(model: str) -> bool:
    return SAYS_ALL.match(model.rpartition("/")[2].lower()) is not None


def not_configured(service: ServiceOptions) -> str:
    """Why a service is not configured, and what to do about it."""
    if service.disabled_by:
        return f"switched off by {service.disabled_by}"
    variable = KEY_VARIABLES.get(service.name, f"AI_SERVICES__{service.name.upper()}__API_KEY")
    return f"not configured: set {variable} to its key, in the environment or the .env in KOO_HOME"
