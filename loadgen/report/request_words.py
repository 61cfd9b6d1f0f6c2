"""Why a request was slow or dear, and what the slowest have in common, in words: as far as the numbers say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from loadgen.report.format import UNKNOWN, joules, number, percent, plural, seconds
from loadgen.results.extremes import COSTLY, SLOW, Extremes, Trait, Window, outstanding, share_of_largest

if TYPE_CHECKING:
    from loadgen.results.request_columns import RequestColumns

TRAIT_NAMES = {
    "queue": "requests in the engine's queue when sent",
    "waiting": "other requests without a token when sent",
    "in_flight": "other requests in flight when sent",
    "mean_in_flight": "requests in flight while it ran, on average",
    "input_tokens": "prompt tokens",
    "cached_share": "cached share of the prompt",
    "output_tokens": "output tokens",
    "preemptions": "preemptions in the engine meanwhile",
    "lag_s": "delay of the client before it was sent",
}
"""Column of a request -> its name in tables."""

CAUSES = {
    "ttft_s": tuple(SLOW),
    "e2e_s": ("output_tokens", *SLOW),
    "joules": tuple(COSTLY),
}
"""Column that requests are ranked by -> the columns that may explain a large value."""


MIN_DELAY = 0.1
"""Smallest delay of the client that is stated, as a share of the latency of the request: a latency counts from the
instant that a request was sent, so a delay is no part of it, and at most a sign that the client was busy."""


def trait_value(name: str, value: float) -> str:
    """Return a value of a column with its unit."""
    if math.isnan(value):
        return UNKNOWN
    if name == "lag_s":
        return seconds(value)
    if name == "cached_share":
        return percent(value)
    return f"{value:,.0f}" if value == int(value) else number(value)


def span_text(from_s: float, to_s: float) -> str:
    """Return a span of the run's time."""
    return f"{from_s:,.2f} to {to_s:,.2f} s"


def why(columns: RequestColumns, row: int, by: str) -> str:
    """Return in what a request stands out, as far as it explains its rank by this column; "-" where nothing does."""
    names = outstanding(columns, row, CAUSES[by])
    load = [name for name in _LOAD if name in names]
    small_delay = ["lag_s"] if columns.lag_s[row] < MIN_DELAY * getattr(columns, by)[row] else []
    names = [name for name in names if name not in (*load[1:], *small_delay)]
    return ", ".join(_cause(name, float(getattr(columns, name)[row])) for name in names) or UNKNOWN


def _cause(name: str, value: float) -> str:
    match name:
        case "queue":
            return f"sent while {value:,.0f} waited in the engine's queue"
        case "waiting":
            return f"sent while {value:,.0f} waited for a first token"
        case "in_flight":
            return f"{value:,.0f} others in flight"
        case "mean_in_flight":
            return f"its steps served fewer: {number(value)} in flight on average"
        case "input_tokens":
            return f"{value:,.0f} prompt tokens"
        case "output_tokens":
            return f"{value:,.0f} output tokens"
        case "cached_share":
            return "no cached prefix" if value == 0 else f"only {percent(value)} of the prompt cached"
        case "preemptions":
            return f"{plural(round(value), 'preemption')} in the engine meanwhile"
        case _:
            return f"the client sent it {seconds(value)} late"


def why_slow(slow: Extremes) -> str:
    """Return what the requests with the longest TTFT have in common, in a sentence."""
    count, window = len(slow.rows), slow.window
    standing = _standing(slow)
    facts = []
    if window is not None:
        queue = _queue_of(window)
        if queue:
            standing = [trait for trait in standing if trait.name not in _LOAD]
        between = f"between {window.from_s:,.2f} and {window.to_s:,.2f} s"
        facts.append(f"{window.inside} of the {count} slowest were sent {between}{queue}")
    if standing:
        facts.append(f"the {count} slowest {' and '.join(_shared(trait) for trait in standing[:2])}")
    if facts:
        sentence = "; ".join(facts)
        return f"{sentence[0].upper()}{sentence[1:]}."
    if not slow.has_tail:
        ratio = f"{number(slow.least / slow.median)} times the median" if slow.median > 0 else seconds(slow.least)
        return f"There is little to explain: the TTFT of the {count} slowest begins at {ratio}."
    return f"The {count} slowest have nothing in common that the recorded numbers show."


def why_costly(columns: RequestColumns, costly: Extremes) -> str:
    """Return the share of the energy that the costliest requests have, and what they have in common."""
    count, standing = len(costly.rows), _standing(costly)
    one, ten = (percent(share_of_largest(columns.joules, share)) for share in (0.01, 0.1))
    shares = f"The costliest 1 % of the requests have {one} of the attributed energy, the costliest 10 % have {ten}"
    if standing:
        return f"{shares}. The {count} costliest {' and '.join(_shared(trait) for trait in standing[:3])}."
    if not costly.has_tail:
        return f"{shares}: no request is far from the median of {joules(costly.median)}."
    return f"{shares}. The {count} costliest have nothing in common that the recorded numbers show."


_LOAD = ("queue", "waiting", "in_flight")
"""Columns that count the same load: the first that stands out is stated."""


def _standing(found: Extremes) -> list[Trait]:
    """Return the traits that stand out; of those of the load the first, and a delay of the client if it is large."""
    standing = [
        trait
        for trait in found.traits
        if trait.stands_out and (trait.name != "lag_s" or trait.extreme >= MIN_DELAY * found.least)
    ]
    load = [trait for trait in standing if trait.name in _LOAD]
    return [trait for trait in standing if trait not in load[1:]]


def _queue_of(window: Window) -> str:
    if window.queue_max >= 1:
        return f", while up to {plural(round(window.queue_max), 'request')} waited in the engine's queue"
    if window.waiting_max >= 1:
        return f", while up to {plural(round(window.waiting_max), 'other request')} waited for a first token"
    return ""


def _shared(trait: Trait) -> str:
    """Return one trait of the extreme requests beside all, such as "had long prompts (median 8,192 tokens, ...)"."""
    unit = {"input_tokens": " tokens", "output_tokens": " tokens"}.get(trait.name, "")
    extreme, usual = trait_value(trait.name, trait.extreme), trait_value(trait.name, trait.usual)
    return f"{_SHARED[trait.name]} (median {extreme}{unit}, of all requests {usual})"


_SHARED = {
    "queue": "met a long queue in the engine",
    "waiting": "were sent while others waited for a first token",
    "in_flight": "were sent with many others in flight",
    "mean_in_flight": "ran with fewer others, so that each engine step served fewer",
    "input_tokens": "had long prompts",
    "output_tokens": "had long answers",
    "cached_share": "had little of their prompts cached",
    "preemptions": "ran while the engine preempted requests",
    "lag_s": "were sent late by the client",
}


def traits_rows(found: Extremes, sent_span: str) -> list[Sequence[str]]:
    """Return the rows of the table of what these requests have in common; without what is known of no request."""
    rows: list[Sequence[str]] = [
        (
            TRAIT_NAMES[trait.name],
            trait_value(trait.name, trait.extreme),
            trait_value(trait.name, trait.usual),
            "yes" if trait.stands_out else "no",
        )
        for trait in found.traits
        if not (math.isnan(trait.extreme) and math.isnan(trait.usual))
    ]
    together = "yes" if found.window else "no"
    sent = span_text(found.first_s, found.last_s)
    return [*rows, ("sent at", sent, sent_span, together)]
