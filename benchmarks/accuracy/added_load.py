"""Measure what a class of requests adds to a GPU's energy, by its counter and by the law of attribution.

    python -m benchmarks.accuracy.added_load run DIR [--base-url URL] [--gpu N] [--load 1] [--seconds 6] [--gap 2]
    python -m benchmarks.accuracy.added_load analyse DIR...

`run` makes one replay of many short parts: conversations and code together (mix), the same conversations alone (chat),
the same code alone (code), at the same instants of their parts. The parts take turns, in an order that is reversed
every time, so that a card that warms up does so in all of them. Between two parts the server runs empty.

`analyse` needs no GPU. The counter's difference, a part with a class less the part without it, has a standard error by
the repeats. The law is fitted to the idle time and the parts of the mix alone: those without the class are new to it.
Its standard error is the one that attribution states for sums of many requests.
"""

import argparse
import json
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from loadgen.attribution.chunk_steps import engine_steps_of
from loadgen.attribution.cost_model import free_time, overlap, step_features, sum_by
from loadgen.attribution.engine_steps import EngineSteps
from loadgen.attribution.step_time import fit_law
from loadgen.attribution.uncertainty import error_model
from loadgen.attribution.window_fit import align_phase
from loadgen.energy.series import EnergySeries
from loadgen.results.energy_summary import aligned_series
from loadgen.results.run_folder import RunResult, read_run
from loadgen.stats.arrays import Floats, Ints
from loadgen.units import MJ_PER_J, NS_PER_S
from loadgen.workload.schedule import build_schedule
from loadgen.workload.trace import TraceRequest, read_trace, write_trace

TRACES = Path(__file__).parents[2] / "traces"
RATES = {"chat": 4.0, "code": 2.0}
MIX = "mix"
ORDER = (MIX, "chat", "code")
LONGEST_ANSWER = 150
"""Tokens to which answers are cut, so that a server is empty soon after the last arrival of a part."""


class Plan(msgspec.Struct, frozen=True):
    """plan.json: the parts of a replay, each `period_s` long, arrivals and the gap after them together."""

    period_s: float
    parts: list[str]
    load: float


def requests_of_part(load: float, seconds: float) -> list[TraceRequest]:
    """Return the requests of a part of the mix, the first one at 0."""
    requests = [
        TraceRequest(
            arrival_s=planned.offset_ns / NS_PER_S, input_tokens=planned.input_tokens,
            output_tokens=min(planned.output_tokens or 1, LONGEST_ANSWER), workload=kind,
        )
        for seed, (kind, rps) in enumerate(RATES.items())
        for planned in build_schedule(
            read_trace(TRACES / f"{kind}.jsonl"), seed=seed, rps=load * rps, arrival="poisson", duration_s=seconds
        ).requests
    ]  # fmt: skip
    requests.sort(key=lambda request: request.arrival_s)
    first_s = requests[0].arrival_s
    return [msgspec.structs.replace(request, arrival_s=request.arrival_s - first_s) for request in requests]


def make_trace(folder: Path, load: float, seconds: float, gap: float, repeats: int) -> None:
    """Write trace.jsonl and plan.json: a part to warm up, the repeats, and a request that ends the last part."""
    turns = [ORDER if repeat % 2 == 0 else ORDER[::-1] for repeat in range(repeats)]
    plan = Plan(seconds + gap, ["warm-up", *(part for turn in turns for part in turn)], load)
    requests = requests_of_part(load, seconds)
    trace = [
        msgspec.structs.replace(request, arrival_s=request.arrival_s + index * plan.period_s)
        for index, part in enumerate(plan.parts)
        for request in requests
        if part not in RATES or part == request.workload
    ]
    trace.append(TraceRequest(arrival_s=len(plan.parts) * plan.period_s, input_tokens=16, output_tokens=8))
    folder.mkdir(parents=True, exist_ok=True)
    write_trace(folder / "trace.jsonl", trace)
    (folder / "plan.json").write_bytes(msgspec.json.encode(plan))


def run(folder: Path, options: argparse.Namespace) -> int:
    """Replay the parts against a live server, and return the exit status."""
    make_trace(folder, options.load, options.seconds, options.gap, options.repeats)
    gpus = [word for gpu in options.gpu for word in ("--gpu", gpu)]
    command = ["replay", folder / "trace.jsonl", "--base-url", options.base_url, "--ui", "none", *gpus,
               "--out", folder / "run", "--extra-body", '{"temperature": 0}', "--idle", 3]  # fmt: skip
    return subprocess.run([sys.executable, "-m", "loadgen", *map(str, command)], check=False).returncode


# -- analysis --------------------------------------------------------------------------------------------------------


class Added(NamedTuple):
    """Joules that a class added to a part: the mean of the repeats, with standard errors.

    late: requests of the replay that were not finished when their part ended. r_squared: of the law, in the parts of
    the mix; the lowest over the GPUs.
    """

    extra: str
    repeats: int
    seconds: float
    late: int
    background_j: float
    counter_j: float
    counter_se_j: float
    law_j: float
    law_se_j: float
    r_squared: float


def edges_of(result: RunResult, plan: Plan) -> Ints:
    """Return the instants at which the parts begin, and that at which the last one ends."""
    assert result.info.start_ns is not None
    return result.info.start_ns + np.round(np.arange(len(plan.parts) + 1) * plan.period_s * NS_PER_S).astype(np.int64)


def late_requests(result: RunResult, edges_ns: Ints) -> int:
    """Return how many requests were not finished when their part ended. ValueError if one failed."""
    failed = [record for record in result.records if not record.ok]
    if failed:
        raise ValueError(f"{len(failed)} requests failed, the first with {failed[0].error}")
    planned_ns = np.array([record.scheduled_ns for record in result.records[:-1]])
    finished_ns = np.array([record.finished_ns for record in result.records[:-1]])
    return int((finished_ns > edges_ns[np.searchsorted(edges_ns, planned_ns, side="right")]).sum())


def within(series: EnergySeries, edges_ns: Ints, parts: list[str]) -> EnergySeries:
    """Return the series with only the time before the first part, and the parts of the mix, known."""
    part = np.searchsorted(edges_ns, series.t_ns, side="right") - 1
    names = np.array([*parts, "end"])
    return replace(series, gap=(part >= 0) & (names[part] != MIX))


def measured_j(series: EnergySeries, edges_ns: Ints) -> Floats:
    """Return the joules of each part by the counter."""
    by_part = [series.energy_mj(int(begin), int(end)) for begin, end in pairwise(edges_ns)]
    return np.array(by_part, dtype=float) / MJ_PER_J


def work_of_parts(steps: EngineSteps, edges_ns: Ints) -> Floats:
    """Return float64[parts, K + 1]: what is done in each part, and the seconds in which no step ran."""
    step, part, share = overlap(edges_ns, steps.start_ns, steps.end_ns)
    parts = len(edges_ns) - 1
    columns = [sum_by(part, share * column[step], parts) for column in step_features(steps).T]
    return np.stack([*columns, free_time(steps, edges_ns) / NS_PER_S], axis=1)


BACKGROUNDS = {"chat": "code", "code": "chat"}
"""Class that is there already, by the class that is added to it."""


class ByLaw(NamedTuple):
    """Joules that each class of BACKGROUNDS added by a fitted law, float64[2], and their variance in J^2."""

    joules: Floats
    variance: Floats
    r_squared: float


def by_law(known: EnergySeries, steps: EngineSteps, edges_ns: Ints, rows: dict[str, Ints]) -> ByLaw:
    """Fit the law to what is known of a series, and apply it to the work that each class added."""
    law, fit = fit_law(known, steps)
    prices = fit.coefficients
    errors = error_model(fit, known, law).covariance_of_sums
    work = work_of_parts(law, edges_ns)
    joules, variance = np.zeros(len(BACKGROUNDS)), np.zeros(len(BACKGROUNDS))
    for index, background in enumerate(BACKGROUNDS.values()):
        difference = work[rows[MIX]].mean(axis=0) - work[rows[background]].mean(axis=0)
        extra, free_s = difference[:-1], difference[-1]
        joules[index] = extra @ prices.values + (prices.idle_w or 0.0) * free_s
        variance[index] = extra @ errors @ extra + ((prices.idle_se_w or 0.0) * free_s) ** 2
    return ByLaw(joules, variance, prices.r_squared or 0.0)


def added(folder: Path) -> list[Added]:
    """Return what each class added to the other one."""
    plan = msgspec.json.decode((folder / "plan.json").read_bytes(), type=Plan)
    result = read_run(folder / "run")
    edges_ns = edges_of(result, plan)
    steps = engine_steps_of(result.records, result.engine)
    rows = {name: np.flatnonzero(np.array(plan.parts) == name) for name in ORDER}
    series = [align_phase(polled, steps) for polled in aligned_series(result)]
    counter_j = np.sum([measured_j(domain, edges_ns) for domain in series], axis=0)
    laws = [by_law(within(domain, edges_ns, plan.parts), steps, edges_ns, rows) for domain in series]
    law_j = np.sum([law.joules for law in laws], axis=0)
    variance = np.sum([law.variance for law in laws], axis=0)
    answers = []
    for index, (extra, background) in enumerate(BACKGROUNDS.items()):
        differences_j = counter_j[rows[MIX]] - counter_j[rows[background]]
        answers.append(
            Added(
                extra=extra,
                repeats=len(differences_j),
                seconds=plan.period_s,
                late=late_requests(result, edges_ns),
                background_j=float(counter_j[rows[background]].mean()),
                counter_j=float(differences_j.mean()),
                counter_se_j=float(differences_j.std(ddof=1) / np.sqrt(len(differences_j))),
                law_j=float(law_j[index]),
                law_se_j=float(np.sqrt(variance[index])),
                r_squared=min(law.r_squared for law in laws),
            )
        )
    return answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "analyse"])
    parser.add_argument("folders", type=Path, nargs="+", metavar="DIR")
    parser.add_argument("--base-url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--gpu", action="append", default=[], help="GPU whose counter is read; repeatable")
    parser.add_argument("--load", type=float, default=1.0, help="multiple of the rates")
    parser.add_argument("--seconds", type=float, default=6.0, help="arrivals of a part")
    parser.add_argument("--gap", type=float, default=2.0, help="time after them in which the server runs empty")
    parser.add_argument("--repeats", type=int, default=4)
    options = parser.parse_args()
    if options.what == "run":
        sys.exit(run(options.folders[0], options))
    answers = {folder.name: [answer._asdict() for answer in added(folder)] for folder in options.folders}
    print(json.dumps(answers, indent=1))


if __name__ == "__main__":
    main()
