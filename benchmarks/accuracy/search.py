"""Measure how often the interval of a search holds the true rate, and what the search costs, on the simulator.

    python -m benchmarks.accuracy.search [--searches 200] [--jobs 2] [--json FILE]

Every search is made in virtual time by the search's own rules, on the systems of `search_systems`: chat, code and mixes
on two kinds of GPU, engines of 16 to 256 sequences, limits of TTFT and TPOT, each with other seeds. Searches for the
rate are made at three attainments, with two hours and with ten minutes; searches for the load of fewest joules per
good request with two hours. Truths are of long grids. Columns:

    inside     share of searches whose 95 % interval holds the true rate
    below      share whose interval lies below it; above: likewise
    width      of the interval over the estimate, median
    bias       median of the estimate over the truth, less 1
    error      median of the absolute value of that
    undecided  share of searches whose budget ended first
    minutes    a search takes, median, with its bracketing, starts and drains
    of a grid  its duration over that of the grid that gives the same interval, median

That grid is read as a table: its interval goes from the largest rate that clearly holds to the smallest one that
clearly does not. Its rates are in geometric steps over a factor of two, which is what doubling brackets, and all are
measured for the same time. With steps of two standard errors of the rate that one of them tells by itself, the mean
interval is 4.4 standard errors wide and holds in 95 % (independent normal errors, rates anywhere in a step, a rate
counted as clear at 1.26 standard errors); other steps cost more for the same width. The standard error of a logit is
sqrt(d / (n m (1 - m))), with the dispersion d that the search measured, and that of the logarithm of the rate 1/b of
it, with the steepness b. Each rate costs the fill and the drain of a probe, too. For the fewest joules per good
request, the steps are the interval's width, and neighbours of the minimum differ by 1.96 standard errors.
"""

import argparse
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

import msgspec
import numpy as np

from benchmarks.accuracy.search_systems import START_S, SYSTEMS, System, probe, read_truth
from loadgen.load_search.plan import Question, next_probe
from loadgen.results.miss_curve import USUAL_MISSED, miss_curve
from loadgen.results.search_answer import sought_rate
from loadgen.results.search_result import Objective, Probe

ATTAINMENTS = (0.9, 0.95, 0.99)
BUDGET_S, SHORT_S = 7200.0, 600.0
Z = 1.96
STEP_SE, WIDTH_SE = 2.0, 4.4
"""Step of a grid, and mean width of its interval, in standard errors of the rate that one of its rates tells."""
FILLS = 9
"""Fill and drain of a rate, in times that a request takes."""


class Search(msgspec.Struct, frozen=True):
    """The answer of a search, and what it cost."""

    system: str
    workload: str
    objective: Objective
    attainment: float | None
    budget_s: float
    seed: int
    rate: float
    low: float | None
    high: float | None
    ended: str
    spent_s: float
    probes: int
    requests: int
    grid_s: float | None

    @property
    def truth(self) -> float:
        truth = read_truth()[self.system]
        return truth.least_joules_rps if self.attainment is None else truth.rate_rps(self.attainment)

    @property
    def width(self) -> float:
        return math.inf if self.low is None or self.high is None else (self.high - self.low) / self.rate


def search(system: System, question: Question, *, same_seeds: bool = False) -> tuple[list[Probe], str]:
    """Return the probes of a search and the reason for its end. same_seeds: each rate has the same arrivals."""
    probes = list[Probe]()
    while True:
        spent_s = sum(probe.wall_s for probe in probes)
        planned = next_probe(question, probes, question.budget_s - spent_s)
        if isinstance(planned, str):
            return probes, planned
        if same_seeds:
            planned = replace(planned, seed=question.seed)
        probes.append(probe(system, planned, question.bracket_share))


def run(cell: tuple[System, Objective, float | None, float], seed: int, same_seeds: bool) -> Search:
    system, objective, attainment, budget_s = cell
    question = Question(system.limits_ms, objective, attainment, budget_s, seed=1000 * seed)
    probes, ended = search(system, question, same_seeds=same_seeds)
    answer = sought_rate(probes, objective, attainment, question.confidence).estimate
    return Search(
        system=system.name,
        workload=system.workload,
        objective=objective,
        attainment=attainment,
        budget_s=budget_s,
        seed=seed,
        rate=answer.value,
        low=answer.low,
        high=answer.high,
        ended=ended,
        spent_s=sum(probe.wall_s for probe in probes),
        probes=len(probes),
        requests=sum(probe.requests for probe in probes),
        grid_s=grid_s(probes, attainment, answer.value, answer.relative_width),
    )


def grid_s(probes: Sequence[Probe], attainment: float | None, rate_rps: float, width: float | None) -> float | None:
    """Return the duration of the grid that gives an interval of this relative width."""
    if width is None:
        return None
    curve = miss_curve(probes, USUAL_MISSED if attainment is None else 1 - attainment)
    b, d = math.sqrt(math.prod(curve.steepness)), curve.dispersion
    if attainment is None:  # d(log J) = sqrt(d m / (n (1 - m))), and log J'' = b^2 m (1 - m), by the log of the rate
        m, step = curve.share_at(rate_rps), width
        requests = 2 * Z**2 * d * m / (1 - m) / (b**2 * m * (1 - m) * width**2 / 2) ** 2
    else:
        se = width / WIDTH_SE
        requests, step = d / (attainment * (1 - attainment) * (b * se) ** 2), STEP_SE * se
    fill_s = FILLS * max(probe.decision_s for probe in probes if not probe.overloaded)
    return (math.log(2) / step + 1) * (requests / rate_rps + fill_s + START_S)


def print_table(title: str, searches: Sequence[Search], key: Callable[[Search], str]) -> None:
    columns = ("", "searches", "inside", "below", "above", "width", "bias", "error", "undecided", "minutes", "probes")
    print(f"\n{title}\n{columns[0]:28}" + "".join(f"{column:>10}" for column in columns[1:]) + " of a grid")
    names = sorted({key(search) for search in searches})
    for name in [*names, "all"] if len(names) > 1 else names:
        print(f"{name:28}" + row([search for search in searches if name in ("all", key(search))]))


def row(searches: Sequence[Search]) -> str:
    below = float(np.mean([(search.high or math.inf) < search.truth for search in searches]))
    above = float(np.mean([(search.low or 0.0) > search.truth for search in searches]))
    grids = [search.spent_s / search.grid_s for search in searches if search.grid_s]
    return (
        f"{len(searches):10}{1 - below - above:10.1%}{below:10.1%}{above:10.1%}"
        f"{median(search.width for search in searches):10.1%}"
        f"{median(search.rate / search.truth - 1 for search in searches):+10.1%}"
        f"{median(abs(search.rate / search.truth - 1) for search in searches):10.1%}"
        f"{np.mean([search.ended != 'interval' for search in searches]):10.0%}"
        f"{median(search.spent_s for search in searches) / 60:10.1f}"
        f"{median(search.probes for search in searches):10.0f}"
        f"{median(grids) if grids else math.nan:10.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--searches", type=int, default=200, help="of each kind")
    parser.add_argument("--kinds", default="rate,short,joules", help="some of rate,short,joules")
    parser.add_argument("--same-seeds", action="store_true", help="the same arrivals at each rate of a search")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--by-system", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the searches")
    parser.add_argument("--read", type=Path, help="print the tables of such a file instead")
    args = parser.parse_args()
    systems = [system for system in SYSTEMS if system.name in read_truth()]
    cells: dict[str, list[tuple[System, Objective, float | None, float]]] = {
        "rate": [(system, "rate", share, BUDGET_S) for share in ATTAINMENTS for system in systems],
        "short": [(system, "rate", share, SHORT_S) for share in ATTAINMENTS for system in systems],
        "joules": [(system, "joules_per_good_request", None, BUDGET_S) for system in systems],
    }
    everything = list[Search]()
    if args.read is not None:
        everything = msgspec.json.decode(args.read.read_bytes(), type=list[Search])
    with ProcessPoolExecutor(args.jobs) as executor:
        for kind in args.kinds.split(",") if args.read is None else ():
            made = [(cells[kind][i % len(cells[kind])], args.seed + i) for i in range(args.searches)]
            everything += executor.map(partial(run, same_seeds=args.same_seeds), *zip(*made, strict=True))
    if args.json is not None:
        args.json.write_bytes(msgspec.json.encode(everything))
    for objective, budget_s in sorted({(search.objective, search.budget_s) for search in everything}):
        searches = [search for search in everything if (search.objective, search.budget_s) == (objective, budget_s)]
        title = f"{objective}, {budget_s / 60:g} minutes"
        print_table(title, searches, lambda search: f"{search.workload} {search.attainment or ''}")
        if args.by_system:
            print_table(title, searches, lambda search: f"{search.system} {search.attainment or ''}")


if __name__ == "__main__":
    main()
