"""What one process shares between locust's hooks and its users, kept on locust's `environment`."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gevent.event import AsyncResult

from loadgen.locust.trace_replay import Part

if TYPE_CHECKING:
    from loadgen.locust.hooks import Coordinator
    from loadgen.locust.users import Test


@dataclass
class State:
    """The mutable state of one locust environment. Only `state_of` creates it."""

    coordinator: "Coordinator | None" = None
    """The coordinator of the process that serves locust's page; None in a worker."""
    test: "Test | None" = None
    """The running test; None between tests, in a master, and when the test could not be set up."""
    parts: dict[int, "AsyncResult[Part]"] = field(default_factory=dict)
    """User number -> the part of the schedule that the user waits for."""
    closing: list[Any] = field(default_factory=list)
    """Greenlets that send the last spans of ended tests."""


def state_of(environment: Any) -> State:
    """Return the state of a locust environment; an empty one at the first call."""
    if not hasattr(environment, "loadgen"):
        environment.loadgen = State()
    state: State = environment.loadgen
    return state
