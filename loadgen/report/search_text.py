"""The answer of a search in sentences, and its probes in words: the page and the terminal use the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from loadgen.report.format import clean, interval_text, joules, number, percent, plural, seconds
from loadgen.report.replica_text import replica_sentences
from loadgen.report.run_facts import SIMULATED
from loadgen.report.study_text import METRICS, limits_text, listed, share_text
from loadgen.results.search_answer import power_near
from loadgen.results.search_result import FAILURES

if TYPE_CHECKING:
    from loadgen.results.search_result import Ended, Estimate, Objective, Probe, SearchResult, SettingResult, Stage
    from loadgen.results.verdict import Status

STAGES: dict[Stage, str] = {"bracket": "bracketing", "refine": "refining", "present": "present load"}
"""Stage of a probe -> its name."""
_ENDINGS: dict[Ended | None, str] = {
    "interval": "answered",
    "budget": "undecided",
    "fails": "limits missed",
    "client": "limit not reached",
    "dropped": "dropped",
    "server": "server stopped",
    None: "running",
}
_HEAD_OF_KNOWN: dict[Objective, str] = {
    "rate": "The best setting is known, its rate undecided",
    "joules_per_good_request": "The best setting is known, its rate of fewest joules undecided",
}
"""First line where the budget ended after one setting was better than all others."""
_NOTHING_YET = "The search is running; no rate is known yet."
MIN_SAVING = 0.01
"""Smallest difference of two costs that is stated, as a share of the larger one."""
_FAR = 0.8
"""Largest ratio of a low rate to the one of fewest joules from which on their costs are compared."""


class Answer(NamedTuple):
    """The answer of a search, or of one of its settings."""

    status: Status
    head: str
    """The outcome in a few words."""
    sentences: list[str]


def duration_text(value_s: float) -> str:
    """Return a duration as "45 s", "9 min 52 s" or "1 h 2 min"."""
    minutes, rest_s = divmod(round(value_s), 60)
    if minutes < 1:
        return seconds(value_s) if 0 < value_s < 1 else f"{rest_s} s"
    if minutes < 60:
        return f"{minutes} min {rest_s} s" if rest_s else f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min" if minutes % 60 else f"{minutes // 60} h"


def rate_text(rate_rps: float) -> str:
    """Return the planned rate of a probe with up to three digits: "12.6", "8"."""
    return f"{float(f'{rate_rps:.3g}'):,g}"


def per_second(rate_rps: float) -> str:
    rate = rate_text(rate_rps)
    return f"{rate} request/s" if rate == "1" else f"{rate} requests/s"


def is_lower_bound(estimate: Estimate) -> bool:
    """Return whether only a rate that held is known, and none that did not."""
    return estimate.high is None and estimate.low == estimate.value


def estimate_text(estimate: Estimate | None, text: Callable[[float | None], str] = number, unit: str = "") -> str:
    """Return a number with its interval: "13.4 requests/s [12.8, 14.0]", where an end that is not bounded is "unknown";
    or "at least 8.00 requests/s"."""
    if estimate is None:
        return text(None)
    if is_lower_bound(estimate):
        return f"at least {text(estimate.value)}{unit}"
    return f"{text(estimate.value)}{unit} {interval_text(estimate, text)}"


def good_request(result: SearchResult) -> str:
    return "good request" if result.limits_ms else "completed request"


def probe_note(probe: Probe) -> str:
    """Return what a reader must know about the counts of a probe; empty where there is nothing."""
    notes = [f"{probe.failed:,} failed"] if probe.failed else []
    if probe.stopped_early:
        notes.append("ended early")
    elif probe.overloaded:
        notes.append("overloaded")
    return ", ".join(notes)


def attained(probe: Probe) -> float | None:
    """Return the share of good requests; None where no request was counted."""
    return probe.good / probe.requests if probe.requests else None


def outcome_text(setting: SettingResult, result: SearchResult) -> str:
    """Return that a setting is the best, or the reason for which it has no more probes, in a few words."""
    if setting.name == result.best and setting.ended is not None:
        return "best"
    if setting.ended == "budget" and is_decided(setting, result):
        return _ENDINGS["interval"]
    return _ENDINGS[setting.ended]


def is_decided(setting: SettingResult, result: SearchResult) -> bool:
    """Return whether the interval of the rate is as narrow as was wanted."""
    estimate = setting.target(result.objective)
    width = None if estimate is None else estimate.relative_width
    return width is not None and width <= result.width


def best_setting(result: SearchResult) -> SettingResult | None:
    """Return the best setting, or the only one; None where there are several and none is best."""
    if len(result.settings) == 1:
        return result.settings[0]
    return next((setting for setting in result.settings if setting.name == result.best), None)


def ranked(result: SearchResult) -> list[SettingResult]:
    """Return the settings, the best first, and those without an answer last."""

    def rank(setting: SettingResult) -> tuple[bool, bool, float]:
        merit = setting.merit(result.objective)
        value = 0.0 if merit is None else merit.value
        return setting.name != result.best, merit is None, -value if result.objective == "rate" else value

    return sorted(result.settings, key=rank)


# ---------------------------------------------------------------- the answer


def answer(result: SearchResult) -> Answer:
    """Return the outcome of a search, its answer in sentences, and what a reader must know about it."""
    best = best_setting(result)
    if best is not None:
        outcome = setting_answer(best, result)
        rivals = _rivals(best, result)
        subject = f"{_leading(best, result, is_alone=not rivals)} " if best.name else ""
        first, *details = outcome.sentences
        is_running = any(setting.ended is None for setting in result.settings)
        is_known = bool(best.name) and not rivals and outcome.head == "Undecided"
        head = "Running" if is_running else _HEAD_OF_KNOWN[result.objective] if is_known else outcome.head
        outcome = Answer("warning" if is_running else outcome.status, head, [subject + first, *details, *rivals])
    elif any(setting.ended is None for setting in result.settings) or not result.settings:
        outcome = Answer("warning", "Running", [_NOTHING_YET])
    elif all(setting.ended == "fails" for setting in result.settings):
        none = f"{_wanted(result)} at no rate with any of the {len(result.settings)} settings."
        outcome = Answer("failed", "No rate meets the limits", [none])
    else:
        outcome = Answer(
            "failed", "No answer", ["No setting has an answer; the table of the settings has the reasons."]
        )
    return outcome._replace(sentences=[*outcome.sentences, *replica_sentences(result), *_remarks(result)])


def _leading(best: SettingResult, result: SearchResult, *, is_alone: bool) -> str:
    """Return that a setting is the best, or has the best number, of which the others' intervals leave doubt."""
    number_of = "largest rate" if result.objective == "rate" else f"fewest joules per {good_request(result)}"
    is_best = "is the best" if is_alone else f"has the {number_of}"
    so_far = " so far" if any(setting.ended is None for setting in result.settings) else ""
    return f"{clean(best.name)} {is_best} of {len(result.settings)} settings{so_far}."


def _rivals(best: SettingResult, result: SearchResult) -> list[str]:
    """Return the settings that may be as good as the best one, by their intervals."""
    merit = best.merit(result.objective)
    names = [
        clean(setting.name)
        for setting in ranked(result)
        if setting is not best and setting.ended != "dropped" and _overlap(merit, setting.merit(result.objective))
    ]
    return [f"{listed(names)} may be as good: the intervals overlap."] if names else []


def _overlap(a: Estimate | None, b: Estimate | None) -> bool:
    """Return whether two intervals overlap; an end that is not bounded reaches everywhere."""
    if a is None or b is None:
        return False
    (a_low, a_high), (b_low, b_high) = (
        (-inf if estimate.low is None else estimate.low, inf if estimate.high is None else estimate.high)
        for estimate in (a, b)
    )
    return a_low <= b_high and b_low <= a_high


def setting_answer(setting: SettingResult, result: SearchResult) -> Answer:
    """Return the answer of one setting."""
    reason = clean(setting.reason).rstrip(".") if setting.reason else ""
    statements = _statements(setting, result)
    match setting.ended:
        case None:
            so_far = [f"So far: {_first_lower(statements[0])}", *statements[1:]] if statements else [_NOTHING_YET]
            return Answer("warning", "Running", so_far)
        case "fails":
            return Answer("failed", "No rate meets the limits", [_fails(setting, result)])
        case "client":
            bound = setting.target(result.objective)
            head = "No answer" if bound is None else _first_upper(estimate_text(bound, unit=" requests/s"))
            beyond = f"The server's own limit is unknown: {reason or 'this client cannot send at higher rates'}."
            return Answer("warning", head, [*statements, beyond])
        case "server":
            stopped = [f"{_first_upper(reason)}."] if reason else []
            until = ["No rate was known by then."]
            if statements:
                until = [f"Before that: {_first_lower(statements[0])}", *statements[1:]]
            more = "The same command goes on from its probes, with a longer --budget if that is spent."
            return Answer("failed", "The server stopped answering", [*stopped, *until, more])
        case "dropped":
            return Answer("warning", "Dropped", [f"Dropped: {reason or 'another setting is better'}.", *statements])
    if setting.ended == "interval" or is_decided(setting, result):
        return Answer("ok", "Answered", statements or ["No rate is known."])
    return Answer("warning", "Undecided", [_undecided(setting, result), *statements])


def _undecided(setting: SettingResult, result: SearchResult) -> str:
    estimate = setting.target(result.objective)
    budget = f"The budget of {duration_text(result.budget_s)}"
    if estimate is None:
        return f"{budget} was too short for an answer. A longer --budget goes on from these probes."
    if estimate.relative_width is None:
        ended = f"{budget} ended before both ends of the interval were known"
    else:
        width = f"{percent(estimate.relative_width)} of the rate wide"
        ended = f"{budget} ended while the interval was {width}; {share_text(result.width)} was wanted"
    return f"{ended}. A longer --budget goes on from these probes."


def _statements(setting: SettingResult, result: SearchResult) -> list[str]:
    """Return what the probes show of the rate and of the joules, that which was searched for first."""
    rate, energy = _rate(setting, result), _energy(setting, result)
    parts = [rate, energy] if result.objective == "rate" else [energy, rate]
    return [part for part in parts if part is not None]


def _rate(setting: SettingResult, result: SearchResult) -> str | None:
    if setting.rate is None or result.attainment is None:
        return None
    rate = _confident(setting.rate, result)
    return f"{_first_upper(rate)}: up to this rate, {_wanted(result)}.{_binding(setting.binding)}"


def _wanted(result: SearchResult) -> str:
    """Return the question as a statement, which the rate makes true."""
    wanted = "requests" if result.attainment is None else f"{share_text(result.attainment)} of the requests"
    return f"{wanted} {f'are within {limits_text(result.limits_ms)}' if result.limits_ms else 'complete'}"


def _confident(estimate: Estimate, result: SearchResult) -> str:
    sure = "" if is_lower_bound(estimate) else f" at {share_text(result.confidence)} confidence"
    return f"{estimate_text(estimate, unit=' requests/s')}{sure}"


def _binding(binding: Sequence[str]) -> str:
    """Return which limits are missed above the rate, and whether requests fail there."""
    names = [METRICS[limit] for limit in binding if limit in METRICS]
    limits = f" The limit{' that binds is' if len(names) == 1 else 's that bind are'} {listed(names)}." if names else ""
    return f"{limits} Above it, too many requests fail." if FAILURES in binding else limits


def _fails(setting: SettingResult, result: SearchResult) -> str:
    tried = [probe for probe in setting.probes if probe.requests]
    if not tried:
        return "No probe had a request within its counted time."
    lowest = min(tried, key=lambda probe: probe.rate_rps)
    shares = {METRICS[limit]: lowest.met.get(limit, 0) / lowest.requests for limit in result.limits_ms}
    by_limit = [f"{name} alone was met by {percent(share)}" for name, share in shares.items()]
    alone = f" {listed(by_limit)}." if len(by_limit) > 1 else ""
    failed = f" {lowest.failed:,} of them failed." if lowest.failed else ""
    wanted = "" if result.attainment is None else f"; {share_text(result.attainment)} were wanted"
    within = f"met {limits_text(result.limits_ms)}" if result.limits_ms else "completed"
    return (
        f"At {per_second(lowest.rate_rps)}, the lowest rate tried, {percent(attained(lowest))} "
        f"of {plural(lowest.requests, 'request')} {within}{wanted}.{failed}{alone}"
    )


def _first_lower(text: str) -> str:
    return f"{text[:1].lower()}{text[1:]}"


def _first_upper(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}"


# ---------------------------------------------------------------- joules


def _energy(setting: SettingResult, result: SearchResult) -> str | None:
    """Return the rate at which a good request costs fewest joules, and how much more it costs at other loads."""
    rate, cost = setting.least_joules_rate, setting.least_joules
    if rate is None or cost is None:
        return None
    subject = f"A {good_request(result)} costs fewest joules"
    if result.objective == "rate" and is_at_the_limit(setting):
        text = f"{subject} at this same rate: {estimate_text(cost, joules)}"
    else:
        text = f"{subject} at {_confident(rate, result)}: {estimate_text(cost, joules)}"
    savings = [f"{100 * (1 - cost.value / more):.0f} % less than {words}" for more, words in dearer(setting, result)]
    good = f" Good: within {limits_text(result.limits_ms)}." if result.attainment is None and result.limits_ms else ""
    return f"{', '.join([text, *savings])}.{good}"


def is_at_the_limit(setting: SettingResult) -> bool:
    """Return whether joules per good request still fall at the largest rate within the limits."""
    rate, limit = setting.least_joules_rate, setting.rate
    return rate is not None and limit is not None and abs(rate.value / limit.value - 1) < 1e-3


def dearer(setting: SettingResult, result: SearchResult) -> list[tuple[float, str]]:
    """Return joules per good request at other loads with their names: the largest rate, and the lowest one measured."""
    cheapest, cheapest_rate = setting.least_joules, setting.least_joules_rate
    assert cheapest is not None and cheapest_rate is not None
    costs: list[tuple[float, str]] = []
    power = power_near(setting.probes, setting.rate.value) if setting.rate is not None else None
    if setting.rate is not None and power is not None and result.attainment and not is_at_the_limit(setting):
        at_rate = float(power.at(np.array(setting.rate.value))) / setting.rate.value / result.attainment
        costs.append((at_rate, "at the largest rate"))
    measured = [p for p in setting.probes if p.joules_per_good_request is not None and not p.overloaded]
    lowest = min(measured, key=lambda probe: probe.rate_rps, default=None)
    if lowest is not None and lowest.rate_rps < _FAR * cheapest_rate.value:
        cost = lowest.joules_per_good_request
        words = f"the {joules(cost)} at {per_second(lowest.rate_rps)}, the lowest rate measured"
        costs.append((cost or 0.0, words))
    return [(cost, words) for cost, words in costs if cost * (1 - MIN_SAVING) > cheapest.value]


def has_energy(result: SearchResult) -> bool:
    return any(probe.watts is not None for setting in result.settings for probe in setting.probes)


def _remarks(result: SearchResult) -> list[str]:
    """Return what a reader must know before the numbers."""
    probes = [probe for setting in result.settings for probe in setting.probes]
    remarks = []
    if failed := sum(probe.failed for probe in probes):
        remarks.append(f"{plural(failed, 'request')} failed: each of them missed its limits.")
    if unfinished := sum(probe.unfinished for probe in probes if not probe.stopped_early):
        remarks.append(f"{plural(unfinished, 'request')} had not ended when the probe did, and count for nothing.")
    if remarked := sum(bool(probe.reasons) for probe in probes):
        remarks.append(f"The verdict on {plural(remarked, 'probe')} has remarks: they are on the page.")
    answered = [probe for probe in probes if probe.output_tokens is not None]
    for limit, fate in (("ttft", "misses"), ("tpot", "is within")):
        if limit in result.limits_ms and answered and all(getattr(p, f"{limit}_p50_s") is None for p in answered):
            remarks.append(f"No answer has a {METRICS[limit]}, so each of them {fate} that limit.")
    if probes and not has_energy(result):
        remarks.append("No energy was measured, so joules are unknown.")
    if result.simulated:
        remarks.append(SIMULATED)
    return remarks


# ---------------------------------------------------------------- one probe


def describe_probe(probe: Probe, estimate: Estimate | None, remaining_s: float, objective: Objective = "rate") -> str:
    """Return a probe that ended in one line, with the estimate of the rate so far and what is left of the budget."""
    share = attained(probe)
    counts = "no request counted" if share is None else f"{percent(share)} of {plural(probe.requests, 'request')} good"
    note = probe_note(probe)
    parts = [
        f"probe {probe.number}, {STAGES[probe.stage]} at {per_second(probe.rate_rps)}: {counts}"
        + (f" ({note})" if note else ""),
        *([f"{joules(probe.joules_per_good_request)} each"] if probe.joules_per_good_request is not None else []),
    ]
    name = "rate within the limits" if objective == "rate" else "rate of fewest joules"
    so_far = "no rate is known yet" if estimate is None else f"{name} {estimate_text(estimate, unit='/s')}"
    return f"{', '.join(parts)}; {so_far}; {duration_text(max(remaining_s, 0))} of the budget left"
