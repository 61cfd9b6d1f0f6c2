"""The server of a setting, which a search starts, and starts again when it has died."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from time import monotonic, sleep
from types import TracebackType
from typing import TYPE_CHECKING, Self

from loadgen.client.server_url import parse_server_url
from loadgen.errors import LoadgenError
from loadgen.load_search.faults import ServerLostError
from loadgen.run.progress import View, server_start
from loadgen.run.settle import answers
from loadgen.servers.launcher import served

if TYPE_CHECKING:
    from loadgen.run.interrupts import Interruption

ViewOf = Callable[[str], View]
"""Returns a view of one start of a server, or of one probe, which has a title."""

_BACK_S = 30.0
"""Longest wait for a server to come back that is not this program's to start."""


class Server:
    """The server of a setting: one that is there, or one that is started, and started again after it has died."""

    def __init__(
        self,
        base_url: str,
        serve: str | None,
        options: tuple[str, ...],
        log: Path,
        view_of: ViewOf,
        interruption: Interruption | None,
        until_s: float = math.inf,
    ) -> None:
        """`options` are those of `loadgen serve`. `log` gets the output of a server that is started.

        until_s: instant on the monotonic clock after which no start is waited for.
        """
        self.url = base_url
        self._serve, self._options, self._log = serve, options, log
        self._view_of, self._interruption, self._until_s = view_of, interruption, until_s
        self._stack = ExitStack()
        self.is_warm = False
        """True once it has answered the requests of a probe."""
        self.was_reached = False

    def __enter__(self) -> Self:
        self._start()
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None) -> None:
        self._stack.close()

    def move_to(self, api: str | None) -> None:
        """Send later runs to where the API was, perhaps below the URL that was stated, with its login and query."""
        if api:
            self.url = parse_server_url(self.url).moved_to(api).text

    def restart(self) -> None:
        """Start the server again; one that is not ours is waited for. Raises ServerLostError."""
        self.is_warm = False
        if self._serve:
            self._stack.close()
            try:
                self._start()
            except LoadgenError as err:
                raise ServerLostError(f"the server did not start again: {err}") from err
            return
        until_s = min(monotonic() + _BACK_S, self._until_s)
        while not answers(self.url):
            if monotonic() > until_s:
                raise ServerLostError(f"no server answers at {parse_server_url(self.url).clean}")
            if self._interruption:
                self._interruption.check()
            sleep(0.5)

    def _start(self) -> None:
        if not self._serve:
            return
        with self._view_of(f"start of server {self._serve}") as view:
            show_start = server_start(view, self._serve)

            def progress(waited_s: float, line: str) -> None:
                if self._interruption:
                    self._interruption.check()
                show_start(waited_s, line)
                if monotonic() > self._until_s:
                    raise LoadgenError(
                        f"the server {self._serve} did not start within the {waited_s:.1f} s left for it"
                    )

            self.url = self._stack.enter_context(served(self._serve, *self._options, log=self._log, progress=progress))
