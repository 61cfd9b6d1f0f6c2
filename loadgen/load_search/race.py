"""A challenger against the best setting so far: whether it has lost, and the time that it may take. Pure.

Settings race (O. Maron and A. W. Moore, Hoeffding races, NIPS 6, 1994): the best one so far is known with its interval,
and a challenger is measured only until its own interval says that it is worse. Each start of a real engine takes
minutes, so a setting is measured to its end once its server runs; successive halving would start each server again at
each of its rounds.

Probe n of each setting has the same seed, so that settings meet the same requests in the same order: that makes the
estimates of two settings alike rather than unlike, and the interval of their difference, which takes them for
independent, too wide rather than too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from loadgen.load_search.plan import bracket
from loadgen.report.format import joules, number
from loadgen.results.miss_curve import miss_curve
from loadgen.results.search_answer import least_joules

if TYPE_CHECKING:
    from loadgen.load_search.plan import Question
    from loadgen.results.search_result import Estimate, Objective, Probe, SettingResult

_MIN_REFINES = 2
"""Fewest refining probes of a challenger that loses by its interval: a narrow one of a single probe may be luck."""
_MIN_OVERLOADED = 2
"""Overloaded probes below the best rate with which a challenger loses: a single one may be a hitch of the server."""


def is_worse(best: Estimate, challenger: Estimate, objective: Objective) -> bool:
    """Return whether a challenger is worse with the confidence of one end of the intervals; not if an end is unknown.

    objective: "rate" is better where it is larger, joules where they are fewer. The end of the interval of the
    difference of their logarithms is recovered from those of the two intervals (G. Y. Zou and A. Donner, Construction
    of confidence limits about effect measures, Statistics in Medicine 27, 2008).
    """
    if objective == "rate":
        difference, near, far = best.value / challenger.value, best.low, challenger.high
    else:
        difference, near, far = challenger.value / best.value, best.high, challenger.low
    if near is None or far is None:
        return False
    return math.log(difference) > math.hypot(math.log(near / best.value), math.log(far / challenger.value))


def race(best: SettingResult, challenger: Sequence[Probe], question: Question) -> str | None:
    """Return the reason for which a challenger has lost against the best setting so far; None while it has not."""
    if question.objective == "rate" and _overloaded_below(best.rate, challenger) >= _MIN_OVERLOADED:
        assert best.rate is not None
        return f"most of its requests miss a limit at rates below {number(best.rate.low)}/s, which {best.name} takes"
    if sum(probe.stage == "refine" for probe in challenger) < _MIN_REFINES or None in bracket(question, challenger):
        return None
    one_sided = 2 * question.confidence - 1
    merit = _merit(challenger, question, one_sided)
    best_merit = best.rate if _is_bound(best, question) else _merit(best.probes, question, one_sided)
    if merit is None or best_merit is None or not is_worse(best_merit, merit, question.objective):
        return None
    if question.objective == "rate":
        return f"its rate, {number(merit.value)}/s, is below the {number(best_merit.value)}/s of {best.name}"
    return f"a good request costs {joules(merit.value)}, and {joules(best_merit.value)} with {best.name}"


def _is_bound(best: SettingResult, question: Question) -> bool:
    """Return whether of the best setting only a rate is known that it surely takes."""
    return question.objective == "rate" and None in bracket(question, best.probes)


def share_of_budget(remaining_s: float, spent_s: Sequence[float]) -> float:
    """Return the time that the first of some settings may still take, of what remains for all of them.

    spent_s: time that each of those that are not at their end has taken, in an earlier sitting. What was left over by
    settings before them is shared too.
    """
    return (remaining_s + sum(spent_s)) / len(spent_s) - spent_s[0]


def _merit(probes: Sequence[Probe], question: Question, confidence: float) -> Estimate | None:
    """Return the rate or the joules by which settings are compared; None where the power is unknown."""
    if question.objective == "rate":
        return miss_curve(probes, 1 - question.good_share).rate(confidence)
    least = least_joules(probes, question.attainment, confidence)
    return None if least is None else least.joules


def _overloaded_below(rate: Estimate | None, probes: Sequence[Probe]) -> int:
    """Return the number of probes in which most requests missed, at rates that the best setting surely takes."""
    if rate is None or rate.low is None:
        return 0
    return sum(probe.overloaded and probe.rate_rps <= rate.low for probe in probes)
