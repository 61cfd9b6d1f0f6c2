"""The present load on fewer replicas, in sentences and as a table: the page and the terminal use the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loadgen.report.format import UNKNOWN, interval_text, joules, number, plural

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadgen.results.search_result import Estimate, PresentLoad, ReplicaCost, SearchResult

HEAD = ["replicas", "requests/s of each", "within the limits", "J per good request", "saving"]


def replica_sentences(result: SearchResult) -> list[str]:
    """Return what the present load costs, and what it would on fewer replicas; nothing where no load was stated."""
    load = result.present
    if load is None:
        return []
    subject = f"your {number(load.now_rps)} requests/s"
    present = load.costs[0] if load.costs else None
    if present is None:
        return [f"What {subject} cost is unknown: no rate within the limits is known."]
    if present.is_within is False:
        each = f" at {number(present.rate_rps)}/s each" if load.replicas > 1 else ""
        return [f"{plural(load.replicas, 'server')}{each} cannot serve {subject} within the limits."]
    best = next((cost for cost in load.costs if cost.replicas == load.best), None)
    if best is None or best.joules_per_good_request is None:
        return [f"What {subject} cost is unknown: {_reason(present)}."]
    if best is present:
        cost = _interval(present.joules_per_good_request, joules)
        return [f"A good request of {subject} costs {cost}{_fewer(load)}."]
    rest = load.replicas - best.replicas
    resting = f"{'the other' if rest == 1 else f'the other {rest}'} {'at rest' if load.keep_idle else 'switched off'}"
    on_best = f"{best.replicas} of {load.replicas} replicas, {resting}"
    if best.saving is None or present.joules_per_good_request is None:
        cost = _interval(best.joules_per_good_request, joules)
        return [
            f"A good request of {subject} costs {cost} on {on_best}; on all of them the cost is unknown: "
            f"{_reason(present)}."
        ]
    saving = _interval(best.saving, _percent)
    change = f"{joules(best.joules_per_good_request.value)} instead of {joules(present.joules_per_good_request.value)}"
    return [f"Serving {subject} on {on_best}, saves {saving} of the joules per good request: {change}."]


def replica_rows(load: PresentLoad) -> list[list[str]]:
    """Return a row for each number of replicas, under HEAD."""
    within = {True: "yes", False: "no", None: "undecided"}
    return [
        [
            str(cost.replicas),
            number(cost.rate_rps),
            within[cost.is_within],
            _interval(cost.joules_per_good_request, joules),
            _interval(cost.saving, _percent),
        ]
        for cost in load.costs
    ]


def _fewer(load: PresentLoad) -> str:
    if load.replicas == 1:
        return ""
    on_all = f" on {load.replicas} replicas"
    if any(cost.is_within for cost in load.costs[1:]):
        return f"{on_all}; on fewer it costs no less"
    return f"{on_all}; fewer do not surely keep the limits"


def _reason(present: ReplicaCost) -> str:
    if present.joules_per_good_request is not None:
        return f"{number(present.rate_rps)}/s lies within the interval of the largest rate"
    return f"no power is known at {number(present.rate_rps)}/s, and nothing beyond the probes is extrapolated"


def _percent(share: float | None) -> str:
    return UNKNOWN if share is None else f"{100 * share:.0f} %"


def _interval(estimate: Estimate | None, text: Callable[[float | None], str]) -> str:
    """Return a number with its interval; without one where its ends are unknown."""
    if estimate is None:
        return UNKNOWN
    if estimate.low is None or estimate.high is None:
        return text(estimate.value)
    return f"{text(estimate.value)} {interval_text(estimate, text)}"
