"""The default model of each vendor: its current mid-priced general model.

Chosen on 2026-11-23 from the models that both the vendor's SDK and the price table list: the middle of the vendor's
current family, between the small fast model and the largest one. The comments give prices in USD per million tokens,
input / output.
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
"""The variable with the key of each hosted service, for error messages. `Settings` reads the variable itself."""


SAYS_ALL = re.compile(
    r"claude-(2|3|instant|v1)|claude-(opus|sonnet|haiku)-4"  # these think only on request, and koo does not request it
    r"|gpt-(3\.5|4)|chatgpt-4o|gemini-(1|2\.0)|gemini-(pro|flash)-1|gemma-[123]"
    r"|(codestral|ministral|mistral-(7b|nemo|tiny|small-2|large-2))|(open-)?mi[sx]tral-8x|llama-?[23](?!.*nemotron)"
)
"""Models whose streams contain everything that is billed (checked on 2026-11-23). Other models may think before or
during an answer and show nothing of it, or a summary. For them the visible part of a stream says little about the
bill."""

MODELS_KEPT = 1024
"""The most models remembered. Every call checks its model, and callers choose the names."""


def may_think_unseen(service: ServiceOptions, model: str) -> bool:
    """Whether a model may bill hidden output: by the service's setting, or by its name. An unknown model may."""
    if service.thinks_unseen is not None:
        return service.thinks_unseen
    # A body parameter such as `reasoning_effort` requests thinking, whatever the model does by default.
    if service.body and any("think" in name or "reason" in name for name in map(str.lower, service.body)):
        return True
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
