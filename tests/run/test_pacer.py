"""The pacer returns at an instant, never before it, and learns how early to wake up for that."""

import asyncio
import ctypes
import random
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.clock import monotonic_ns
from loadgen.run.pacer import AWAKE_NS, MAX_AWAKE_NS, MIN_AWAKE_NS, SPIN_NS, TURN_NS, Pacer, _libc, next_awake_ns
from loadgen.units import NS_PER_MS, NS_PER_S

US = 1_000


@pytest.mark.parametrize("mean_us", [40, 80, 150, 300])
def test_one_wake_up_in_ten_is_later_than_allowed_for(mean_us: int) -> None:
    """Whatever it takes here; and after the machine has changed, too."""
    rng, awake_ns = random.Random(mean_us), AWAKE_NS
    for scale_us in (mean_us, 100, mean_us):
        later = 0
        for i in range(3000):
            late_ns = round(rng.expovariate(1 / (scale_us * US)))
            later += i >= 1000 and late_ns > awake_ns
            awake_ns = next_awake_ns(awake_ns, late_ns)
    assert later / 2000 == pytest.approx(0.1, abs=0.02)


@given(st.lists(st.integers(-(10**9), 10**12), max_size=200))
def test_it_is_within_its_bounds_whatever_happens(late_ns: list[int]) -> None:
    awake_ns = AWAKE_NS
    for late in late_ns:
        awake_ns = next_awake_ns(awake_ns, late)
        assert MIN_AWAKE_NS <= awake_ns <= MAX_AWAKE_NS


@pytest.mark.parametrize(
    ("awake_ns", "late_ns", "next_ns"),
    [
        (AWAKE_NS, AWAKE_NS, AWAKE_NS - 2_000),  # in time, just
        (AWAKE_NS, AWAKE_NS + 1, AWAKE_NS + 18_000),  # late: nine steps up for each step down is one in ten
        (MIN_AWAKE_NS, 0, MIN_AWAKE_NS),
        (MIN_AWAKE_NS + 1, 0, MIN_AWAKE_NS),
        (MAX_AWAKE_NS, MAX_AWAKE_NS + 1, MAX_AWAKE_NS),
        (MAX_AWAKE_NS - 17_999, MAX_AWAKE_NS, MAX_AWAKE_NS),
    ],
)
def test_the_steps_by_hand(awake_ns: int, late_ns: int, next_ns: int) -> None:
    assert next_awake_ns(awake_ns, late_ns) == next_ns


def test_one_long_stall_changes_little() -> None:
    assert next_awake_ns(AWAKE_NS, 10**10) - AWAKE_NS < AWAKE_NS / 5


def test_it_does_not_stay_awake_for_good() -> None:
    """After a bad time, at a rate at which instants are closer than what it had come to need."""

    async def rounds() -> bool:
        with Pacer() as pacer:
            pacer._awake_ns = MAX_AWAKE_NS
            for _ in range(5000):
                await pacer.until(monotonic_ns() + MAX_AWAKE_NS // 2)
                if pacer._awake_ns <= MAX_AWAKE_NS // 2:
                    return True
        return False

    assert asyncio.run(rounds())


class _RecordedTimers:
    """The C library, with the settings of its timers."""

    def __init__(self, libc: ctypes.CDLL) -> None:
        self.timerfd_create = libc.timerfd_create
        self._settime = libc.timerfd_settime
        self.alarms: list[tuple[int, int]] = []
        """(instant, interval) of each alarm."""

    def timerfd_settime(self, fd: int, flags: int, alarm: Any, old: None) -> int:
        value, interval = alarm._obj.value, alarm._obj.interval
        self.alarms.append((value.sec * NS_PER_S + value.nsec, interval.sec * NS_PER_S + interval.nsec))
        return int(self._settime(fd, flags, alarm, old))


@pytest.mark.skipif(sys.platform != "linux", reason="needs timerfd")
def test_an_alarm_rings_once_as_long_before_the_instant_as_waking_up_takes() -> None:
    async def main() -> None:
        with Pacer() as pacer:
            pacer._libc = timers = _RecordedTimers(_libc())  # type: ignore[assignment]
            for _ in range(3):
                awake_ns, deadline_ns = pacer._awake_ns, monotonic_ns() + 5 * NS_PER_MS
                await pacer.until(deadline_ns)
                assert timers.alarms.pop() == (deadline_ns - awake_ns, 0)
            await pacer.until(monotonic_ns())
            assert not timers.alarms, "what is due needs no alarm"

    asyncio.run(main())


@pytest.mark.parametrize(("since_turn_ns", "turns"), [(TURN_NS, 0), (TURN_NS + 1, 1)])
def test_a_sender_behind_its_schedule_gives_the_loop_a_turn_after_200_us(
    since_turn_ns: int, turns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_ns = 10**12
    monkeypatch.setattr("loadgen.run.pacer.monotonic_ns", lambda: now_ns)

    async def main() -> int:
        taken: list[int] = []
        with Pacer() as pacer:
            pacer._turn_ns = now_ns - since_turn_ns
            asyncio.get_running_loop().call_soon(taken.append, 1)
            await pacer.until(now_ns)
            by_until = len(taken)
            pacer._turn_ns = now_ns - since_turn_ns
            asyncio.get_running_loop().call_soon(taken.append, 1)
            await pacer.breathe()
            assert len(taken) == 2 * by_until
            assert pacer._turn_ns == (now_ns if turns else now_ns - since_turn_ns)
        return by_until

    assert asyncio.run(main()) == turns


@pytest.mark.parametrize(("remaining_ns", "turns"), [(SPIN_NS, 0), (SPIN_NS + 1, 1)])
def test_the_last_15_us_are_a_busy_loop_and_the_stretch_before_them_is_turns_of_the_event_loop(
    remaining_ns: int, turns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_ns = deadline_ns = 10**12
    now_ns -= remaining_ns
    readings = 0

    def clock_ns() -> int:
        """Return the same instant until the deadline was looked at once, then the deadline itself."""
        nonlocal readings
        readings += 1
        return now_ns if readings <= 3 else deadline_ns

    async def main() -> int:
        nonlocal readings
        taken: list[int] = []
        with Pacer() as pacer:
            pacer._turn_ns, readings = now_ns, 0
            asyncio.get_running_loop().call_soon(taken.append, 1)
            await pacer.until(deadline_ns)
        return len(taken)

    monkeypatch.setattr("loadgen.run.pacer.monotonic_ns", clock_ns)
    assert asyncio.run(main()) == turns


@pytest.mark.parametrize("with_timer", [True, False])
def test_the_pacer_never_wakes_early(with_timer: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not with_timer:
        monkeypatch.setattr("loadgen.run.pacer.sys.platform", "elsewhere")

    async def main() -> None:
        with Pacer() as pacer:
            start_ns = monotonic_ns()
            for ms in (0, 3, 3, 7, 12):
                await pacer.until(start_ns + ms * NS_PER_MS)
                assert monotonic_ns() >= start_ns + ms * NS_PER_MS

    asyncio.run(main())


def test_a_cancelled_pacer_lets_go() -> None:
    async def main() -> None:
        with Pacer() as pacer:
            task = asyncio.create_task(pacer.until(monotonic_ns() + 3600 * 10**9))
            await asyncio.sleep(0.01)
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()
            await pacer.until(monotonic_ns() + NS_PER_MS)

    asyncio.run(main())
