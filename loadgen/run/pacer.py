"""Wake up at an instant. Event loops round their timers to a millisecond; a timerfd does not."""

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

TURN_NS = 200_000
"""As long as this at a time, a sender that is behind its schedule may keep the loop from reading answers."""

AWAKE_NS = 150_000
LEAST_AWAKE_NS, MOST_AWAKE_NS = 50_000, 1_000_000
"""The last stretch before an instant is waited out awake, reading answers. Waking up takes a timerfd 50 to 150 us, more
where others use the core, so the stretch begins as `AWAKE_NS` and is then as long as that takes (`awake_after`)."""

_STEP_NS = 2_000

SPIN_NS = 15_000
"""The end of that stretch: a turn of the loop would take longer."""


def awake_after(awake_ns: int, late_ns: int) -> int:
    """How long before the next instant to wake up, when waking up was just `late_ns` late: goes to where one in ten is
    later, in steps (Robbins and Monro, A Stochastic Approximation Method, 1951)."""
    step_ns = 9 * _STEP_NS if late_ns > awake_ns else -_STEP_NS
    return min(max(awake_ns + step_ns, LEAST_AWAKE_NS), MOST_AWAKE_NS)


class _Timespec(ctypes.Structure):
    _fields_ = (("sec", ctypes.c_long), ("nsec", ctypes.c_long))


class _Itimerspec(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


@cache
def _libc() -> ctypes.CDLL:
    """Opened once: each is a class of its own, which only the garbage collector frees, and that is off during a run."""
    return ctypes.CDLL(None, use_errno=True)


class Pacer:
    """`await until(t)` returns at `t` or as soon after it as the loop gets its turn. One waiter at a time."""

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
        """Lets the loop read answers, if it is time to."""
        if monotonic_ns() - self._turn_ns > TURN_NS:
            await asyncio.sleep(0)
            self._turn_ns = monotonic_ns()

    async def until(self, deadline_ns: int) -> None:
        """Breathes, too."""
        if monotonic_ns() - self._turn_ns > TURN_NS:
            await self.breathe()
        if SPIN_NS < deadline_ns - monotonic_ns() <= self._awake_ns:  # no timer, so nothing says how late one is
            self._awake_ns = awake_after(self._awake_ns, 0)
        while (left_ns := deadline_ns - monotonic_ns()) > SPIN_NS:
            if self._fd is None:
                await asyncio.sleep(left_ns / NS_PER_S)
            elif left_ns > self._awake_ns:
                alarm_ns = deadline_ns - self._awake_ns
                await self._alarm(self._fd, alarm_ns)
                self._turn_ns = monotonic_ns()
                self._awake_ns = awake_after(self._awake_ns, self._turn_ns - alarm_ns)
            else:
                await asyncio.sleep(0)
        while monotonic_ns() < deadline_ns:
            pass

    async def _alarm(self, fd: int, deadline_ns: int) -> None:
        at = _Itimerspec(_Timespec(0, 0), _Timespec(*divmod(deadline_ns, NS_PER_S)))
        self._libc.timerfd_settime(fd, _TFD_TIMER_ABSTIME, ctypes.byref(at), None)
        self._woken = asyncio.get_running_loop().create_future()
        await self._woken

    def _fired(self) -> None:
        assert self._fd is not None
        try:
            os.read(self._fd, 8)
        except BlockingIOError:
            return
        if self._woken and not self._woken.done():
            self._woken.set_result(None)
