"""Tables of docs/results/disaggregated.md: prefill and decode apart, or replicas, on two GPUs and on one in turn."""

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from benchmarks.paper import several_engines
from benchmarks.paper.ingest import FOLDER
from benchmarks.paper.words import percent, sig, table

DATA = FOLDER / "by-turns.json"
ARRIVING_S = 45.0
"""Time in which the requests of each load arrive."""
PLAYED = {
    "half0": "a replica, every second request",
    "half1": "the other replica",
    "prefill": "computes all prompts",
    "decode": "generates all answers",
    "whole": "serves all requests alone",
}
SERVING = {
    "two replicas": ("half0", "half1"),
    "prefill and decode apart": ("prefill", "decode"),
    "one GPU": ("whole",),
}


def rate(run: dict[str, Any]) -> str:
    """Return the name of a run's load: its arrivals per second."""
    return f"{run['requests'] / ARRIVING_S:.1f}/s"


def loads() -> list[dict[str, dict[str, Any]]]:
    """Return the runs of each load by what the GPU played, the lowest load first."""
    made: dict[str, dict[str, dict[str, Any]]] = {}
    for name, run in json.loads(DATA.read_text()).items():
        load, _, played = name.partition("-")
        made.setdefault(load, {})[played] = run
    return sorted(made.values(), key=lambda runs: int(runs["whole"]["requests"]))


def longest_s(runs: Iterable[dict[str, Any]]) -> float:
    """Return the longest time from the first request to the last answer of a GPU."""
    return max(float(gpu["seconds"]) for run in runs for gpu in run["gpus"].values())


class Used(NamedTuple):
    """Joules of all GPUs that serve a load, in the same time for each way of serving it."""

    joules: float
    above_rest: float


def used(gpus: Sequence[dict[str, Any]], seconds: float) -> Used:
    """Return what GPUs used in this time from the first request on. A GPU whose run was shorter is at rest for the
    difference."""
    above = sum(gpu["counter_mj"] / 1e3 - gpu["idle_w"] * gpu["seconds"] for gpu in gpus)
    return Used(above + seconds * sum(gpu["idle_w"] for gpu in gpus), above)


def compared(own: Used, base: Used, tokens: int) -> list[str]:
    """Return in words what a way of serving used, in all and above rest, and by how much that differs from `base`."""
    changes = ["" if own == base else percent(own[k] / base[k] - 1, True) for k in range(2)]
    return [f"{own.joules:,.0f}", changes[0], sig(own.joules / tokens), f"{own.above_rest:,.0f}", changes[1]]


COMPARED = ["J", "against two replicas", "J per output token", "above rest, J", "against two replicas"]


def latencies(run: dict[str, Any]) -> list[str]:
    """Return p50 and p95 of the time to the first token, and of the time per output token, in words."""
    return [" / ".join(map(sig, percentiles)) or "-" for percentiles in run["latency_ms"].values()]


LATENCIES = ["TTFT p50 / p95, ms", "TPOT p50 / p95, ms"]


def on_two_gpus() -> str:
    """Return a row for each way of serving each load on two GPUs."""
    read = several_engines.runs()
    body = []
    for load in several_engines.LOADS:
        pair = {"two replicas": read[f"rep-{load}"], "prefill and decode apart": read[f"pd-{load}"]}
        seconds = longest_s(pair.values())
        replicas = used(list(pair["two replicas"]["gpus"].values()), seconds)
        for serving, run in pair.items():
            engines = list(run["engines"].values())
            computing = [engine["counters"] for engine in engines if engine["role"] != "decode"]
            cached, prompts = (
                sum(counters[name] for counters in computing) for name in ("cached_tokens", "prompt_tokens")
            )
            generating = [engine["counters"]["iterations"] for engine in engines if engine["role"] != "prefill"]
            own = used(list(run["gpus"].values()), seconds)
            body.append([
                rate(run), serving, sig(longest_s([run])), *compared(own, replicas, run["tokens"]["output"]),
                percent(cached / prompts), f"{sum(generating):,}", *latencies(run),
            ])  # fmt: skip
    head = ["load", "served by", "s", *COMPARED, "prompt tokens cached", "steps that generate", *LATENCIES]
    return table(head, body)


def disaggregated() -> str:
    """Return a row for each way of serving each load."""
    body = []
    for runs in loads():
        seconds, whole = longest_s(runs.values()), runs["whole"]
        ways = {
            serving: used([runs[name]["gpus"]["a"] for name in played], seconds) for serving, played in SERVING.items()
        }
        for serving, own in ways.items():
            body.append([rate(whole), serving, *compared(own, ways["two replicas"], whole["tokens"]["output"])])
    return table(["load", "served by", *COMPARED], body)


def by_turns() -> str:
    """Return a row for each GPU that one GPU played."""
    body = []
    for runs in loads():
        for played, words in PLAYED.items():
            run = runs[played]
            gpu, counters = run["gpus"]["a"], run["engines"]["a"]["counters"]
            cached = percent(counters["cached_tokens"] / counters["prompt_tokens"])
            body.append([
                rate(runs["whole"]), words, str(run["completed"]), cached, f"{counters['iterations']:,}",
                f"{gpu['counter_mj'] / 1e3:,.0f}", sig(gpu["seconds"]), sig(gpu["idle_w"]), *latencies(run),
            ])  # fmt: skip
    head = ["load", "the GPU", "requests", "prompt tokens cached", "steps", "counter, J", "s", "W at rest"]
    return table([*head, *LATENCIES], body)


TABLES: dict[str, Callable[[], str]] = {
    "on-two-gpus": on_two_gpus,
    "disaggregated": disaggregated,
    "by-turns": by_turns,
}
