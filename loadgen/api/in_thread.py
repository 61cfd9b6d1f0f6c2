"""Work in a thread of its own, which has its own event loop: a run neither disturbs nor waits for one that is running
here, as it is in a notebook. A Ctrl-C, or the end of the task that awaits it, interrupts it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from inspect import signature
from typing import Any, ParamSpec, TypeVar

from loadgen.run.interrupts import Interruption

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def with_parameters_of(
    function: Callable[Parameters, Result],
) -> Callable[[Callable[..., Coroutine[Any, Any, Result]]], Callable[Parameters, Coroutine[Any, Any, Result]]]:
    """Give a coroutine function the parameters of `function`, for type checkers and for `help`."""

    def decorate(
        coroutine: Callable[..., Coroutine[Any, Any, Result]],
    ) -> Callable[Parameters, Coroutine[Any, Any, Result]]:
        coroutine.__signature__ = signature(function)  # type: ignore[attr-defined]
        return coroutine

    return decorate


def wait_for(work: Callable[[Interruption], Result]) -> Result:
    """Do `work` in a thread, and return its result; each Ctrl-C meanwhile is an interrupt."""
    interruption = Interruption()
    future = _start(work, interruption)
    while True:
        try:
            return future.result()
        except KeyboardInterrupt:
            if future.done():
                raise
            interruption.interrupt()


async def awaited(work: Callable[[Interruption], Result]) -> Result:
    """Do `work` in a thread, and return its result; being cancelled aborts it, and waits for its end."""
    interruption = Interruption()
    future = asyncio.wrap_future(_start(work, interruption))
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        interruption.interrupt()
        interruption.interrupt()
        await asyncio.wait([future])
        future.exception()
        raise


def _start(work: Callable[[Interruption], Result], interruption: Interruption) -> Future[Result]:
    """Start a thread; the future has the result of the work, or the error that ended it."""
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(work(interruption))
        except BaseException as err:  # raised where the future is waited for
            future.set_exception(err)

    threading.Thread(target=run, name="loadgen-api").start()
    return future
