"""The verdict on a run: the same ten questions about every run, each with its answer. Terminal, page, exit status and
`compare` all read it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, Self, get_args

import msgspec

Status = Literal["ok", "warning", "failed"]
"""warning: the figures hold, within what the reason says. failed: the figures in `rows` support no claim."""

CheckName = Literal[
    "finished",
    "failures",
    "load",
    "server",
    "client",
    "lengths",
    "streaming",
    "token_counts",
    "prefix_cache",
    "energy",
]
CHECKS: tuple[CheckName, ...] = get_args(CheckName)
"""finished: did the run end by itself. failures: how many requests failed. load: did the requests arrive as requested.
server: did the server keep up. client: was this client on time. lengths: did prompts and answers have the requested
lengths. streaming: did the answers come token by token. token_counts: does the server count the tokens itself.
prefix_cache: were the prompts new to the server. energy: can the joules be trusted."""

LATENCY_ROWS = ("ttft_s", "tpot_s", "itl_s", "e2e_s", "response_s")
"""Rows of the summary that a check of the requests' times may touch."""

LAW_ROWS = ("energy.joules_per_request", "energy.prefill_joules", "energy.decode_joules")
"""Rows of the summary that the law of attribution decides. It does not touch totals, nor what is a total per token."""


def worst(statuses: Iterable[Status | None]) -> Status | None:
    """Return the worst status of those judged; None when none was."""
    order: tuple[Status, ...] = get_args(Status)
    return max((status for status in statuses if status is not None), key=order.index, default=None)


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """Answer to one question about a run."""

    name: CheckName
    """Name of the question."""
    status: Status | None
    """Absent when it was not judged, or when there is nothing to judge."""
    reason: str | None = None
    """One sentence with its numbers. None when the status is ok."""
    rows: list[str] = []
    """Keys of summary.json that it touches, such as "response_s", "energy" or "tokens.output"."""


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """Answers to all ten questions, in the order of CHECKS."""

    status: Status | None
    """The worst of the checks. None when none was judged, as in the folder of an older version."""
    checks: list[Check]
    """All ten checks."""

    @classmethod
    def of(cls, checks: Sequence[Check]) -> Self:
        """Return the verdict of these checks, which must be all ten in their order."""
        assert tuple(check.name for check in checks) == CHECKS
        return cls(status=worst(check.status for check in checks), checks=list(checks))

    def check(self, name: CheckName) -> Check:
        return self.checks[CHECKS.index(name)]

    @property
    def stands(self) -> bool:
        """Return whether the run finished and no more requests failed than allowed: the exit status says so too."""
        return "failed" not in (self.check("finished").status, self.check("failures").status)

    @property
    def reasons(self) -> list[str]:
        """Return the reasons of all checks that are not ok."""
        return [check.reason for check in self.checks if check.reason is not None]


NOT_JUDGED = Verdict.of([Check(name=name, status=None) for name in CHECKS])
