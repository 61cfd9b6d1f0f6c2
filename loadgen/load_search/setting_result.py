"""The outcome of a setting from its probes. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from loadgen.load_search.plan import bracket
from loadgen.results.miss_curve import miss_curve
from loadgen.results.search_answer import least_joules
from loadgen.results.search_result import FAILURES, Ended, Estimate, Probe, SettingResult

if TYPE_CHECKING:
    from loadgen.load_search.plan import Question


def setting_result(
    question: Question,
    probes: Sequence[Probe],
    *,
    ended: Ended | None = None,
    reason: str | None = None,
    idle_watts: float | None = None,
    name: str = "",
    options: dict[str, str] | None = None,
) -> SettingResult:
    """Return the answer so far of one setting. Where joules are fewest is unknown while no rate is too much."""
    rate = best_rate(question, probes, ended)
    is_between = None not in bracket(question, probes) and ended != "client"
    joules = least_joules(probes, question.attainment, question.confidence) if is_between else None
    return SettingResult(
        name=name,
        options=options or {},
        probes=tuple(probes),
        ended=ended,
        reason=reason,
        rate=rate,
        binding=binding_limits(question, probes, rate),
        least_joules_rate=joules.rate if joules else None,
        least_joules=joules.joules if joules else None,
        idle_watts=idle_watts,
    )


def best_rate(question: Question, probes: Sequence[Probe], ended: Ended | None) -> Estimate | None:
    """Return the largest rate at which enough requests are good; None where no probe was good enough, or none was made.

    While no probe has missed too much, only the rate that held is known: at least that.
    """
    low, high = bracket(question, probes)
    if low is None:
        return None
    if high is None or ended == "client":
        return Estimate(value=low, low=low, high=None)
    return miss_curve(probes, 1 - question.good_share).rate(question.confidence)


def binding_limits(question: Question, probes: Sequence[Probe], rate: Estimate | None) -> tuple[str, ...]:
    """Return what is too frequent at rates above the best one, the most frequent first: misses of a limit by requests
    that completed, by its name, and FAILURES."""
    share = 1 - question.good_share
    above = [probe for probe in probes if probe.requests and (rate is None or probe.rate_rps > rate.value)]
    requests = sum(probe.requests for probe in above)
    failed = sum(probe.failed for probe in above)
    missed = {name: requests - failed - sum(probe.met.get(name, 0) for probe in above) for name in question.limits_ms}
    counts = {**missed, FAILURES: failed}
    binding = [name for name, count in counts.items() if requests and count > share * requests]
    return tuple(sorted(binding, key=lambda name: -counts[name]))
