"""Learn from a server's refusals which form of a request it accepts.

Servers of the same format accept different parameters. A reasoning model rejects `temperature`, a gateway requires
`max_completion_tokens` in place of `max_tokens`, an old server does not support `stream_options`, a small model has no
room for an answer of 4,096 tokens, and some models answer only in streams, or only without them. Each server says so
when it refuses, and a refusal costs nothing. So the same request is sent once more in the form that the server accepts,
as a separate attempt (`Fault.anew`), and the form is remembered for the service and model. An operator can configure it
beforehand.

A refusal teaches something only if it names a parameter that was sent, and either rejects it or states a limit. If a
server complains about a parameter that was left out, the parameter was not the cause, and is sent again.

`max_tokens` is never left out, because the hold on the budget is computed from it. It is sent under its other name, or
lowered to what fits: the context minus the prompt as the server counted it. For other prompts the count is estimated
from there, and the estimate errs on the side that costs one more refusal, not on the side that would cut off an answer.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, replace

from koo.ai.providers.base import Request
from koo.ai.providers.faults import MESSAGE_MAX, ParsedError

log = logging.getLogger("koo")

MODELS_MAX = 256
"""Models to remember per service. Callers choose model names, so without a limit they could fill the memory."""
REFUSALS = frozenset({400, 403, 413, 422})
TOKEN_NAMES = ("max_tokens", "max_completion_tokens")
OPTIONAL = ("temperature", "stream_options")
PART_OF = {"include_usage": "stream_options", "stream_options.include_usage": "stream_options"}
"""Fields inside a parameter that a server may name in its place."""
BYTES_A_TOKEN = 4
"""The average of English text. Other languages have fewer characters per token, but more bytes per character."""
UNCOUNTED = 64
"""Tokens to assume around a prompt if the server has not counted it; doubled after each refusal that follows."""
HEAD_MAX = 400
"""Characters of a message to search for parameters; later parts may quote the prompt."""


@dataclass(frozen=True, slots=True)
class Form:
    """The form of a request that one model of a service accepts.

    `without`: parameters to leave out. `stream`: the only value of `stream` that is accepted, if the server has refused
    the other one. `tokens_name`: the name to send `max_tokens` under, if the format has two.
    `output_max`: the limit of the answer alone; `context`: the limit of prompt and answer together, both in tokens.
    `overhead`: the tokens that the server counts for a prompt beyond the estimate.
    """

    without: frozenset[str] = frozenset()
    tokens_name: str | None = None
    output_max: int | None = None
    context: int | None = None
    overhead: int = 0
    stream: bool | None = None

    def max_tokens(self, request: Request) -> int:
        """The `max_tokens` that fits, and never more than the request's."""
        most = request.max_tokens
        if self.output_max is not None:
            most = min(most, self.output_max)
        if self.context is not None:
            most = min(most, self.context - _estimate(request) - self.overhead)
        return max(most, 1)


PLAIN = Form()


class Forms:
    """The forms of one service's models.

    `given` is set by the operator and never changes. `has_two_names`: the format has two names for `max_tokens`.
    """

    __slots__ = ("_by_model", "given", "has_two_names", "service")

    def __init__(self, service: str, given: Form = PLAIN, *, has_two_names: bool = False) -> None:
        self.service = service
        self.given = (
            PLAIN if given == PLAIN else given
        )  # `fit` compares by identity, which costs next to nothing
        self.has_two_names = has_two_names
        self._by_model: dict[str, Form] = {}

    def of(self, model: str) -> Form:
        """The current form for this model."""
        return self._by_model.get(model, self.given)

    def fit(self, request: Request) -> Request:
        """The request in the form that the model accepts, except for the names of parameters."""
        form = self._by_model.get(request.model, self.given)
        if form is PLAIN:
            return request
        return replace(
            request,
            max_tokens=form.max_tokens(request),
            temperature=None if "temperature" in form.without else request.temperature,
        )

    def learn(self, request: Request, parsed: ParsedError, sent: bytes) -> bool:
        """Learn from the refusal of a request with the body `sent`; return False if another form would not help."""
        if parsed.status not in REFUSALS:
            return False
        known = self.of(request.model)
        form = (
            _with_room(known, request, parsed, sent)
            or self._without(known, request, parsed, sent)
            or self._streamed(known, request, parsed, sent)
        )
        if form is not None:
            if len(self._by_model) >= MODELS_MAX:
                self._by_model.clear()
            self._by_model[request.model] = form
        # A form that leaves out less than before takes back an earlier guess, and has already been refused in that
        # form. Repeating the request would only go back and forth between the two.
        return form is None or form.without >= known.without

    def _without(self, form: Form, request: Request, parsed: ParsedError, sent: bytes) -> Form | None:
        used = next((name for name in TOKEN_NAMES if _is_sent(name, sent)), "")
        name = _refused(parsed, used)
        if name is None:
            return None
        if name in TOKEN_NAMES:
            # The other name is already in use, so the server has refused both: the name is not the cause.
            if form.tokens_name is not None or not self.has_two_names:
                return None
            other = TOKEN_NAMES[1 - TOKEN_NAMES.index(used)]
            log.info("%s: requests to %s will use %s", self.service, request.model[:80], other)
            return replace(form, tokens_name=other)
        if not _is_sent(name, sent):
            return replace(form, without=form.without - {name} | self.given.without)
        if name not in form.without:
            log.warning("%s: %s rejects %s; it will be left out", self.service, request.model[:80], name)
        return replace(form, without=form.without | {name})

    def _streamed(self, form: Form, request: Request, parsed: ParsedError, sent: bytes) -> Form | None:
        # A form with the other value has already been refused too, so `stream` is not the cause.
        if form.stream is not None or not _refuses_stream(parsed):
            return None
        stream = b'"stream":true' not in sent
        how = "only in streams" if stream else "only without a stream"
        log.warning(
            "%s: %s answers %s, so all its requests will be of that kind",
            self.service,
            request.model[:80],
            how,
        )
        return replace(form, stream=stream)


def _is_sent(name: str, sent: bytes) -> bool:
    """Whether the parameter was a field of the body."""
    # A prompt that contains `temperature":` does not match: in JSON its quote has a backslash in front.
    return f'{name}":'.encode() in sent


# ── refused parameters ────────────────────────────────────────────────────────────────────────────────────────────────

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
    """The parameter that the server does not accept; `used` is the name under which `max_tokens` was sent."""
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
    # "Use 'max_completion_tokens' instead of 'max_tokens'" names both. The one that was sent is the refused one.
    return used if used in found else None


_STREAM = re.compile(r"(?<![\w.-])(?:non[- ]?)?stream(?:ing|ed)?(?!\w)")
_ONLY_OTHER = re.compile(
    r"\bonly\b|\b(?:must|should|needs to|has to) (?:be|have)\b|\brequire[sd]?\b|\bcan ?not\b"
)


def _refuses_stream(parsed: ParsedError) -> bool:
    """Whether the server accepts only the other value of `stream`."""
    if parsed.param == "stream":
        return True
    head = " ".join((parsed.message[:HEAD_MAX], *(said[:HEAD_MAX] for said in parsed.outer))).lower()
    return bool(_STREAM.search(head) and (_REFUSES.search(head) or _ONLY_OTHER.search(head)))


# ── stated limits ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _with_room(form: Form, request: Request, parsed: ParsedError, sent: bytes) -> Form | None:
    """The form with the limit that a refusal states; None if it states none, or if not even the prompt fits."""
    # What was sent counts, not what the caller requested: an earlier refusal may already have lowered it.
    found = _ASKED.search(sent)
    asked = int(found[1]) if found else request.max_tokens
    room = _room(parsed, asked)
    if room.context is not None:
        estimate = _estimate(request)
        prompt = estimate if room.prompt is None else room.prompt
        # Without an exact count the overhead is guessed, and doubles with each refusal. So a few attempts are enough
        # for any prompt, and each of them makes progress.
        if room.prompt is None or room.is_at_least:
            prompt = max(prompt, estimate + max(UNCOUNTED, 2 * form.overhead))
        # The first: not even a prompt alone fits. The second: by these numbers the request fits, so they are not the
        # reason for the refusal, and the same request would be refused again.
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
    """The numbers of tokens in a refusal. `is_at_least`: the prompt's count is only a lower bound."""

    context: int | None = None
    prompt: int | None = None
    output_max: int | None = None
    is_at_least: bool = False


def _any(*phrases: str) -> re.Pattern[str]:
    """A pattern for any of the phrases; # stands for the number to extract."""
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
_SAME = r"(?:(?!temperature|top_|penalty|logprobs).)"
"""Any character within the words about one parameter. The limits of others, which a message may also name, are much
lower."""
_OUTPUT = _any(
    r"at most # (?:completion |output )?tokens",
    r"tokens?:? \d+ > #",
    rf"max(?:imum)?[_ ](?:\w+[_ ])?tokens\b{_SAME}{{0,40}}?{_AT_MOST}\s*#",
    r"range .{0,30}\[\d+, ?#\]",
    rf"max_?tokens(?![a-z]){_SAME}{{0,90}}?"
    r"(?:[\[(]\d+, ?#\]|between \d+ and #|expected a value <= #)",
    r"model limit of #",
    r"max(?:imum)? (?:output|completion|new) tokens\D{0,30}#",
)
_BELOW = _any(r"(?:lower|less|smaller) than (?!or equal)#", r"to # \(exclusive\)")


def _room(parsed: ParsedError, asked: int) -> _Room:
    text = re.sub(
        r"(?<=\d),(?=\d{3}(?!\d))", "", " ".join((parsed.message, *parsed.outer))[:MESSAGE_MAX].lower()
    )
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
