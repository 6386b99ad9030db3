"""Channels over HTTP: a POST whose response status is the result.

A message counts as accepted as soon as a success status arrives. The body is not read then, so a receiver that sends
megabytes, one byte at a time, or breaks off in the middle does no harm. Only the first few kilobytes of a refusal are
read, for its text. A redirect is not followed, because it would send an alert and its signature to an address that was
not configured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

from koo.alerts.channels.base import NotTaken
from koo.http.client import HttpClient, HttpStream
from koo.http.connector import Departure, TransportError, departure
from koo.http.plain_http import warn_of_proxy
from koo.http.proxies import is_loopback, proxy_of
from koo.network_options import NetworkOptions
from koo.plain_text import plain

ANSWER_BYTES_MAX = 64 * 1024
WORDS_MAX = 160
HEADERS = {"content-type": "application/json", "user-agent": "koo"}
IS_MESSAGES = frozenset({400, 405, 406, 409, 411, 413, 414, 415, 422, 431})
"""Statuses that concern this message only; another one may be accepted. All others concern the channel."""
MEANINGS = {
    401: "it rejects koo's credentials: check the address and the secret",
    403: "it rejects koo's credentials: check the address and the secret",
    404: "nothing exists at this address: check it",
    410: "this address no longer exists: create a new one",
    429: "it limits the rate of messages",
}


class WebReceiver:
    """An address that accepts POSTs. `variable` is its setting, for messages; `wall` returns the time in seconds."""

    def __init__(self, url: str, variable: str, network: NetworkOptions, wall: Callable[[], float]) -> None:
        self._url = url
        self._variable = variable
        self._wall = wall
        self._parts = urlsplit(url)
        self.host = self._parts.hostname or ""
        self._base = HttpClient(network=network, answer_bytes_max=ANSWER_BYTES_MAX)
        proxy = proxy_of(url, network)
        warn_of_proxy(proxy)
        self._http = self._base.by_way_of(proxy)

    @property
    def place(self) -> str:
        """The address's scheme, host and port. Path and query are omitted, because they may be secret."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self._parts.scheme}://{host}" + (f":{self._parts.port}" if self._parts.port else "")

    @property
    def warnings(self) -> tuple[str, ...]:
        if self._parts.scheme == "http" and not is_loopback(self.host):
            return (
                f"{self._variable} is a plain http:// address of another machine, so anyone on the network path can "
                "read and change alerts: use https://",
            )
        return ()

    async def post(self, body: bytes, headers: Mapping[str, str]) -> None:
        """Send a POST. Raises `NotTaken`."""
        # With this record the HTTP client knows that a request failed on a reused connection, which the receiver had
        # closed, and sends it again on a new one. Otherwise a receiver's idle timeout would count as a failed channel.
        departure.set(Departure())
        try:
            stream = await self._http.stream("POST", self._url, headers={**HEADERS, **headers}, body=body)
        except TransportError as error:
            raise NotTaken(error.reason) from None
        try:
            if not 200 <= stream.status < 300:
                raise await self._refusal(stream)
        finally:
            await stream.aclose(read_out=True)

    async def close(self) -> None:
        await self._base.close()

    async def _refusal(self, stream: HttpStream) -> NotTaken:
        status = stream.status
        if 300 <= status < 400:
            where = urlsplit(stream.headers.get("location", "")).hostname
            to = f" to {plain(where, 100)}" if where else ""
            return NotTaken(
                f"it redirects{to} (status {status}), which is not followed: set {self._variable} to the new address"
            )
        words = await self._words(stream)
        reason = f"it answered with status {status}"
        reason += f": {MEANINGS[status]}" if status in MEANINGS else ""
        reason += f" (it says: {words})" if words else ""
        wait_s = retry_after_s(stream.headers, self._wall()) if status in {429, 503} else None
        return NotTaken(reason, is_messages=status in IS_MESSAGES, retry_after_s=wait_s)

    async def _words(self, stream: HttpStream) -> str:
        """The text of a refusal, shortened, in plain text, and without the secret parts of the receiver's address."""
        try:
            said = (await stream.read()).decode(errors="replace")
        except TransportError:
            return ""
        for secret in (self._url, self._parts.path, self._parts.query):
            if len(secret) > 1:
                said = said.replace(secret, "…")
        return "" if said.lstrip().startswith("<") else plain(said, WORDS_MAX)


def retry_after_s(headers: Mapping[str, str], wall_s: float) -> float | None:
    """The pause requested by `Retry-After`, which is a number or a date, in seconds; None without one."""
    text = headers.get("retry-after", "").strip()
    if text.isdecimal() and text.isascii():
        return float(text[:9])
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - wall_s)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
