"""Tables of docs/results/disaggregated.md: prefill and decode apart against replicas, played by one GPU in turn."""

import json
from collections.abc import Callable
from typing import Any, NamedTuple

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


def used(load: TurnsOfLoad, played: tuple[str, ...]) -> Used:
    """Return what GPUs used from the first request to the last answer of the load's longest run.

    A GPU whose own run was shorter is at rest for the difference.
    """
    gpus = {name: run["gpus"]["a"] for name, run in load.runs.items()}
    seconds = max(gpu["seconds"] for gpu in gpus.values())
    own = [gpus[name] for name in played]
    above = sum(gpu["counter_mj"] / 1e3 - gpu["idle_w"] * gpu["seconds"] for gpu in own)
    return Used(above + seconds * sum(gpu["idle_w"] for gpu in own), above)


def disaggregated() -> str:
    """Return a row for each way of serving each load."""
    body = []
    for load in loads():
        replicas = used(load, SERVING["two replicas"])
        tokens = load.runs["whole"]["tokens"]["output"]
        for serving, played in SERVING.items():
            own = used(load, played)
            changes = [
                "" if own == replicas else percent(joules / base - 1, True)
                for joules, base in zip(own, replicas, strict=True)
            ]
            body.append([
                load.name, load.sitting, serving, f"{own.joules:,.0f}", changes[0], sig(own.joules / tokens),
                f"{own.above_rest:,.0f}", changes[1],
            ])  # fmt: skip
    head = ["load", "sitting", "served by", "J", "against two replicas", "J per output token", "above rest, J"]
    return table([*head, "against two replicas"], body)


def by_turns() -> str:
    """Return a row for each GPU that one GPU played."""
    body = []
    for load in loads():
        for played, words in PLAYED.items():
            run = load.runs[played]
            gpu, counters = run["gpus"]["a"], run["engines"]["a"]["counters"]
            latencies = [" / ".join(map(sig, percentiles)) or "-" for percentiles in run["latency_ms"].values()]
            cached = percent(counters["cached_tokens"] / counters["prompt_tokens"])
            body.append([
                load.name, load.sitting, words, str(run["completed"]), cached, f"{counters['iterations']:,}",
                f"{gpu['counter_mj'] / 1e3:,.0f}", sig(gpu["seconds"]), sig(gpu["idle_w"]), *latencies,
            ])  # fmt: skip
    head = ["load", "sitting", "the GPU", "requests", "prompt tokens cached", "steps", "counter, J", "s", "W at rest"]
    return table([*head, "TTFT p50 / p95, ms", "TPOT p50 / p95, ms"], body)


TABLES: dict[str, Callable[[], str]] = {"disaggregated": disaggregated, "by-turns": by_turns}
