"""Tables of docs/results/disaggregated.md: prefill and decode apart, or replicas, on two GPUs and on one in turn."""

import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from benchmarks.paper import several_engines
from benchmarks.paper.ingest import FOLDER
from benchmarks.paper.words import percent, sig, table

DATA = FOLDER / "by-turns"
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


class TurnsOfLoad(NamedTuple):
    """The runs of a load in a sitting, by what the GPU played."""

    sitting: str
    runs: dict[str, dict[str, Any]]

    @property
    def name(self) -> str:
        """Requests/s, over the time to the last answer on one GPU."""
        whole = self.runs["whole"]
        return f"{whole['requests'] / whole['duration_s']:.1f}/s"


def loads() -> list[TurnsOfLoad]:
    """Return the loads of all sittings, the lowest first."""
    made: dict[tuple[str, str], TurnsOfLoad] = {}
    for file in sorted(DATA.glob("*.json")):
        for name, run in json.loads(file.read_text()).items():
            load, _, played = name.partition("-")
            made.setdefault((load, file.stem), TurnsOfLoad(file.stem, {})).runs[played] = run
    return sorted(made.values(), key=lambda load: (load.runs["whole"]["requests"], load.sitting))


class Used(NamedTuple):
    """Joules of all GPUs that serve a load, in the same time for each way of serving it."""

    joules: float
    above_rest: float


def used(gpus: Sequence[dict[str, Any]], seconds: float) -> Used:
    """Return what GPUs used in so many seconds from the first request on. One whose run was shorter is at rest for the
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
    for load in ("load4-1", "load14-1", "load14-2"):
        pair = {"two replicas": read[f"rep-{load}"], "prefill and decode apart": read[f"pd-{load}"]}
        seconds = max(gpu["seconds"] for run in pair.values() for gpu in run["gpus"].values())
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
                several_engines.TITLES[f"rep-{load}"].partition(",")[0], serving,
                *compared(own, replicas, run["tokens"]["output"]),
                percent(cached / prompts), f"{sum(generating):,}", *latencies(run),
            ])  # fmt: skip
    return table(["load", "served by", *COMPARED, "prompt tokens cached", "steps that generate", *LATENCIES], body)


def disaggregated() -> str:
    """Return a row for each way of serving each load."""
    body = []
    for load in loads():
        gpus = {name: run["gpus"]["a"] for name, run in load.runs.items()}
        seconds = max(gpu["seconds"] for gpu in gpus.values())
        tokens = load.runs["whole"]["tokens"]["output"]
        ways = {serving: used([gpus[name] for name in played], seconds) for serving, played in SERVING.items()}
        for serving, own in ways.items():
            body.append([load.name, load.sitting, serving, *compared(own, ways["two replicas"], tokens)])
    return table(["load", "sitting", "served by", *COMPARED], body)


def by_turns() -> str:
    """Return a row for each GPU that one GPU played."""
    body = []
    for load in loads():
        for played, words in PLAYED.items():
            run = load.runs[played]
            gpu, counters = run["gpus"]["a"], run["engines"]["a"]["counters"]
            cached = percent(counters["cached_tokens"] / counters["prompt_tokens"])
            body.append([
                load.name, load.sitting, words, str(run["completed"]), cached, f"{counters['iterations']:,}",
                f"{gpu['counter_mj'] / 1e3:,.0f}", sig(gpu["seconds"]), sig(gpu["idle_w"]), *latencies(run),
            ])  # fmt: skip
    head = ["load", "sitting", "the GPU", "requests", "prompt tokens cached", "steps", "counter, J", "s", "W at rest"]
    return table([*head, *LATENCIES], body)


TABLES: dict[str, Callable[[], str]] = {
    "on-two-gpus": on_two_gpus,
    "disaggregated": disaggregated,
    "by-turns": by_turns,
}
