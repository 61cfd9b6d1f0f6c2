"""Runs of asynchronous jobs, which a Ctrl-C ends as an interrupt at any moment."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

import uvloop

from loadgen.errors import LoadgenError
from loadgen.run import replay

if TYPE_CHECKING:
    from loadgen.run.config import RunConfig
    from loadgen.run.progress import View
    from loadgen.workload.schedule import Schedule

_Result = TypeVar("_Result")


def run_to_the_end(job: Coroutine[Any, Any, _Result]) -> _Result:
    """Run `job` on uvloop and return its result.

    A Ctrl-C that `job` does not handle itself raises KeyboardInterrupt, even where `job` says that what the Ctrl-C
    cancelled has failed, such as a request to the server, or where it goes on to its end.
    """

    async def interruptible() -> _Result:
        task = asyncio.current_task()
        assert task is not None
        try:
            result = await job
        except LoadgenError:
            if task.cancelling():
                raise asyncio.CancelledError from None
            raise
        if task.cancelling():
            raise asyncio.CancelledError
        return result

    return uvloop.run(interruptible())


def run_replay(schedule: Schedule, config: RunConfig, view: View) -> Schedule:
    """Run the schedule and record it in the folder `config.out`; return it as it was sent.

    A Ctrl-C before its first request raises.
    """
    return run_to_the_end(replay.replay(schedule, config, view))
