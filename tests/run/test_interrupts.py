"""A Ctrl-C is a Ctrl-C, whatever the job makes of it."""

import asyncio
import os
import signal
import threading

import pytest

from loadgen.errors import LoadgenError
from loadgen.run.interrupts import Interruption, run_to_the_end


async def ended(ending: str) -> None:
    """Wait to be cancelled, and end as `ending` says: a job may raise another error, or none."""
    try:
        await asyncio.sleep(10)
    except asyncio.CancelledError:
        if ending == "cancelled":
            raise
        if ending == "failed":
            raise LoadgenError("the server failed a one-token request (cancelled)") from None


async def interrupted(ending: str) -> None:
    os.kill(os.getpid(), signal.SIGINT)
    await ended(ending)


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


# -- from another thread ----------------------------------------------------------------------------------------------


def test_an_interruption_cancels_a_job_that_does_not_handle_it_whatever_the_job_makes_of_it() -> None:
    for ending in ("cancelled", "failed", "completed"):
        interruption = Interruption()

        async def job(ending: str = ending, interruption: Interruption = interruption) -> None:
            await asyncio.to_thread(interruption.interrupt)
            await ended(ending)

        with pytest.raises(KeyboardInterrupt):
            run_to_the_end(job(), interruption)


def test_an_interruption_is_handled_in_the_loop_while_something_acts_on_it_and_has_no_effect_after_that() -> None:
    interruption, acts = Interruption(), []

    async def job() -> str:
        with interruption.acting(lambda: acts.append(threading.current_thread())):
            await asyncio.to_thread(interruption.interrupt)
            await asyncio.to_thread(interruption.interrupt)
        interruption.interrupt()
        await asyncio.sleep(0)
        return "ended"

    assert run_to_the_end(job(), interruption) == "ended"
    assert acts == [threading.main_thread()] * 2
    assert interruption.requested


def test_an_interruption_of_nothing_is_raised_by_the_next_step() -> None:
    interruption = Interruption()
    interruption.check()
    interruption.interrupt()
    with pytest.raises(KeyboardInterrupt):
        interruption.check()
    with pytest.raises(KeyboardInterrupt):
        run_to_the_end(asyncio.sleep(10), interruption)
