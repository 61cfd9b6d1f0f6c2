"""A server that is not ready is asked again for a bounded time, and the user knows what is waited for."""

import asyncio
from itertools import count

import pytest

from loadgen.client import patience
from loadgen.client.patience import MAX_PAUSE_S, announced, patiently


def outcomes(patience_s: list[float], monkeypatch: pytest.MonkeyPatch) -> tuple[int, list[float], list[str]]:
    """Return the attempt that was the last, the pauses and the lines, where attempt n is worth `patience_s[n]`; the
    last one stands for all that follow."""
    pauses: list[float] = []
    lines: list[str] = []
    numbers = count()

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    async def attempt() -> int:
        return next(numbers)

    monkeypatch.setattr(patience, "sleep", sleep)
    last = asyncio.run(
        patiently(attempt, lambda n: (patience_s[min(n, len(patience_s) - 1)], "busy"), lines.append, "http://h")
    )
    return last, pauses, lines


@pytest.mark.parametrize(
    ("patience_s", "attempts"), [([0], 1), ([0.5], 2), ([1.5, 0], 2), ([1.5], 3), ([7.5], 5), ([20, 20, 0], 3)]
)
def test_it_ends_at_the_first_outcome_that_is_worth_no_wait_or_when_patience_does(
    patience_s: list[float], attempts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    last, pauses, lines = outcomes(patience_s, monkeypatch)
    assert last == attempts - 1 == len(pauses)
    assert sum(pauses[:-1]) < patience_s[0] or not pauses
    assert lines == [f"http://h is not ready (busy); trying again for up to {patience_s[0]:g} s"] * bool(pauses)


def test_pauses_grow_to_a_limit_and_their_sum_exceeds_the_patience_by_less_than_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, pauses, _ = outcomes([60], monkeypatch)
    assert pauses == sorted(pauses)
    assert pauses[-1] == MAX_PAUSE_S
    assert 60 <= sum(pauses) < 60 + MAX_PAUSE_S


@pytest.mark.parametrize(("takes_s", "said"), [(0.0, []), (0.05, ["waiting"])])
def test_only_a_long_wait_is_announced_and_once(
    takes_s: float, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "SILENT_S", 0.01)
    lines: list[str] = []

    async def main() -> None:
        with announced(lines.append, "waiting"):
            await asyncio.sleep(takes_s)
        await asyncio.sleep(0.02)

    asyncio.run(main())
    assert lines == said
