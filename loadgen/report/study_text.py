"""The findings of a study in sentences: the best setting, where its limits break, and the gain over the baseline."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from loadgen.report.format import UNKNOWN, joules, number, percent, seconds
from loadgen.report.latencies import ABBREVIATIONS, LIMITED
from loadgen.results.attainment import Attainment, LimitBreak, is_attained, limit_break
from loadgen.results.study_table import Group, StudyInfo, reduction_between

if TYPE_CHECKING:
    from loadgen.stats.intervals import Interval

PER_TOKEN = "joules_per_output_token"
NO_INTERVAL = "[unknown]"
"""Text in the place of an interval that so few repeats do not support."""
METRICS = {metric: ABBREVIATIONS[field] for metric, field in LIMITED.items()}
"""Name of each metric that can have a limit."""


def interval_text(interval: Interval | None, text: Callable[[float | None], str] = joules) -> str:
    """Return a mean with its 95 % interval, or why several repeats have none."""
    if interval is None:
        return UNKNOWN
    if interval.count < 2:
        return text(interval.mean)
    if interval.low is None or interval.high is None:
        return f"{text(interval.mean)} {NO_INTERVAL}"
    return f"{text(interval.mean)} [{text(interval.low)}, {text(interval.high)}]"


def load_text(group: Group) -> str:
    """Return the load of a configuration: a rate, or the number of requests in flight."""
    if group.key.rps is None and group.key.batch is None:
        return UNKNOWN
    return _load(group.load, group.key.rps is not None)


def _load(load: float, is_rate: bool) -> str:
    return f"{load:g}/s" if is_rate else f"{load:g} in flight"


def limits_text(limits_ms: Mapping[str, float]) -> str:
    return listed(f"{METRICS[metric]} ≤ {limit:g} ms" for metric, limit in limits_ms.items())


def reason_text(reason: str) -> str:
    """Return why a run failed in one line: the first, and where that announces others, the last of these too."""
    first, *others = reason.splitlines()
    return f"{first} {others[-1].strip()}" if others and first.endswith(":") else first


def share_text(share: float) -> str:
    """Return a wanted share, which is a round number: 99 %, 99.9 %."""
    return f"{100 * share:g} %"


def listed(parts: Iterable[str]) -> str:
    """Return one part or more as "a, b and c"."""
    *first, last = parts
    return f"{', '.join(first)} and {last}" if first else last


# ---------------------------------------------------------------- findings


def findings(configurations: Sequence[Group], study: StudyInfo) -> list[str]:
    """Return the findings of each workload, the ones that a reader came for first."""
    by_workload: dict[tuple[str, str], list[Group]] = {}
    for group in configurations:
        by_workload.setdefault((group.key.workload, group.key.model), []).append(group)
    models = len({model for _, model in by_workload}) > 1
    sentences = []
    for (workload, model), chosen in by_workload.items():
        subject = f"{workload}, {model}" if models else workload
        if best := best_setting(chosen, study):
            sentences.append(f"{subject}: {best}")
        if study.limits_ms:
            sentences += [f"{subject}, {sentence}" for sentence in break_sentences(chosen, study)]
        if study.baseline and (saved := best_reduction(chosen, study.baseline)):
            sentences.append(f"{subject}: {saved}")
    return sentences


def best_setting(configurations: Sequence[Group], study: StudyInfo) -> str | None:
    """Return which of the configurations costs least, or without energy serves most: of those within the limits."""
    if not study.limits_ms:
        return _choice(configurations, study)
    wanted = f"at least {share_text(study.wanted)} of the requests within {limits_text(study.limits_ms)}"
    shares = [(group, share) for group in configurations if (share := group.mean("goodput_ratio")) is not None]
    if not shares:
        return None
    if within := [group for group, share in shares if is_attained(share, study.wanted)]:
        return f"of the settings with {wanted}, {_choice(within, study)}"
    best, share = max(shares, key=lambda entry: entry[1])
    return f"no setting has {wanted}; {best.key.server} at {load_text(best)} comes nearest with {percent(share)}."


def _choice(candidates: Sequence[Group], study: StudyInfo) -> str:
    costs = [(group, interval.mean) for group in candidates if (interval := _cost(group, study)) is not None]
    if costs:
        best, merit = min(costs, key=lambda entry: entry[1])[0], "takes the least energy"
    else:
        best, merit = max(candidates, key=_served), "serves the most"
    return f"{best.key.server} at {load_text(best)} {merit}: {_numbers(best, study)}."


def _cost(group: Group, study: StudyInfo) -> Interval | None:
    return group.joules_per_good_request if study.limits_ms else group.interval(PER_TOKEN)


def _served(group: Group) -> float:
    return group.mean("good_per_s") or group.mean("output_tokens_per_s") or 0.0


def _numbers(group: Group, study: StudyInfo) -> str:
    """Return the known cost, speed and latencies of a configuration."""
    good = group.joules_per_good_request if study.limits_ms else None
    parts = [
        (None if good is None else good.mean, joules, "{} per request within the limits"),
        (group.mean(PER_TOKEN), joules, "{} per output token"),
        (group.mean("completed_per_s"), number, "{} requests/s served"),
        (group.mean("output_tokens_per_s"), number, "{} output tokens/s"),
        (group.mean("ttft_p99_s"), seconds, "TTFT p99 {}"),
        (group.mean("tpot_p99_s"), seconds, "TPOT p99 {}"),
    ]
    return ", ".join(words.format(text(value)) for value, text, words in parts if value is not None)


# ---------------------------------------------------------------- the load at which limits break


def break_sentences(configurations: Sequence[Group], study: StudyInfo) -> list[str]:
    """Return for each server at which load it no longer holds the limits: at rates, and in batches."""
    sentences = []
    for is_rate in (True, False):
        of_kind = [group for group in configurations if (group.key.rps is not None) == is_rate]
        for server in sorted({group.key.server for group in of_kind}):
            points = [group.attainment for group in of_kind if group.key.server == server]
            sentences.append(f"{server}: {break_sentence(points, study, is_rate)}")
    return sentences


def break_sentence(points: Sequence[Attainment], study: StudyInfo, is_rate: bool) -> str:
    """Return the answer to: at which load do the limits break?"""
    found = limit_break(points, study.wanted)
    if found.outcome == "unknown":
        return f"how many requests are within {limits_text(study.limits_ms)} is unknown."
    limits = limits_text(study.limits_ms)
    are, they, break_ = ("are", "they", "break") if len(study.limits_ms) > 1 else ("is", "it", "breaks")
    met = f"met by {share_text(study.wanted)} of the requests"
    held, broken = (_reached(point, is_rate) if point else "" for point in (found.held, found.broken))
    match found:
        case LimitBreak("breaks", Attainment(low), Attainment(high)):
            between = f"between {low:g}{'/s' if is_rate else ''} and {_load(high, is_rate)}"
            answer = f"{are} {met} up to {held} and no longer at {broken}: {they} {break_} {between}."
        case LimitBreak("holds"):
            loads = f"at every load up to {held}" if len(points) > 1 else f"at {held}, the only load"
            answer = f"{are} {met} {loads}: {they} {break_} nowhere in this range."
        case _:
            load = f"at the smallest load, {broken}" if len(points) > 1 else f"at {broken}, the only load"
            answer = f"{are} not {met} {load}: {they} {break_} below this range."
    return f"{limits} {answer}{_binding(found)}{_again(found, is_rate)}"


def _reached(point: Attainment, is_rate: bool) -> str:
    return f"{_load(point.load, is_rate)} ({percent(point.share)} of {point.requests:,})"


def _binding(found: LimitBreak) -> str:
    if found.broken is None or not found.broken.by_limit:
        return ""
    if not found.binding:
        return " Each limit alone is met often enough; together they are not."
    met = [f"{METRICS[limit]} (met by {percent(found.broken.by_limit[limit])})" for limit in found.binding]
    return f" The limit that binds is {met[0]}." if len(met) == 1 else f" The limits that bind are {listed(met)}."


def _again(found: LimitBreak, is_rate: bool) -> str:
    if not found.again:
        return ""
    loads = listed(_load(load, is_rate) for load in found.again)
    return f" Yet they are met at {loads}: more repeats or longer runs would show whether that is chance."


# ---------------------------------------------------------------- reductions


def best_reduction(configurations: Sequence[Group], baseline: str) -> str | None:
    """Return the reduction from the baseline, at its worst load and at its best, to the best configuration."""
    known = [group for group in configurations if group.values(PER_TOKEN)]
    bases = [group for group in known if group.key.server == baseline]
    if not bases or len(known) == len(bases):
        return None
    worst = max(bases, key=lambda group: group.mean(PER_TOKEN) or 0)
    least = min(bases, key=lambda group: group.mean(PER_TOKEN) or 0)
    best = min(known, key=lambda group: group.mean(PER_TOKEN) or 0)
    whole, tuned = (percents(reduction_between(base, best, PER_TOKEN)) for base in (worst, least))
    return (
        f"{best.key.server} at {load_text(best)} takes {whole} less energy per output token than {baseline} at "
        f"{load_text(worst)}, and {tuned} less than {baseline} at its own best, {load_text(least)}."
    )


def percents(ratio: Interval) -> str:
    if ratio.low is None or ratio.high is None:
        return f"{100 * ratio.mean:.1f} %"
    return f"{100 * ratio.mean:.1f} % [{100 * ratio.low:.1f}, {100 * ratio.high:.1f}]"
