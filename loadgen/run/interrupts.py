"""Runs of asynchronous jobs, which a Ctrl-C, or another thread, ends as an interrupt at any moment."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, TypeVar

import uvloop

from loadgen.errors import LoadgenError
from loadgen.run import replay

if TYPE_CHECKING:
    from loadgen.run.config import RunConfig
    from loadgen.run.progress import View
    from loadgen.workload.schedule import Schedule

_Result = TypeVar("_Result")


class Interruption:
    """Interrupts a run from another thread, as Ctrl-C does from a terminal: once to drain it, twice to abort it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._target: tuple[asyncio.AbstractEventLoop, Callable[[], object]] | None = None
        self.requested = False

    def interrupt(self) -> None:
        """Interrupt what runs now; where nothing does, the next step raises KeyboardInterrupt. For any thread."""
        with self._lock:
            self.requested = True
            if self._target is not None:
                loop, act = self._target
                loop.call_soon_threadsafe(act)

    @contextmanager
    def acting(self, act: Callable[[], object]) -> Iterator[None]:
        """Call `act` in the running loop at each interrupt while the block runs. After it they have no effect."""
        with self._lock:
            self._target = asyncio.get_running_loop(), act
        try:
            yield
        finally:
            with self._lock:
                self._target = None

    def check(self) -> None:
        """Raise KeyboardInterrupt if there was an interrupt."""
        if self.requested:
            raise KeyboardInterrupt


def run_to_the_end(job: Coroutine[Any, Any, _Result], interruption: Interruption | None = None) -> _Result:
    """Run `job` on uvloop and return its result.

    A Ctrl-C, or an `interruption`, that `job` does not handle itself raises KeyboardInterrupt, even where `job` says
    that what it cancelled has failed, such as a request to the server, or where it goes on to its end.
    """

    async def interruptible() -> _Result:
        task = asyncio.current_task()
        assert task is not None
        with interruption.acting(task.cancel) if interruption else nullcontext():
            if interruption and interruption.requested:  # before there was a loop
                task.cancel()
            try:
                result = await job
            except LoadgenError:
                if task.cancelling():
                    raise asyncio.CancelledError from None
                raise
            if task.cancelling():
                raise asyncio.CancelledError
            return result

    try:
        return uvloop.run(interruptible())
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None


def run_replay(
    schedule: Schedule,
    config: RunConfig,
    view: View,
    interruption: Interruption | None = None,
    judge: replay.Judge | None = None,
    ready_s: float | None = None,
) -> Schedule:
    """Run the schedule and record it in the folder `config.out`; return it as it was sent.

    A Ctrl-C before its first request raises. With an `interruption`, that takes the place of Ctrl-C and SIGTERM, and
    any thread may run it. judge, ready_s: see `replay.replay`.
    """
    interruptible = interruption.acting if interruption else None
    return run_to_the_end(replay.replay(schedule, config, view, interruptible, judge, ready_s), interruption)
