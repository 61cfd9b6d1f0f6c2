"""Progress of a run: the counts so far, the numbers derived from them, and the view that shows them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from loadgen.errors import LoadgenError

if TYPE_CHECKING:
    from loadgen.record import RequestRecord

_TICK_S = 0.25


@dataclass
class Tallies:
    """Counts of a run in progress."""

    sent: int = 0
    in_flight: int = 0
    completed: int = 0
    failed: int = 0
    input_tokens: int = 0
    output_tokens: int = 0

    def start(self) -> None:
        """Count one request that is being sent."""
        self.sent += 1
        self.in_flight += 1

    def add(self, record: RequestRecord) -> None:
        """Count one request that ended."""
        self.in_flight -= 1
        self.completed += record.ok
        self.failed += not record.ok
        self.input_tokens += record.input_tokens or 0
        self.output_tokens += record.output_tokens or 0


@dataclass(frozen=True)
class Progress:
    """A moment of a run."""

    scheduled: int
    sent: int
    in_flight: int
    completed: int
    failed: int
    output_tokens: int
    tokens_per_s: float | None
    watts: float | None
    joules_per_token: float | None
    elapsed_s: float
    remaining_s: float | None
    """Time until the last request is due; responses may take longer."""


def progress_at(
    elapsed_s: float,
    tallies: Tallies,
    *,
    scheduled: int,
    last_offset_s: float,
    watts: float | None,
    joules: float | None,
) -> Progress:
    """Return the progress `elapsed_s` after the start; a negative value is the time before it.

    joules: measured since sampling began; None when that, or the present power, is unknown.
    """
    return Progress(
        scheduled=scheduled,
        sent=tallies.sent,
        in_flight=tallies.in_flight,
        completed=tallies.completed,
        failed=tallies.failed,
        output_tokens=tallies.output_tokens,
        tokens_per_s=tallies.output_tokens / elapsed_s if elapsed_s > 0 else None,
        watts=watts,
        joules_per_token=joules / tallies.output_tokens if joules and tallies.output_tokens else None,
        elapsed_s=max(elapsed_s, 0.0),
        remaining_s=max(last_offset_s - elapsed_s, 0.0),
    )


class View(Protocol):
    """A context in which `update` may be called at any rate; what it draws is limited by the snapshots' elapsed_s."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None
    ) -> None: ...

    def update(self, progress: Progress) -> None: ...


class NullView:
    """A view that shows nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None) -> None:
        pass

    def update(self, progress: Progress) -> None:
        pass


@asynccontextmanager
async def ticking(update: Callable[[], None]) -> AsyncIterator[None]:
    """Call `update` four times a second while the block runs. A LoadgenError from it ends the block."""

    async def tick() -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            update()

    try:
        async with asyncio.TaskGroup() as group:
            ticker = group.create_task(tick())
            yield
            ticker.cancel()
    except* LoadgenError as errors:
        raise _first_error(errors) from None


def _first_error(errors: BaseExceptionGroup[LoadgenError]) -> LoadgenError:
    error = errors.exceptions[0]
    return _first_error(error) if isinstance(error, BaseExceptionGroup) else error
