"""Results of searches with given numbers, for the views: the largest rate at which 99 % are good is 13.4/s."""

from math import exp, log
from typing import Any

from msgspec.structs import replace

from loadgen.results.search_result import Block, Estimate, Probe, SearchResult, SettingResult

BRACKETING = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
REFINING = (12.0, 14.6, 12.9, 13.9)


def probe(number: int = 0, rate_rps: float = 8.0, scale: float = 1.0, **changes: Any) -> Probe:
    """Return a probe whose numbers follow from its rate: power grows with it, latency where the server is full."""
    is_short = changes.get("stage", "refine") == "bracket"
    requests = round(rate_rps * (6 if is_short else 80))
    missed = round(requests / (1 + 99 * exp(-14 * log(rate_rps / scale / 13.4))))
    full = 1 + 20 * missed / max(requests, 1)
    size, rest = divmod(requests, 16)
    blocks = [Block(size + (i < rest), missed // 16 + (i < missed % 16)) for i in range(16)]
    values: dict[str, Any] = {
        "name": f"{number:03}",
        "number": number,
        "rate_rps": rate_rps,
        "seed": 7 + number,
        "stage": "refine",
        "planned_s": 10.0 if is_short else 100.0,
        "wall_s": 13.0 if is_short else 106.0,
        "from_s": 2.0 if is_short else 15.0,
        "until_s": 8.0 if is_short else 95.0,
        "decision_s": 2.0,
        "requests": requests,
        "good": requests - missed,
        "met": {"tpot": requests - missed, "ttft": requests - missed // 4},
        "blocks": tuple(block for block in blocks if block.requests),
        "ttft_p50_s": 0.04 * full,
        "ttft_p99_s": 0.12 * full,
        "tpot_p50_s": 0.006 * full**0.2,
        "tpot_p99_s": 0.0085 * full**0.2,
        "e2e_p50_s": 0.9,
        "e2e_p99_s": 1.4 * full**0.2,
        "output_tokens": 150 * requests,
        "watts": 300 + 25 * rate_rps,
    }
    return Probe(**(values | changes))


def probes(scale: float = 1.0, **changes: Any) -> tuple[Probe, ...]:
    """Return the probes of a search that brackets and refines; the fastest one is ended early."""
    bracketing = [
        probe(i, scale * rate, scale, stage="bracket", stopped_early=rate > 20, **changes)
        for i, rate in enumerate(BRACKETING)
    ]
    refining = [probe(i, scale * rate, scale, **changes) for i, rate in enumerate(REFINING, len(bracketing))]
    return (*bracketing, *refining)


def setting(name: str = "", scale: float = 1.0, **changes: Any) -> SettingResult:
    """Return an answered setting. `scale` multiplies its rates."""
    values: dict[str, Any] = {
        "name": name,
        "spent_s": 520.0,
        "probes": probes(scale),
        "ended": "interval",
        "rate": Estimate(value=13.4 * scale, low=12.8 * scale, high=14.0 * scale),
        "binding": ("tpot",),
        "least_joules_rate": Estimate(value=13.4 * scale, low=12.8 * scale, high=14.0 * scale),
        "idle_watts": 121.0,
        "least_joules": Estimate(value=48.0 / scale, low=46.9 / scale, high=49.1 / scale),
    }
    return SettingResult(**(values | changes))


def search(*settings: SettingResult, **changes: Any) -> SearchResult:
    """Return the outcome of a search; of one answered setting unless others are stated."""
    settings = settings or (setting(),)
    values: dict[str, Any] = {
        "limits_ms": {"ttft": 200.0, "tpot": 10.0},
        "attainment": 0.99,
        "budget_s": 600.0,
        "spent_s": 525.0,
        "trace": "chat",
        "model": "llama-3.1-8b",
        "engine": "vllm",
        "settings": settings,
        "best": settings[0].name,
        "started": "2026-11-29T10:00:00+00:00",
        "loadgen_version": "1.0",
        "command": "loadgen search chat --goodput ttft:200 --goodput tpot:10 --out runs/search",
    }
    return SearchResult(**(values | changes))


UNMEASURED = {"watts": None}


def without_energy() -> SearchResult:
    return search(setting(probes=probes(**UNMEASURED), least_joules=None, least_joules_rate=None))


def hopeless() -> SearchResult:
    """Return a search that found no rate at which the limits are met."""
    missed = tuple(
        probe(i, 1 / 2**i, stage="bracket", requests=12, good=3, met={"ttft": 3, "tpot": 11}, blocks=(Block(12, 9),))
        for i in range(4)
    )
    unknown = dict.fromkeys(("rate", "least_joules", "least_joules_rate"))
    return search(setting(probes=missed, ended="fails", binding=(), **unknown), best=None)


def limited_by_client() -> SearchResult:
    """Return a search whose client cannot send fast enough for the server to miss its limits."""
    met = probes()[:4]
    rate = Estimate(value=8.0, low=8.0, high=None)
    reason = "above 14/s this client would use more than 80 % of a core per process: add --processes"
    unknown = {"least_joules": None, "least_joules_rate": None, "binding": ()}
    return search(setting(probes=met, ended="client", reason=reason, rate=rate, **unknown))


def broken() -> SearchResult:
    """Return a search whose server died."""
    return search(setting(ended="server", reason="connection refused on 127.0.0.1:8000"))


def undecided() -> SearchResult:
    return search(setting(ended="budget", rate=Estimate(value=11.2, low=6.9, high=None)))


def first_probe() -> SearchResult:
    """Return a search that still runs and has made one probe."""
    unknown = dict.fromkeys(("rate", "least_joules", "least_joules_rate"))
    return search(setting(probes=probes()[:1], ended=None, binding=(), **unknown), spent_s=13.0)


def of_joules() -> SearchResult:
    """Return a search for the rate of fewest joules, whatever share of the requests is good."""
    free = {"least_joules_rate": Estimate(value=14.4, low=13.6, high=15.3)}
    return search(
        setting(binding=(), least_joules=Estimate(value=47.1, low=46.0, high=48.2), **free),
        objective="joules_per_good_request",
        attainment=None,
    )


def of_settings() -> SearchResult:
    """Return a search over four settings, of which one is dropped and one meets the limits at no rate."""
    dropped = setting("max_num_seqs=64", 0.5, ended="dropped", reason="its best rate is below that of max_num_seqs=256")
    return search(
        setting("max_num_seqs=256", 1.2),
        setting("max_num_seqs=128"),
        replace(dropped, probes=dropped.probes[:6]),
        replace(hopeless().settings[0], name="max_num_seqs=1"),
    )
