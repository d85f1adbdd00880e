"""A headless Chromium, driven over the pipe of its DevTools protocol."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

_NAMES = ("chromium", "chromium-browser", "google-chrome")
PROGRAM = next(filter(None, map(shutil.which, _NAMES)), None)
PATIENCE = 20.0


class Browser:
    """One page of a browser.

    :ivar complaints: what the console, the CSP and scripts have complained of, or said.
    :ivar dialogs: the texts of the dialogs that scripts have opened.
    """

    def __init__(self, commands: int, answers: int) -> None:
        self._commands = commands
        self._answers = answers
        self._rest = b""
        self._number = 0
        self._session: str | None = None
        self.complaints: list[str] = []
        self.dialogs: list[str] = []
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        attached = self._call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self._call(f"{domain}.enable")

    def look(self, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Have a screen of a size, and the user prefer a light or a dark page."""
        self._call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=False,
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[scheme])

    def go(self, address: str) -> None:
        """Load a page."""
        self._call("Page.navigate", url=address)
        self.wait_for("document.readyState === 'complete'")

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression in the page."""
        answer = self._call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait_for(self, script: str) -> Any:
        """The first truthy value of a JavaScript expression."""
        deadline = time.monotonic() + PATIENCE
        while True:
            answer = self._call("Runtime.evaluate", expression=script, returnByValue=True)
            value = answer["result"].get("value")
            if value and "exceptionDetails" not in answer:
                return value
            assert time.monotonic() < deadline, f"{script} did not come about"
            time.sleep(0.03)

    def press(self, key: str, code: int) -> None:
        """Press and release a key."""
        self.wait_for("document.readyState === 'complete'")  # before that, keys may be lost
        text = {"Enter": "\r", " ": " "}.get(key, "")
        for type_, typed in (("keyDown", text), ("keyUp", "")):
            self._call(
                "Input.dispatchKeyEvent",
                type=type_, key=key, windowsVirtualKeyCode=code, text=typed,
            )  # fmt: skip

    def screenshot(self, whole: bool = False) -> bytes:
        """A PNG of what shows, or of the whole page."""
        answer = self._call("Page.captureScreenshot", captureBeyondViewport=whole)
        return base64.b64decode(answer["data"])

    def close(self) -> None:
        self._session = None
        with suppress(OSError, AssertionError):
            self._call("Browser.close")

    def _call(self, method: str, **parameters: Any) -> Any:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]
            self._hear(answer)

    def _hear(self, event: dict[str, Any]) -> None:
        method, parameters = event.get("method"), event.get("params", {})
        if method == "Log.entryAdded":
            entry = parameters["entry"]
            self.complaints.append(f"{entry['text']} {entry.get('url', '')}")
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(str(parameters["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled":
            self.complaints.append(str(parameters["args"]))
        elif method == "Page.javascriptDialogOpening":
            self.dialogs.append(parameters["message"])

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            block = os.read(self._answers, 1 << 20)
            assert block, "the browser has ended"
            self._rest += block
        message, _, self._rest = self._rest.partition(b"\0")
        answer: dict[str, Any] = json.loads(message)
        return answer


@contextmanager
def open_browser() -> Iterator[Browser]:
    """A browser with an empty profile."""
    assert PROGRAM is not None
    to_browser, commands = os.pipe()
    answers, from_browser = os.pipe()

    def put_in_place() -> None:
        # First away from 3 and 4, where the other may be.
        reading, writing = os.dup(to_browser), os.dup(from_browser)
        while reading in (3, 4):
            reading = os.dup(reading)
        while writing in (3, 4):
            writing = os.dup(writing)
        os.dup2(reading, 3)
        os.dup2(writing, 4)

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [
                PROGRAM, "--headless=new", "--no-sandbox", "--disable-gpu",
                "--remote-debugging-pipe", "--disable-dev-shm-usage", "--hide-scrollbars",
                "--disable-background-networking", "--disable-component-update", "--no-first-run",
                f"--user-data-dir={profile}",
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=put_in_place,
            close_fds=False,
        )  # fmt: skip
        os.close(to_browser)
        os.close(from_browser)
        try:
            browser = Browser(commands, answers)
            yield browser
            browser.close()
            process.wait(10)
        finally:
            process.kill()
            process.wait()
            os.close(commands)
            os.close(answers)
