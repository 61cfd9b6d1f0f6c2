"""A probe of a search, from its run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from loadgen.results.energy_summary import aligned_series
from loadgen.results.metrics import CUT_OFF, is_overdue, slo_of
from loadgen.results.probe_counts import Outcome, ProbeCounts, count, outcome_of
from loadgen.results.search_result import Probe
from loadgen.units import MJ_PER_J, NS_PER_S

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from loadgen.record import RequestRecord
    from loadgen.results.run_folder import RunResult
    from loadgen.results.search_result import Stage
    from loadgen.results.verdict import CheckName

_CHECKS: tuple[CheckName, ...] = ("failures", "load", "client", "lengths", "streaming", "token_counts", "prefix_cache")
"""Checks of a run that say something about a probe. That it ended early, or that its server was saturated, is what the
search looks for, and its energy is the mean power, which needs no attribution."""


def probe_of(
    result: RunResult,
    *,
    name: str,
    number: int,
    rate_rps: float,
    stage: Stage,
    planned_s: float,
    wall_s: float,
    stopped_early: bool,
) -> Probe:
    """Return the probe that was made by a run, which is analysed. The arguments are fields of Probe."""
    start_ns, summary = result.info.start_ns or 0, result.summary
    assert summary is not None
    checks = [summary.verdict.check(name) for name in _CHECKS if not (stopped_early and name == "load")]
    records = [record for record in map(_placed, result.records) if record is not None]
    sent_s = [((record.sent_ns or 0) - start_ns) / NS_PER_S for record in records]
    was_cut = any(record.error == "not_sent" for record in result.records)  # it was hopeless, or the budget ended
    sending_s = min(planned_s, max(sent_s, default=0.0) + 1 / rate_rps) if was_cut or stopped_early else planned_s
    outcomes, waited_s = _outcomes(records, result.info.config, start_ns)
    counts = count(outcomes, sending_s, stage, stopped_early=stopped_early, waited_s=waited_s)
    counted = [
        record
        for record, second in zip(records, sent_s, strict=True)
        if record.ok and counts.from_s <= second < counts.until_s
    ]
    return Probe(
        name=name,
        number=number,
        rate_rps=rate_rps,
        seed=result.info.seed,
        stage=stage,
        planned_s=planned_s,
        wall_s=wall_s,
        stopped_early=stopped_early,
        **counts._asdict(),
        **_percentiles(counted),
        output_tokens=sum(record.output_tokens or 0 for record in counted) if counted else None,
        watts=_mean_watts(result, start_ns, counts),
        reasons=tuple(check.reason for check in checks if check.reason is not None),
    )


def _placed(record: RequestRecord) -> RequestRecord | None:
    """Return the record of a request that came to its turn; None for one that the end of the run left unsent.

    One that could not connect was not sent: its place is the instant at which it was due.
    """
    if record.sent_ns is not None:
        return record
    return None if record.error in CUT_OFF else msgspec.structs.replace(record, sent_ns=record.scheduled_ns)


def _outcomes(
    records: Sequence[RequestRecord], config: Mapping[str, Any], start_ns: int
) -> tuple[list[Outcome], list[float]]:
    """Return the outcomes of the requests, as far as they are known, and the seconds for which the others waited.

    A request that the end of the run cut off has missed a limit if it was over it by then. Otherwise it might have met
    all of them, and is left out. Neither has failed.
    """
    outcomes, waited_s = [], []
    for record in records:
        limits_ms = slo_of(config, record.workload)
        outcome = outcome_of(record, limits_ms, start_ns)
        if record.error not in CUT_OFF:
            outcomes.append(outcome)
        elif is_overdue(record.sent_ns or 0, record.first_token_ns, record.finished_ns or 0, limits_ms):
            outcomes.append(outcome._replace(has_failed=False))
        else:
            waited_s.append(((record.finished_ns or 0) - (record.sent_ns or 0)) / NS_PER_S)
    return outcomes, waited_s


def _percentiles(completed: Sequence[RequestRecord]) -> dict[str, Any]:
    """Return the median and percentile 99 of each latency, by field of Probe."""
    values_ns: dict[str, list[float | None]] = {
        "ttft": [record.ttft_ns for record in completed],
        "tpot": [record.tpot_ns for record in completed],
        "e2e": [record.e2e_ns for record in completed],
    }
    known = {name: [value for value in values if value is not None] for name, values in values_ns.items()}
    return {
        f"{name}_p{percent}_s": float(np.percentile(values, percent)) / NS_PER_S if values else None
        for name, values in known.items()
        for percent in (50, 99)
    }


def _mean_watts(result: RunResult, start_ns: int, counts: ProbeCounts) -> float | None:
    """Return the mean power of the counted time; None without a meter, where it has a gap, and for less than half of
    that time: at a low rate the run ends with its last request, before the counted time does."""
    series = aligned_series(result)
    begin_ns, until_ns = (start_ns + round(second * NS_PER_S) for second in (counts.from_s, counts.until_s))
    end_ns = min([until_ns, *(int(domain.t_ns[-1]) for domain in series)])
    parts_mj = [domain.energy_mj(begin_ns, end_ns) for domain in series]
    known_mj = [part for part in parts_mj if part is not None]
    if not parts_mj or len(known_mj) < len(parts_mj) or end_ns - begin_ns <= (until_ns - begin_ns) / 2:
        return None
    return sum(known_mj) / MJ_PER_J / ((end_ns - begin_ns) / NS_PER_S)
