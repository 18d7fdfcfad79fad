"""A page in headless Chromium, driven by its DevTools protocol: what a reader of an HTML result sees and does.

    with chromium.page(path.as_uri(), width=360, dark=True) as page:
        page.press("j")
        assert page.evaluate("document.title") == "…" and page.errors == [] and page.requests == [path.as_uri()]

Where none of ``NAMES`` is installed, ``needed`` skips a test with the reason. No network is needed, nor given: a name that the page asks
for is not found, and stands in ``requests`` all the same.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import pytest
from websockets.sync.client import ClientConnection, connect

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
Test = TypeVar("Test", bound=Callable[..., object])
FLAGS = [
    "--headless",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--no-proxy-server",
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--remote-debugging-port=0",
]
SECONDS = 30.0  # how long anything may take
# A key that is no character: its code, and the text that it types.
NAMED = {
    "ArrowRight": (39, ""),
    "ArrowLeft": (37, ""),
    "ArrowDown": (40, ""),
    "ArrowUp": (38, ""),
    "Escape": (27, ""),
    "Enter": (13, "\r"),
    "Tab": (9, ""),
}


def needed(test: Test) -> Test:
    """Marks a test ``browser`` and ``slow``, and skips it where there is none."""
    missing = f"looks at a page in a browser: none of {', '.join(NAMES)} is installed"
    return pytest.mark.slow(pytest.mark.browser(pytest.mark.skipif(CHROMIUM is None, reason=missing)(test)))


class Page:
    """``errors``: what the console was told is one, exceptions, broken policies; ``requests``: every address asked for, its own too."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._session: str | None = None
        self._sent = 0
        self._loaded = False
        self._errors: list[str] = []
        self._requests: list[str] = []
        target = self._send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._send(f"{domain}.enable")

    @property
    def errors(self) -> list[str]:
        self.evaluate("0")  # what was told before the answer has arrived with it
        return self._errors

    @property
    def requests(self) -> list[str]:
        self.evaluate("0")
        return self._requests

    def go(self, url: str) -> None:
        """Load ``url`` anew, also where it differs from the page's by its hash alone; errors and requests start again."""
        for address in ("about:blank", url):
            self._errors, self._requests, self._loaded = [], [], False
            failed = self._send("Page.navigate", url=address).get("errorText")
            if failed:
                raise ValueError(f"{address}: {failed}")
            until = time.monotonic() + SECONDS
            while not self._loaded:
                self._receive(until)

    def evaluate(self, script: str) -> Any:
        """The value of an expression, awaited where it is a promise; RuntimeError with what it throws."""
        found = self._send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if thrown := found.get("exceptionDetails"):
            raise RuntimeError(thrown.get("exception", {}).get("description", thrown["text"]))
        return found["result"].get("value")

    def wait(self, script: str) -> None:
        """Until the expression is true of the page."""
        until = time.monotonic() + SECONDS
        while not self.evaluate(f"Boolean({script})"):
            if time.monotonic() > until:
                raise TimeoutError(f"{script} is not true after {SECONDS:.0f} s; errors: {self._errors}")
            time.sleep(0.02)

    def press(self, *keys: str) -> None:
        """Press keys one after another: characters, or names as in ``NAMED``."""
        for key in keys:
            code, text = NAMED[key] if key in NAMED else (ord(key.upper()), key)
            shared = {"key": key, "windowsVirtualKeyCode": code}
            self._send("Input.dispatchKeyEvent", type="keyDown", text=text, **shared)
            self._send("Input.dispatchKeyEvent", type="keyUp", **shared)

    def resize(self, width: int, height: int, *, dark: bool = False) -> None:
        self._send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._send("Emulation.setEmulatedMedia", features=[scheme])

    def screenshot(self, path: Path, *, whole: bool = False) -> None:
        """A PNG of what is in sight, or of the ``whole`` page."""
        height = self.evaluate("document.documentElement.scrollHeight")
        area = {"x": 0, "y": 0, "width": self.evaluate("innerWidth"), "height": height, "scale": 1}
        clip = {"clip": area, "captureBeyondViewport": True} if whole else {}
        taken = self._send("Page.captureScreenshot", format="png", **clip)
        path.write_bytes(base64.b64decode(taken["data"]))

    def _send(self, method: str, **params: Any) -> dict[str, Any]:
        self._sent += 1
        message = {"id": self._sent, "method": method, "params": params}
        self._connection.send(json.dumps(message | ({"sessionId": self._session} if self._session else {})))
        until = time.monotonic() + SECONDS
        while (reply := self._receive(until)).get("id") != self._sent:
            pass
        if "error" in reply:
            raise RuntimeError(f"{method}: {reply['error']['message']}")
        result: dict[str, Any] = reply["result"]
        return result

    def _receive(self, until: float) -> dict[str, Any]:
        """The browser's next message, taken note of where it is an event."""
        message: dict[str, Any] = json.loads(self._connection.recv(timeout=max(0.0, until - time.monotonic())))
        params = message.get("params", {})
        match message.get("method"):
            case "Page.loadEventFired":
                self._loaded = True
            case "Network.requestWillBeSent":
                self._requests.append(params["request"]["url"])
            case "Runtime.exceptionThrown":
                thrown = params["exceptionDetails"]
                self._errors.append(thrown.get("exception", {}).get("description", thrown["text"]))
            case "Runtime.consoleAPICalled" if params["type"] in ("error", "assert"):
                self._errors.append(" ".join(str(value.get("value", value.get("description"))) for value in params["args"]))
            case "Log.entryAdded" if params["entry"]["level"] == "error":
                self._errors.append(params["entry"]["text"])
        return message


@contextmanager
def page(url: str, *, width: int = 1000, height: int = 800, dark: bool = False) -> Iterator[Page]:
    """``url`` in a browser of its own with a new profile, which ends with the block."""
    if CHROMIUM is None:
        raise FileNotFoundError(f"none of {', '.join(NAMES)} is installed; mark the test with chromium.needed")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        flags = [*FLAGS, *(["--no-sandbox"] if os.geteuid() == 0 else []), f"--user-data-dir={profile}"]
        process = subprocess.Popen([CHROMIUM, *flags], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            with connect(_address(process, Path(profile)), proxy=None, max_size=None, compression=None) as connection:
                shown = Page(connection)
                shown.resize(width, height, dark=dark)
                shown.go(url)
                yield shown
                with suppress(Exception):
                    shown._send("Browser.close")
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(SECONDS)
            process.kill()
            process.wait()


def _address(process: subprocess.Popen[bytes], profile: Path) -> str:
    """Where the browser listens: it writes port and path to its profile once it does."""
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        with suppress(FileNotFoundError):
            lines = (profile / "DevToolsActivePort").read_text(encoding="utf-8").splitlines()
            if len(lines) == 2:
                return f"ws://127.0.0.1:{lines[0]}{lines[1]}"
        if process.poll() is not None:
            raise RuntimeError(f"{CHROMIUM} ended with status {process.returncode} before it listened")
        time.sleep(0.02)
    raise TimeoutError(f"{CHROMIUM} did not listen within {SECONDS:.0f} s")
