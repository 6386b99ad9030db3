"""How a server's format differs: which parameters it refuses, learned from its refusals.

Servers of one format differ in what they accept. A reasoning model refuses `temperature`, a gateway in front of it
wants `max_completion_tokens` for `max_tokens`, an old server does not know `stream_options`, a small model has no room
for an answer of 4,096 tokens. Each says so when it refuses, and a refusal costs nothing. So the same request is sent
once more in the form that the server accepts, as an attempt of its own (`Fault.anew`), and the form is remembered for
the service and model. An operator can set what is known beforehand.

A refusal is believed only if it names one of the parameters that were sent, and refuses it or says what there is room
for. If a parameter is complained about although it was left out, it was not the cause: it is sent again.

The bound of the answer is never left out, since the budget rests on it; it is sent under its other name, or lowered. It
is lowered to what fits: the context less the prompt as the server counted it. Other prompts are estimated from there,
rather too short than too long: too short costs one more refusal, too long cuts an answer.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, replace

from koo.ai.providers.base import Request
from koo.ai.providers.faults import MESSAGE_MAX, ParsedError

log = logging.getLogger("koo")

MODELS_MAX = 256
"""Model names come from callers: more than an operator uses would fill the memory."""
REFUSALS = frozenset({400, 403, 413, 422})
TOKEN_NAMES = ("max_tokens", "max_completion_tokens")
OPTIONAL = ("temperature", "stream_options")
PART_OF = {"include_usage": "stream_options", "stream_options.include_usage": "stream_options"}
"""Other parts of a parameter that a server may name."""
BYTES_A_TOKEN = 4
"""Of English; other languages have fewer characters to a token, but more bytes to a character."""
UNCOUNTED = 64
"""Tokens around a prompt that its server has not counted; doubled after each refusal without a better count."""
HEAD_MAX = 400
"""Characters: later parts of a refusal may be the prompt."""


@dataclass(frozen=True, slots=True)
class Form:
    """What one model of a service accepts.

    `without`: parameters that are left out. `tokens_name`: the name of the longest answer, if the format has two.
    `output_max`: its bound alone; `context`: the bound of prompt and answer together, in tokens. `overhead`: what the
    server counts of a prompt beyond the estimate.
    """

    without: frozenset[str] = frozenset()
    tokens_name: str | None = None
    output_max: int | None = None
    context: int | None = None
    overhead: int = 0

    def max_tokens(self, request: Request) -> int:
        """The longest answer that there is room for, and never more than was requested."""
        most = request.max_tokens
        if self.output_max is not None:
            most = min(most, self.output_max)
        if self.context is not None:
            most = min(most, self.context - _estimate(request) - self.overhead)
        return max(most, 1)


PLAIN = Form()


class Forms:
    """The forms of one service's models.

    `given` is the operator's, and stays. `has_two_names`: the format has two names for the longest answer.
    """

    __slots__ = ("_by_model", "given", "has_two_names", "service")

    def __init__(self, service: str, given: Form = PLAIN, *, has_two_names: bool = False) -> None:
        self.service = service
        self.given = PLAIN if given == PLAIN else given  # so that a request is passed on by one comparison
        self.has_two_names = has_two_names
        self._by_model: dict[str, Form] = {}

    def of(self, model: str) -> Form:
        """The form for this model."""
        return self._by_model.get(model, self.given)

    def fit(self, request: Request) -> Request:
        """The request as the model accepts it, except for names that are the format's own."""
        form = self._by_model.get(request.model, self.given)
        if form is PLAIN:
            return request
        return replace(
            request,
            max_tokens=form.max_tokens(request),
            temperature=None if "temperature" in form.without else request.temperature,
        )

    def learn(self, request: Request, parsed: ParsedError, sent: bytes) -> bool:
        """Learn from how the server refused a request, whose body was `sent`; False: another form would not help."""
        if parsed.status not in REFUSALS:
            return False
        known = self.of(request.model)
        form = _with_room(known, request, parsed, sent) or self._without(known, request, parsed, sent)
        if form is not None:
            if len(self._by_model) >= MODELS_MAX:
                self._by_model.clear()
            self._by_model[request.model] = form
        return form is None or form.without >= known.without

    def _without(self, form: Form, request: Request, parsed: ParsedError, sent: bytes) -> Form | None:
        used = next((name for name in TOKEN_NAMES if _is_sent(name, sent)), "")
        name = _refused(parsed, used)
        if name is None:
            return None
        if name in TOKEN_NAMES:
            # Both names were refused: neither was the cause.
            if form.tokens_name is not None or not self.has_two_names:
                return None
            other = TOKEN_NAMES[1 - TOKEN_NAMES.index(used)]
            log.info("%s: requests to %s use %s from now on", self.service, request.model[:80], other)
            return replace(form, tokens_name=other)
        if not _is_sent(name, sent):
            return replace(form, without=form.without - {name} | self.given.without)
        if name not in form.without:
            log.warning(
                "%s: %s refuses %s, which is left out from now on", self.service, request.model[:80], name
            )
        return replace(form, without=form.without | {name})


def _is_sent(name: str, sent: bytes) -> bool:
    """Whether it was a field of the body. Inside a prompt its closing quote would have a backslash before it."""
    return f'{name}":'.encode() in sent


# ── what is refused ───────────────────────────────────────────────────────────────────────────────────────────────────

_REFUSES = re.compile(
    r"unsupported|not support|n't support|unknown|unrecogni[sz]ed|unexpected|forbidden|extra (?:inputs|fields)"
    r"|deprecated|not (?:permitted|allowed|accepted|available|compatible)|only the default|may only be|no such"
    r"|only .{1,24}(?:is|are) (?:supported|allowed)|cannot be (?:set|used|specified)"
    r"|not (?:a )?(?:valid|recogni[sz]ed) (?:parameter|argument|field)|invalid (?:parameter|argument|field)\b"
)
_REFUSING_CODES = re.compile(r"unsupported|unknown|unrecogni|extra|unexpected|not_?supported|not_?permitted")
_NAMES = re.compile(
    r"(?<![\w-])(?:stream_options\.include_usage|include_usage|stream_options|temperature|max_(?:completion_)?tokens)"
    r"(?![\w-])"
)


def _refused(parsed: ParsedError, used: str) -> str | None:
    """The parameter that the server does not accept at all; `used`: the name of the longest answer."""
    head = " ".join((parsed.message[:HEAD_MAX], *(said[:HEAD_MAX] for said in parsed.outer))).lower()
    named = [parsed.param] if parsed.param else []
    named += _NAMES.findall(head)
    known = [PART_OF.get(name, name) for name in named]
    found = [name for name in known if name in OPTIONAL or name in TOKEN_NAMES]
    by_code = any(name is not None and _REFUSING_CODES.search(name.lower()) for name in parsed.names)
    if not found or not (by_code or _REFUSES.search(head)):
        return None
    if found[0] in OPTIONAL:
        return found[0]
    # "Use 'max_completion_tokens' instead of 'max_tokens'": the one that was sent is the one that is refused.
    return used if used in found else None


# ── what there is room for ────────────────────────────────────────────────────────────────────────────────────────────


def _with_room(form: Form, request: Request, parsed: ParsedError, sent: bytes) -> Form | None:
    """The form with the room that a refusal names; None if it names none, or if not even the prompt fits."""
    found = _ASKED.search(sent)
    asked = int(found[1]) if found else request.max_tokens
    room = _room(parsed, asked)
    if room.context is not None:
        estimate = _estimate(request)
        prompt = estimate if room.prompt is None else room.prompt
        if room.prompt is None or room.is_at_least:
            prompt = max(prompt, estimate + max(UNCOUNTED, 2 * form.overhead))
        if room.context <= prompt or room.context - prompt >= asked:
            return None
        return replace(form, context=room.context, overhead=prompt - estimate)
    if room.output_max is not None and 0 < room.output_max < asked:
        return replace(form, output_max=room.output_max)
    return None


def _estimate(request: Request) -> int:
    text = len(request.prompt.encode("utf-8", "replace")) + len(
        (request.system or "").encode("utf-8", "replace")
    )
    return text // BYTES_A_TOKEN


@dataclass(frozen=True, slots=True)
class _Room:
    """A refusal's numbers of tokens; `is_at_least`: the prompt is counted only in part."""

    context: int | None = None
    prompt: int | None = None
    output_max: int | None = None
    is_at_least: bool = False


def _any(*phrases: str) -> re.Pattern[str]:
    """Any of these, where # is the number that counts."""
    return re.compile("|".join(phrases).replace("#", r"(\d+)"))


_ASKED = re.compile(rb'"max\w*[tT]okens":(\d+)')
_CONTEXT = _any(
    r"context limit: \d+ \+ \d+ > #",
    r"(?:context|sequence) (?:length|window|size|limit)\D{0,30}?#",
    r"(?:model with )?# maximum context",
    r"max(?:imum)?[ _]model[ _]len\w*\D{0,20}#",
    r"max_new_tokens must be <= #",
    r"maximum (?:total )?tokens\D{0,20}#",
)
_PROMPT = _any(
    r"context limit: # \+",
    r"# (?:tokens )?(?:in|of|from) (?:the |your )?(?:text )?(?:messages|inputs?|prompt)",
    r"(?:prompt|input|request|messages)s? (?:contains?|has|have|had|is|length:?|of) (?P<part>at least )?#",
    r"prompt # tokens",
    r"resulted in # tokens",
    r"# (?:inputs?|prompt)\b",
)
_TOTAL = _any(
    r"requested (?:about |a total of |at least )?# tokens(?! (?:for|of) (?:the )?(?:output|completion))"
)
_LIMIT = r"(?:maximum|limit)(?: value)?(?: allowed)?(?: is| of|:)"
_AT_MOST = rf"(?:<=|less than or equal to|at most|(?:can|must )?not exceed|up to|{_LIMIT})"
_OUTPUT = _any(
    r"at most # (?:completion |output )?tokens",
    r"tokens?:? \d+ > #",
    rf"max(?:imum)?[_ ](?:\w+[_ ])?tokens\b.{{0,40}}?{_AT_MOST}\s*#",
    r"range .{0,30}\[\d+, ?#\]",
    r"model limit of #",
    r"max(?:imum)? (?:output|completion|new) tokens\D{0,30}#",
)
_BELOW = _any(r"(?:lower|less|smaller) than (?!or equal)#", r"to # \(exclusive\)")


def _room(parsed: ParsedError, asked: int) -> _Room:
    text = re.sub(r"(?<=\d),(?=\d{3})", "", " ".join((parsed.message, *parsed.outer))[:MESSAGE_MAX].lower())
    text = re.sub("[`'\"]", "", text)
    context = parsed.counts.get("context_tokens") or _first(_CONTEXT, text)
    if context is not None:
        found = _PROMPT.search(text)
        prompt = parsed.counts.get("prompt_tokens") or _number(found)
        total = _first(_TOTAL, text)
        if prompt is None and total is not None and total > asked:
            prompt = total - asked
        return _Room(context, prompt, is_at_least=found is not None and found["part"] is not None)
    if "token" not in text:
        return _Room()
    below = _first(_BELOW, text)
    return _Room(output_max=_first(_OUTPUT, text) if below is None else below - 1)


def _first(pattern: re.Pattern[str], text: str) -> int | None:
    return _number(pattern.search(text))


def _number(found: re.Match[str] | None) -> int | None:
    return (
        next((int(group) for group in found.groups() if group and group.isdigit()), None) if found else None
    )
