"""Maps the different spellings of a model's name to names in the price table.

    models/gemini-3.8-flash                       a resource path: its last part is the name
    openai/gpt-6.1-terra                          the vendor before its own model
    openai/gpt-6.1-terra:nitro                    a routing suffix: any host of the model may answer
    gpt-6.1-terra-2026-10-26, …@20261026, …-001   a dated name: it may mean any of the dated entries
    eu.anthropic.claude-sonnet-5-5-v1:0           Amazon Bedrock's name, listed in Bedrock's own table
    meta-llama/llama-3.3-70b-instruct:free        one of OpenRouter's free entries
    https://eu.api.openai.com/v1                  a regional host, which may cost more

The name as written is always tried first. A rule removes only what the price does not depend on. If the price may
depend on it, the highest price of all possible meanings is charged. A name that no rule covers stays unknown, because a
guess could be too low: `:online` adds search results to the prompt, `:extended` and `:thinking` have separate prices
where they exist, and a fine-tuned model (`ft:…`) costs more than its base model.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from decimal import Decimal
from urllib.parse import urlsplit

AWS = "aws"
ROUTING = frozenset({"nitro", "floor", "exacto"})
"""Suffixes that OpenRouter accepts on any model and that only choose among its hosts (its documentation on model
variants, November 2026). OpenRouter lists its other variants as separate models."""
NAME_MAX = 256
"""A longer name is looked up only as written: callers choose names, and no model's name is this long."""
AZURE_FACTOR = Decimal("1.2")
"""The table has Azure's prices for global deployments. Data zone deployments cost 10 to 20 % more, and neither the
address nor the deployment's name shows which kind it is (Azure's retail prices, November 2026)."""
REGION_FACTOR = Decimal("1.1")
"""The surcharge of OpenAI and Vertex AI for hosts that stay in one region (their price pages, November 2026)."""

_PATH = re.compile(r"(?:.*/)?models/(?=.)")
_DATE = re.compile(r"(?:[-@]20\d\d-?(?:0[1-9]|1[0-2])-?(?:0[1-9]|[12]\d|3[01])|@default|-latest|-00\d)$")
_VERSION = re.compile(r"(?:-v\d+)?(?::\d+k?)+$|-v\d+$")
_BEDROCK = re.compile(
    r"(?:[a-z-]{2,7}\.)?(?:ai21|amazon|anthropic|cohere|deepseek|google|meta|minimax|mistral|moonshot(?:ai)?|nvidia|openai"
    r"|qwen|writer|zai)\.[a-z].*"
)
_REGION = re.compile(
    r"(?:eu|us|uk|in|jp|au|ae|ca|sg|kr|br|ap|apac|emea|me|af|sa|cn|us-gov)|[a-z]{2}(?:-gov)?-[a-z]+-?\d[a-z]?"
    r"|[a-z]+-[a-z]+\d+-aiplatform"
)


@dataclass(frozen=True, slots=True)
class Spelling:
    """One name to look up.

    `dated`: a date was removed, so any entry of the same name with a date may be meant. `anywhere`: any host of the
    model may answer. `free`: the name has the suffix of a free entry.
    """

    name: str
    dated: bool = False
    anywhere: bool = False
    free: bool = False


def spellings(model: str) -> Iterator[Spelling]:
    """The names under which a vendor's table may list a model, the most exact one first."""
    yield Spelling(model)
    name = model.strip().lower()
    if len(name) > NAME_MAX:
        return
    plain = _plain(name)
    if plain.name and plain != Spelling(model):
        yield plain
    bare = undated(plain.name)
    if bare and bare != plain.name:
        yield replace(plain, name=bare, dated=True)


def _plain(name: str) -> Spelling:
    """The name without a resource path and without a routing suffix."""
    name = _PATH.sub("", name)
    # Only suffixes that cannot change the price are removed. Any other one stays part of the name, so an unknown suffix
    # leads to an unknown price and not to that of the plain model.
    stem, _, suffix = name.rpartition(":")
    if stem and suffix in ROUTING:
        return Spelling(stem, anywhere=True)
    return Spelling(name, free=bool(stem) and suffix == "free")


def bedrock_spellings(model: str) -> Iterator[Spelling]:
    """Like `spellings`, for Bedrock's table. A name in Bedrock's form is recognised at any address."""
    name = model.strip().lower().rpartition("/")[2]
    if len(name) <= NAME_MAX and _BEDROCK.fullmatch(name):
        bare = _VERSION.sub("", name)
        yield from dict.fromkeys((Spelling(name), Spelling(bare), Spelling(undated(bare), dated=True)))


def undated(name: str) -> str:
    """A name without a date or an alias such as `-latest` at its end."""
    return _DATE.sub("", name)


def global_address(base_url: str) -> str:
    """The address with a lower-case host, with https, and without the host's labels that name a region."""
    # The last two labels are the registered domain, which may look like a region too. They are always kept.
    labels = _labels(base_url)
    kept = [label for label in labels[:-2] if not _REGION.fullmatch(label)]
    return f"https://{'.'.join(kept + labels[-2:])}{urlsplit(base_url).path}"


def factor_at(base_url: str | None, vendor: str) -> Decimal:
    """The factor by which a vendor may charge more at an address than the table says."""
    if vendor == "azure":
        return AZURE_FACTOR
    # Bedrock needs no factor: the table has its prices for each region.
    if vendor == AWS or base_url is None:
        return Decimal(1)
    return REGION_FACTOR if any(map(_REGION.fullmatch, _labels(base_url)[:-2])) else Decimal(1)


def _labels(base_url: str) -> list[str]:
    return (urlsplit(base_url).hostname or "").split(".")
