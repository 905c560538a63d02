"""A model in the page: opened in a browser of our own, run and timed there."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit._plugins.targets.web_page.browser import Browser, find
from deploykit._plugins.targets.web_page.exchange import pack, unpack
from deploykit._plugins.targets.web_page.web_server import WebServer

from deploykit.protocol import Signature

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

# The page is the one that the user gets; this adds the calls. Its own script starts nothing by itself.
OPEN = """(async () => {
  const { Model } = await import(new URL("model.js", location).href);
  globalThis.deploykit = await Model.open(%d);
  return deploykit.facts;
})()"""


class WebPage:
    """The payload's page in a headless browser, with its model loaded. Close it.

    `facts` are the page's own: `threads`, `isolated`, `version` of the runtime, `resolutionMs` of the
    clock, and `gpu` where the model runs on one. Raises UnavailableError without a browser,
    PluginError with the runtime's words where the model cannot be loaded.
    """

    def __init__(self, payload: Path, *, device: str, threads: int | None) -> None:
        self.browser = Browser(find(), webgpu=device == "webgpu")
        try:
            self.server = WebServer(payload)
            try:
                self._page = self.browser.open_page(self.server.address)
                self.facts: dict[str, Any] = self._page.evaluate(OPEN % (threads or 0))
            except BaseException:
                self.server.close()
                raise
        except BaseException:
            self.browser.close()
            raise

    def call(self, name: str, **parameters: Any) -> Any:
        """Call `name` of `page/runner.js`."""
        return self._page.evaluate(f"deploykit.call({json.dumps(name)}, {json.dumps(parameters)})")

    def receive(self, name: str, **parameters: Any) -> bytes:
        """Call `name`, which sends bytes, and return them."""
        address, received = self.server.expect()
        try:
            self.call(name, to=address, **parameters)
        finally:
            data = received()
        return data

    def close(self) -> None:
        """End the browser and the server. Can be called again."""
        self.browser.close()
        self.server.close()


class WebSession:
    """A session whose model runs in the browser; `pid` is the process of its page."""

    def __init__(self, page: WebPage, signature: Signature) -> None:
        self.inputs = signature.inputs
        self.outputs = signature.outputs
        self.pid = page.browser.page_process()
        self._page: WebPage | None = page
        self._bound: BoundPage | None = None

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Return every output by name."""
        bound = self.bind(feed)
        bound()
        return bound.outputs()

    def bind(self, feed: Mapping[str, Array]) -> BoundPage:
        """Fix the inputs; calling the result runs one inference on them.

        A page has one feed at a time: the last one bound.
        """
        if self._page is None:
            raise ValueError("the session is closed")
        return BoundPage(
            self._page, {spec.name: feed[spec.name] for spec in self.inputs}, self._names(), self
        )

    def close(self) -> None:
        """End the browser. Can be called again."""
        if self._page is not None:
            self._page.close()
            self._page = None

    def _names(self) -> list[str]:
        return [spec.name for spec in self.outputs]


class BoundPage:
    """Inputs that lie in the page's memory. The runtime copies them to its own at each run."""

    def __init__(
        self, page: WebPage, feed: Mapping[str, Array], names: list[str], session: WebSession
    ) -> None:
        self._page = page
        self._feed = feed
        self._names = names
        self._session = session
        self._offer()

    def __call__(self) -> None:
        """Run once."""
        self._here("run")

    def measure(self, iterations: int, duration_s: float | None) -> list[int]:
        """Run over and over in the page; return each latency in ns, by the page's own clock."""
        import numpy as np

        data = self._here(
            "measure",
            receive=True,
            iterations=iterations,
            durationMs=1e18 if duration_s is None else duration_s * 1000,
        )
        found: list[int] = np.rint(np.frombuffer(data, "<f8") * 1e6).astype(np.int64).tolist()
        # a run below the clock's step took some time all the same
        return [max(1, latency) for latency in found]

    def outputs(self) -> dict[str, Array]:
        """Return copies of the outputs of the last run."""
        found = unpack(self._here("outputs", receive=True))
        return {name: found[name] for name in self._names}

    def _offer(self) -> None:
        self._page.call("bind", **{"from": self._page.server.offer(pack(self._feed))})
        self._session._bound = self

    def _here(self, name: str, *, receive: bool = False, **parameters: Any) -> Any:
        """Call `name` with these inputs in the page; others may have been bound since."""
        if self._session._bound is not self:
            self._offer()
            if name == "outputs":
                self._page.call("run")
        call: Callable[..., Any] = self._page.receive if receive else self._page.call
        return call(name, **parameters)
