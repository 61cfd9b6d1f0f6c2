"""A Ctrl-C is a Ctrl-C, whatever the job makes of it."""

import asyncio
import os
import signal

import pytest

from loadgen.errors import LoadgenError
from loadgen.run.interrupts import run_to_the_end


async def interrupted(ending: str) -> None:
    os.kill(os.getpid(), signal.SIGINT)
    try:
        await asyncio.sleep(10)
    except asyncio.CancelledError:
        if ending == "cancelled":
            raise
        if ending == "failed":
            raise LoadgenError("the server failed a one-token request (cancelled)") from None


@pytest.mark.parametrize("ending", ["cancelled", "failed", "completed"])
def test_a_ctrl_c_is_raised_whatever_the_job_makes_of_its_cancellation(ending: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_to_the_end(interrupted(ending))


def test_an_error_without_a_ctrl_c_stays_the_error_and_a_result_is_returned() -> None:
    async def fails() -> None:
        raise LoadgenError("no")

    async def succeeds() -> int:
        return 3

    with pytest.raises(LoadgenError, match="no"):
        run_to_the_end(fails())
    assert run_to_the_end(succeeds()) == 3
