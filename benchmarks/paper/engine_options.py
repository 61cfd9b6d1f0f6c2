"""What two engine options of vLLM are worth in docs/results: the runs of studies/serving.toml on the second card.

    python -m benchmarks.paper.serving STUDY docs/results/h200-2026/studies/serving-2 GPU-6476ed43

took them in. benchmarks.paper draws from there. Repeats of the same number have the same requests at the same instants:
servers are compared pair by pair.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import fmean

from benchmarks.paper.offline_results import percent, sig, table
from benchmarks.paper.serving import PER_TOKEN, cached_share, cells, load_of, mean_of, ms, per_token, power, rows
from loadgen.results.study_table import Group

FOLDER = Path(__file__).parents[2] / "docs/results/h200-2026/studies/serving-2"
BUDGETS = {"plain": 8192, "budget-2048": 2048, "budget-512": 512}
"""Servers, and the tokens that a step may have."""
LATENCIES = ("ttft_p50_s", "ttft_p99_s", "tpot_p50_s", "tpot_p99_s")


def pairs(base: Group, group: Group, field: str = PER_TOKEN) -> list[float]:
    """group / base - 1, by repeats that both have."""
    known = {row.repeat: getattr(row, field) for row in base.rows}
    return [getattr(row, field) / known[row.repeat] - 1 for row in group.rows if row.repeat in known]


def change(base: Group, group: Group, field: str = PER_TOKEN) -> str:
    found = [] if base is group else pairs(base, group, field)
    return ", ".join(percent(one, signed=True) for one in found) or "-"


def told(group: Group) -> str:
    return ", ".join(f"{value:.3f}" for value in per_token(group))


def prefix_caching() -> str:
    base = cells(FOLDER)["plain", "sessions", None, 12.0]
    body = []
    for server, state in (("plain", "off"), ("prefix-caching", "on")):
        g = cells(FOLDER)[server, "sessions", None, 12.0]
        share = percent(mean_of(g, partial(cached_share, folder=FOLDER)))
        changes = [change(base, g), change(base, g, "prefill_joules")]
        body.append([state, share, told(g), *changes, f"{g.mean('mean_watts'):.0f}", *ms(g, *LATENCIES)])
    head = ["prefix caching", "prompt tokens from the cache", "J/output token, by repeat", "against off, of pairs"]
    return table([*head, "prefill alone", "W", "TTFT p50 ms", "p99", "TPOT p50 ms", "p99"], body)


def budgets() -> str:
    body = []
    for rate in (8.0, 16.0):
        mine = {server: cells(FOLDER).get((server, "chat", None, rate)) for server in BUDGETS}
        for server, tokens in BUDGETS.items():
            if (g := mine[server]) is not None:
                changes = [change(base, g) if (base := mine[other]) else "-" for other in ("plain", "budget-2048")]
                line = [f"{rate:g}/s", f"{tokens:,}", told(g), *changes, f"{g.mean('mean_watts'):.0f}"]
                body.append([*line, *ms(g, *LATENCIES), percent(g.mean("goodput_ratio"))])
    head = ["load", "tokens in a step", "J/output token, by repeat", "against 8,192, of pairs", "against 2,048", "W"]
    return table([*head, "TTFT p50 ms", "p99", "TPOT p50 ms", "p99", "good"], body)


def cards() -> str:
    """The same server and loads on both."""
    body = []
    for key, mine in cells(FOLDER).items():
        if (other := cells().get(key)) is not None:
            joules, watts = ([fmean(of(group)) for group in (other, mine)] for of in (per_token, power))
            changes = [percent(second / first - 1, signed=True) for first, second in (joules, watts)]
            body.append([f"{key[1]}, {load_of(mine)}", *map(sig, joules), changes[0], *map(sig, watts), changes[1]])
    head = ["plain server", "J/output token, first card", "second", "second against first", "W, first", "second"]
    return table([*head, "second against first"], body)


def checks() -> str:
    runs = rows(FOLDER)
    body = [
        ["runs; with valid energy; requests failed", f"{len(runs)}; {sum(r.energy_valid for r in runs)}; "
         f"{sum(r.failed for r in runs)} of {sum(r.completed + r.failed for r in runs):,}"],
        ["prompt tokens from a cache, where it is off",
         percent(max(cached_share(row, FOLDER) for row in runs if row.server != "prefix-caching"))],
    ]  # fmt: skip
    return table(["check", "found"], body)


TABLES: dict[str, Callable[[], str]] = {
    "serving-prefix-caching": prefix_caching,
    "serving-budgets": budgets,
    "serving-cards": cards,
    "serving-2-checks": checks,
}
