"""A headless Chromium of our own: found, started in a fresh profile, driven, ended.

It is driven by the DevTools protocol over a pair of pipes (`--remote-debugging-pipe`: messages end
with a zero byte, commands are read from descriptor 3 and answered on 4;
https://chromedevtools.github.io/devtools-protocol/). Unlike a port, nobody else on the machine can
reach them, and the browser ends by itself when they close, also after a `kill -9` of this process.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from deploykit._plugins.targets.web_page.browser_process import BrowserProcess, Ended

from deploykit.errors import PluginError, StepOutOfMemory, UnavailableError
from deploykit.family import descendants

NAMES = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "google-chrome-beta",
    "chrome",
    "microsoft-edge",
    "microsoft-edge-stable",
)
MAC = (
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
)

START_S = 60.0
END_S = 10.0
SHARED_MEMORY_BYTES = 1 << 30
"""With less room in /dev/shm (a container has 64 MB), Chromium is told to use ordinary files."""

FLAGS = (
    "--headless=new",
    "--remote-debugging-pipe",
    # nobody else is called, whatever a component of the browser may want
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--no-proxy-server",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-domain-reliability",
    "--disable-extensions",
    "--disable-sync",
    "--disable-breakpad",
    "--disable-crash-reporter",
    "--metrics-recording-only",
    "--no-pings",
    "--no-first-run",
    "--no-default-browser-check",
    "--password-store=basic",
    "--use-mock-keychain",
    "--disable-features=Translate,OptimizationHints,MediaRouter",
    # a page that nobody looks at is slowed down else
    "--disable-background-timer-throttling",
    "--disable-backgrounding-occluded-windows",
    "--disable-renderer-backgrounding",
    "--mute-audio",
    "--hide-scrollbars",
)
# Headless Chromium on Linux hides WebGPU unless told so; without a GPU this gives its software
# adapter (https://developer.chrome.com/blog/supercharge-web-ai-testing).
WEBGPU_FLAGS = (
    "--enable-unsafe-webgpu",
    "--enable-features=Vulkan",
    "--use-angle=vulkan",
    # on a busy machine the software adapter seems to hang, and would be ended
    "--disable-gpu-watchdog",
)


def find() -> Path:
    """Return the browser: `$CHROME_PATH`, else the first known name on the path.

    Raises UnavailableError where there is none.
    """
    named = os.environ.get("CHROME_PATH")
    if named:
        found = shutil.which(named)
        if found is None:
            raise UnavailableError(f"CHROME_PATH is `{named}`, which is no program")
        return Path(found)
    for name in (*NAMES, *MAC):
        found = shutil.which(name)
        if found:
            return Path(found)
    raise UnavailableError(
        "no Chromium was found",
        hint="install Chromium or Chrome (Debian: apt-get install chromium), or name it in CHROME_PATH",
    )


class Browser:
    """A running browser. Close it: else it ends with this process.

    `sandboxed` is False where it had to be started without its sandbox: as root, or on a kernel that
    gives it none. Raises UnavailableError where it cannot be started.
    """

    def __init__(self, program: Path, *, webgpu: bool = False) -> None:
        self.program = program
        self.sandboxed = os.geteuid() != 0
        self._number = 0
        self._open(webgpu)
        try:
            self.product = self._hello()
        except Ended as ended:
            reason = ended.said
            if not (self.sandboxed and "sandbox" in reason.lower()):
                raise _cannot_start(program, reason) from ended
            self.sandboxed = False
            self._open(webgpu)
            try:
                self.product = self._hello()
            except Ended as again:
                raise _cannot_start(program, again.said) from again

    @property
    def running(self) -> bool:
        """Whether it is there."""
        return self._process.running

    def call(self, method: str, page: Page | None = None, **parameters: Any) -> dict[str, Any]:
        """Call a method of the DevTools protocol, in a page's session, and return its result.

        Raises PluginError where the browser or the page has ended or the method failed,
        StepOutOfMemory where the page ended for want of memory.
        """
        try:
            return self._exchange(method, page, parameters, None)
        except Ended as ended:
            raise PluginError(f"the browser ended: {ended.said}") from ended

    def open_page(self, address: str) -> Page:
        """Open `address` in a new page and wait until it is loaded."""
        self.call("Target.setDiscoverTargets", discover=True)  # to hear how one crashed
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, target, session)
        for domain in ("Page", "Runtime", "Log"):
            page.call(f"{domain}.enable")
        self._loaded.discard(session)
        answer = page.call("Page.navigate", url=address)
        if answer.get("errorText"):
            raise PluginError(f"the browser cannot open its page: {answer['errorText']}")
        try:
            while session not in self._loaded:
                self._take(self._read(time.monotonic() + START_S))
        except Ended as ended:
            raise PluginError(f"the browser cannot open its page: {ended.said}") from ended
        return page

    def page_process(self) -> int | None:
        """Return the pid of the process that runs the page: the largest of its kind."""
        found: list[tuple[int, int]] = []
        for pid in descendants(self._process.pid):
            with contextlib.suppress(OSError):
                if b"--type=renderer" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    resident = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]
                    found.append((int(resident), pid))
        return max(found)[1] if found else None

    def close(self) -> None:
        """End it and remove its folder. Can be called again."""
        if self._process.running:
            with contextlib.suppress(PluginError, Ended):
                self._exchange("Browser.close", None, {}, time.monotonic() + END_S)
        self._process.end(END_S)

    def _open(self, webgpu: bool) -> None:
        self._buffer = b""
        self._loaded: set[str] = set()
        self._crashed: dict[str, str] = {}
        flags = [*FLAGS, *(WEBGPU_FLAGS if webgpu else ())]
        if not self.sandboxed:
            flags.append("--no-sandbox")
        with contextlib.suppress(OSError):
            if shutil.disk_usage("/dev/shm").free < SHARED_MEMORY_BYTES:
                flags.append("--disable-dev-shm-usage")
        self._process = BrowserProcess(self.program, flags)

    def _hello(self) -> str:
        until = time.monotonic() + START_S
        try:
            return str(self._exchange("Browser.getVersion", None, {}, until)["product"])
        except BaseException:
            self._process.end(0)
            raise

    def _exchange(
        self, method: str, page: Page | None, parameters: dict[str, Any], until: float | None
    ) -> dict[str, Any]:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if page is not None:
            message["sessionId"] = page.session
        self._process.write(json.dumps(message).encode() + b"\0")
        while True:
            if page is not None and page.target in self._crashed:
                how = self._crashed[page.target]
                kind = StepOutOfMemory if "oom" in how.lower() else PluginError
                raise kind(f"the process of the page ended: {how}")
            answer = self._read(until)
            if answer.get("id") != self._number:
                self._take(answer)
                continue
            if "error" in answer:
                raise PluginError(f"the browser refuses {method}: {answer['error'].get('message')}")
            result: dict[str, Any] = answer["result"]
            return result

    def _read(self, until: float | None) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            self._buffer += self._process.read(until)
        line, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        return message

    def _take(self, event: dict[str, Any]) -> None:
        """Note what the browser tells without being asked."""
        method, session = event.get("method"), str(event.get("sessionId"))
        parameters = event.get("params", {})
        if method == "Page.loadEventFired":
            self._loaded.add(session)
        elif method == "Target.targetCrashed":
            self._crashed[parameters["targetId"]] = str(parameters.get("status"))
        elif method == "Runtime.consoleAPICalled":
            words = [
                str(item.get("value", item.get("description", ""))) for item in parameters["args"]
            ]
            print(f"page: {' '.join(words)}", file=sys.stderr)
        elif method == "Runtime.exceptionThrown":
            print(f"page: {_reason(parameters['exceptionDetails'])}", file=sys.stderr)
        elif method == "Log.entryAdded":
            print(f"page: {parameters['entry'].get('text')}", file=sys.stderr)


class Page:
    """One page of the browser."""

    def __init__(self, browser: Browser, target: str, session: str) -> None:
        self.browser = browser
        self.target = target
        self.session = session

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the DevTools protocol in this page."""
        return self.browser.call(method, self, **parameters)

    def evaluate(self, expression: str) -> Any:
        """Return the JSON value that the JavaScript `expression`, or its promise, gives.

        Raises PluginError with the message of what it throws.
        """
        answer = self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in answer:
            raise PluginError(_reason(answer["exceptionDetails"]))
        return answer["result"].get("value")


def _cannot_start(program: Path, reason: str) -> UnavailableError:
    return UnavailableError(f"`{program}` cannot be started: {reason}")


def _reason(details: dict[str, Any]) -> str:
    exception = details.get("exception", {})
    text = str(exception.get("description") or exception.get("value") or details.get("text"))
    return text.split("\n    at ")[0].removeprefix("Error: ")
