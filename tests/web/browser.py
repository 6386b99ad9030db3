"""A real browser for tests: Debian's Chromium, controlled over its DevTools protocol. aiohttp is the only dependency.

One process (`chromium()`), and for each test its own window with its own storage (`window(...)`). Tests are skipped,
with a reason, on a machine without a browser.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import aiohttp
import pytest

BINARY = Path("/usr/bin/chromium")
WAIT_S = 30.0
"""How long a condition may take on a busy machine. A test that passes does not wait."""
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-breakpad",
    "--disable-crash-reporter",
    "--remote-debugging-port=0",
    # No host name resolves to another machine. Other sites in the tests are on this machine, under names of their own.
    "--host-resolver-rules=MAP *.example 127.0.0.1, MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
)

needs_browser = pytest.mark.skipif(not BINARY.exists(), reason=f"no browser: {BINARY} does not exist")


@contextmanager
def chromium() -> Iterator[str]:
    """Yield the DevTools address of a running browser."""
    folder = Path(tempfile.mkdtemp(prefix="koo-browser-"))
    process = subprocess.Popen(
        [str(BINARY), *FLAGS, f"--user-data-dir={folder}", "about:blank"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env={**os.environ, "HOME": str(folder)},
    )
    try:
        port, path = _address(process, folder / "DevToolsActivePort")
        yield f"ws://127.0.0.1:{port}{path}"
    finally:
        process.terminate()
        try:
            process.wait(WAIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _address(process: subprocess.Popen[bytes], file: Path) -> list[str]:
    until = time.monotonic() + WAIT_S
    while time.monotonic() < until:
        assert process.poll() is None, "the browser exited at startup"
        lines = file.read_text().split() if file.exists() else []
        if len(lines) == 2:
            return lines
        time.sleep(0.02)
    raise AssertionError("the browser did not report where it listens")


class Window:
    """One page in the browser. `urls`: everything that it requested; `told`: what its console contains."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._numbers = count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._session: str | None = None
        self.urls: list[str] = []
        self.told: list[str] = []

    async def open(self) -> None:
        """A new window in its own browser context."""
        context = await self.send("Target.createBrowserContext", disposeOnDetach=True)
        given = {"url": "about:blank", "browserContextId": context["browserContextId"]}
        target = await self.send("Target.createTarget", **given)
        attached = await self.send("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            await self.send(f"{domain}.enable")

    async def listen(self) -> None:
        """Receive the browser's messages until the connection ends."""
        async for message in self._socket:
            said = json.loads(message.data)
            if "id" in said:
                answer = self._answers.pop(said["id"])
                if not answer.done():
                    answer.set_result(said)
            else:
                self._hear(said["method"], said.get("params", {}))

    def _hear(self, method: str, params: dict[str, Any]) -> None:
        if method == "Network.requestWillBeSent":
            self.urls.append(params["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.told.append(details.get("exception", {}).get("description") or details["text"])
        elif method == "Log.entryAdded":
            self.told.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")

    async def send(self, method: str, **params: Any) -> dict[str, Any]:
        """Send one command and return its result."""
        number = next(self._numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json(message)
        async with asyncio.timeout(WAIT_S):
            said = await answer
        assert "error" not in said, f"{method}: {said['error']}"
        result: dict[str, Any] = said["result"]
        return result

    async def go(self, url: str) -> None:
        """Open a URL. The page may still be loading afterwards."""
        await self.send("Page.navigate", url=url)

    async def run(self, script: str) -> Any:
        """Return the value of a JavaScript expression; promises are awaited."""
        given = {"expression": script, "awaitPromise": True, "returnByValue": True}
        result = await self.send("Runtime.evaluate", **given, userGesture=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    async def until(self, script: str, within_s: float = WAIT_S) -> Any:
        """Wait until an expression is true and return its value."""
        loop = asyncio.get_running_loop()
        until = loop.time() + within_s
        value = await self.run(script)
        while not value:
            assert loop.time() < until, f"never true: {script}\n{await self.run('document.body.innerText')}"
            await asyncio.sleep(0.02)
            value = await self.run(script)
        return value

    async def text(self, selector: str = "body") -> str:
        """Return the visible text there; empty if there is none."""
        return str(await self.run(_text_of(selector)))

    async def until_text(self, selector: str, wanted: str) -> str:
        """Wait until `wanted` is visible there, and return the whole text."""
        await self.until(f"{_text_of(selector)}.includes({json.dumps(wanted)})")
        return await self.text(selector)

    async def until_told(self, wanted: str) -> None:
        """Wait until the console contains it."""
        until = asyncio.get_running_loop().time() + WAIT_S
        while not any(wanted in said for said in self.told):
            assert asyncio.get_running_loop().time() < until, f"not in the console: {wanted}; but {self.told}"
            await self.send("Browser.getVersion")  # earlier console messages arrive before this result

    async def click(self, selector: str) -> None:
        """Click a visible element, once it is visible."""
        script = f"""(() => {{
            const it = document.querySelector({json.dumps(selector)});
            if (!it || !it.checkVisibility({{visibilityProperty: true}})) return false;
            it.click();
            return true;
        }})()"""
        await self.until(script)

    async def type(self, selector: str, text: str) -> None:
        """Type into a field, once it is there."""
        await self.until(f"""(() => {{
            const it = document.querySelector({json.dumps(selector)});
            it?.focus();
            return it !== null && document.activeElement === it;
        }})()""")
        await self.send("Input.insertText", text=text)

    async def press(self, key: str, code: int) -> None:
        """Press a key, such as `Escape` (27), `Enter` (13) or `Tab` (9)."""
        given: dict[str, Any] = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        if key == "Enter":
            given["text"] = "\r"
        await self.send("Input.dispatchKeyEvent", type="keyDown", **given)
        await self.send("Input.dispatchKeyEvent", type="keyUp", key=key, code=key)

    async def resize(self, width: int, height: int = 900) -> None:
        """Resize the window."""
        given = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        await self.send("Emulation.setDeviceMetricsOverride", **given)
        await self.send("Emulation.setScrollbarsHidden", hidden=True)
        await self.until(f"innerWidth === {width}")  # another process does it, a little later

    async def prefer(self, **features: str) -> None:
        """Emulate media features, for example `prefers_color_scheme="dark"`."""
        wanted = {name.replace("_", "-"): value for name, value in features.items()}
        media = [{"name": name, "value": value} for name, value in wanted.items()]
        await self.send("Emulation.setEmulatedMedia", features=media)
        for name, value in wanted.items():
            await self.until(f"matchMedia('({name}: {value})').matches")

    async def picture(self, whole: bool = True) -> bytes:
        """Return the whole page as PNG, or only the window's part of it."""
        shot = await self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        return base64.b64decode(shot["data"])


def _text_of(selector: str) -> str:
    # The innerText of an invisible element is its complete text.
    shown = "it => it?.checkVisibility() ? it.innerText.replace(/\\s+/g, ' ').trim() : ''"
    return f"({shown})(document.querySelector({json.dumps(selector)}))"


@asynccontextmanager
async def window(address: str) -> AsyncIterator[Window]:
    """Open a new browser window at `address`; its storage is deleted with it."""
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(address, max_msg_size=0) as socket,
    ):
        opened = Window(socket)
        listening = asyncio.create_task(opened.listen())
        try:
            await opened.open()
            yield opened
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)
