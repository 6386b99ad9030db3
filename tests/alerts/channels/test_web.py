"""The webhook and Slack, against a real receiver that works, is slow, is broken, is gone or sends nonsense."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any

import pytest

from koo.alerts.channels.base import Channel, Message, NotTaken
from koo.alerts.channels.slack import BREAK, Slack, harmless, shortened
from koo.alerts.channels.web import retry_after_s
from koo.alerts.channels.webhook import Webhook
from koo.network_options import NetworkOptions
from koo.testing.http_proxy import FakeHttpProxy
from tests.alerts.hooks import ENDLESS, HOST, Hook, answer

NOW_S = 1_790_000_000.0
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
MESSAGE = Message(
    key="a1:firing",
    thread="circuit_open:database:1",
    subject="[koo] critical: database: it is gone",
    text="Since …\n",
    document={"type": "koo.alert.firing", "title": "größe <&>"},
)


def webhook(url: str, secret: str | None = None, **network: Any) -> Webhook:
    return Webhook(url, secret, NetworkOptions(**network), lambda: NOW_S)


def with_hook(main: Callable[[Hook], Awaitable[None]]) -> None:
    async def run() -> None:
        async with Hook() as hook:
            await main(hook)

    asyncio.run(run())


async def send(channel: Channel) -> None:
    try:
        await channel.send(MESSAGE)
    finally:
        await channel.close()


async def refusal(hook: Hook, said: bytes) -> NotTaken:
    hook.answers = [said]
    with pytest.raises(NotTaken) as caught:
        await send(webhook(hook.url))
    return caught.value


def test_the_webhook_receives_the_document_with_its_key() -> None:
    async def main(hook: Hook) -> None:
        await send(webhook(hook.url))
        (taken,) = hook.taken
        assert (taken.method, taken.path) == ("POST", "/hook/T0k3n?key=s3cret")
        assert taken.headers["content-type"] == "application/json"
        assert taken.headers["user-agent"] == "koo"
        assert taken.headers["webhook-id"] == "a1:firing"
        assert taken.json == MESSAGE.document
        assert "webhook-signature" not in taken.headers

    with_hook(main)


@pytest.mark.parametrize("status", [200, 201, 202, 204])
def test_any_success_status_accepts_the_message(status: int) -> None:
    async def main(hook: Hook) -> None:
        hook.answers = [answer(status, "")]
        await send(webhook(hook.url))

    with_hook(main)


@pytest.mark.parametrize("status", [300, 301, 302, 307, 308])
def test_a_redirect_is_not_followed_and_its_target_is_named_without_the_path(status: int) -> None:
    async def main(hook: Hook) -> None:
        error = await refusal(hook, answer(status, "", location="https://else.example/s3cret"))
        assert error.reason == (
            f"it redirects to else.example (status {status}), which is not followed:"
            " set KOO_ALERT_WEBHOOK to the new address"
        )
        assert not error.is_messages
        assert len(hook.taken) == 1

    with_hook(main)


@pytest.mark.parametrize("status", [400, 405, 413, 415, 422])
def test_a_status_about_the_message_does_not_count_against_the_channel(status: int) -> None:
    async def main(hook: Hook) -> None:
        error = await refusal(hook, answer(status, "invalid_payload"))
        assert error.is_messages
        assert error.reason == f"it answered with status {status} (it says: invalid_payload)"

    with_hook(main)


@pytest.mark.parametrize("status", [401, 403, 404, 408, 410, 429, 500, 502, 503, 504])
def test_every_other_error_status_counts_against_the_channel(status: int) -> None:
    async def main(hook: Hook) -> None:
        error = await refusal(hook, answer(status, ""))
        assert not error.is_messages
        assert error.reason.startswith(f"it answered with status {status}")

    with_hook(main)


@pytest.mark.parametrize("status", [429, 503])
def test_a_receivers_retry_after_is_reported(status: int) -> None:
    async def main(hook: Hook) -> None:
        assert (await refusal(hook, answer(status, "", retry_after="17"))).retry_after_s == 17.0

    with_hook(main)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30", 30.0),
        (format_datetime(datetime.fromtimestamp(NOW_S + 90, UTC), usegmt=True), 90.0),
        (format_datetime(datetime.fromtimestamp(NOW_S - 90, UTC), usegmt=True), 0.0),
        ("soon", None),
        ("", None),
        ("-5", None),
        ("9" * 400, 999_999_999.0),
        ("²", None),
    ],
)
def test_retry_after_can_be_a_number_or_a_date(text: str, seconds: float | None) -> None:
    assert retry_after_s({"retry-after": text}, NOW_S) == seconds


def test_a_receivers_text_is_shown_short_plain_and_without_its_secret() -> None:
    async def main(hook: Hook) -> None:
        said = "no \x1b[31m hook at /hook/T0k3n?key=s3cret\r\nX: y " + "z" * 1000
        error = await refusal(hook, answer(404, said))
        assert "T0k3n" not in error.reason and "s3cret" not in error.reason
        assert error.reason.isprintable() and len(error.reason) < 300
        page = await refusal(hook, answer(502, "<html><h1>Bad gateway</h1></html>"))
        assert page.reason == "it answered with status 502"

    with_hook(main)


@pytest.mark.parametrize(
    "said",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf",
        ENDLESS % 200,
    ],
    ids=["cut", "endless"],
)
def test_the_body_after_a_success_status_does_not_matter(said: bytes) -> None:
    async def main(hook: Hook) -> None:
        hook.answers = [said]
        await send(webhook(hook.url))

    with_hook(main)


def test_an_endless_refusal_is_abandoned_and_classified_by_its_status() -> None:
    async def main(hook: Hook) -> None:
        assert (await refusal(hook, ENDLESS % 500)).reason == "it answered with status 500"

    with_hook(main)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (b" ", "the response is not HTTP"),
        (b"HTTP/1.1 20", "the connection was closed before a response arrived"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "the response is not HTTP"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz", "the response is not HTTP"),
    ],
    ids=["closed", "cut", "no http", "broken"],
)
def test_an_invalid_response_is_described_in_a_sentence(said: bytes, reason: str) -> None:
    async def main(hook: Hook) -> None:
        error = await refusal(hook, said)
        assert error.reason == reason
        assert not error.is_messages

    with_hook(main)


def test_an_unreachable_receiver_is_described_in_a_sentence() -> None:
    async def main(hook: Hook) -> None:
        url = hook.url
        await hook.__aexit__()
        with pytest.raises(NotTaken) as caught:
            await send(webhook(url))
        assert caught.value.reason.startswith(f"cannot connect to {HOST}:")
        assert "T0k3n" not in caught.value.reason

    with_hook(main)


def test_a_webhook_is_sent_through_the_environments_proxy() -> None:
    async def main(hook: Hook) -> None:
        with FakeHttpProxy(reaches={"hooks.example:80": (HOST, hook.port)}) as proxy:
            channel = webhook("http://hooks.example/x", http_proxy=f"http://{HOST}:{proxy.port}")
            await send(channel)
            assert [one.target for one in proxy.requests] == ["http://hooks.example/x"]
        assert len(hook.taken) == 1

    with_hook(main)


def test_a_plain_http_address_of_another_machine_causes_a_warning() -> None:
    def words(url: str) -> tuple[str, ...]:
        return webhook(url, SECRET).warnings

    assert (
        words("https://hooks.example/x") == words("http://127.0.0.1:1/x") == words("http://localhost/x") == ()
    )
    (warning,) = words("http://hooks.example/s3cret")
    assert warning.startswith("KOO_ALERT_WEBHOOK is a plain http:// address of another machine")
    assert "s3cret" not in warning
    (slack,) = Slack("http://hooks.example/x", NetworkOptions(), lambda: NOW_S).warnings
    assert slack.startswith("KOO_ALERT_SLACK is a plain http:// address")


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("https://hooks.example/T0/s3cret?key=x", "https://hooks.example"),
        ("http://[::1]:8080/x", "http://[::1]:8080"),
    ],
)
def test_a_channels_destination_is_shown_without_its_secret(url: str, place: str) -> None:
    assert webhook(url).place == Slack(url, NetworkOptions(), lambda: NOW_S).place == place


def test_slack_receives_plain_text_without_mentions() -> None:
    async def main(hook: Hook) -> None:
        channel = Slack(hook.url, NetworkOptions(), lambda: NOW_S)
        await send(channel)
        body = hook.taken[0].json
        assert body["text"] == f"[koo] {MESSAGE.text}"
        assert (body["mrkdwn"], body["parse"], body["link_names"]) == (False, "none", False)
        assert hook.taken[0].headers["webhook-id"] == MESSAGE.key

    with_hook(main)


@pytest.mark.parametrize(
    ("text", "sent"),
    [
        (
            "<!channel> & <https://evil.example|bank>",
            "&lt;!channel&gt; &amp; &lt;https://evil.example|bank&gt;",
        ),
        ("@channel @Here @everyone", f"@{BREAK}channel @{BREAK}Here @{BREAK}everyone"),
        ("ops@alliance.example", "ops@alliance.example"),
        ("[bank](https://evil.example)", f"[bank]{BREAK}(https://evil.example)"),
    ],
)
def test_external_text_is_shown_unchanged_in_slack(text: str, sent: str) -> None:
    assert harmless(text) == sent


LISTED = "".join(f"- critical: ai:service-{number}: it cannot be called\n" for number in range(40))
LONG = f"40 alerts\n\n{LISTED}\nLook at:  https://koo.example/dashboard/\nFrom:     koo.example\n"


def test_an_overlong_text_is_cut_in_the_middle() -> None:
    assert len(harmless(shortened("<" * 1_000_000, 12_000))) < 60_000
    short = shortened(LONG, 500)
    assert len(short) < 510 and short.startswith("40 alerts\n\n- critical: ai:service-0")
    assert short.endswith("Look at:  https://koo.example/dashboard/\nFrom:     koo.example")
    assert shortened(LONG, len(LONG)) == LONG


@pytest.mark.parametrize("status", [400, 413])
def test_a_chat_that_refuses_a_long_message_gets_a_short_one(status: int) -> None:
    """Discord accepts 2000 characters: the message about the largest outage is the longest."""

    async def main(hook: Hook) -> None:
        hook.answers = [answer(status, '{"content": ["Must be 2000 or fewer in length."]}')]
        channel = Slack(hook.url, NetworkOptions(), lambda: NOW_S)
        await channel.send(Message(key="k", thread="t", subject="", text=LONG, document={}))
        await channel.close()
        long, short = (one.json["text"] for one in hook.taken)
        assert long == f"[koo] {LONG}" and len(short) < 2000 and "dashboard" in short

    with_hook(main)


def test_a_chat_that_refuses_a_short_message_gets_it_once() -> None:
    async def main(hook: Hook) -> None:
        hook.always = answer(400, "no")
        with pytest.raises(NotTaken):
            await send(Slack(hook.url, NetworkOptions(), lambda: NOW_S))
        assert len(hook.taken) == 1

    with_hook(main)


def test_the_request_to_slack_is_valid_json_for_any_text() -> None:
    async def main(hook: Hook) -> None:
        odd = 'a"}\u2028\\ é'
        channel = Slack(hook.url, NetworkOptions(), lambda: NOW_S)
        await channel.send(Message(key="k", thread="t", subject="", text=odd, document={}))
        await channel.close()
        assert json.loads(hook.taken[0].body)["text"] == f"[koo] {odd}"

    with_hook(main)
