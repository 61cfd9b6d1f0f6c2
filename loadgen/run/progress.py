"""Progress of a run, and the view it is shown in."""

from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self


@dataclass(frozen=True)
class Progress:
    """A moment of a run. `remaining_s` is of the schedule: answers may take longer."""

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


class View(Protocol):
    """A context in which `update` may be called at any rate; what it draws is limited by the snapshots' elapsed_s."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None
    ) -> None: ...

    def update(self, progress: Progress) -> None: ...


class NullView:
    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None) -> None:
        pass

    def update(self, progress: Progress) -> None:
        pass
