"""Chromium with a keyboard, a printer and a screen of any size, by its DevTools protocol."""

import base64
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .pages import CHROMIUM

_ANSWER_S = 60
_AT_FDS = """
import os, sys
pipes = [os.dup(int(number)) for number in sys.argv[1:3]]
while min(pipes) < 5:  # not where one of them is to lie
    pipes = [os.dup(pipe) for pipe in pipes]
os.dup2(pipes[0], 3)
os.dup2(pipes[1], 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
"""Chromium takes commands from file descriptor 3 and answers to 4."""

_KEYS = {
    "Tab": {"key": "Tab", "code": "Tab", "windowsVirtualKeyCode": 9},
    "Enter": {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "text": "\r"},
    "Space": {"key": " ", "code": "Space", "windowsVirtualKeyCode": 32, "text": " "},
    "ArrowDown": {"key": "ArrowDown", "code": "ArrowDown", "windowsVirtualKeyCode": 40},
    "ArrowRight": {"key": "ArrowRight", "code": "ArrowRight", "windowsVirtualKeyCode": 39},
}
_SHIFT = 8


class Tab:
    """One page that is open in a browser."""

    def __init__(self, commands: int, answers: int) -> None:
        self._commands = commands
        self._answers = os.fdopen(answers, "rb", buffering=0)
        self._left = b""
        self._number = 0
        self._session: str | None = None
        self.console: list[str] = []

    def open(self, page: Path, width: int, height: int, dark: bool) -> None:
        """Go to a page and wait until its plots are drawn."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        self.resize(width, height)
        self.show(dark=dark)
        self.call("Page.navigate", url=page.as_uri())
        end = time.monotonic() + _ANSWER_S
        while self.run("document.documentElement?.dataset.plots") != "drawn":
            assert time.monotonic() < end, f"{page} did not draw its plots: {self.console}"
            time.sleep(0.1)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command; its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer["error"]
                return dict(answer["result"])
            if answer.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
                self.console.append(json.dumps(answer["params"]))

    def run(self, script: str, *, wait: bool = False) -> Any:
        """The value of a script, as JSON has it; of a promise with `wait` what it comes to."""
        options = {"returnByValue": True, "awaitPromise": wait}
        result = self.call("Runtime.evaluate", expression=script, **options)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def press(self, key: str, *, shift: bool = False) -> None:
        """Press a key and let it go."""
        for kind in ("keyDown", "keyUp"):
            modifiers = _SHIFT if shift else 0
            self.call("Input.dispatchKeyEvent", type=kind, modifiers=modifiers, **_KEYS[key])

    def resize(self, width: int, height: int) -> None:
        """Show the page in this size."""
        size = {"width": width, "height": height}
        self.call("Emulation.setDeviceMetricsOverride", deviceScaleFactor=1, mobile=False, **size)

    def show(self, *, dark: bool = False, paper: bool = False) -> None:
        """Show the page in light or dark, without motion; or as it is printed."""
        wishes = {"color-scheme": "dark" if dark else "light", "reduced-motion": "reduce"}
        features = [{"name": f"prefers-{name}", "value": value} for name, value in wishes.items()]
        media = "print" if paper else ""
        self.call("Emulation.setEmulatedMedia", media=media, features=features)

    def settle(self) -> None:
        """Wait until plots have followed a change of the size."""
        self.run("new Promise((done) => setTimeout(done, 500))", wait=True)

    def picture(self, file: Path) -> None:
        """Take a picture of the whole page."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(shot["data"]))

    def printed(self) -> bytes:
        """The page as PDF on A4, with an outline of its headings."""
        paper = {"paperWidth": 8.27, "paperHeight": 11.69, "preferCSSPageSize": True}
        options = {"generateTaggedPDF": True, "generateDocumentOutline": True}
        answer = self.call("Page.printToPDF", printBackground=True, **paper, **options)
        return base64.b64decode(answer["data"])

    def close(self) -> None:
        """Have the browser end."""
        self._session = None
        with contextlib.suppress(OSError, AssertionError):  # where it has ended already
            self.call("Browser.close")
        self._answers.close()
        os.close(self._commands)

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._left:
            part = self._answers.read(2**20)
            assert part, "the browser ended"
            self._left += part
        message, _, self._left = self._left.partition(b"\0")
        return dict(json.loads(message))


@contextlib.contextmanager
def opened(
    page: Path, profile: Path, *, width: int = 1280, height: int = 900, dark: bool = False
) -> Iterator[Tab]:
    """A page in headless Chromium, with its plots drawn."""
    assert CHROMIUM is not None
    commands_in, commands = os.pipe()
    answers, answers_out = os.pipe()
    command = [
        *(sys.executable, "-c", _AT_FDS, str(commands_in), str(answers_out)),
        *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
        *("--hide-scrollbars", "--remote-debugging-pipe", f"--user-data-dir={profile}"),
    ]
    process = subprocess.Popen(
        command, pass_fds=(commands_in, answers_out), stderr=subprocess.DEVNULL
    )
    os.close(commands_in)
    os.close(answers_out)
    tab = Tab(commands, answers)
    try:
        tab.open(page, width, height, dark)
        yield tab
        assert tab.console == []
    finally:
        tab.close()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
