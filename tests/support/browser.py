"""A real browser without a window: Chromium, driven over its own debugging protocol."""

from __future__ import annotations

import asyncio
import base64
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

START_DEADLINE_S = 60.0
CALL_DEADLINE_S = 60.0
NAMES = ("chromium", "chromium-browser", "google-chrome")


def find_browser() -> str | None:
    """Return the path of Chromium, if it is installed."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Page:
    """A page of the browser."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._number = 0
        self.complaints: list[str] = []  # what the console shows: errors, and refused requests
        self.fetched: set[str] = set()  # the URLs of all requests

    async def call(self, method: str, **params: Any) -> Any:
        """Call a method of the protocol; return its result."""
        self._number += 1
        await self._socket.send_json({"id": self._number, "method": method, "params": params})
        while True:
            message = await self._socket.receive_json(timeout=CALL_DEADLINE_S)
            self._note(message)
            if message.get("id") == self._number:
                assert "error" not in message, message
                return message["result"]

    def _note(self, message: Any) -> None:
        params = message.get("params", {})
        match message.get("method"):
            case "Runtime.consoleAPICalled" | "Runtime.exceptionThrown":
                self.complaints.append(str(params))
            case "Log.entryAdded":
                self.complaints.append(str(params["entry"]))
            case "Network.requestWillBeSent":
                self.fetched.add(params["request"]["url"])

    async def listen(self) -> None:
        """Fill `complaints` and `fetched` from now on: what the last call has seen."""
        for domain in ("Runtime", "Log", "Network", "Page"):
            await self.call(f"{domain}.enable")

    async def press(self, key: str, code: int, text: str = "") -> None:
        """Press a key of the keyboard and let it go."""
        for kind in ("keyDown", "keyUp"):
            await self.call(
                "Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code,
                text=text if kind == "keyDown" else "",
            )  # fmt: skip

    async def picture(self) -> bytes:
        """Return what is seen, as PNG."""
        return base64.b64decode((await self.call("Page.captureScreenshot"))["data"])

    async def run(self, script: str) -> Any:
        """Evaluate JavaScript, wait for its promise, and return the value."""
        found = await self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    async def open(self, url: str) -> None:
        """Go to a page, and wait until it is there."""
        await self.call("Page.navigate", url=url)
        there = f"document.readyState === 'complete' && location.href === {url!r}"
        while not await self.run(there):  # noqa: ASYNC110 -- set in the browser
            await asyncio.sleep(0.02)


@asynccontextmanager
async def open_page(path: str, directory: Path) -> AsyncIterator[Page]:
    """Start the browser at `path` with a profile in `directory`; yield an empty page."""
    with (directory / "browser.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            path, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            "--no-first-run", "--disable-background-networking", "--remote-debugging-port=0",
            f"--user-data-dir={directory / 'profile'}", "about:blank",
            stdout=log, stderr=log,
        )  # fmt: skip
    try:
        told = directory / "profile" / "DevToolsActivePort"
        async with asyncio.timeout(START_DEADLINE_S):
            while not (told.exists() and "\n" in told.read_text()):
                assert process.returncode is None, (directory / "browser.log").read_text()
                await asyncio.sleep(0.02)
        base = f"http://127.0.0.1:{told.read_text().splitlines()[0]}"
        async with aiohttp.ClientSession() as session:
            async with session.get(f"{base}/json/list") as reply:
                [target] = [item for item in await reply.json() if item["type"] == "page"]
            async with session.ws_connect(target["webSocketDebuggerUrl"]) as socket:
                yield Page(socket)
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()
