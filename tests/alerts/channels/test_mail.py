"""E-mail, against a real server that works, is strict, is broken, is slow or is gone."""

from __future__ import annotations

import asyncio
import threading
from asyncio import StreamReader, StreamWriter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from koo.alerts.channels.base import Message, NotTaken
from koo.alerts.channels.mail import Mail
from koo.alerts.channels.smtp import own_name
from koo.network_options import NetworkOptions
from tests.alerts.mails import HOST, PASSWORD, USER, Certificate, MailServer

NOW_S = 1_790_000_000.0
LOGIN = f"{quote(USER)}:{quote(PASSWORD, safe='')}@"
MESSAGE = Message(
    key="a1:firing",
    thread="circuit_open:database:1",
    subject="[koo] critical: database: größe is gone",
    text="Since … <b>now</b>\n.\nA line with one dot is no end.\n" + "long " * 400 + "\n",
    document={},
)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return Certificate.make(tmp_path_factory.mktemp("mail"))


@pytest.fixture(autouse=True)
def _no_thread_stays() -> Iterator[None]:
    """Checks that the mail thread ends, whatever the server does."""
    yield
    for thread in threading.enumerate():
        if thread.name == "koo mail":
            thread.join(20)
            assert not thread.is_alive()


def mail(url: str, *to: str, trusts: Certificate | None = None, **how: Any) -> Mail:
    network = NetworkOptions(cert_file=trusts.file if trusts is not None else None)
    return Mail(url, to or ("ops@example.com",), how.get("sender", USER), network, lambda: NOW_S)


async def refusal(channel: Mail, message: Message = MESSAGE) -> NotTaken:
    with pytest.raises(NotTaken) as caught:
        await channel.send(message)
    assert PASSWORD not in caught.value.reason and USER not in caught.value.reason
    return caught.value


def test_a_mail_is_plain_text_and_names_its_sender() -> None:
    async def main() -> None:
        async with MailServer() as server:
            channel = mail(f"smtp://{HOST}:{server.port}", "ops@example.com", "boss@example.com")
            assert await channel.send(MESSAGE) == ""
            (letter,) = server.mails
            assert server.to == [["ops@example.com", "boss@example.com"]]
            assert letter["Subject"] == MESSAGE.subject
            assert (letter["From"], letter["To"]) == (USER, "ops@example.com, boss@example.com")
            assert letter["Auto-Submitted"] == "auto-generated"
            assert letter["Date"] == "Mon, 21 Sep 2026 14:13:20 +0000"
            assert letter["X-Koo-Key"] == MESSAGE.key
            assert letter.get_content_type() == "text/plain"
            assert letter.get_content().replace("\r\n", "\n") == MESSAGE.text

    asyncio.run(main())


def test_a_mail_has_only_7_bit_lines_because_a_server_may_not_offer_more() -> None:
    async def main() -> None:
        async with MailServer() as server:
            await mail(f"smtp://{HOST}:{server.port}").send(replace(MESSAGE, text="größe is gone\n"))
            (letter,) = server.mails
            assert letter.as_bytes().isascii() and letter.get_content().rstrip() == "größe is gone"

    asyncio.run(main())


@pytest.mark.parametrize(
    ("machine", "sender", "name"),
    [
        ("web-1.example.net", "koo@example.com", "web-1.example.net"),
        ("3f2a9c01d4e5", "koo@example.com", "example.com"),
        ("3f2a9c01d4e5", "koo@größe.example", "[127.0.0.1]"),
        ("3f2a9c01d4e5", "koo", "[127.0.0.1]"),
    ],
)
def test_koo_introduces_itself_with_a_full_name(
    monkeypatch: pytest.MonkeyPatch, machine: str, sender: str, name: str
) -> None:
    """A container has none of its own, and relays refuse 127.0.0.1."""
    monkeypatch.setattr("socket.gethostname", lambda: machine)
    assert own_name(sender) == name


def test_messages_of_one_alert_form_one_conversation_and_a_repeated_one_keeps_its_id() -> None:
    async def main() -> None:
        async with MailServer() as server:
            channel = mail(f"smtp://{HOST}:{server.port}")
            resolved = Message(key="a1:resolved", thread=MESSAGE.thread, subject="s", text="t\n", document={})
            for message in (MESSAGE, MESSAGE, resolved):
                await channel.send(message)
            first, again, ended = server.mails
            assert first["Message-ID"] == again["Message-ID"] != ended["Message-ID"]
            assert first["References"] == ended["References"]

    asyncio.run(main())


@pytest.mark.parametrize("scheme", ["smtp", "smtps"])
def test_the_login_is_sent_over_tls_only(scheme: str, certificate: Certificate) -> None:
    async def main() -> None:
        server = MailServer(certificate, starttls=scheme == "smtp", asks_for_login=True)
        async with server:
            await mail(f"{scheme}://{LOGIN}localhost:{server.port}", trusts=certificate).send(MESSAGE)
            assert (server.logins, server.was_secure, len(server.mails)) == ([USER], [True], 1)

    asyncio.run(main())


def test_a_server_with_an_untrusted_certificate_gets_no_login(certificate: Certificate) -> None:
    async def main() -> None:
        async with MailServer(certificate, asks_for_login=True) as server:
            error = await refusal(mail(f"smtps://{LOGIN}localhost:{server.port}"))
            assert error.reason.startswith("its certificate is not trusted: ")
            assert server.logins == []

    asyncio.run(main())


def test_a_relay_on_this_machine_may_have_a_self_signed_certificate(certificate: Certificate) -> None:
    """Debian's Postfix offers STARTTLS with one; without the offer, koo would send the mail too."""

    async def main() -> None:
        async with MailServer(certificate, starttls=True) as server:
            await mail(f"smtp://localhost:{server.port}").send(MESSAGE)
            assert server.was_secure == [True]

    asyncio.run(main())


def test_the_error_about_a_wrong_password_omits_the_password(certificate: Certificate) -> None:
    async def main() -> None:
        async with MailServer(certificate, starttls=True, asks_for_login=True) as server:
            url = f"smtp://{quote(USER)}:wrong-9f8e@localhost:{server.port}"
            error = await refusal(mail(url, trusts=certificate))
            assert error.reason == "it does not accept the user and password of KOO_SMTP_URL (status 535)"
            assert not error.is_messages

    asyncio.run(main())


def test_a_remote_server_without_starttls_gets_no_mail(monkeypatch: pytest.MonkeyPatch) -> None:
    """An attacker on the network path may have removed the offer."""
    monkeypatch.setattr("koo.alerts.channels.smtp_url.is_loopback", lambda _host: False)

    async def main() -> None:
        async with MailServer() as server:
            error = await refusal(mail(f"smtp://{HOST}:{server.port}"))
            assert error.reason.startswith(
                "it does not offer STARTTLS, and koo does not send mail over an unencrypted"
            )
            assert server.mails == []
            await mail(f"smtp://{HOST}:{server.port}?starttls=no").send(MESSAGE)
            assert server.was_secure == [False]

    asyncio.run(main())


def test_a_refused_address_is_reported_and_the_others_get_the_mail_once() -> None:
    async def main() -> None:
        async with MailServer() as server:
            server.refuses = {"gone@example.com"}
            url = f"smtp://{HOST}:{server.port}"
            note = await mail(url, "ops@example.com", "gone@example.com").send(MESSAGE)
            assert note.startswith("1 of 2 addresses were refused (status 550: 5.1.1 ")
            assert server.to == [["ops@example.com"]]
            error = await refusal(mail(url, "gone@example.com"))
            assert error.reason.startswith("it refuses every address (status 550: ")

    asyncio.run(main())


def test_an_address_that_is_refused_for_now_gets_the_mail_later_and_the_others_only_once() -> None:
    """Greylisting, or a mailbox that is full: a 4xx status asks for another attempt."""

    async def main() -> None:
        async with MailServer() as server:
            channel = mail(
                f"smtp://{HOST}:{server.port}", "ops@example.com", "grey@example.com", "gone@example.com"
            )
            server.refuses, server.refuses_for_now = {"gone@example.com"}, {"grey@example.com"}
            for _ in range(2):
                error = await refusal(channel)
                assert error.reason.startswith("1 of 3 addresses were refused for now (status 451: 4.7.1 ")
                assert error.is_messages, "the channel works"
            server.refuses_for_now.clear()
            assert await channel.send(MESSAGE) == ""
            assert server.to == [["ops@example.com"], ["grey@example.com"]]
            await channel.send(replace(MESSAGE, key="another"))
            assert server.to[2] == ["ops@example.com", "grey@example.com"]

            server.refuses_for_now = {"ops@example.com", "grey@example.com", "gone@example.com"}
            error = await refusal(channel, replace(MESSAGE, key="a third"))
            assert error.reason.startswith("it refuses every address (status 4") and not error.is_messages

    asyncio.run(main())


def test_a_server_that_hangs_up_between_two_addresses_has_taken_the_mail_for_none() -> None:
    """With status 421 a server ends the conversation: the addresses before it were accepted, but got nothing."""

    async def main() -> None:
        async with MailServer() as server:
            channel = mail(
                f"smtp://{HOST}:{server.port}", "ops@example.com", "late@example.com", "c@example.com"
            )
            server.refuses_for_now = {"late@example.com"}
            server.for_now = "421 4.7.0 too many mails"
            error = await refusal(channel)
            assert error.reason.startswith("it refuses every address (status 421: 4.7.0 ")
            server.refuses_for_now.clear()
            assert await channel.send(MESSAGE) == ""
            assert server.to == [["ops@example.com", "late@example.com", "c@example.com"]]

    asyncio.run(main())


@pytest.mark.parametrize("status", [421, 451, 552, 554])
def test_a_refused_mail_reports_the_reason(status: int) -> None:
    async def main() -> None:
        async with MailServer() as server:
            server.says = f"{status} not today \x1b[31m"
            error = await refusal(mail(f"smtp://{HOST}:{server.port}"))
            assert error.reason == f"it answered with status {status}: not today �[31m"

    asyncio.run(main())


@pytest.mark.parametrize(
    "subject",
    [
        "a\r\nBcc: all@example.com",
        "a\nX: y",
        "a\u2028Bcc: all@example.com",
        "\ud800",
        "x" * 100_000,
        "=?utf-8?q?a?=",
    ],
)
def test_a_name_cannot_inject_a_header(subject: str) -> None:
    async def main() -> None:
        async with MailServer() as server:
            message = Message(key=f"k{subject[:3]}", thread=subject, subject=subject, text="t\n", document={})
            await mail(f"smtp://{HOST}:{server.port}").send(message)
            (letter,) = server.mails
            assert letter["Bcc"] is None and letter["X"] is None
            assert len(letter["Subject"]) <= 200
            assert server.to == [["ops@example.com"]]

    asyncio.run(main())


@asynccontextmanager
async def odd_server(serve: Callable[[StreamReader, StreamWriter], Awaitable[None]]) -> Any:
    """A server that behaves as `serve` does; yields its URL."""

    talks: set[asyncio.Task[None]] = set()

    async def run(reader: StreamReader, writer: StreamWriter) -> None:
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                await serve(reader, writer)
        finally:
            writer.close()

    def begin(reader: StreamReader, writer: StreamWriter) -> None:
        talks.add(asyncio.get_running_loop().create_task(run(reader, writer)))

    server = await asyncio.start_server(begin, HOST, 0)
    try:
        yield f"smtp://{HOST}:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for talk in talks:
            talk.cancel()
        await asyncio.gather(*talks, return_exceptions=True)


@pytest.mark.parametrize(
    ("greeting", "reason"),
    [
        (b"", "it closed the connection before the mail was accepted"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "its replies are not valid SMTP"),
        (b"554 go away\r\n", "it answered with status 554: go away"),
        (b"x" * 100_000, "it answered with status 500: Line too long."),
    ],
    ids=["closed", "http", "refused", "endless line"],
)
def test_a_server_that_is_not_a_mail_server_is_described_in_a_sentence(greeting: bytes, reason: str) -> None:
    async def main() -> None:
        async def serve(_reader: StreamReader, writer: StreamWriter) -> None:
            writer.write(greeting)
            await writer.drain()

        async with odd_server(serve) as url:
            assert (await refusal(mail(url))).reason == reason

    asyncio.run(main())


def test_an_unreachable_mail_server_is_described_in_a_sentence() -> None:
    async def main() -> None:
        async with MailServer() as server:
            pass
        assert (
            await refusal(mail(f"smtp://{HOST}:{server.port}"))
        ).reason == "no connection: Connection refused"
        assert (await refusal(mail("smtp://no-such-host.invalid"))).reason == "its name cannot be looked up"

    asyncio.run(main())


@pytest.mark.parametrize("stage", ["greeting", "EHLO", "DATA"])
def test_a_server_that_sends_a_byte_from_time_to_time_leaves_no_thread_behind(stage: str) -> None:
    """smtplib's own timeout starts again with each byte."""

    async def main() -> None:
        stuck = asyncio.Event()

        async def dribble(reader: StreamReader, writer: StreamWriter) -> None:
            stuck.set()
            while not reader.at_eof():
                writer.write(b"2")
                await writer.drain()
                await asyncio.sleep(0.01)

        async def serve(reader: StreamReader, writer: StreamWriter) -> None:
            if stage == "greeting":
                await dribble(reader, writer)
            writer.write(b"220 hello\r\n")
            while line := await reader.readline():
                word = line.split()[0].decode().upper()
                if word == stage:
                    await dribble(reader, writer)
                writer.write(b"250 OK\r\n")

        async with odd_server(serve) as url:
            sending = asyncio.create_task(mail(url).send(MESSAGE))
            await stuck.wait()
            sending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sending
            for thread in threading.enumerate():
                if thread.name == "koo mail":
                    await asyncio.to_thread(thread.join, 9.0)  # less than smtplib's own timeout
                    assert not thread.is_alive()

    asyncio.run(main())


def test_an_error_after_the_mail_was_accepted_is_ignored() -> None:
    async def main() -> None:
        async def serve(reader: StreamReader, writer: StreamWriter) -> None:
            writer.write(b"220 hello\r\n")
            while line := await reader.readline():
                word = line.split()[0].upper() if line.split() else b""
                if word == b"DATA":
                    writer.write(b"354 go on\r\n")
                    await reader.readuntil(b"\r\n.\r\n")
                    writer.write(b"250 taken\r\n")
                elif word == b"QUIT":
                    writer.write(b"500 no\r\n")
                else:
                    writer.write(b"250 OK\r\n")

        async with odd_server(serve) as url:
            assert await mail(url).send(MESSAGE) == ""

    asyncio.run(main())


def test_the_destination_is_shown_without_login_and_addresses() -> None:
    channel = mail(f"smtps://{LOGIN}mail.example", "a@x.example", "b@x.example")
    assert channel.place == "2 addresses through mail.example:465"
    assert mail(f"smtp://{LOGIN}mail.example").place == "one address through mail.example:587"
    (warning,) = mail("smtp://mail.example?starttls=no").warnings
    assert warning.startswith("KOO_SMTP_URL has starttls=no")
    assert channel.warnings == mail("smtp://127.0.0.1?starttls=no").warnings == ()


def test_the_sender_is_the_login_user_unless_another_one_is_set(tmp_path: Path) -> None:
    async def main() -> None:
        async with MailServer(asks_for_login=True) as server:
            url = f"smtp://{LOGIN}{HOST}:{server.port}?starttls=no"
            await mail(url, sender=None).send(MESSAGE)
            await mail(url, sender="alerts@example.com").send(MESSAGE)
            assert [letter["From"] for letter in server.mails] == [USER, "alerts@example.com"]

    asyncio.run(main())
