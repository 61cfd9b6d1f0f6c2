"""Polls an engine's own counters from its metrics page: its work for all clients, ours among them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from loadgen.clock import monotonic_ns
from loadgen.errors import MeterError
from loadgen.http_get import HttpResponse, PageClient
from loadgen.telemetry.engine_page import EnginePage, parse_page, unread_reason

if TYPE_CHECKING:
    from loadgen.telemetry.engine_sample import EngineSample

PAGES = ("/prometheus/metrics", "/metrics", "/v1/metrics")
"""Paths under which engines have their page. TensorRT-LLM's is the first; its /metrics hands out statistics that are
gone once read. NIM's is the last."""
PAGES_OF_OWNER = {"tensorrt_llm": PAGES[:1]}
"""Paths by the owner that a server's model list states, where only these are asked for."""
LIVENESS_PAGE = "/v1/models"
MAX_TIMEOUTS = 2
"""A path that was never understood, and on which this many reads got no answer in time, is not asked for again."""
_ONE_THREAD_A_CONNECTION = "llama.cpp"
"""An engine that gives one of its few threads to each connection, idle ones too."""
_NOT_IMPLEMENTED = 501
"""llama.cpp's status for a page that it was started without."""


class EngineState(NamedTuple):
    """Knowledge of an engine's page: that something answered does not mean that it was understood."""

    answered_ns: int | None = None
    """The latest answer of any kind; None before the first."""
    engine: str | None = None
    """The engine whose names the page has; None when no page was understood."""
    path: str | None = None
    reason: str | None = None
    """Why no counters are read, once that is settled. Holds paths and statuses, nothing of the page."""


class EnginePoller:
    """A thread that reads the page every `period_s` and passes on its values. A read that fails leaves a gap.

    The first reads try `PAGES`; a path whose page is not understood is not asked for again. When none remains, nothing
    is polled; with `watch`, LIVENESS_PAGE instead, and all paths are tried again after the server was away.
    `t_ns` of a sample is the middle of the request that fetched the page.
    """

    def __init__(
        self,
        root_url: str,
        on_sample: Callable[[EngineSample], None],
        *,
        period_s: float = 0.5,
        owner: str | None = None,
        watch: bool = False,
    ) -> None:
        self.state = EngineState()
        """Replaced as a whole, so that any thread may read it."""
        self._connection = PageClient(root_url, None, monotonic_ns)
        self._on_sample = on_sample
        self._period_s = period_s
        self._watch = watch
        self._pages = PAGES_OF_OWNER.get(owner or "", PAGES)
        self._untried = list(self._pages)
        self._timeouts = dict.fromkeys(self._pages, 0)
        self._refused: list[str] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="engine-metrics", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def cancel(self) -> None:
        """End the thread, without waiting for it."""
        self._stop.set()

    def stop(self) -> None:
        self.cancel()
        self._thread.join(timeout=2 * self._period_s + 2)

    def _run(self) -> None:
        while not self._stop.wait(self._period_s):
            self._poll()
        self._connection.close()

    def read_now(self) -> None:
        """Read the page once and pass it on if it has any known metric. Blocks."""
        self._poll()
        self._connection.close()

    def _poll(self) -> None:
        if self.state.path is not None:
            self._read(self.state.path)
            return
        for path in tuple(self._untried):
            if not self._read(path) or self.state.path is not None:
                return
        if self._watch and not self._untried:
            self._read(LIVENESS_PAGE)

    def _read(self, path: str) -> bool:
        """Read one path. Return False if the server is away."""
        try:
            response = self._connection.get(path)
        except MeterError as err:
            if isinstance(err.__cause__, TimeoutError):
                self._note_timeout(path)
                return True
            if self._watch:  # another engine may come back
                self._untried, self._refused = list(self._pages), []
                self._timeouts = dict.fromkeys(self._pages, 0)
                self.state = EngineState(self.state.answered_ns)
            return False
        finally:
            if self.state.engine in (None, _ONE_THREAD_A_CONNECTION):
                self._connection.close()
        self.state = self.state._replace(answered_ns=response.received_ns)
        page = parse_page(response.body) if response.status == 200 and path != LIVENESS_PAGE else None
        if page is not None:
            self._take(path, page, response)
        elif path in self._untried and self.state.path is None:
            self._judge(path, response)
        return True

    def _take(self, path: str, page: EnginePage, response: HttpResponse) -> None:
        self.state = EngineState(response.received_ns, page.engine, path)
        if page.values:
            self._on_sample({"t_ns": (response.sent_ns + response.received_ns) // 2, **page.values})

    def _judge(self, path: str, response: HttpResponse) -> None:
        """Give the path up if its answer will never be a page; a server that is only starting keeps it."""
        if response.status == 200:
            reason = unread_reason(response.body)
        else:
            passing = response.status == 429 or response.status >= 500
            reason = None if passing and response.status != _NOT_IMPLEMENTED else f"status {response.status}"
        if reason is not None:
            self._give_up(path, reason)

    def _note_timeout(self, path: str) -> None:
        if path in self._untried and self.state.path is None:
            self._timeouts[path] += 1
            if self._timeouts[path] >= MAX_TIMEOUTS:
                self._give_up(path, "no answer in time")

    def _give_up(self, path: str, reason: str) -> None:
        self._untried.remove(path)
        self._refused.append(f"{path}: {reason}")
        if not self._untried:
            self.state = self.state._replace(reason=f"no metrics page is understood ({'; '.join(self._refused)})")
