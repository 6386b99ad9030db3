"""The webhook's signature follows Standard Webhooks, tested with the standard's own example."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import Any

import pytest

from koo.alerts.channels.base import Message
from koo.alerts.channels.signature import read_secret, signed
from koo.alerts.channels.webhook import Webhook
from koo.network_options import NetworkOptions
from tests.alerts.hooks import Hook
from tests.docs.markdown import ROOT, blocks

PAGE = ROOT / "docs" / "notifications.md"
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


def test_the_signature_equals_that_of_the_published_example() -> None:
    """The example of https://github.com/standard-webhooks/standard-webhooks."""
    headers = signed(read_secret(SECRET), "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert headers == {
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


def test_any_change_of_id_time_body_or_secret_changes_the_signature() -> None:
    key = read_secret(SECRET)
    all_of_them = {
        str(signed(*one))
        for one in [
            (key, "a", 1, b"x"),
            (key, "b", 1, b"x"),
            (key, "a", 2, b"x"),
            (key, "a", 1, b"y"),
            (key[:-1], "a", 1, b"x"),
        ]
    }
    assert len(all_of_them) == 5


def test_the_signed_time_is_that_of_sending_so_an_old_message_cannot_be_replayed() -> None:
    async def main() -> None:
        async with Hook() as hook:
            times = iter([100.9, 200.0])
            channel = Webhook(hook.url, SECRET, NetworkOptions(), lambda: next(times))
            message = Message(key="k", thread="t", subject="s", text="t", document={"a": "é"})
            await channel.send(message)
            await channel.send(message)
            await channel.close()
            first, second = hook.taken
            assert (first.headers["webhook-timestamp"], second.headers["webhook-timestamp"]) == ("100", "200")
            assert first.headers["webhook-id"] == second.headers["webhook-id"] == "k"
            for taken, at in ((first, 100), (second, 200)):
                assert (
                    taken.headers["webhook-signature"]
                    == signed(read_secret(SECRET), "k", at, taken.body)["webhook-signature"]
                )

    asyncio.run(main())


@pytest.mark.parametrize(
    "text", ["", "whsec_", "whsec_c2hvcnQ=", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_!"]
)
def test_a_weak_secret_is_refused_and_not_repeated_in_the_error(text: str) -> None:
    with pytest.raises(ValueError, match="whsec_ and the base64 of 24 random bytes or more") as caught:
        read_secret(text)
    assert len(text) < 8 or text not in str(caught.value)


def test_the_documented_snippet_accepts_only_messages_from_koo() -> None:
    (snippet,) = (block for block in blocks(PAGE) if "def is_from_koo" in block.text)
    names: dict[str, Any] = {}
    exec(compile(snippet.text, str(PAGE), "exec"), names)
    is_from_koo = names["is_from_koo"]

    async def main() -> None:
        async with Hook() as hook:
            channel = Webhook(hook.url, SECRET, NetworkOptions(), lambda: 1000.0)
            await channel.send(Message(key="k", thread="t", subject="s", text="t", document={"a": "é"}))
            await channel.close()
            (taken,) = hook.taken
            headers, body = taken.headers, taken.body
            assert is_from_koo(headers, body, SECRET, now=1000.0)
            assert is_from_koo(headers, body, SECRET, now=1290.0)
            assert not is_from_koo(headers, body, SECRET, now=1301.0)
            assert not is_from_koo(headers, body, SECRET)
            assert not is_from_koo(headers, body + b" ", SECRET, now=1000.0)
            assert not is_from_koo(headers | {"webhook-id": "other"}, body, SECRET, now=1000.0)
            assert not is_from_koo(headers | {"webhook-timestamp": "1001"}, body, SECRET, now=1000.0)
            assert not is_from_koo(headers | {"webhook-timestamp": "now"}, body, SECRET, now=1000.0)
            assert not is_from_koo(headers, body, f"whsec_{'A' * 32}", now=1000.0)
            assert not is_from_koo({}, body, SECRET, now=1000.0)

    asyncio.run(main())


def test_the_documented_command_creates_a_valid_secret() -> None:
    (line,) = (block for block in blocks(PAGE) if "secrets.token_bytes" in block.text)
    made = subprocess.run(
        [sys.executable, "-c", line.text], check=True, capture_output=True, text=True
    ).stdout.strip()
    assert len(read_secret(made)) == 32
