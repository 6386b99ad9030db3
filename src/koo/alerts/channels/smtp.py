"""One conversation with a mail server.

Python's `smtplib` conducts it in a thread, because it blocks. It has a timeout for each reply but none for the whole
conversation, so a server that sends a byte from time to time could keep it busy forever. When the deadline has passed,
the task that waits for the thread shuts down its connection, which ends the thread. The thread is a daemon, so a
process that exits does not wait for it.
"""

from __future__ import annotations

import asyncio
import smtplib
import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress

from koo.alerts.channels.base import NotTaken
from koo.alerts.channels.smtp_url import MailServer
from koo.http.connector import trusted
from koo.lookups import LOOKUPS
from koo.network_options import NetworkOptions
from koo.plain_text import plain
from koo.shortages import NoThread, shortage_in, start

ANSWER_S = 10.0
GOODBYE_S = 1.0
WORDS_MAX = 160
LATE = f"no answer within {ANSWER_S:g} s"
Refused = dict[str, tuple[int, bytes]]


class Talk:
    """One conversation with a mail server."""

    def __init__(self, server: MailServer, network: NetworkOptions) -> None:
        self._server = server
        self._network = network
        self._line: socket.socket | None = None
        self._is_cut = False

    async def hand_over(self, sender: str, to: tuple[str, ...], letter: bytes) -> Refused:
        """Send a mail; returns the refused addresses. Raises `NotTaken`."""
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[Refused] = loop.create_future()
        places = await self._places()

        def run() -> None:
            try:
                refused = self._talk(places, sender, to, letter)
            except NotTaken as error:
                _tell(loop, ended.set_exception, error, ended)
            except Exception as error:  # noqa: BLE001 - raised in a thread, it would be lost, and the task would wait
                _tell(loop, ended.set_exception, NotTaken(_reason(error)), ended)
            else:
                _tell(loop, ended.set_result, refused, ended)

        try:
            start(threading.Thread(target=run, name="koo mail", daemon=True))
        except NoThread as error:
            raise NotTaken(_reason(error)) from None
        # This runs at the deadline, after a cancellation and at the normal end. Without it a cancelled send would leave
        # its thread in the conversation, and the mail could still be delivered after it was recorded as failed.
        try:
            return await ended
        finally:
            self._cut()

    async def _places(self) -> list[str]:
        """Look up the server's addresses."""
        # With `LOOKUPS`, further lookups of a name that hangs wait for the same thread. In the mail's own thread, each
        # attempt would leave another thread behind, because a lookup cannot be interrupted.
        try:
            async with asyncio.timeout(ANSWER_S):
                found = await LOOKUPS.find(self._server.host, self._server.port)
        except OSError as error:  # TimeoutError too
            raise NotTaken(_reason(error)) from None
        return [address[4][0] for address in found]

    def _opened(self, line: socket.socket) -> None:
        """Keep a duplicate of the connection; called in the thread."""
        # It must be a duplicate, because TLS wraps the original socket and detaches it: `shutdown` on that object would
        # do nothing afterwards.
        self._line = line.dup()
        # The deadline may have passed while the thread was connecting, when there was nothing to shut down yet.
        if self._is_cut:
            self._cut()

    def _cut(self) -> None:
        """Shut the connection down, so that the thread ends whatever it is waiting for."""
        self._is_cut = True
        if self._line is not None:
            with suppress(OSError):  # it is closed already
                self._line.shutdown(socket.SHUT_RDWR)

    def _talk(self, places: list[str], sender: str, to: tuple[str, ...], letter: bytes) -> Refused:
        try:
            line = Line(self._server, places, self._context(), self._opened, own_name(sender))
            try:
                self._secure(line)
                if self._server.user:
                    line.login(self._server.user, self._server.password)
                try:
                    refused = line.sendmail(sender, to, letter)
                except smtplib.SMTPRecipientsRefused as error:
                    # With 421 a server ends the conversation. The addresses without a reply got no mail either.
                    replies = error.recipients
                    refused = dict.fromkeys(to, [*replies.values()][-1]) | replies
                _leave(line)
                return refused
            finally:
                line.close()
        finally:
            if self._line is not None:
                self._line.close()

    def _secure(self, line: Line) -> None:
        security = self._server.security
        line.ehlo_or_helo_if_needed()
        if security == "starttls" and not line.has_extn("starttls"):
            raise NotTaken(
                "it does not offer STARTTLS, and koo does not send mail over an unencrypted connection: use smtps://, "
                "or ?starttls=no for a relay in your own network"
            )
        if security == "starttls" or (security == "if offered" and line.has_extn("starttls")):
            line.starttls(context=self._context())
            line.ehlo_or_helo_if_needed()

    def _context(self) -> ssl.SSLContext:
        context = trusted(self._network)
        if self._server.security == "if offered":
            # A relay on this machine usually has a self-signed certificate (Debian's Postfix). Refusing that would
            # protect nothing, because koo would send the mail without STARTTLS too.
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return context if isinstance(context, ssl.SSLContext) else ssl.create_default_context()


class Line(smtplib.SMTP):
    """smtplib's client, which calls `opened` with the connection before it reads the first byte."""

    def __init__(
        self,
        server: MailServer,
        places: list[str],
        context: ssl.SSLContext,
        opened: Callable[[socket.socket], None],
        name: str,
    ) -> None:
        self._places = places
        self._opened = opened
        self._tls = context if server.security == "tls" else None
        super().__init__(server.host, server.port, name, ANSWER_S)

    def _get_socket(self, host: str, port: int, timeout: float) -> socket.socket:
        line = self._connect(port, timeout)
        self._opened(line)
        return line if self._tls is None else self._tls.wrap_socket(line, server_hostname=host)

    def _connect(self, port: int, timeout: float) -> socket.socket:
        for place in self._places[:-1]:
            with suppress(OSError):
                return socket.create_connection((place, port), timeout)
        return socket.create_connection((self._places[-1], port), timeout)


def own_name(sender: str) -> str:
    """The name for EHLO: this machine's full name, or otherwise the domain of the sender's address."""
    # A container's name is not a full one, and a relay such as smtp-relay.gmail.com refuses `localhost` and 127.0.0.1.
    # smtplib's default queries a name server for the full name, without a timeout.
    names = socket.gethostname(), sender.rpartition("@")[2].strip("<> ")
    return next((name for name in names if "." in name and name.isascii()), "[127.0.0.1]")


def _leave(line: Line) -> None:
    """End the conversation with QUIT. The mail has already been accepted, so an error here does not matter."""
    with suppress(smtplib.SMTPException, OSError):
        if line.sock is not None:
            line.sock.settimeout(GOODBYE_S)
        line.quit()


def _tell(
    loop: asyncio.AbstractEventLoop,
    tell: Callable[..., None],
    what: object,
    ended: asyncio.Future[Refused],
) -> None:
    """Complete the future on its loop, unless its owner has gone or the loop is closed."""

    def end() -> None:
        if not ended.done():
            tell(what)

    try:
        loop.call_soon_threadsafe(end)
    except RuntimeError:
        pass  # the loop is closed


def _reason(error: Exception) -> str:
    """Why a mail was not accepted, without user and password."""
    match error:
        case smtplib.SMTPAuthenticationError():
            return f"it does not accept the user and password of KOO_SMTP_URL (status {error.smtp_code})"
        case smtplib.SMTPResponseException(smtp_code=code) if code > 0:
            return f"it answered with status {error.smtp_code}: {said(error.smtp_error)}"
        case smtplib.SMTPNotSupportedError():
            return "it offers no login, but KOO_SMTP_URL has a user: it may require TLS first"
        case smtplib.SMTPServerDisconnected() if isinstance(error.__context__, TimeoutError):
            return LATE
        case smtplib.SMTPServerDisconnected():
            return "it closed the connection before the mail was accepted"
        case smtplib.SMTPException():
            return "its replies are not valid SMTP"
    return _reason_of_line(error)


def _reason_of_line(error: Exception) -> str:
    match error:
        case ssl.SSLCertVerificationError():
            return f"its certificate is not trusted: {plain(error.verify_message, WORDS_MAX)}"
        case ssl.SSLError():
            return f"no secure connection: {plain(error.reason or 'TLS failed', WORDS_MAX)}"
        case TimeoutError():
            return LATE
        case _ if (short := shortage_in(error)) is not None:
            return short
        case socket.gaierror():
            return "its name cannot be looked up"
        case OSError():
            return f"no connection: {plain(error.strerror or type(error).__name__, WORDS_MAX)}"
    return f"unexpected error ({type(error).__name__})"


def said(words: bytes | str) -> str:
    """A server's reply, shortened and in plain text."""
    text = words.decode(errors="replace") if isinstance(words, bytes) else words
    return plain(text, WORDS_MAX)
