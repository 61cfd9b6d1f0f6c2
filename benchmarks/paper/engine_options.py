"""Tables of two engine options of vLLM in docs/results: the runs of studies/serving.toml on the second card.

    python -m benchmarks.paper.serving STUDY docs/results/h200-2026/studies/serving-2 GPU-6476ed43

copied the runs; benchmarks.paper draws from the copy. Repeats of the same number have the same requests at the same
instants, so servers are compared pair by pair.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import fmean

from benchmarks.paper.serving import PER_TOKEN, cached_share, cells, load_of, mean_of, ms, per_token, power, rows
from benchmarks.paper.words import percent, sig, table
from loadgen.results.study_table import Group

FOLDER = Path(__file__).parents[2] / "docs/results/h200-2026/studies/serving-2"
BUDGETS = {"plain": 8192, "budget-2048": 2048, "budget-512": 512}
"""Largest number of tokens in a step, by server."""
LATENCIES = ("ttft_p50_s", "ttft_p99_s", "tpot_p50_s", "tpot_p99_s")


def pairs(base: Group, group: Group, field: str = PER_TOKEN) -> list[float]:
    """Return group / base - 1 for each repeat that both have."""
    base_values = {row.repeat: getattr(row, field) for row in base.rows}
    return [getattr(row, field) / base_values[row.repeat] - 1 for row in group.rows if row.repeat in base_values]


def change(base: Group, group: Group, field: str = PER_TOKEN) -> str:
    changes = [] if base is group else pairs(base, group, field)
    return ", ".join(percent(value, signed=True) for value in changes) or "-"


def repeats_text(group: Group) -> str:
    return ", ".join(f"{value:.3f}" for value in per_token(group))


def prefix_caching() -> str:
    base = cells(FOLDER)["plain", "sessions", None, 12.0]
    body = []
    for server, state in (("plain", "off"), ("prefix-caching", "on")):
        g = cells(FOLDER)[server, "sessions", None, 12.0]
        share = percent(mean_of(g, partial(cached_share, folder=FOLDER)))
        changes = [change(base, g), change(base, g, "prefill_joules")]
        body.append([state, share, repeats_text(g), *changes, f"{g.mean('mean_watts'):.0f}", *ms(g, *LATENCIES)])
    head = ["prefix caching", "prompt tokens from the cache", "J/output token, by repeat", "against off, of pairs"]
    return table([*head, "prefill alone", "W", "TTFT p50 ms", "p99", "TPOT p50 ms", "p99"], body)


def budgets() -> str:
    body = []
    for rate in (8.0, 16.0):
        by_server = {server: cells(FOLDER).get((server, "chat", None, rate)) for server in BUDGETS}
        for server, tokens in BUDGETS.items():
            if (g := by_server[server]) is not None:
                changes = [change(base, g) if (base := by_server[name]) else "-" for name in ("plain", "budget-2048")]
                line = [f"{rate:g}/s", f"{tokens:,}", repeats_text(g), *changes, f"{g.mean('mean_watts'):.0f}"]
                body.append([*line, *ms(g, *LATENCIES), percent(g.mean("goodput_ratio"))])
    head = ["load", "tokens in a step", "J/output token, by repeat", "against 8,192, of pairs", "against 2,048", "W"]
    return table([*head, "TTFT p50 ms", "p99", "TPOT p50 ms", "p99", "good"], body)


def cards() -> str:
    """Return the table of the same server and loads on both cards."""
    body = []
    for key, second_card in cells(FOLDER).items():
        if (first_card := cells().get(key)) is not None:
            joules, watts = ([fmean(of(group)) for group in (first_card, second_card)] for of in (per_token, power))
            changes = [percent(on_second / on_first - 1, signed=True) for on_first, on_second in (joules, watts)]
            body.append(
                [f"{key[1]}, {load_of(second_card)}", *map(sig, joules), changes[0], *map(sig, watts), changes[1]]
            )
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
