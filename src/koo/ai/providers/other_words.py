"""Names and phrases that any gateway or vendor uses for a refused key, an empty account, a limit or an overload.

A service may forward the error of a server in front of it or behind it. So these are searched for in every vendor's
errors, after the vendor's own rows and before the status alone decides.

Names (codes, types, reasons) are compared by their letters, because every server writes them differently:
`RateLimitExceeded`, `RATE_LIMIT_EXCEEDED` and `rate_limit_exceeded_error` are the same. Only the beginning of a
sentence is searched, after the names of servers that forwarded it, and without quotations: later parts may quote the
prompt, and a prompt about an empty account must not stop a service. Names that fit any error are not listed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from koo.errors import Kind

HEAD_MAX = 160
"""Characters of a sentence to search, after the prefixes that gateways add."""
PASSED_ON_MAX = 8
"""Prefixes to remove. Each gateway in a chain adds one."""

NAMES: dict[Kind, str] = {
    Kind.AUTH: """
        invalid_api_key api_key_invalid api_key_expired api_key_not_found api_key_disabled api_key_revoked expired_key
        expired_token invalid_token invalid_key token_expired token_not_found_in_db invalid_subscription_key
        unrecognized_client invalid_signature incomplete_signature missing_authentication_token failed_to_auth
        authentication authentication_failed authentication_failure auth unauthorized unauthenticated invalid_api_token
        invalid_credentials invalid_authentication incorrect_api_key oauth.v2.InvalidApiKey invalid_user_key
        oauth.v2.FailedToResolveAPIKey no_auth_credentials account_deactivated
    """,
    Kind.PERMISSION: """
        key_model_access_denied team_model_access_denied user_model_access_denied org_model_access_denied
        project_model_access_denied model_access_denied access_denied permission permission_denied forbidden no_access
        unsupported_country_region_territory consumer_suspended service_disabled
    """,
    Kind.BILLING: """
        insufficient_balance insufficient_credits insufficient_credit insufficient_funds insufficient_user_quota
        not_enough_balance balance_not_enough credit_limit credit_limit_exceeded credits_exhausted out_of_credits
        credit_balance_exhausted payment_required billing billing_not_active billing_disabled billing_hard_limit_reached
        arrearage account_overdue overdue_balance pre_consume_token_quota_failed account_suspended
        customer_verification_required invalid_payment_instrument
    """,
    Kind.QUOTA: """
        budget_exceeded exceeded_budget exceeded_current_quota insufficient_quota quota_exceeded quota_exhausted
        service_quota_exceeded spend_limit_exceeded spend_limit_reached monthly_limit_exceeded daily_limit_exceeded
        policies.ratelimit.QuotaViolation set_limit_exceeded usage_limit_exceeded usage_limit_reached per_day
        AllocationQuota.FreeTierOnly
    """,
    Kind.THROTTLED: """
        rate_limit rate_limited rate_limit_exceeded rate_limit_reached too_many_requests throttling throttled
        throttling.RateQuota throttling.AllocationQuota request_limit_exceeded requests_limit_exceeded limit_requests
        model_rate_limit dynamic_request_limited concurrency_limit_exceeded max_parallel_request_limit_reached
        request_throttled request_quota_exceeded token_quota_exceeded policies.ratelimit.SpikeArrestViolation
        model_account_rpm_rate_limit_exceeded model_account_tpm_rate_limit_exceeded flex_unavailable capacity_exceeded
        flex_tier_capacity_exceeded service_tier_capacity_exceeded too_many_tokens per_minute
    """,
    Kind.OVERLOADED: """
        overloaded model_overloaded engine_overloaded server_overloaded server_is_overloaded service_unavailable
        temporarily_unavailable server_busy model_not_ready model_loading queue_exceeded service_not_available
        no_healthy_upstream
    """,
    Kind.TOO_LARGE: """
        request_too_large payload_too_large request_entity_too_large content_too_large tokens_limit_reached
    """,
    Kind.CONTEXT_LENGTH: "context_length_exceeded exceed_context_size context_window_exceeded",
    Kind.CONTENT_POLICY: """
        content_filter content_policy_violation responsible_ai_policy_violation data_inspection_failed moderation
        sensitive_content_detected input_text_sensitive_content_detected moderation_blocked
    """,
    Kind.NOT_FOUND: """
        not_found model_not_found deployment_not_found unknown_model unavailable_model resource_not_found
        invalid_endpoint_or_model.NotFound invalid_model model_decommissioned model_not_supported
    """,
    Kind.TIMEOUT: "timeout model_timeout gateway_timeout request_timeout deadline_exceeded",
}  # fmt: skip
"""Codes, types and reasons of errors by their meaning."""

PARTS_OF_NAMES: tuple[tuple[Kind, re.Pattern[str]], ...] = (
    (
        Kind.BILLING,
        re.compile(
            "(?:insufficient|notenough|outof|low).*(?:balance|credit|fund)|(?:balance|credit)s?exhaust"
        ),
    ),
    (
        Kind.QUOTA,
        re.compile(
            "(?:quota|budget|spendlimit|usagelimit).*(?:exceed|reach|exhaust)|(?:exceed|exhaust).*(?:quota|budget)"
        ),
    ),
    (Kind.THROTTLED, re.compile("ratelimit|throttl|toomanyrequest")),
    (
        Kind.AUTH,
        re.compile(
            "(?:invalid|expired|incorrect|missing|revoked|disabled).*(?:apikey|accesstoken|credentials?)$"
        ),
    ),
    (Kind.OVERLOADED, re.compile("overload")),
)
"""Patterns to search for in the letters of a name that is not listed."""

CONTEXT_WORDS = (
    r"context_length_exceeded",
    r"(?:maximum|model's) (?:context|prompt|input|model|sequence) (?:length|window|size)",
    r"the context window",
    r"context length of (?:only )?\d",
    r"context (?:length|size|window|limit) (?:\w+ ){0,2}exceed",
    r"exceed\w* (?:\w+ ){0,3}context",
    r"(?:longer|greater|larger) than the (?:model's |maximum )?(?:context|model|input|prompt) ",
    r">= ?n_ctx",
    r"(?:prompt|input)\b[^:]{0,40}? too long|prompt 超长",
    r"exceed\w* (?:the )?(?:model |maximum )?(?:token limit|number of tokens allowed)",
    r"input token(?:s| count).{0,40}?(?:exceed the configured|supports up to)",
    r"token count exceeds the model",
    r"too many input tokens|tokens in the prompt cannot exceed|range of input length",
    r"`inputs` tokens \+ `max_new_tokens` must be|`inputs` must have less than",
    r"too large for model with",
)
"""Phrases for a prompt that is too long, of many servers and versions. They count only in refusals of a request."""
REFUSED = frozenset({200, 400, 403, 413, 422})
"""Statuses for a prompt and an answer that do not fit together. The vendor Together uses 403, and once a response has
begun, its status is 200."""

MAY_MEAN: dict[int, frozenset[Kind]] = {
    401: frozenset({Kind.AUTH, Kind.PERMISSION, Kind.BILLING, Kind.QUOTA}),
    402: frozenset({Kind.BILLING, Kind.QUOTA, Kind.THROTTLED, Kind.TOO_LARGE}),
    403: frozenset(
        {
            Kind.PERMISSION, Kind.AUTH, Kind.BILLING, Kind.QUOTA, Kind.THROTTLED, Kind.CONTENT_POLICY,
            Kind.CONTEXT_LENGTH, Kind.TOO_LARGE, Kind.NOT_FOUND,
        }
    ),
    404: frozenset({Kind.NOT_FOUND, Kind.PERMISSION, Kind.AUTH}),
    408: frozenset({Kind.TIMEOUT, Kind.OVERLOADED}),
    413: frozenset({Kind.TOO_LARGE, Kind.CONTEXT_LENGTH}),
    429: frozenset({Kind.THROTTLED, Kind.QUOTA, Kind.BILLING, Kind.TOO_LARGE, Kind.CONTEXT_LENGTH}),
    503: frozenset({Kind.OVERLOADED, Kind.THROTTLED, Kind.QUOTA, Kind.BILLING, Kind.TIMEOUT, Kind.NOT_FOUND}),
    504: frozenset({Kind.TIMEOUT, Kind.OVERLOADED}),
    529: frozenset({Kind.OVERLOADED, Kind.THROTTLED}),
}  # fmt: skip
"""The kinds that each status allows. A name or sentence can refine the status, but not contradict it."""

_LED_BY = r"(?:[\w',.@/-]+ ){0,8}?"
"""A few words that may precede the phrase. Colons and quotes are excluded, because a quoted prompt may follow them."""
_KEY = (
    r"(?:(?:api|access|auth\w*|subscription|security|virtual|bearer|secret|proxy server)[ _-]?"
    r"(?:keys?|tokens?|credentials?)|credentials)\b"
)
_BAD = (
    r"(?:invalid|incorrect|wrong|expired|missing|revoked|disabled|inactive|unknown|blocked|deactivated|leaked|required"
    r"|not? (?:valid|found|recogni[sz]ed|provided|active)|does not exist|unrecogni[sz]ed)\b"
)
_MONEY = r"(?:(?:account |wallet |user )?(?:balance|credits?|funds?|money))\b"
_NO_MONEY = r"(?:insufficient|not enough|no|out of|low|negative|(?:doesn't|don't|does not|do not) have (?:any|enough))"
_SPENT = r"(?:too low|insufficient|exhausted|depleted|used up|not enough|expired|exceeded)\b"
_QUOTA = (
    r"(?:(?<!thinking )(?<!reasoning )budget|quota"
    r"|(?:key|total) limit|allocation|allowance|spend(?:ing)? (?:limit|cap)|usage limits?|free tier"
    r"|(?:hourly|daily|weekly|monthly)(?: \w+)? limit)\b"
)
_CONTENT = r"(?:content|prompt|input|output|request|response)"
_REACHED = r"(?:exceeded|exhausted|reached|used up|depleted|over)\b"


def _sentences(kind: Kind, *phrases: str) -> tuple[Kind, re.Pattern[str]]:
    return kind, re.compile(f"{_LED_BY}(?:{'|'.join(phrases)})")


SENTENCES = (
    # Rate limits come before money, because their messages mention money: "add 10 credits to unlock more requests a
    # day".
    _sentences(
        Kind.THROTTLED,
        r"rate[ -]?limit(?:ing)? (?:(?:is|has been|was|quota) )?(?:exceeded|reached|hit|violation)",
        r"rate[ -]?limited",
        rf"{_REACHED} (?:[\w']+ ){{0,4}}rate[ -]?limit",
        r"too many (?:requests|tokens per|tokens, please wait|concurrent)",
        r"rejected due to rate",
        r"(?:request|qps|rpm|tpm) limit (?:exceeded|reached)",
        r"slow down",
        r"throttl(?:ed|ing)",
        r"max(?:imum)? parallel requests?",
        r"crossed [\w /]+ limit",
        r"concurren(?:t|cy) (?:requests? )?limit",
    ),
    _sentences(
        Kind.BILLING,
        rf"{_NO_MONEY} {_MONEY}",
        rf"{_MONEY} (?:\w+ ){{0,3}}{_SPENT}",
        r"credits? limit (?:exceeded|reached)",
        r"(?:requires more|included|used all(?: \w+){0,2}) credits",
        r"payment (?:is )?required",
        r"payment method",
        r"billing",
        r"prepa(?:id|yment) credits",
        r"unpaid|overdue|arrear|past invoices|failure to pay|good standing|top up|recharge",
        r"card (?:was |is )?declined",
        r"account (?:[\w.@/-]+ )?(?:is |has been )?suspended",
        r".{0,12}(?:余额不足|欠费|额度不足|额度已用尽|请充值)",
    ),
    _sentences(
        Kind.QUOTA,
        rf"{_REACHED} (?:[\w']+ ){{0,5}}{_QUOTA}",
        rf"{_QUOTA} (?:\w+ ){{0,5}}{_REACHED}",
        r"exceeded ?budget|out of (?:extra|included) usage",
        r"out of call volume quota",
    ),
    _sentences(
        Kind.AUTH,
        rf"{_BAD}[:,]? (?:[\w']+ ){{0,4}}{_KEY}",
        rf"{_KEY}[:,]?(?: [\w']+){{0,6}}? {_BAD}",
        r"authentication (?:error|fail|fails|failed|required|token)",
        r"not authenticated|no auth credentials|unauthori[sz]ed",
        r"organization has been (?:disabled|restricted)|login fail",
        r".{0,6}(?:无效的令牌|令牌无效|令牌已过期|密钥无效)",
    ),
    _sentences(
        Kind.TOO_LARGE,
        r"(?:request|payload|body|prompt|message|content)(?: (?:entity|payload|body|size|content|is|was))* "
        r"(?:too large|too big|exceeds the (?:maximum|limit|max|allowed))",
    ),
    _sentences(
        Kind.CONTENT_POLICY,
        rf"{_CONTENT}(?: [\w']+){{0,8}} (?:(?:content|usage|safety|moderation) (?:\w+ )?polic|content filter"
        r"|(?:usage|content|moderation) guidelines|terms of (?:service|use)|safety system)",
        rf"{_CONTENT}(?: \w+){{0,3}} flagged",
        r"contains? (?:\w+ )?(?:sensitive|inappropriate|unsafe|harmful)|content exists risk",
        r"(?:in|out)put new_sensitive",
        r".{0,20}(?:敏感内容|不安全|违规内容|敏感词)",
    ),
    # Servers of one machine report these with status 400.
    _sentences(
        Kind.SERVER_ERROR,
        r"(?:model|runner|engine)(?: process)? (?:has |was )?(?:(?:unexpectedly )?(?:crashed|terminated)"
        r"|unexpectedly stopped)",
    ),
    _sentences(
        Kind.OVERLOADED,
        r"overloaded|over capacity|at (?:full )?capacity|no capacity|capacity (?:\w+ )?exceeded",
        r"(?:server|service|model) (?:is )?(?:too |currently )?busy",
        r"high (?:demand|traffic|load)",
        r"(?:currently|temporarily|still) (?:unavailable|overloaded|loading)",
        r"loading model|no healthy upstream|queue (?:is )?full|no available (?:server|worker|instance)",
        r"model (?:is |was )?unloaded",
        r".{0,8}(?:服务器繁忙|负载已饱和)",
    ),
    # LM Studio sends the first of these with status 200, and the second with 400.
    _sentences(
        Kind.NOT_FOUND,
        r"(?:unexpected|unknown|invalid) (?:endpoint|url|path|route)",
        r"(?:unknown|invalid) model(?: (?:name|id|specified|requested)\b| [\w./:-]*[\d/-]| ?(?:[:;,.(=]|$))",
        r"no models? loaded|not a valid model\b|.{0,4}模型不存在",
        r"model(?: [\w.:/-]+){0,2} (?:(?:does )?not (?:exist|found)|has been (?:decommissioned|deprecated|retired))",
    ),
)
"""The order is from the most specific to the least. If none matches, the status decides."""

_LED_UP = re.compile(
    r"(?:(?:(?:upstream|portkey|client|server|\d{3}) ){0,2}"
    r"(?:[\w.]*\.)?\w*(?:error|exception|failed|failure)s?(?: code| type| message)?(?: occurred)?(?: \(\w+\))?"
    r"|status(?: code)?|http(?:/[\d.]+)?(?: status)?|code|message|[<[]?\d{3,6}[>\]]?|internalerror[\w.]*"
    r"|bad request|forbidden|too many requests|payment required|upstream|provider returned error|openai|anthropic"
    r"|azure|api|\{'error': '/[\w/]+|sorry|oops|unfortunately)"
    r"(?:[\s,;.]*[:\-–—=,!]+\s*|(?<=>)\s*|\s+(?=-))"
)
_TOO_LONG = re.compile("|".join(CONTEXT_WORDS))
_TOO_LARGE = re.compile(r"(?:the |this |your )?request (?:\w+ ){0,2}too large")
_LIMIT_AND_NEED = re.compile(
    r"\blimit:? ?(\d[\d,]{0,15})\b.{0,60}?\brequested:? ?(\d[\d,]{0,15})\b", re.IGNORECASE
)
_QUOTED = re.compile(r"(?<!\w)'[^']*'|\"[^\"]*\"|`[^`]*`|“[^”]*”|«[^»]*»|\{.*", re.DOTALL)


def head_of(sentence: str) -> str:
    """The beginning of a sentence, in lower case, without the prefixes of the servers that forwarded it."""
    # "litellm.RateLimitError: AnthropicException - Your credit balance is too low": each prefix is removed in turn. The
    # input is cut first and the number of rounds limited, so that a hostile message cannot cost more than microseconds.
    text = sentence[: HEAD_MAX * 4].strip().lower()
    for _ in range(PASSED_ON_MAX):
        found = _LED_UP.match(text)
        if found is None or not found.end():
            break
        text = text[found.end() :].lstrip()
    return text[:HEAD_MAX]


def kind_of(names: Iterable[str | None], sentences: Iterable[str], status: int) -> Kind | None:
    """The kind of an error by its names, else by the beginning of its sentences; None if neither is known."""
    # Names come before sentences, because codes are chosen by engineers and sentences quote prompts. Sentences are
    # searched kind by kind, not sentence by sentence: a gateway's general wrapper must not decide before the specific
    # message of the vendor inside it.
    may_mean = MAY_MEAN.get(status)
    by_name: Kind | None = None
    for name in names:
        kind = _kind_of_name(letters_of(name)) if name else None
        if kind is not None and (may_mean is None or kind in may_mean):
            # Vendors call every refusal with a 403 "permission denied". If it decided here, one prompt against the
            # content policy, or an empty account, would block the key.
            if kind is not Kind.PERMISSION:
                return kind
            by_name = kind
    # Quotations are removed because they may be the prompt: `invalid value: 'my credit balance is too low'`.
    heads = [" ".join(_QUOTED.sub(" ", head_of(sentence)).split()) for sentence in sentences]
    if by_name is not None and status == 403 and may_mean is not None:
        may_mean -= {Kind.AUTH}  # "the API key lacks the required scope": it works for other models
    for kind, pattern in SENTENCES:
        if (may_mean is None or kind in may_mean) and any(map(pattern.match, heads)):
            return kind
    # These phrases may be anywhere in the message, because servers put numbers in front of them. A wrong match is
    # harmless: the call fails as the caller's mistake either way, and no other call is affected.
    is_long = status in REFUSED and any(_TOO_LONG.search(said.lower()) for said in sentences)
    return Kind.CONTEXT_LENGTH if is_long else by_name


def _kind_of_name(letters: str) -> Kind | None:
    known = _BY_NAME.get(letters)
    return known or next((kind for kind, pattern in PARTS_OF_NAMES if pattern.search(letters)), None)


def never_passes(sentences: Iterable[str], status: int) -> bool:
    """Whether a single request exceeds the limit by itself ("Limit 6000, Requested 14137", "Request too large").

    Its code is that of a rate limit, but waiting does not help.
    """
    return status in (413, 429) and any(map(_never_fits, sentences))


def _never_fits(sentence: str) -> bool:
    # "Limit 6000, Used 5000, Requested 1200" passes in a minute; only a request above the whole limit never does.
    found = _LIMIT_AND_NEED.search(sentence)
    if found is not None:
        return _number(found[2]) > _number(found[1])
    return _TOO_LARGE.match(head_of(sentence)) is not None


def _number(digits: str) -> int:
    return int(digits.replace(",", ""))


def letters_of(name: str) -> str:
    """A name reduced to its letters and digits in lower case, without "error" or "exception" at its end."""
    letters = re.sub("[^a-z0-9]", "", name.lower())
    return letters.removesuffix("exception").removesuffix("error") or letters


_BY_NAME = {letters_of(name): kind for kind, names in NAMES.items() for name in names.split()}
