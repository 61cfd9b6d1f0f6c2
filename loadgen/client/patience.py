"""Try a start-up request again while the server is not ready: for a short time, and never in silence."""

from __future__ import annotations

import logging
import sys
from asyncio import get_running_loop, sleep
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

_log = logging.getLogger(__name__)

Outcome = TypeVar("Outcome")

Say = Callable[[str], None]
"""Shows the user one line while the server is being probed."""

SILENT_S = 3.0
"""A wait that takes longer is announced."""
FIRST_PAUSE_S = 0.5
MAX_PAUSE_S = 4.0

PATIENCE_S = {408: 7.5, 425: 7.5, 429: 7.5, 500: 1.5, 502: 7.5, 503: 20.0, 504: 7.5, 529: 7.5}
"""Seconds of pauses that a status is worth: 503 is what servers answer while they load a model."""
PATIENCE_WITHOUT_ANSWER_S = 1.5
"""Seconds of pauses that an answer is worth that was cut short, or was not one."""


def say_on_stderr(line: str) -> None:
    print(f"loadgen: {line}", file=sys.stderr, flush=True)
    _log.info("%s", line, extra={"printed": True})


@contextmanager
def announced(wait: Say, line: str) -> Iterator[None]:
    """Show `line` once the block has taken SILENT_S."""
    timer = get_running_loop().call_later(SILENT_S, wait, line)
    try:
        yield
    finally:
        timer.cancel()


async def patiently(
    attempt: Callable[[], Awaitable[Outcome]], unready: Callable[[Outcome], tuple[float, str]], wait: Say, server: str
) -> Outcome:
    """Return the first outcome that is worth no further wait, or the last one.

    `unready` gives the seconds of pauses that an outcome is worth (0: none), and describes it.
    """
    waited_s, pause_s = 0.0, FIRST_PAUSE_S
    while True:
        with announced(wait, f"waiting for an answer of {server}; Ctrl-C ends the wait"):
            outcome = await attempt()
        patience_s, reason = unready(outcome)
        if waited_s >= patience_s:
            return outcome
        if waited_s == 0:
            wait(f"{server} is not ready ({reason}); trying again for up to {patience_s:g} s")
        retry = {"url": server, "reason": reason, "pause_s": pause_s}
        _log.info("%(url)s is not ready: %(reason)s; trying again in %(pause_s)s s", retry)
        await sleep(pause_s)
        waited_s += pause_s
        pause_s = min(2 * pause_s, MAX_PAUSE_S)
