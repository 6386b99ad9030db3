"""Odd refusals as data: responses of gateways, vendors and self-hosted servers with a status other than 2xx.

They are rows of `Oddity`. `tests/ai/test_oddities.py` sends and checks them, and docs/compatibility.md lists them.
"""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Mapping
from typing import Any

from koo.errors import Kind
from tests.ai.oddities import Format, Oddity

MADE_AT = time.time()
"""Rows that contain a point in time use one hour after this."""
HOUR = {"retry-after": "3600"}
"""A pause beyond the deadline, so that a row ends immediately. koo would wait for a shorter one."""
OVERLOADED_REQUESTS = 3
"""An overload is retried twice before the caller gets the error."""


def refusal(
    name: str,
    sender: str,
    status: int,
    body: Any,
    kind: Kind,
    what_koo_does: str,
    *,
    format: Format = "openai_compatible",  # noqa: A002 - the name of the table's column
    headers: Mapping[str, str] | None = None,
    requests: int = 1,
    streamed: bool = False,
) -> Oddity:
    """One refusal. `body` is sent as JSON unless it is text or bytes. `streamed`: the request was for a stream."""
    if isinstance(body, str):
        body = body.encode()
    return Oddity(
        name=name,
        sender=sender,
        format=format,
        what_koo_does=what_koo_does,
        body=body if isinstance(body, bytes) else json.dumps(body).encode(),
        status=status,
        headers=headers or {},
        kind=kind,
        requests=requests,
        streamed=streamed,
        text="" if streamed else "Paris.",
    )


def openai_error(message: str, type: str | None = None, code: Any = None, **more: Any) -> dict[str, Any]:  # noqa: A002
    """An error in OpenAI's format."""
    return {"error": {"message": message, "type": type, "param": None, "code": code, **more}}


INVALID = "invalid_request_error"
BLOCKS = "treats the key as refused: does not use it until a check succeeds, and calls the fallback"
HOLDS_BACK = "treats the account as empty: pauses the service and calls the fallback"
QUOTA = "treats the quota as used up: pauses until the time it names, and calls the fallback"
PAUSES = "treats it as a rate limit: all callers wait as long as it says, or call the fallback"
CALLERS = "treats it as the caller's mistake: no retry, and no effect on other callers"
ANEW = "retries once in the form that the server accepts, and remembers it; here that is refused too"
REPEATS = "treats it as an overload: retries with pauses, then calls the fallback"
FAILS = "treats it as a server failure: retries with pauses, then calls the fallback"

GOOGLE_KEY = {
    "code": 400,
    "message": "API key not valid. Please pass a valid API key.",
    "status": "INVALID_ARGUMENT",
    "details": [{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}],
}
GOOGLE_MINUTE = {
    "code": 429,
    "message": "You exceeded your current quota, please check your plan and billing details.",
    "status": "RESOURCE_EXHAUSTED",
    "details": [
        {
            "@type": "type.googleapis.com/google.rpc.QuotaFailure",
            "violations": [{"quotaId": "GenerateRequestsPerMinutePerProjectPerModel-FreeTier"}],
        },
        {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "3900s"},
    ],
}
ANTHROPIC_CREDIT = {
    "type": "error",
    "error": {
        "type": INVALID,
        "message": "Your credit balance is too low to access the Anthropic API.",
    },
}
NO_MEAN = "INSUFFICIENT QUOTA: too many concurrent requests"

ROWS: tuple[Oddity, ...] = (
    # ── the status comes first ──
    refusal(
        "a limit named api_error",
        "Ollama",
        429,
        openai_error(
            "you have reached your hourly usage limit, please wait or upgrade to continue", "api_error"
        ),
        Kind.QUOTA,
        QUOTA,
    ),
    refusal(
        "a limit named server_error",
        "gateways",
        429,
        openai_error("try later", "server_error"),
        Kind.THROTTLED,
        PAUSES,
        headers=HOUR,
    ),
    refusal(
        "a refused key named api_error",
        "Ollama",
        401,
        openai_error("unauthorized", "api_error"),
        Kind.AUTH,
        BLOCKS,
    ),
    refusal(
        "a missing permission named server_error",
        "gateways",
        403,
        openai_error("no", "server_error"),
        Kind.PERMISSION,
        "does not use the key for this model until a check succeeds, and calls the fallback",
    ),
    refusal(
        "a limit named invalid_request_error",
        "gateways in front of Anthropic",
        429,
        {"type": "error", "error": {"type": INVALID, "message": "slow"}},
        Kind.THROTTLED,
        PAUSES,
        format="anthropic",
        headers=HOUR,
    ),
    refusal(
        "an overload named api_error",
        "gateways in front of Anthropic",
        503,
        {"type": "error", "error": {"type": "api_error", "message": "busy"}},
        Kind.OVERLOADED,
        REPEATS,
        format="anthropic",
        requests=OVERLOADED_REQUESTS,
    ),
    # ── a request that can never pass ──
    refusal(
        "one request above the limit per minute, as a 413",
        "Groq",
        413,
        openai_error(
            "Request too large for model `m` on tokens per minute (TPM): Limit 6000, Requested 14137, please reduce "
            "your message size and try again.",
            "tokens",
            "rate_limit_exceeded",
        ),
        Kind.TOO_LARGE,
        CALLERS,
    ),
    refusal(
        "one request above the limit per minute, as a 429",
        "OpenAI",
        429,
        openai_error(
            "Request too large for gpt-6 in organization org-1 on tokens per min (TPM): Limit 30000, Requested 50000.",
            "tokens",
            "rate_limit_exceeded",
        ),
        Kind.TOO_LARGE,
        CALLERS,
    ),
    refusal(
        "a request above the limit per minute, reported as a reached limit",
        "gateways",
        429,
        openai_error("Rate limit reached on tokens per min (TPM): Limit 10000, Used 0, Requested 12000."),
        Kind.TOO_LARGE,
        CALLERS,
    ),
    refusal(
        "a body that is too large",
        "nginx",
        413,
        "<html><title>413 Request Entity Too Large</title></html>",
        Kind.TOO_LARGE,
        CALLERS,
    ),
    refusal(
        "a payload over the limit, as a 400",
        "Google",
        400,
        [
            {
                "error": {
                    "code": 400,
                    "message": "Request payload size exceeds the limit: 20971520 bytes.",
                    "status": "INVALID_ARGUMENT",
                }
            }
        ],
        Kind.TOO_LARGE,
        CALLERS,
    ),
    refusal(
        "a request above a small model's token limit",
        "GitHub Models",
        413,
        openai_error(
            "Request body too large for m model. Max size: 8000 tokens.", None, "tokens_limit_reached"
        ),
        Kind.TOO_LARGE,
        CALLERS,
    ),
    refusal(
        "a reached limit that has room for the request later",
        "Groq",
        429,
        openai_error(
            "Rate limit reached for model `m` on tokens per day (TPD): Limit 100000, Used 99386, Requested 1100. "
            "Please try again in 6m59.904s.",
            "tokens",
            "rate_limit_exceeded",
        ),
        Kind.THROTTLED,
        PAUSES,
    ),
    # ── a refused key, in other vendors' wording ──
    refusal(
        "a refused key inside a list",
        "Google's OpenAI endpoint",
        400,
        [{"error": GOOGLE_KEY}],
        Kind.AUTH,
        BLOCKS,
    ),
    refusal(
        "a refused key as a 400 without a code",
        "xAI",
        400,
        {
            "code": "Client specified an invalid argument",
            "error": "Incorrect API key provided: xa***. You can obtain an API key from https://console.x.ai.",
        },
        Kind.AUTH,
        BLOCKS,
    ),
    refusal(
        "an expired key",
        "LiteLLM",
        400,
        openai_error("Authentication Error, Expired Key - Key Expiry time 2026-01-01", "expired_key", "400"),
        Kind.AUTH,
        BLOCKS,
    ),
    refusal(
        "a refused key in the errors of two nested gateways",
        "LiteLLM",
        400,
        openai_error(
            'litellm.BadRequestError: AnthropicException - {"type":"error","error":{"type":"authentication_error",'
            '"message":"invalid x-api-key"}}. Received Model Group=claude',
            None,
            "400",
        ),
        Kind.AUTH,
        BLOCKS,
    ),
    refusal(
        "a cloud's refused token",
        "Bedrock",
        403,
        {"message": "The security token included in the request is invalid."},
        Kind.AUTH,
        BLOCKS,
        headers={"x-amzn-errortype": "UnrecognizedClientException:http://internal.amazon.com/"},
    ),
    refusal(
        "a refused key in a list of errors",
        "Cloudflare",
        403,
        {"success": False, "errors": [{"code": 10000, "message": "Authentication error"}], "result": None},
        Kind.AUTH,
        BLOCKS,
    ),
    refusal("a refused key as text", "SiliconFlow", 401, '"Invalid token"', Kind.AUTH, BLOCKS),
    refusal(
        "a refused key in a flat error",
        "Mistral",
        401,
        {"message": "Unauthorized", "request_id": "r1"},
        Kind.AUTH,
        BLOCKS,
    ),
    refusal(
        "a refused key in a detail",
        "servers on FastAPI",
        401,
        {"detail": "Invalid API key"},
        Kind.AUTH,
        BLOCKS,
    ),
    refusal(
        "a refused key with a reason",
        "Novita",
        403,
        {"code": 403, "reason": "INVALID_API_KEY", "message": "invalid api key", "metadata": {}},
        Kind.AUTH,
        BLOCKS,
    ),
    refusal(
        "a refused key of an API manager",
        "Apigee",
        401,
        {"fault": {"faultstring": "Invalid ApiKey", "detail": {"errorcode": "oauth.v2.InvalidApiKey"}}},
        Kind.AUTH,
        BLOCKS,
    ),
    refusal(
        "a missing subscription key",
        "Azure API Management",
        401,
        {"statusCode": 401, "message": "Access denied due to missing subscription key."},
        Kind.AUTH,
        BLOCKS,
    ),
    refusal(
        "a model that the key may not use",
        "LiteLLM",
        401,
        openai_error(
            "key not allowed to access model. This key can only access models=['x']",
            "key_model_access_denied",
            "401",
        ),
        Kind.PERMISSION,
        "does not use the key for this model until a check succeeds, and calls the fallback",
    ),
    refusal(
        "a refused key that the sentence quotes",
        "gateways",
        400,
        openai_error("API key 'sk-…abcd' not found"),
        Kind.AUTH,
        BLOCKS,
    ),
    refusal(
        "a missing permission with its code",
        "xAI",
        403,
        {"code": "permission-denied", "error": "Access to the chat endpoint is denied."},
        Kind.PERMISSION,
        "does not use the key for this model until a check succeeds, and calls the fallback",
    ),
    # ── an empty account ──
    refusal(
        "no balance",
        "DeepSeek",
        402,
        openai_error("Insufficient Balance", "unknown_error", INVALID),
        Kind.BILLING,
        HOLDS_BACK,
    ),
    refusal(
        "no credits, as a 403",
        "xAI",
        403,
        {
            "code": "The caller does not have permission to execute the specified operation",
            "error": "Your newly created team doesn't have any credits yet. You can purchase credits on x.",
        },
        Kind.BILLING,
        HOLDS_BACK,
    ),
    refusal(
        "no balance, as a 403 with a reason",
        "Novita",
        403,
        {"code": 403, "reason": "NOT_ENOUGH_BALANCE", "message": "not enough balance", "metadata": {}},
        Kind.BILLING,
        HOLDS_BACK,
    ),
    refusal(
        "no balance, as a 403 with a number",
        "SiliconFlow",
        403,
        {"code": 30001, "message": "Sorry, your account balance is insufficient", "data": None},
        Kind.BILLING,
        HOLDS_BACK,
    ),
    refusal(
        "a credit limit",
        "Together",
        402,
        openai_error("Credit limit exceeded, please visit https://t/settings/billing", "credit_limit"),
        Kind.BILLING,
        HOLDS_BACK,
    ),
    refusal(
        "a suspended account, as a 412",
        "Fireworks",
        412,
        openai_error(
            "Account a is suspended, possibly due to reaching the monthly spending limit or failure to pay "
            "past invoices.",
            "error",
        ),
        Kind.BILLING,
        HOLDS_BACK,
    ),
    refusal(
        "a suspended account, as a 429",
        "Moonshot",
        429,
        openai_error(
            "Your account org-1 is suspended, please check your plan and billing details",
            "exceeded_current_quota_error",
        ),
        Kind.QUOTA,
        QUOTA,
    ),
    refusal(
        "an account in arrears, as a 400",
        "DashScope",
        400,
        {"code": "Arrearage", "message": "Access denied, please make sure your account is in good standing."},
        Kind.BILLING,
        HOLDS_BACK,
    ),
    refusal(
        "an empty account, in Chinese",
        "Zhipu",
        429,
        {"error": {"code": "1113", "message": "余额不足或无可用资源包,请充值。"}},
        Kind.BILLING,
        HOLDS_BACK,
    ),
    refusal(
        "a reseller's empty account",
        "one-api, new-api",
        403,
        openai_error("user quota is not enough", "new_api_error", "insufficient_user_quota"),
        Kind.BILLING,
        HOLDS_BACK,
    ),
    refusal(
        "included credits used up",
        "Hugging Face",
        402,
        {"error": "You have exceeded your monthly included credits for Inference Providers."},
        Kind.BILLING,
        HOLDS_BACK,
    ),
    refusal(
        "an empty account behind a gateway",
        "LiteLLM",
        400,
        openai_error(
            "litellm.BadRequestError: AnthropicException - " + json.dumps(ANTHROPIC_CREDIT), None, "400"
        ),
        Kind.BILLING,
        HOLDS_BACK,
    ),
    refusal(
        "an empty account in the vendor's words behind a gateway",
        "OpenRouter",
        400,
        {
            "error": {
                "code": 400,
                "message": "Provider returned error",
                "metadata": {"provider_name": "Anthropic", "raw": json.dumps(ANTHROPIC_CREDIT)},
            }
        },
        Kind.BILLING,
        HOLDS_BACK,
    ),
    refusal(
        "more tokens than the credits pay for",
        "OpenRouter",
        402,
        {
            "error": {
                "code": 402,
                "message": "This request requires more credits, or fewer max_tokens. You requested up "
                "to 65536 tokens, but can only afford 3042.",
            }
        },
        Kind.BILLING,
        HOLDS_BACK,
    ),
    refusal(
        "an empty account in Anthropic's format",
        "gateways",
        400,
        openai_error("You have insufficient credits"),
        Kind.BILLING,
        HOLDS_BACK,
        format="anthropic",
    ),
    refusal(
        "no credits, with the code of a missing permission",
        "xAI",
        403,
        {
            "code": "permission-denied",
            "error": "Your team t has either used all available credits or reached its monthly spending limit.",
        },
        Kind.BILLING,
        HOLDS_BACK,
    ),
    refusal(
        "an empty account, as an event",
        "DashScope",
        400,
        'id:1\nevent:error\n:HTTP_STATUS/400\ndata:{"code":"Arrearage","message":"Access denied."}\n\n',
        Kind.BILLING,
        HOLDS_BACK,
        streamed=True,
    ),
    # ── a quota or a budget ──
    refusal(
        "a gateway's own budget, as a 400",
        "LiteLLM",
        400,
        openai_error(
            "Budget has been exceeded! Current cost: 10.2, Max budget: 10.0", "budget_exceeded", "400"
        ),
        Kind.QUOTA,
        QUOTA,
    ),
    refusal(
        "a gateway's own budget without a type",
        "LiteLLM",
        400,
        openai_error("ExceededBudget: User=u over budget. Spend=10.2, Budget=10.0", "None", "400"),
        Kind.QUOTA,
        QUOTA,
    ),
    refusal(
        "a call quota, as a 403",
        "Azure API Management",
        403,
        {"statusCode": 403, "message": "Out of call volume quota. Quota will be replenished in 12:34:56."},
        Kind.QUOTA,
        QUOTA,
    ),
    refusal(
        "a key's limit, as a 403",
        "OpenRouter",
        403,
        {
            "error": {
                "code": 403,
                "message": "Key limit exceeded (total limit). Manage it using https://o.ai/keys",
            }
        },
        Kind.QUOTA,
        QUOTA,
    ),
    refusal(
        "a day's free allocation",
        "Cloudflare Workers AI",
        429,
        {
            "success": False,
            "errors": [
                {
                    "code": 3036,
                    "message": "AiError: you have used up your daily free allocation of 10,000 neurons",
                }
            ],
        },
        Kind.QUOTA,
        QUOTA,
    ),
    refusal(
        "a month's spending limit",
        "xAI",
        429,
        {
            "code": "Some resource has been exhausted",
            "error": "Your team t has either used all available credits or reached its monthly spending limit.",
        },
        Kind.BILLING,
        HOLDS_BACK,
    ),
    refusal(
        "an API manager's quota, as a 500",
        "Apigee",
        500,
        {
            "fault": {
                "faultstring": "Rate limit quota violation. Quota limit exceeded.",
                "detail": {"errorcode": "policies.ratelimit.QuotaViolation"},
            }
        },
        Kind.QUOTA,
        QUOTA,
    ),
    refusal(
        "a cloud's service quota",
        "Bedrock",
        400,
        {
            "__type": "com.amazon.coral#ServiceQuotaExceededException",
            "message": "Your request exceeds the service quota.",
        },
        Kind.QUOTA,
        QUOTA,
    ),
    refusal(
        "a project's spending cap",
        "Google",
        429,
        {
            "error": {
                "code": 429,
                "message": "Your project has exceeded its monthly spending cap. Please go to AI Studio.",
                "status": "RESOURCE_EXHAUSTED",
            }
        },
        Kind.QUOTA,
        QUOTA,
        format="gemini",
    ),
    refusal(
        "a model's free tier used up, as a 403",
        "DashScope",
        403,
        openai_error(
            "The free tier of the model has been exhausted.",
            "AllocationQuota.FreeTierOnly",
            "AllocationQuota.FreeTierOnly",
        ),
        Kind.QUOTA,
        QUOTA,
    ),
    refusal(
        "a limit of a gateway, as a 412",
        "Portkey",
        412,
        openai_error("Portkey Error: You've exceeded the usage limit for this API key."),
        Kind.QUOTA,
        QUOTA,
    ),
    refusal(
        "a limit per minute that is called a quota",
        "Google's OpenAI endpoint",
        429,
        [{"error": GOOGLE_MINUTE}],
        Kind.THROTTLED,
        PAUSES,
    ),
    # ── a rate limit ──
    refusal(
        "a concurrency limit that is called a quota",
        "Scaleway",
        429,
        openai_error(NO_MEAN),
        Kind.THROTTLED,
        PAUSES,
        headers=HOUR,
    ),
    refusal(
        "a limit per minute that is called a quota, in a metric's name",
        "Vertex AI",
        429,
        {
            "error": {
                "code": 429,
                "message": "Quota exceeded for aiplatform.googleapis.com/online_prediction_input_tokens_per_minute_"
                "per_base_model with base model: m. Please submit a quota increase request.",
                "status": "RESOURCE_EXHAUSTED",
            }
        },
        Kind.THROTTLED,
        PAUSES,
        headers=HOUR,
    ),
    refusal(
        "a secondary rate limit, as a 403",
        "GitHub",
        403,
        {
            "message": "You have exceeded a secondary rate limit. Please wait a few minutes before you try again."
        },
        Kind.THROTTLED,
        PAUSES,
        headers=HOUR,
    ),
    refusal(
        "a cloud's rate limit",
        "Bedrock",
        400,
        {"message": "Too many requests, please wait before trying again."},
        Kind.THROTTLED,
        PAUSES,
        headers={"x-amzn-errortype": "ThrottlingException:http://internal.amazon.com/", **HOUR},
    ),
    refusal(
        "a free model's limit that mentions credits",
        "OpenRouter",
        429,
        {
            "error": {
                "code": 429,
                "message": "Rate limit exceeded: free-models-per-day. Add 10 credits to unlock more",
                "metadata": {"headers": {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "7200"}},
            }
        },
        Kind.THROTTLED,
        PAUSES,
    ),
    refusal(
        "a limit with the wait in its message",
        "GitHub Models",
        429,
        openai_error(
            "Rate limit of 50 per 86400s exceeded for UserByModelByDay. Please wait 5434 seconds before "
            "retrying.",
            None,
            "RateLimitReached",
        ),
        Kind.THROTTLED,
        PAUSES,
    ),
    refusal(
        "a limit as a list under error",
        "Cloudflare AI Gateway",
        429,
        {
            "success": False,
            "result": [],
            "messages": [],
            "error": [{"code": 2003, "message": "Rate limited"}],
        },
        Kind.THROTTLED,
        PAUSES,
        headers=HOUR,
    ),
    refusal(
        "a limit as plain text", "Cloudflare", 429, "error code: 1015", Kind.THROTTLED, PAUSES, headers=HOUR
    ),
    refusal(
        "a flex tier that is full, as a 498",
        "Groq",
        498,
        openai_error("Flex tier capacity exceeded", None, "capacity_exceeded"),
        Kind.THROTTLED,
        PAUSES,
        headers=HOUR,
    ),
    refusal(
        "a tier that is full",
        "Mistral",
        429,
        {
            "object": "error",
            "message": "Service tier capacity exceeded for this model.",
            "type": "service_tier_capacity_exceeded",
            "param": None,
            "code": "3505",
        },
        Kind.THROTTLED,
        PAUSES,
        headers=HOUR,
    ),
    refusal(
        "a limit, as a 403",
        "gateways",
        403,
        {"message": "API rate limit exceeded"},
        Kind.THROTTLED,
        PAUSES,
        headers=HOUR,
    ),
    # ── an overload ──
    refusal(
        "an overload, as a 400",
        "gateways",
        400,
        openai_error("The model is currently overloaded, please try again"),
        Kind.OVERLOADED,
        REPEATS,
        requests=OVERLOADED_REQUESTS,
    ),
    refusal(
        "an overload with a wait in its body",
        "Hugging Face",
        503,
        {"error": "Model m is currently loading", "estimated_time": 3600.0},
        Kind.OVERLOADED,
        "treats it as an overload that lasts as long as it says: calls the fallback",
    ),
    refusal(
        "a busy server",
        "Ollama",
        503,
        {"error": "server busy, please try again. maximum pending requests exceeded"},
        Kind.OVERLOADED,
        REPEATS,
        requests=OVERLOADED_REQUESTS,
    ),
    refusal(
        "a gateway without a healthy backend",
        "Envoy",
        503,
        "no healthy upstream",
        Kind.OVERLOADED,
        REPEATS,
        requests=OVERLOADED_REQUESTS,
    ),
    refusal(
        "a failed model behind a server",
        "TGI",
        424,
        {"error": "Model is overloaded", "error_type": "overloaded"},
        Kind.OVERLOADED,
        REPEATS,
        requests=OVERLOADED_REQUESTS,
    ),
    # ── a failure of the server ──
    refusal(
        "a generation that failed",
        "TGI",
        424,
        {"error": "Request failed during generation: CUDA out of memory", "error_type": "generation"},
        Kind.SERVER_ERROR,
        FAILS,
        requests=OVERLOADED_REQUESTS,
    ),
    refusal(
        "a crashed model, as a 400",
        "LM Studio",
        400,
        {"error": "The model has crashed without additional information. (Exit code: 11)"},
        Kind.SERVER_ERROR,
        FAILS,
        requests=OVERLOADED_REQUESTS,
    ),
    refusal(
        "a model unloaded while the request waited, as a 400",
        "LM Studio",
        400,
        {"error": "Model unloaded."},
        Kind.OVERLOADED,
        REPEATS,
        requests=OVERLOADED_REQUESTS,
    ),
    # ── a prompt that is too long ──
    refusal(
        "a prompt and an answer that do not fit, as a 403",
        "Together",
        403,
        openai_error("This model's maximum context length is 9 tokens.", INVALID),
        Kind.CONTEXT_LENGTH,
        CALLERS,
    ),
    refusal(
        "a prompt that is too long, in a cloud's wording",
        "Bedrock",
        400,
        {"message": "Input is too long for requested model."},
        Kind.CONTEXT_LENGTH,
        CALLERS,
        headers={"x-amzn-errortype": "ValidationException"},
    ),
    refusal(
        "a prompt that is too long, in the words of an engine",
        "vLLM",
        400,
        {
            "object": "error",
            "message": "The decoder prompt (length 2136) is longer than the maximum model length of 2048.",
            "type": "BadRequestError",
            "code": 400,
        },
        Kind.CONTEXT_LENGTH,
        CALLERS,
    ),
    refusal(
        "a prompt that cannot be truncated",
        "LM Studio",
        400,
        {"error": "Cannot truncate prompt with n_keep (15028) >= n_ctx (7424)"},
        Kind.CONTEXT_LENGTH,
        CALLERS,
    ),
    refusal(
        "a prompt above the maximum prompt length",
        "xAI",
        400,
        {
            "code": "invalid-argument",
            "error": "This model's maximum prompt length is 131072 but the request contains 537812 tokens.",
        },
        Kind.CONTEXT_LENGTH,
        CALLERS,
    ),
    refusal(
        "a prompt above what a model supports",
        "Vertex AI",
        400,
        {
            "error": {
                "code": 400,
                "message": "Unable to submit request because the input token count is 1100000 but model only supports "
                "up to 1048576.",
                "status": "INVALID_ARGUMENT",
            }
        },
        Kind.CONTEXT_LENGTH,
        CALLERS,
        format="gemini",
    ),
    # ── a prompt against the content policy ──
    refusal(
        "a prompt against the content policy, with the code of a missing permission",
        "xAI",
        403,
        {"code": "permission-denied", "error": "Content violates usage guidelines."},
        Kind.CONTENT_POLICY,
        CALLERS,
    ),
    refusal(
        "a prompt against a vendor's terms, as a 403",
        "OpenRouter",
        403,
        {
            "error": {
                "code": 403,
                "message": "The request is prohibited due to a violation of provider Terms Of Service.",
                "metadata": {"provider_name": "OpenAI"},
            }
        },
        Kind.CONTENT_POLICY,
        CALLERS,
    ),
    refusal(
        "an answer blocked by the content filter",
        "Anthropic",
        400,
        {
            "type": "error",
            "error": {"type": INVALID, "message": "Output blocked by content filtering policy"},
        },
        Kind.CONTENT_POLICY,
        CALLERS,
        format="anthropic",
    ),
    refusal(
        "a prompt against the content policy, without a code",
        "LiteLLM in front of Azure",
        400,
        openai_error(
            "litellm.BadRequestError: litellm.ContentPolicyViolationError: AzureException - The response was filtered "
            "due to the prompt triggering Azure OpenAI's content management policy.",
            None,
            "400",
        ),
        Kind.CONTENT_POLICY,
        CALLERS,
    ),
    # ── words that do not count, because they may be quoted from the prompt ──
    refusal(
        "a mistake that quotes a prompt about an empty account",
        "any server",
        400,
        openai_error("cannot parse: 'insufficient credits'", INVALID),
        Kind.INVALID_REQUEST,
        CALLERS,
    ),
    refusal(
        "a mistake that ends with the prompt",
        "any server",
        400,
        openai_error("Unexpected text in messages.0: your account balance is insufficient", INVALID),
        Kind.INVALID_REQUEST,
        CALLERS,
    ),
    # ── bodies that cannot be read ──
    refusal(
        "a limit in a body compressed with Brotli",
        "gateways",
        429,
        b"\x0b\x02\x80hello\x03",
        Kind.THROTTLED,
        PAUSES,
        headers={"content-encoding": "br", **HOUR},
    ),
    refusal(
        "a limit in a body compressed with Zstandard",
        "gateways",
        429,
        b"\x28\xb5\x2f\xfd\x00",
        Kind.THROTTLED,
        PAUSES,
        headers={"content-encoding": "zstd", **HOUR},
    ),
    refusal(
        "an empty account in a body compressed as x-gzip",
        "gateways",
        400,
        gzip.compress(json.dumps(ANTHROPIC_CREDIT).encode()),
        Kind.BILLING,
        HOLDS_BACK,
        headers={"content-encoding": "x-gzip"},
        format="anthropic",
    ),
    # ── waits in other forms; each is one hour ──
    refusal(
        "a wait as a time in seconds since 1970",
        "gateways",
        429,
        openai_error("slow"),
        Kind.THROTTLED,
        PAUSES,
        headers={"retry-after": str(int(MADE_AT) + 3600)},
    ),
    refusal(
        "a wait as a time in milliseconds since 1970",
        "OpenRouter",
        429,
        openai_error("slow"),
        Kind.THROTTLED,
        PAUSES,
        headers={"x-ratelimit-reset": str(int(MADE_AT + 3600) * 1000)},
    ),
    refusal(
        "a wait as a duration",
        "gateways written in Go",
        429,
        openai_error("slow"),
        Kind.THROTTLED,
        PAUSES,
        headers={"retry-after": "1h0m0s"},
    ),
    refusal(
        "a wait in milliseconds",
        "Azure",
        429,
        openai_error("slow"),
        Kind.THROTTLED,
        PAUSES,
        headers={"x-ms-retry-after-ms": "3600000"},
    ),
    refusal(
        "a wait of zero followed by another wait",
        "gateways",
        429,
        openai_error("slow"),
        Kind.THROTTLED,
        PAUSES,
        headers={"retry-after-ms": "0", "retry-after": "-1", "ratelimit-reset": "3600"},
    ),
    refusal(
        "a wait in a field of the body",
        "gateways",
        429,
        openai_error("slow", retry_after_seconds=3600),
        Kind.THROTTLED,
        PAUSES,
    ),
    # ── parameters that a server refuses ──
    refusal(
        "a refused name for max_tokens",
        "reasoning models",
        400,
        openai_error(
            "Unsupported parameter: 'max_tokens' is not supported with this model. "
            "Use 'max_completion_tokens' instead.",
            INVALID,
            "unsupported_parameter",
        ),
        Kind.INVALID_REQUEST,
        ANEW,
        requests=2,
    ),
    refusal(
        "a refused option of a stream",
        "older servers on FastAPI",
        422,
        {
            "detail": [
                {
                    "type": "extra_forbidden",
                    "loc": ["body", "stream_options"],
                    "msg": "Extra inputs are not permitted",
                }
            ]
        },
        Kind.INVALID_REQUEST,
        ANEW,
        requests=2,
        streamed=True,
    ),
    refusal(
        "a context smaller than prompt and answer",
        "vLLM",
        400,
        {
            "object": "error",
            "message": "This model's maximum context length is 110 tokens. However, you requested 124 tokens "
            "(24 in the messages, 100 in the completion).",
            "type": "BadRequestError",
            "code": 400,
        },
        Kind.CONTEXT_LENGTH,
        "retries once with what is left of the context; otherwise the error names max_tokens",
        requests=2,
    ),
    refusal(
        "a max_tokens that is too large",
        "DeepSeek",
        400,
        openai_error("Invalid max_tokens value, the valid range of max_tokens is [1, 50]", INVALID),
        Kind.INVALID_REQUEST,
        ANEW,
        requests=2,
    ),
    refusal(
        "a max_tokens that is too large, in the name of a parameter",
        "gateways in front of Xiaomi",
        400,
        {
            "error": {
                "message": "Param Incorrect",
                "type": "upstream_error",
                "param": "max_tokens is too large: 100. This model supports at most 50 completion tokens.",
                "code": "400",
            }
        },
        Kind.INVALID_REQUEST,
        ANEW,
        requests=2,
    ),
    refusal(
        "a max_tokens outside of an interval",
        "MiniMax",
        400,
        openai_error("field MaxTokens invalid, should be in [1, 50]", INVALID, "3"),
        Kind.INVALID_REQUEST,
        ANEW,
        requests=2,
    ),
    refusal(
        "a max_tokens that is not between two numbers",
        "Novita",
        400,
        {
            "code": 400,
            "reason": "INVALID_REQUEST_BODY",
            "message": "max_tokens (current value: 100) must be between 0 and 50",
        },
        Kind.INVALID_REQUEST,
        ANEW,
        requests=2,
    ),
    refusal(
        "a max_tokens above an expected value",
        "Volcengine",
        400,
        openai_error(
            "The parameter max_tokens specified in the request is not valid: integer above maximum value, expected a "
            "value <= 50, but got 100 instead.",
            "BadRequest",
            "InvalidParameter",
        ),
        Kind.INVALID_REQUEST,
        ANEW,
        requests=2,
    ),
    # ── a wrong address or model ──
    refusal(
        "no loaded model, as a 400",
        "LM Studio",
        400,
        {
            "error": "No models loaded. Please load a model in the developer page or use the `lms load` command."
        },
        Kind.NOT_FOUND,
        CALLERS,
    ),
    refusal(
        "an unknown model, as a 400",
        "DeepSeek",
        400,
        openai_error("Model Not Exist", INVALID, INVALID),
        Kind.NOT_FOUND,
        CALLERS,
    ),
    refusal(
        "an unknown model, as a 400 in the sentence of a gateway",
        "LiteLLM",
        400,
        openai_error("{'error': '/chat/completions: Invalid model name passed in model=m.'}", "None", "400"),
        Kind.NOT_FOUND,
        CALLERS,
    ),
    refusal(
        "an address that is gone",
        "Hugging Face",
        410,
        {
            "error": "https://api-inference.h.co is no longer supported. Please use https://router.h.co instead."
        },
        Kind.NOT_FOUND,
        CALLERS,
    ),
    # ── other rules ──
    refusal(
        "a request that is too large, named a limit",
        "gateways",
        413,
        openai_error("send less", "tokens", "rate_limit_exceeded"),
        Kind.TOO_LARGE,
        CALLERS,
    ),
    refusal(
        "a failure named invalid_request_error",
        "gateways in front of Anthropic",
        500,
        {"type": "error", "error": {"type": INVALID, "message": "failed"}},
        Kind.SERVER_ERROR,
        FAILS,
        format="anthropic",
        requests=OVERLOADED_REQUESTS,
    ),
    refusal(
        "a mistake that quotes an empty account without a colon",
        "any server",
        400,
        openai_error("Unexpected value 'hello insufficient credits' in it", INVALID),
        Kind.INVALID_REQUEST,
        CALLERS,
    ),
    refusal(
        "a limit of some minutes that is called a quota",
        "gateways",
        429,
        openai_error("You exceeded your current quota. Please retry in 20m"),
        Kind.THROTTLED,
        PAUSES,
    ),
)
