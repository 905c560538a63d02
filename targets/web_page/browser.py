"""A headless Chromium of our own: found, started in a fresh profile, driven, ended.

It is driven by the DevTools protocol over a pair of pipes (`--remote-debugging-pipe`: messages end
with a zero byte, commands are read from descriptor 3 and answered on 4;
https://chromedevtools.github.io/devtools-protocol/). Unlike a port, nobody else on the machine can
reach them, and the browser ends by itself when they close, also after a `kill -9` of this process.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import sys
import tempfile
import time
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from deploykit.errors import PluginError, StepOutOfMemory, UnavailableError
from deploykit.family import descendants, is_running, kill

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

LONGEST_FOLDER = 45

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

# The shell outlives the browser only to remove its folder: also when we are killed.
_RUN_AND_TIDY = '"$@"; rm -rf -- "$0"'


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
        except _Ended as ended:
            reason = ended.said
            if not (self.sandboxed and "sandbox" in reason.lower()):
                raise _cannot_start(program, reason) from ended
            self.sandboxed = False
            self._open(webgpu)
            try:
                self.product = self._hello()
            except _Ended as again:
                raise _cannot_start(program, again.said) from again

    @property
    def running(self) -> bool:
        """Whether it is there."""
        return self._process.running

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """Call a method of the DevTools protocol, in a page's `session`, and return its result.

        Raises PluginError where the browser or the page has ended or the method failed.
        """
        try:
            return self._exchange(method, session, parameters, None)
        except _Ended as ended:
            raise PluginError(f"the browser ended: {ended.said}") from ended

    def open_page(self, address: str) -> Page:
        """Open `address` in a new page and wait until it is loaded."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, session)
        for domain in ("Page", "Runtime", "Inspector", "Log"):
            page.call(f"{domain}.enable")
        self._loaded.discard(session)
        answer = page.call("Page.navigate", url=address)
        if answer.get("errorText"):
            raise PluginError(f"the browser cannot open its page: {answer['errorText']}")
        while session not in self._loaded:
            self._take(self._read(time.monotonic() + START_S))
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
            with contextlib.suppress(PluginError, _Ended):
                self._exchange("Browser.close", None, {}, time.monotonic() + END_S)
        self._process.end(END_S)

    def _open(self, webgpu: bool) -> None:
        self._buffer = b""
        self._loaded: set[str] = set()
        self._crashed: set[str] = set()
        flags = [*FLAGS, *(WEBGPU_FLAGS if webgpu else ())]
        if not self.sandboxed:
            flags.append("--no-sandbox")
        with contextlib.suppress(OSError):
            if shutil.disk_usage("/dev/shm").free < SHARED_MEMORY_BYTES:
                flags.append("--disable-dev-shm-usage")
        self._process = _Process(self.program, flags)

    def _hello(self) -> str:
        until = time.monotonic() + START_S
        try:
            return str(self._exchange("Browser.getVersion", None, {}, until)["product"])
        except BaseException:
            self._process.end(0)
            raise

    def _exchange(
        self, method: str, session: str | None, parameters: dict[str, Any], until: float | None
    ) -> dict[str, Any]:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        self._process.write(json.dumps(message).encode() + b"\0")
        while True:
            if session in self._crashed:
                raise StepOutOfMemory(
                    "the page crashed, as pages do that need more memory than there is",
                    hint="a smaller model, or smaller inputs",
                )
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
        elif method == "Inspector.targetCrashed":
            self._crashed.add(session)
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

    def __init__(self, browser: Browser, session: str) -> None:
        self.browser = browser
        self._session = session

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the DevTools protocol in this page."""
        return self.browser.call(method, self._session, **parameters)

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


class _Ended(Exception):
    """The browser is gone, or does not answer. `said` is the reason as far as it told one."""

    def __init__(self, said: str) -> None:
        super().__init__(said)
        self.said = said


class _Process:
    """The process, its two pipes, and its folder, where all that it writes goes."""

    def __init__(self, program: Path, flags: Sequence[str]) -> None:
        folder = Path(tempfile.mkdtemp(prefix="web-", dir=_short_folder()))
        self._folder = folder
        # a file without a name: its last words are still there when the folder is gone
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        variables = {**os.environ, "TMPDIR": str(folder), "HOME": str(folder)}
        for name in ("XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME"):
            variables.pop(name, None)
        argv = ["sh", "-c", _RUN_AND_TIDY, str(folder), str(program), *flags]
        argv += [f"--user-data-dir={folder / 'profile'}", "about:blank"]
        commands, self._write = _pipe()
        self._read, answers = _pipe()
        log = _above(os.dup(self._log.fileno()))
        nothing = _above(os.open(os.devnull, os.O_RDONLY))
        actions = [
            (os.POSIX_SPAWN_DUP2, nothing, 0),
            (os.POSIX_SPAWN_DUP2, log, 1),
            (os.POSIX_SPAWN_DUP2, log, 2),
            (os.POSIX_SPAWN_DUP2, commands, 3),
            (os.POSIX_SPAWN_DUP2, answers, 4),
        ]
        try:
            self.pid = os.posix_spawn("/bin/sh", argv, variables, file_actions=actions, setpgroup=0)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            self._log.close()
            os.close(self._write)
            os.close(self._read)
            raise
        finally:
            for descriptor in (commands, answers, log, nothing):
                os.close(descriptor)
        self.running = True
        # for one that nobody closed, also at the interpreter's exit
        self._finalizer = weakref.finalize(
            self, _end, self.pid, (self._read, self._write), self._log, folder, 0.0
        )

    def write(self, data: bytes) -> None:
        try:
            while data:
                data = data[os.write(self._write, data) :]
        except OSError as error:
            raise _Ended(self._last_words()) from error

    def read(self, until: float | None) -> bytes:
        if until is not None:
            left = max(0.0, until - time.monotonic())
            if not select.select([self._read], [], [], left)[0]:
                raise _Ended(f"it does not answer. {self._last_words()}")
        data = os.read(self._read, 1 << 20)
        if not data:
            raise _Ended(self._last_words())
        return data

    def end(self, patience_s: float) -> None:
        if self._finalizer.detach() is not None:
            self.running = False
            _end(self.pid, (self._read, self._write), self._log, self._folder, patience_s)

    def _last_words(self) -> str:
        size = os.fstat(self._log.fileno()).st_size
        text = os.pread(self._log.fileno(), 1 << 16, max(0, size - (1 << 16)))
        lines = text.decode("utf-8", "replace").splitlines()
        fatal = [line for line in lines if "FATAL" in line or "sandbox" in line.lower()]
        return " ".join((fatal or lines or ["it said nothing"])[-3:])[-500:]


def _end(
    pid: int, descriptors: tuple[int, ...], log: IO[bytes], folder: Path, patience_s: float
) -> None:
    """End the process `pid` and all that it started, at the latest after `patience_s`."""
    for descriptor in descriptors:
        os.close(descriptor)  # which is how the browser learns of it
    family = descendants(pid)
    until = time.monotonic() + patience_s
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(pid, os.WNOHANG)[0] == 0:
            if time.monotonic() >= until:
                family += descendants(pid)
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                break
            time.sleep(0.01)
    kill(member for member in family if is_running(member))
    for _ in range(200):
        if not any(is_running(member) for member in family):
            break
        time.sleep(0.01)
    log.close()
    shutil.rmtree(folder, ignore_errors=True)


def _short_folder() -> str | None:
    """Return where to make the browser's folder, None for the usual place.

    It makes `org.chromium.Chromium.XXXXXX/SingletonSocket` there, whose whole path may have 107 bytes.
    """
    return "/tmp" if len(tempfile.gettempdir()) > LONGEST_FOLDER else None


def _pipe() -> tuple[int, int]:
    reading, writing = os.pipe()
    return _above(reading), _above(writing)


def _above(descriptor: int) -> int:
    """Return a duplicate above 9, not inherited: the child's own descriptors are 0 to 4."""
    try:
        return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 10)
    finally:
        os.close(descriptor)


def _cannot_start(program: Path, reason: str) -> UnavailableError:
    return UnavailableError(f"`{program}` cannot be started: {reason}")


def _reason(details: dict[str, Any]) -> str:
    exception = details.get("exception", {})
    text = str(exception.get("description") or exception.get("value") or details.get("text"))
    return text.split("\n    at ")[0].removeprefix("Error: ")
