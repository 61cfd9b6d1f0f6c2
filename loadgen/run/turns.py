"""The turns of sessions that wait for the answer before them."""

from collections.abc import Iterable

from loadgen.record import RequestRecord
from loadgen.workload.schedule import ScheduledRequest


class Turns:
    """Those not yet sent. A request without a session has none."""

    def __init__(self, requests: Iterable[ScheduledRequest]) -> None:
        self._waiting = {request.after: request for request in requests if request.after is not None}

    def after(self, record: RequestRecord) -> tuple[ScheduledRequest, int] | None:
        """The turn that `record` lets go on, and the instant it is due: the end of the answer, and the think time."""
        turn = self._waiting.get(record.index)
        if turn is None or not record.ok or record.finished_ns is None:
            return None
        return turn, record.finished_ns + turn.think_ns

    def sent(self, turn: ScheduledRequest) -> None:
        assert turn.after is not None
        del self._waiting[turn.after]

    def given_up(self, record: RequestRecord) -> list[ScheduledRequest]:
        """What comes no more because `record` failed: nobody goes on from an answer that never came."""
        lost: list[ScheduledRequest] = []
        index: int | None = None if record.ok else record.index
        while index is not None and (turn := self._waiting.pop(index, None)):
            lost.append(turn)
            index = turn.index
        return lost

    def left(self) -> list[ScheduledRequest]:
        return list(self._waiting.values())
