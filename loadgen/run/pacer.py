"""Wakes up at an instant. Event loops round their timers to a millisecond; a timerfd does not.

The constants of the open loop are here, for both of its forms: this package's asyncio loop and locust's gevent loop.
"""

import asyncio
import ctypes
import os
import sys
from functools import cache
from types import TracebackType
from typing import Self

from loadgen.clock import monotonic_ns
from loadgen.units import NS_PER_S

_CLOCK_MONOTONIC = 1
_TFD_TIMER_ABSTIME = 1

BODIES_AHEAD = 64
"""The most request bodies that are made before they are due."""
BYTES_AHEAD = 32 * 1024**2
"""The most bytes in them, past which no further body is made: 50 prompts of 150,000 tokens."""
TURN_NS = 200_000
"""The longest time that a sender which is behind its schedule keeps the loop from reading responses."""

AWAKE_NS = 150_000
MIN_AWAKE_NS, MAX_AWAKE_NS = 50_000, 1_000_000
"""The last stretch before an instant is waited out awake, reading responses. A timerfd takes 50 to 150 us to wake a
process up, more where others use the core, so the stretch begins as `AWAKE_NS` and is then as long as that takes
(`next_awake_ns`)."""

_STEP_NS = 2_000

SPIN_NS = 15_000
"""The end of that stretch, spent in a busy loop: a turn of the event loop would take longer."""
GEVENT_SPIN_NS = 1_500_000
"""The last stretch in gevent, whose timers have a resolution of one millisecond, spent in turns of its loop."""


def next_awake_ns(awake_ns: int, late_ns: int) -> int:
    """Return how long before the next instant to wake up, after a wake-up that was `late_ns` late.

    It moves in steps to the value that one wake-up in ten exceeds (Robbins and Monro, A Stochastic Approximation
    Method, 1951).
    """
    step_ns = 9 * _STEP_NS if late_ns > awake_ns else -_STEP_NS
    return min(max(awake_ns + step_ns, MIN_AWAKE_NS), MAX_AWAKE_NS)


class _Timespec(ctypes.Structure):
    _fields_ = (("sec", ctypes.c_long), ("nsec", ctypes.c_long))


class _Itimerspec(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


@cache
def _libc() -> ctypes.CDLL:
    """Return the C library, opened once: each opening makes a class that only the garbage collector frees, and that is
    off during a run."""
    return ctypes.CDLL(None, use_errno=True)


class Pacer:
    """A timer: `await until(t)` returns at `t`, or as soon after it as the loop gets its turn. One waiter at a time."""

    def __init__(self) -> None:
        self._fd: int | None = None
        self._woken: asyncio.Future[None] | None = None
        self._turn_ns = monotonic_ns()
        self._awake_ns = AWAKE_NS

    def __enter__(self) -> Self:
        if sys.platform == "linux":
            self._libc = _libc()
            fd = self._libc.timerfd_create(_CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
            if fd >= 0:
                self._fd = fd
                asyncio.get_running_loop().add_reader(fd, self._fired)
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None) -> None:
        if self._fd is not None:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)

    async def breathe(self) -> None:
        """Let the loop read responses, if it is time to."""
        if monotonic_ns() - self._turn_ns > TURN_NS:
            await asyncio.sleep(0)
            self._turn_ns = monotonic_ns()

    async def until(self, deadline_ns: int) -> None:
        """Return at `deadline_ns` or soon after it, never before. Lets the loop read responses, as `breathe` does."""
        if monotonic_ns() - self._turn_ns > TURN_NS:
            await self.breathe()
        if SPIN_NS < deadline_ns - monotonic_ns() <= self._awake_ns:  # no timer, so nothing says how late one is
            self._awake_ns = next_awake_ns(self._awake_ns, 0)
        while (remaining_ns := deadline_ns - monotonic_ns()) > SPIN_NS:
            if self._fd is None:
                await asyncio.sleep(remaining_ns / NS_PER_S)
            elif remaining_ns > self._awake_ns:
                alarm_ns = deadline_ns - self._awake_ns
                alarm = _Itimerspec(_Timespec(0, 0), _Timespec(*divmod(alarm_ns, NS_PER_S)))
                self._libc.timerfd_settime(self._fd, _TFD_TIMER_ABSTIME, ctypes.byref(alarm), None)
                self._woken = asyncio.get_running_loop().create_future()
                await self._woken
                self._turn_ns = monotonic_ns()
                self._awake_ns = next_awake_ns(self._awake_ns, self._turn_ns - alarm_ns)
            else:
                await asyncio.sleep(0)
        while monotonic_ns() < deadline_ns:
            pass

    def _fired(self) -> None:
        assert self._fd is not None
        try:
            os.read(self._fd, 8)
        except BlockingIOError:
            return
        if self._woken and not self._woken.done():
            self._woken.set_result(None)
