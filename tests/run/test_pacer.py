"""How early the pacer wakes up. What it does with that is in test_runner.py."""

import asyncio
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.clock import monotonic_ns
from loadgen.run.pacer import AWAKE_NS, LEAST_AWAKE_NS, MOST_AWAKE_NS, Pacer, awake_after

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
            awake_ns = awake_after(awake_ns, late_ns)
    assert later / 2000 == pytest.approx(0.1, abs=0.02)


@given(st.lists(st.integers(-(10**9), 10**12), max_size=200))
def test_it_is_within_its_bounds_whatever_happens(late_ns: list[int]) -> None:
    awake_ns = AWAKE_NS
    for late in late_ns:
        awake_ns = awake_after(awake_ns, late)
        assert LEAST_AWAKE_NS <= awake_ns <= MOST_AWAKE_NS


def test_one_long_stall_changes_little() -> None:
    assert awake_after(AWAKE_NS, 10**10) - AWAKE_NS < AWAKE_NS / 5


def test_it_does_not_stay_awake_for_good() -> None:
    """After a bad time, at a rate at which instants are closer than what it had come to need."""

    async def rounds() -> bool:
        with Pacer() as pacer:
            pacer._awake_ns = MOST_AWAKE_NS
            for _ in range(5000):
                await pacer.until(monotonic_ns() + MOST_AWAKE_NS // 2)
                if pacer._awake_ns <= MOST_AWAKE_NS // 2:
                    return True
        return False

    assert asyncio.run(rounds())
