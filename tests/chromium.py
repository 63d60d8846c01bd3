"""A headless Chromium on the two ends of a pipe: opens a page and says everything that went wrong in it."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import select
import shutil
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
PATIENCE = 60.0  # seconds until a browser that says nothing counts as dead
# Chromium reads commands from its descriptor 3 and writes answers to 4, each a JSON object that ends in a NUL
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
         "--disable-background-networking", "--remote-debugging-pipe")  # fmt: skip
SETTLE = "new Promise((done) => requestAnimationFrame(() => setTimeout(done, 50)))"


def find_chromium() -> str | None:
    """The browser on PATH, or None."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


@dataclass
class Page:
    """A page that was opened: what went wrong, and what it asked for besides itself."""

    browser: Browser
    session: str
    problems: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression; of a promise, what it comes to."""
        answer = self.browser.ask(self.session, "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")


class Browser:
    """A context that starts Chromium and ends it. `folder` takes its profile."""

    def __init__(self, program: str, folder: Path) -> None:
        self.folder = folder
        self._numbers = itertools.count(1)
        self._events: list[dict[str, Any]] = []
        self._rest = b""
        commands, answers = os.pipe(), os.pipe()
        # far from 3 and 4, which the shell is about to make of them
        theirs = [fcntl.fcntl(end, fcntl.F_DUPFD, 20) for end in (commands[0], answers[1])]
        self._to, self._from = commands[1], answers[0]
        line = f'exec "$@" 3<&{theirs[0]} 4>&{theirs[1]}'
        self._process = subprocess.Popen(
            ["bash", "-c", line, "bash", program, *FLAGS, f"--user-data-dir={folder}", "about:blank"],
            pass_fds=theirs,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "HOME": str(folder)},
        )
        for end in (*theirs, commands[0], answers[1]):
            os.close(end)

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._process.terminate()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._to)
        os.close(self._from)

    def open(self, path: Path, width: int = 1280, dark: bool = False) -> Page:
        """Loads the file `path` in a new tab and waits until it is still."""
        target = self.ask(None, "Target.createTarget", url="about:blank")["targetId"]
        session = self.ask(None, "Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(session, f"{domain}.enable")
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        self.ask(session, "Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask(session, "Emulation.setEmulatedMedia", features=[scheme])
        self._events.clear()
        self.ask(session, "Page.navigate", url=path.resolve().as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self._events):
            self._receive()
        page = Page(self, session)
        page.run(SETTLE)
        for event in self._events:
            self._note(page, path.resolve().as_uri(), event["method"], event["params"])
        return page

    def ask(self, session: str | None, method: str, **parameters: Any) -> dict[str, Any]:
        """The answer to a command of the DevTools protocol; events on the way are kept."""
        number = next(self._numbers)
        command = {"id": number, "method": method, "params": parameters, **({"sessionId": session} if session else {})}
        os.write(self._to, json.dumps(command).encode() + b"\0")
        while True:
            message = self._receive()
            if message.get("id") == number:
                assert "error" not in message, f"{method}: {message['error']}"
                return message["result"]

    def _receive(self) -> dict[str, Any]:
        end = time.monotonic() + PATIENCE
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._from], [], [], max(0.0, end - time.monotonic()))
            part = os.read(self._from, 1 << 20) if ready else b""
            assert part, "Chromium ended, or said nothing for a minute"
            self._rest += part
        text, _, self._rest = self._rest.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        if "method" in message:
            self._events.append(message)
        return message

    @staticmethod
    def _note(page: Page, address: str, method: str, about: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            details = about["exceptionDetails"]
            page.problems.append(f"exception: {details.get('exception', {}).get('description', details['text'])}")
        elif method == "Runtime.consoleAPICalled" and about["type"] in ("error", "warning", "assert"):
            page.problems.append(f"console: {[part.get('value') for part in about['args']]}")
        elif method == "Log.entryAdded" and about["entry"]["level"] in ("error", "warning"):
            page.problems.append(f"log: {about['entry']['text']} {about['entry'].get('url', '')}")
        elif method == "Network.loadingFailed":
            page.problems.append(f"not loaded: {about['errorText']} {about.get('blockedReason', '')}")
        elif method == "Network.requestWillBeSent":
            url = about["request"]["url"]
            if url != address and not url.startswith("data:"):
                page.requests.append(url)
