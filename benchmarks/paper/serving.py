"""Tables and figures of the online study of docs/results: studies/serving.toml, run by `loadgen study` on an H200.

    python -m benchmarks.paper.serving STUDY docs/results/h200-2026/studies/serving GPU-015ffa8c

copies from the folder STUDY of the study its table, one line per request and the counter's samples, for the runs on one
card only, because two cards differ. benchmarks.paper draws from the copy.
"""

import argparse
import csv
import gzip
import io
import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from itertools import pairwise
from math import exp, sqrt
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import msgspec
import numpy as np

from benchmarks.paper.plots import Line, alone, picture
from benchmarks.paper.words import in_words, percent, percents, sig, table
from loadgen.energy.counter_clock import align_to_counter_clock
from loadgen.energy.series import EnergySample, EnergySeries, series_by_domain
from loadgen.report import svg
from loadgen.report.format import joules as joules_text
from loadgen.report.format import number
from loadgen.report.study_page import render_study_page
from loadgen.results import run_folder
from loadgen.results.study_table import Group, Row, StudyInfo, groups
from loadgen.results.summarize import span
from loadgen.stats.intervals import Interval, t95
from loadgen.study.plan import plan_runs
from loadgen.study.spec import read_study
from loadgen.units import NS_PER_S

FOLDER = Path(__file__).parents[2] / "docs/results/h200-2026/studies/serving"
PER_TOKEN = "joules_per_output_token"
LIMITS = ((200.0, 10.0), (500.0, 30.0))
"""Limits of (TTFT, TPOT) in ms: the study's own, and looser ones."""
PROCESSES = {"chat-constant": "constant", "chat": "Poisson", "chat-bursty": "bursty (gamma, 0.25)"}


class Request(NamedTuple):
    """A line of requests.csv.gz: times in seconds since the request was sent, energy in joules."""

    cell: str
    request: int
    workload: str
    input_tokens: int
    output_tokens: int
    ttft_s: float
    tpot_s: float | None
    e2e_s: float
    joules: float | None


def ingest(study: Path, target: Path, card: str) -> None:
    """Copy the finished runs of a study that ran on `card`; failed runs are left out of its table already."""
    target.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(study / "study.toml", target / "study.toml")
    head, *lines = (study / "results.csv").read_text().splitlines(keepends=True)
    (target / "results.csv").write_text("".join([head, *(line for line in lines if card in line)]))
    cells = [row.cell for row in rows(target)]
    runs = {cell: run_folder.read_run(study / "runs" / cell) for cell in cells}
    request_rows = [row for cell, run in runs.items() for row in _requests(cell, run, _joules(study / "runs" / cell))]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([Request._fields, *request_rows])
    _write_gz(target / "requests.csv.gz", text.getvalue().encode())
    samples = b"".join(
        msgspec.json.encode({"cell": cell, **msgspec.to_builtins(sample)}) + b"\n"
        for cell, run in runs.items()
        for sample in run.energy
    )
    _write_gz(target / "energy.jsonl.gz", samples)
    (target / "windows.json").write_text(json.dumps({c: _window(r) for c, r in runs.items()}, indent=1) + "\n")


def _write_gz(path: Path, content: bytes) -> None:
    path.write_bytes(gzip.compress(content, mtime=0))


def _joules(folder: Path) -> dict[int, float]:
    shares = map(json.loads, (folder / "attribution.jsonl").read_text().splitlines())
    return {share["index"]: share["joules"] for share in shares}


def _requests(cell: str, run: run_folder.RunResult, joules: dict[int, float]) -> Iterable[Request]:
    for record in run.records:
        assert record.sent_ns and record.first_token_ns and record.last_token_ns and record.finished_ns
        out = record.output_tokens or 0
        yield Request(
            cell,
            record.index,
            record.workload,
            record.input_tokens or 0,
            out,
            round((record.first_token_ns - record.sent_ns) / NS_PER_S, 6),
            round((record.last_token_ns - record.first_token_ns) / NS_PER_S / (out - 1), 6) if out > 1 else None,
            round((record.finished_ns - record.sent_ns) / NS_PER_S, 6),
            joules.get(record.index),
        )


def _window(run: run_folder.RunResult) -> dict[str, Any]:
    """Return the instants between which the run's joules were counted, and the engine's counts in the run."""
    engine = run.engine
    counts = {name: engine[-1][name] - engine[0][name] for name in ("prompt_tokens", "cached_tokens", "iterations")}
    start_ns, end_ns = span(run)
    return {"start_ns": start_ns, "end_ns": end_ns, **counts}


@cache
def rows(folder: Path = FOLDER) -> tuple[Row, ...]:
    with (folder / "results.csv").open(newline="") as file:
        return tuple(
            msgspec.convert({key: value or None for key, value in line.items()}, Row, strict=False)
            for line in csv.DictReader(file)
        )


@cache
def requests() -> dict[str, tuple[Request, ...]]:
    """Return run -> its requests."""
    text = gzip.decompress((FOLDER / "requests.csv.gz").read_bytes()).decode()
    by_cell: dict[str, list[Request]] = {}
    for line in csv.reader(text.splitlines()[1:]):
        request = msgspec.convert([value or None for value in line], Request, strict=False)
        by_cell.setdefault(request.cell, []).append(request)
    return {cell: tuple(cell_requests) for cell, cell_requests in by_cell.items()}


@cache
def windows(folder: Path = FOLDER) -> dict[str, dict[str, float]]:
    by_cell: dict[str, dict[str, float]] = json.loads((folder / "windows.json").read_text())
    return by_cell


@cache
def series() -> dict[str, list[EnergySeries]]:
    """Return run -> the series of its energy counters."""
    samples: dict[str, list[EnergySample]] = {}
    for line in gzip.decompress((FOLDER / "energy.jsonl.gz").read_bytes()).splitlines():
        fields = json.loads(line)
        samples.setdefault(fields.pop("cell"), []).append(msgspec.convert(fields, EnergySample))
    return {cell: [align_to_counter_clock(s) for s in series_by_domain(of).values()] for cell, of in samples.items()}


@cache
def cells(folder: Path = FOLDER) -> dict[tuple[str, str, int | None, float | None], Group]:
    """Return (server, workload, batch, rate) -> the repeats."""
    return {(g.key[0], *g.key[2:]): g for g in groups(rows(folder))}


def chosen(server: str = "plain", workload: str = "chat") -> list[Group]:
    """Return the groups of one server and workload by load, open loops first."""
    matching = [g for (s, w, _, _), g in cells().items() if (s, w) == (server, workload)]
    return sorted(matching, key=lambda g: (g.key[3] is not None, g.key[3] or g.key[4] or 0))


def load_of(group: Group) -> str:
    return f"{group.key[3]} in flight" if group.key[3] else f"{group.key[4]:g}/s"


def in_flight(row: Row) -> float:
    """Return the mean number of requests in flight: the sum of their times over the run's duration (Little's law)."""
    return sum(request.e2e_s for request in requests()[row.cell]) / row.duration_s


def mean_of(group: Group, of: Callable[[Row], float]) -> float:
    return fmean(map(of, group.rows))


def ms(group: Group, *fields: str) -> list[str]:
    return [sig(1e3 * value) if (value := group.mean(field)) is not None else "-" for field in fields]


def good(row: Row, limits: tuple[float, float]) -> int:
    """Return the number of requests within the limits."""
    ttft_ms, tpot_ms = limits
    return sum(
        1e3 * request.ttft_s <= ttft_ms and 1e3 * (request.tpot_s or 0.0) <= tpot_ms for request in requests()[row.cell]
    )


def cached_share(row: Row, folder: Path = FOLDER) -> float:
    """Return the share of prompt tokens that came from the cache, as the engine counted them."""
    counted = windows(folder)[row.cell]
    return counted["cached_tokens"] / counted["prompt_tokens"]


class Noise(NamedTuple):
    """Relative standard deviation of repeats of a configuration, pooled over all configurations."""

    deviation: float
    freedom: int

    def half(self, *counts: int) -> float:
        """Return half of the 95 % interval, on logarithms, of a mean of `counts` repeats or a ratio of means."""
        return t95(self.freedom) * self.deviation * sqrt(sum(1 / count for count in counts))


Of = Callable[[Group], list[float]]


@cache
def noise(of: Of) -> Noise:
    """Pool the configurations of the chat trace that have several repeats: too few have enough by themselves."""
    logs = [np.log(values) for w in PROCESSES for g in chosen(workload=w) if len(values := of(g)) > 1 and min(values)]
    freedom = sum(len(repeats) - 1 for repeats in logs)
    return Noise(sqrt(sum(float(np.var(repeats, ddof=0)) * len(repeats) for repeats in logs) / freedom), freedom)


def per_token(group: Group) -> list[float]:
    return group.values(PER_TOKEN)


def power(group: Group) -> list[float]:
    return group.values("mean_watts")


def pooled(group: Group, of: Of) -> Interval:
    """Return the mean with its pooled interval; a single repeat has none, as its own spread is unknown."""
    values = of(group)
    middle, half = fmean(values), noise(of).half(len(values))
    if len(values) < 2:
        return alone(middle)
    return Interval(middle, middle * exp(-half), middle * exp(half), len(values))


def saved(base: Sequence[float], group: Group) -> Interval:
    """Return 1 - group / base in J per output token."""
    values = per_token(group)
    difference, half = (
        float(np.mean(np.log(values)) - np.mean(np.log(base))),
        noise(per_token).half(len(values), len(base)),
    )
    return Interval(1 - exp(difference), 1 - exp(difference + half), 1 - exp(difference - half), len(values))


def loads() -> str:
    """Return the table of loads: Poisson arrivals, then full batches."""
    body = [
        [
            load_of(g),
            str(len(g.rows)),
            sig(mean_of(g, in_flight)),
            in_words(pooled(g, per_token)),
            sig(g.mean("steady_joules_per_output_token")),
            f"{g.mean('mean_watts'):.0f}",
            f"{g.mean('output_tokens_per_s'):,.0f}",
            *ms(g, "ttft_p50_s", "ttft_p99_s", "tpot_p50_s", "tpot_p99_s"),
            sig(g.mean("measured_over_idealized")),
        ]
        for g in chosen()
    ]
    head = ["load", "repeats", "mean in flight", "J/output token", "in steady state", "W", "tokens/s out"]
    return table([*head, "TTFT p50 ms", "p99", "TPOT p50 ms", "p99", "× idealized"], body)


def offline() -> list[tuple[float, list[float]]]:
    """Return (mean in flight, J per output token of each repeat) of the closed loops."""
    return sorted((mean_of(g, in_flight), per_token(g)) for g in chosen() if g.key[3])


def offline_at(many: float) -> list[float] | None:
    """Return J per output token, by repeat, of a closed loop with `many` in flight, between the two nearest."""
    for few, more in pairwise(offline()):
        if few[0] <= many <= more[0]:
            return between(few, more, many)
    return None


def between(few: tuple[float, list[float]], more: tuple[float, list[float]], many: float) -> list[float]:
    """Interpolate a + b / n between two loads: the n requests of a step share its cost b; a token costs a."""
    share = (1 / few[0] - 1 / many) / (1 / few[0] - 1 / more[0])
    return [below + share * (above - below) for below, above in zip(few[1], more[1], strict=False)]


def beside_figure_9() -> str:
    """Return the comparison of Poisson arrivals with batches for the summary."""
    offline_values = ((g, offline_at(mean_of(g, in_flight))) for g in chosen() if g.key[4])
    changes = ((mean_of(g, in_flight), percents(saved(batch, g), -1)) for g, batch in offline_values if batch)
    return "; ".join(f"{many:.0f} in flight: {change}" for many, change in changes)


def equal_batches() -> str:
    body = []
    for workload in PROCESSES:
        for g in chosen(workload=workload):
            many = mean_of(g, in_flight)
            if g.key[4] and (batch := offline_at(many)):
                line = [PROCESSES[workload], load_of(g), sig(many), sig(fmean(batch)), sig(fmean(per_token(g)))]
                body.append([*line, percents(saved(batch, g), -1)])
    head = ["arrivals", "load", "mean in flight", "J/output token, offline", "online", "online against offline [95 %]"]
    return table(head, body)


def arrivals() -> str:
    poisson = cells()["plain", "chat", None, 8.0]
    body = []
    for workload, name in PROCESSES.items():
        g = cells()["plain", workload, None, 8.0]
        change = "-" if g is poisson else percents(saved(per_token(poisson), g), -1)
        body.append(
            [
                name,
                in_words(pooled(g, per_token)),
                change,
                f"{g.mean('mean_watts'):.0f}",
                sig(mean_of(g, in_flight)),
                *ms(g, "ttft_p50_s", "ttft_p99_s", "tpot_p50_s", "tpot_p99_s"),
                percent(g.mean("goodput_ratio")),
            ]
        )
    head = ["arrivals, 8/s", "J/output token", "against Poisson [95 %]", "W", "mean in flight", "TTFT p50 ms", "p99"]
    return table([*head, "TPOT p50 ms", "p99", "good"], body)


def goodput() -> str:
    body = []
    for g in [*chosen(), *chosen(workload="chat-constant"), *chosen(workload="chat-bursty")]:
        kind = f", {PROCESSES[g.key[2]]}" if g.key[4] else ""
        line = [load_of(g) + kind]
        for limits in LIMITS:
            line.append(percent(fmean(good(row, limits) / row.completed for row in g.rows)))
            line.append(sig(fmean(per_kilojoule(g, limits))))
        body.append(line)
    head = ["load"]
    for ttft_ms, tpot_ms in LIMITS:
        head += [f"within {ttft_ms:g} ms, {tpot_ms:g} ms", "good requests per kJ"]
    return table(head, body)


def per_kilojoule(group: Group, limits: tuple[float, float]) -> list[float]:
    return [1e3 * good(row, limits) / row.measured_joules for row in group.rows if row.measured_joules]


def partial_load() -> str:
    """Return the table of power from idle to the fastest load of the same server."""
    groups_of_chat = chosen()
    most_speed = max(g.mean("output_tokens_per_s") or 0.0 for g in groups_of_chat)
    most_power = max(g.mean("mean_watts") or 0.0 for g in groups_of_chat)
    idle = fmean(watts for g in groups_of_chat for watts in g.values("idle_watts"))
    body = [["idle", "0", "0.0 %", f"{idle:.0f}", percent(idle / most_power), "-"]]
    for g in sorted(groups_of_chat, key=lambda g: g.mean("output_tokens_per_s") or 0.0):
        speed, draw = g.mean("output_tokens_per_s") or 0.0, g.mean("mean_watts") or 0.0
        body.append(
            [
                load_of(g),
                f"{speed:,.0f}",
                percent(speed / most_speed),
                in_words(pooled(g, power)),
                percent(draw / most_power),
                sig(1e3 * (draw - idle) / speed),
            ]
        )
    head = ["load", "tokens/s out", "of the most", "W", "of the most", "mJ above idle per output token"]
    return table(head, body)


def checks() -> str:
    """Return the table of consistency checks of the study itself."""
    recount_errors = [abs(recounted(row) / row.measured_joules - 1) for row in rows() if row.measured_joules]
    products = [
        abs(row.joules_per_output_token * row.output_tokens_per_s / row.mean_watts - 1)
        for row in rows()
        if row.joules_per_output_token and row.output_tokens_per_s and row.mean_watts
    ]
    watts = [row.mean_watts for row in rows() if row.mean_watts]
    repeat_noise = noise(per_token)
    *two, (largest, at_largest) = offline()
    carried = fmean(between(two[0], two[-1], largest))
    body = [
        ["runs; with valid energy; requests failed", f"{len(rows())}; {sum(r.energy_valid for r in rows())}; "
         f"{sum(r.failed for r in rows())} of {sum(r.completed + r.failed for r in rows()):,}"],
        ["W = J/token × tokens/s", f"furthest {percent(max(products))} off"],
        ["joules again, from the counter's samples", f"furthest {percent(max(recount_errors))} off"],
        ["lowest and highest mean W of a run; limit 700", f"{min(watts):.0f}, {max(watts):.0f}"],
        ["prompt tokens from a cache", percent(max(map(cached_share, rows())))],
        [f"offline, a + b/n through {' and '.join(sig(n) for n, _ in two)} in flight, at {sig(largest)}",
         f"{sig(carried)} J/output token; measured {sig(fmean(at_largest))}"],
        ["standard deviation of a repeat, pooled",
         f"{percent(repeat_noise.deviation)}, {repeat_noise.freedom} degrees of freedom"],
    ]  # fmt: skip
    return table(["check", "found"], body)


def recounted(row: Row) -> float:
    window = windows()[row.cell]
    start_ns, end_ns = round(window["start_ns"]), round(window["end_ns"])
    return sum(domain_series.clip(start_ns, end_ns).total_mj for domain_series in series()[row.cell]) / 1e3


def loads_figure() -> str:
    """Draw J per output token over the mean number in flight: open loops beside closed ones."""

    def line(name: str, groups_of_line: Sequence[Group], colour: int, dash: int = 0, joined: bool = True) -> Line:
        points = [(mean_of(g, in_flight), pooled(g, per_token)) for g in groups_of_line]
        return Line(name, points, colour, dash, joined)

    everything = chosen()
    lines = [
        line("online, Poisson at 2, 8 and 16/s", [g for g in everything if g.key[4]], 0),
        line("offline, 8, 64 and 256 kept in flight", [g for g in everything if g.key[3]], 3, joined=False),
        Line("a + b/n through 8 and 64", _law(), 3, 2, dots=False),
        line("online, constant at 8/s", chosen(workload="chat-constant"), 2, joined=False),
        line("online, bursty at 8/s", chosen(workload="chat-bursty"), 4, joined=False),
    ]
    x = svg.Axis(2, 256, True, tuple((float(2**k), str(2**k)) for k in range(1, 9)))
    y = svg.log_axis(0.1, 2, joules_text)
    return picture("J per output token, chat trace; bars: 95 %", "mean requests in flight", lines, x, y)


def _law() -> list[tuple[float, Interval]]:
    few, more, _ = offline()
    places = np.geomspace(few[0], more[0], 30)
    return [(float(many), alone(fmean(between(few, more, float(many))))) for many in places]


def goodput_figure() -> str:
    lines = []
    for index, (limits, colour) in enumerate(zip(LIMITS, (0, 1), strict=True)):
        open_loops = [g for g in chosen() if g.key[4]]
        points = [(float(g.key[4] or 0), alone(fmean(per_kilojoule(g, limits)))) for g in open_loops]
        lines.append(Line(f"TTFT ≤ {limits[0]:g} ms, TPOT ≤ {limits[1]:g} ms", points, colour, index))
    rates = [float(g.key[4]) for g in chosen() if g.key[4]]
    x = svg.Axis(min(rates), max(rates), True, tuple((rate, f"{rate:g}/s") for rate in rates))
    highest = max(interval.mean for line in lines for _, interval in line.points)
    y = svg.linear_axis(0, 1.05 * highest, number)
    return picture("Requests within limits per kJ, Poisson arrivals", "requests per second", lines, x, y)


def partial_load_figure() -> str:
    by_speed = sorted(chosen(), key=lambda g: g.mean("output_tokens_per_s") or 0.0)
    idle = [watts for g in by_speed for watts in g.values("idle_watts")]

    def points(groups: Iterable[Group]) -> list[tuple[float, Interval]]:
        return [(g.mean("output_tokens_per_s") or 0.0, pooled(g, power)) for g in groups]

    fastest = max(place for place, _ in points(by_speed))
    lines = [
        Line("online, Poisson", points(g for g in by_speed if g.key[4]), 0),
        Line("offline, kept in flight", points(g for g in by_speed if g.key[3]), 3, 1),
        Line("idle, model resident", [(0.0, alone(fmean(idle))), (fastest, alone(fmean(idle)))], 5, 2),
    ]
    x = svg.linear_axis(0, 1.05 * fastest, number)
    return picture("W by output tokens/s; bars: 95 %", "output tokens/s", lines, x,
                   svg.linear_axis(0, 700, number))  # fmt: skip


TABLES: dict[str, Callable[[], str]] = {
    "serving-loads": loads,
    "serving-equal-batches": equal_batches,
    "serving-arrivals": arrivals,
    "serving-goodput": goodput,
    "serving-partial-load": partial_load,
    "serving-checks": checks,
}
FIGURES: dict[str, Callable[[], str]] = {
    "serving-loads": loads_figure,
    "serving-goodput": goodput_figure,
    "serving-partial-load": partial_load_figure,
}


def page() -> str:
    """Return the study's own report page, drawn from the ingested rows."""
    study = read_study(FOLDER / "study.toml")
    description = f"{study.description} Llama-3.1-8B shape with random weights, vLLM 0.20.2, one H200."
    missing = len(plan_runs(study)) - len(rows())
    info = StudyInfo(study.title, description, study.baseline, study.goodput, seed=study.seed, remaining=missing)
    return render_study_page(info, rows())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("card", help="start of the GPU's UUID")
    options = parser.parse_args()
    ingest(options.study, options.target, options.card)


if __name__ == "__main__":
    main()
