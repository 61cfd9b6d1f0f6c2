"""Runs that say nothing about how much a server can take: it was lost, or this client was too slow."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING

from loadgen.errors import LoadgenError
from loadgen.results.metrics import CUT_OFF
from loadgen.run.settle import answers
from loadgen.units import NS_PER_S

if TYPE_CHECKING:
    from loadgen.record import RequestRecord
    from loadgen.results.run_folder import RunResult

_MAX_BUSY, _BUSY_THAT_TELLS = 0.8, 0.4
"""Share of a core above which this client has no room for a hitch, as in `selftest`; and above which its use of a core
grows with the rate, so that it says at which rate that share is reached."""

_MIN_BEHIND_S, _MAX_BEHIND = 0.1, 0.02
"""Lateness of the last requests, as a share of the time of sending, above which they came at another rate."""


class ServerLostError(LoadgenError):
    """The server does not answer."""


class ClientLimitError(LoadgenError):
    """This client was too slow for a probe, which therefore says nothing about the server."""


def check_run(result: RunResult, url: str) -> None:
    """Raise ServerLostError or ClientLimitError where the run says nothing about how much the server can take."""
    assert result.summary is not None
    verdict, errors = result.summary.verdict, Counter(record.error for record in result.records)
    if verdict.check("finished").status == "failed":
        raise ServerLostError(verdict.check("finished").reason or "the server was lost")
    broken = errors.total() - errors[None] - errors["timeout"] - sum(errors[kind] for kind in CUT_OFF)
    if broken and not errors[None]:
        raise ServerLostError(verdict.check("failures").reason or "no request completed")
    if (errors["connect"] or errors["truncated"]) and not answers(url):
        raise ServerLostError("the server broke connections off, and does not answer")
    client = verdict.check("client")
    if client.status == "failed":
        raise ClientLimitError((client.reason or "this client was late").split(":")[0])
    if behind := _seconds_behind(result.records):
        raise ClientLimitError(f"this client fell behind: it sent its last requests {behind:.1f} s late")


def client_limit_rps(rate_rps: float, result: RunResult) -> float:
    """Return the rate at which this client has no room for more, by its use of a core; infinite where that is small."""
    assert result.summary is not None
    cpu_s, duration_s = result.info.instrument.get("cpu_s"), result.summary.duration_s
    if not cpu_s or duration_s <= 0:
        return math.inf
    busy = cpu_s / duration_s / (result.info.config.get("processes") or 1)
    return rate_rps * max(1.0, _MAX_BUSY / busy) if busy > _BUSY_THAT_TELLS else math.inf


def _seconds_behind(records: Sequence[RequestRecord]) -> float | None:
    """Return how late the last tenth of the requests were sent, if that is so much that the rate was another one."""
    sent = [record for record in records if record.sent_ns is not None]
    if not sent:
        return None
    lags_s = [(record.lag_ns or 0) / NS_PER_S for record in sent[-max(1, len(sent) // 10) :]]
    took_s = (sent[-1].scheduled_ns - sent[0].scheduled_ns) / NS_PER_S
    behind_s = median(lags_s)
    return behind_s if behind_s > max(_MIN_BEHIND_S, _MAX_BEHIND * took_s) else None
