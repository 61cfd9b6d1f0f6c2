"""Runs that say nothing about how much a server can take: it was lost, or this client was too slow."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

from loadgen.errors import LoadgenError
from loadgen.results.metrics import CUT_OFF
from loadgen.results.timekeeping import MIN_WAITED, loop_delay_that_tells
from loadgen.run.settle import answers

if TYPE_CHECKING:
    from loadgen.results.run_folder import RunResult
    from loadgen.results.summary import Summary

_MAX_BUSY, _BUSY_THAT_TELLS = 0.8, 0.4
"""Share of a core above which this client has no room for a hitch, as in `selftest`; and above which its use of a core
grows with the rate, so that it says at which rate that share is reached."""

_MAX_LATE_S = 0.05
"""Lateness of a tenth of the requests above which they came in other bursts, or at another rate, than was planned."""
_MAX_OF_LIMIT = 0.1
"""Share of the tightest limit above which the lateness of a tenth of the time stamps decides whether it is met."""


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
    if fault := _client_fault(result, result.summary):
        waited = (result.info.instrument.get("waited_s") or 0.0) / (result.summary.duration_s or math.inf)
        busy = f", and waited for a core that others had for {waited:.0%} of the time" if waited > MIN_WAITED else ""
        raise ClientLimitError(f"{fault}{busy}")


def _client_fault(result: RunResult, summary: Summary) -> str | None:
    """Return why this client made another load than was planned, or measured latencies that are not the server's.

    A little lateness does neither: TTFT, TPOT and E2E count from the send.
    """
    instrument, lags = summary.instrument, summary.schedule_lag_s
    for number, process in enumerate(result.info.instrument.get("processes") or [], 1):
        if process["ended"] != "completed":
            return f"process {number} of this client ended early ({process['ended']})"
    if lags.p90 is not None and lags.p90 > _MAX_LATE_S:
        return f"this client sent a tenth of the requests {lags.p90:.2g} s late or later"
    delay = loop_delay_that_tells(instrument.loop_delay_s, instrument.stamped_by, summary.itl_s.p50)
    limits_s = [limit_ms / 1000 for limit_ms in result.info.config.get("goodput", {}).values()]
    if delay is not None and delay.p90 is not None and delay.p90 > _MAX_OF_LIMIT * min(limits_s, default=math.inf):
        return f"this client read a tenth of the tokens {delay.p90 * 1000:.2g} ms late or later"
    return None


def client_limit_rps(rate_rps: float, result: RunResult) -> float:
    """Return the rate at which this client has no room for more, by its use of a core; infinite where that is small."""
    assert result.summary is not None
    cpu_s, duration_s = result.info.instrument.get("cpu_s"), result.summary.duration_s
    if not cpu_s or duration_s <= 0:
        return math.inf
    busy = cpu_s / duration_s / (result.info.config.get("processes") or 1)
    return rate_rps * max(1.0, _MAX_BUSY / busy) if busy > _BUSY_THAT_TELLS else math.inf
