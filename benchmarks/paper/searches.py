"""Tables of docs/results/search.md: searches for the largest rate within latency limits, on a real server."""

from benchmarks.paper.ingest import FOLDER
from benchmarks.paper.words import percent, sig, table
from loadgen.files import read_json
from loadgen.results.miss_curve import miss_curve
from loadgen.results.search_result import Estimate, Probe, SearchResult

SEEDS = {"1": "a", "5001": "b"}
"""File of the search with each seed."""


def search_of(name: str) -> SearchResult:
    return read_json(FOLDER / f"search/{name}.json", SearchResult, "the result of a search")


def interval(estimate: Estimate | None) -> str:
    if estimate is None:
        return "-"
    low, high = ("unknown" if end is None else sig(end) for end in (estimate.low, estimate.high))
    return f"{sig(estimate.value)} [{low}, {high}]"


def by_seed() -> str:
    """Return the answer of each search, and that of the probes of both."""
    results = {seed: search_of(name) for seed, name in SEEDS.items()}
    body = []
    for seed, result in results.items():
        [setting] = result.settings
        counted = sum(probe.requests for probe in setting.probes)
        body.append([
            seed, f"{result.spent_s / 60:.1f} min", str(len(setting.probes)), f"{counted:,}", interval(setting.rate),
            interval(setting.least_joules), " and ".join(limit.upper() for limit in setting.binding),
        ])  # fmt: skip
    probes = [probe for result in results.values() for probe in result.settings[0].probes]
    attainment = next(iter(results.values())).attainment
    assert attainment is not None
    both = miss_curve(probes, 1 - attainment).rate(0.95)
    counted = sum(probe.requests for probe in probes)
    body.append(["both", "", str(len(probes)), f"{counted:,}", interval(both), "", ""])
    head = ["seed", "time", "probes", "requests counted", "requests/s [95 %]", "J per good request there", "binding"]
    return table(head, body)


def by_probe() -> str:
    """Return the probes of both searches that did not bracket, by rate."""
    probes = [
        (probe, seed)
        for seed, name in SEEDS.items()
        for probe in search_of(name).settings[0].probes
        if probe.stage == "refine"
    ]
    body = [[*_cells(probe), seed] for probe, seed in sorted(probes, key=lambda entry: entry[0].rate_rps)]
    return table([*_HEAD, "seed"], body)


_HEAD = ["requests/s", "requests", "good", "TTFT p99 ms", "TPOT p99 ms", "W", "J per good request"]


def _cells(probe: Probe) -> list[str]:
    ms = ["-" if s is None else sig(1000 * s) for s in (probe.ttft_p99_s, probe.tpot_p99_s)]
    joules = "-" if probe.joules_per_good_request is None else sig(probe.joules_per_good_request)
    watts = "-" if probe.watts is None else f"{probe.watts:.0f}"
    return [sig(probe.rate_rps), f"{probe.requests:,}", percent(probe.good / probe.requests), *ms, watts, joules]


def by_setting() -> str:
    """Return the answer of each setting of the search over engine options."""
    body = [
        [
            setting.name, str(len(setting.probes)), f"{sum(probe.requests for probe in setting.probes):,}",
            interval(setting.rate), interval(setting.least_joules),
        ]
        for setting in search_of("over").settings
    ]  # fmt: skip
    return table(["setting", "probes", "requests counted", "requests/s [95 %]", "J per good request there"], body)


TABLES = {"search-seeds": by_seed, "search-probes": by_probe, "search-settings": by_setting}
