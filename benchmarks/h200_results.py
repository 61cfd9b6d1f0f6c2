#!/usr/bin/env python3
"""Everything of docs/results.md that was measured, again from docs/results/h200-2026:

    python benchmarks/h200_results.py

writes the tables between the markers of docs/results.md, results.csv, report.html, the figures, and the energy profile
of transformers. What was measured elsewhere comes in with

    python benchmarks/h200_results.py take FOLDER docs/results/h200-2026/GROUP/NAME [--first-repeat-is-warm-up]

FOLDER is what h200_studies.py, `loadgen replay` or `loadgen study` wrote; logs and requests stay behind.
"""

import argparse
import gzip
import json
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import msgspec
import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

import h200_report

from loadgen.bins import CountedPairs, count_pairs
from loadgen.cli.trace import length_chunks
from loadgen.energy.series import EnergySample, EnergySeries, on_its_own_clock, series_by_domain
from loadgen.estimate import JOULES_PER_KWH, TwoPhase, ceiling_pairs, fit_two_phase, ideal, surface
from loadgen.profiles import Cell, EnergyProfile, energy_profile_json, read_energy_profile, read_hardware, read_model
from loadgen.report import svg
from loadgen.report.figures import Floats
from loadgen.report.format import joules as told_joules
from loadgen.report.markup import Markup, tag
from loadgen.report.study import render
from loadgen.results import Group, Interval, Row, groups, interval, reduction

ROOT = Path(__file__).parent.parent
DOCUMENT = ROOT / "docs/results.md"
FOLDER = ROOT / "docs/results/h200-2026"
PROFILE = ROOT / "profiles/energy/h200-transformers-5.17-eager-llama-3.1-8b.json"
VLLM_PROFILE = "h200-vllm-0.20.2-llama-3.1-8b"

MAIN = ("hf-eager", "hf-compile", "vllm-eager", "vllm-graphs", "vllm-graphs-fp8", "vllm-graphs-tp2")
"""Sittings whose cells are compared. hf-eager-lengths only feeds the profile, earlier-card only the sanity table."""
NAMES = {
    "hf-eager": "transformers, eager",
    "hf-compile": "transformers, compiled",
    "vllm-eager": "vLLM, eager",
    "vllm-graphs": "vLLM, CUDA graphs",
    "vllm-graphs-quantization=fp8": "vLLM, CUDA graphs, FP8",
    "vllm-graphs-tp2": "vLLM, CUDA graphs, 2 GPUs",
}
FRAMEWORKS = tuple(NAMES)[:4]
SHAPE = "512x128"
ONLINE = ("rps-2", "rps-12", "rps-16", "rps-32", "offline")
TRACES = ("azure-2024-chat", "azure-2024-code", "burstgpt", "azure-2023-chat", "azure-2023-code")
CASE_BATCHES = (8, 64)
MOST_BOUND = 0.20
"""A window whose bound of error is wider than this share of it is not a cell of the profile."""
REPEATS_WITHIN = 0.03

# ---------------------------------------------------------------- what others published

KWH_PER_1024_OF_64 = JOULES_PER_KWH / (1024 * 64)
"""The paper's figures are kWh of 1,024 examples with 64 tokens out each."""
A100 = {
    "hf-eager": {1: 0.09723, 8: 0.0209, 64: 0.009588, 128: 0.009192, 256: 0.009001},
    "hf-compile": {1: 0.06655, 8: 0.01513, 64: 0.007394, 128: 0.00704, 256: 0.006991},
    "vllm-eager": {1: 0.07343, 8: 0.01297, 64: 0.004853, 128: 0.004277, 256: 0.004158, 512: 0.003987},
    "vllm-graphs": {1: 0.05468, 8: 0.01073, 64: 0.004685, 128: 0.004158, 256: 0.004015, 512: 0.003904},
}
"""Figure 5, A100-80GB PCIe, kWh, digitised, ± 3 to 6 %."""
TP_KWH = {
    1: {1: 0.07187, 2: 0.04886, 4: 0.02738, 8: 0.01631, 32: 0.009285, 64: 0.008388, 128: 0.007812, 256: 0.007694,
        512: 0.007932},
    2: {1: 0.09358, 2: 0.0614, 4: 0.03512, 8: 0.0205, 32: 0.01209, 64: 0.01038, 128: 0.00967, 256: 0.009191,
        512: 0.009285},
}  # fmt: skip
"""Figure 6, Llama-3.1-8B by GPUs, kWh, digitised."""
TP_AT_1 = {2: (0.293, -0.4016), 4: (0.5523, -0.6134)}
"""Section 5, tensor parallelism at batch 1: change of energy, change of latency."""
TABLE_4 = {
    "azure-2024-chat": (4.9023, 0.6422, 0.7218),
    "azure-2024-code": (1.0279, 0.2659, 0.3758),
    "burstgpt": (5.0652, 0.6375, 0.7300),
}
"""Table 4: PyTorch above the theoretical, vLLM above it, saved. RTX A6000, sparse peak, lengths rounded up."""
FIGURE_1 = {"azure-2024-chat": (307, 1806, 504), "azure-2024-code": (262, 533, 327), "burstgpt": (6.2, 37.5, 10.1)}
"""Figure 1, kWh: theoretical, PyTorch, vLLM; digitised."""
ONLINE_SAVED = {1: -0.131, 8: -0.038, 128: -0.001, 256: 0.020, 512: 0.026}
"""Figure 9, A100, digitised: how much less energy continuous batching takes than offline batches, by batch."""
ML_ENERGY = {8: (0.455, 486, 1070), 32: (0.165, 560, 3391), 64: (0.119, 610, 5147), 128: (0.0951, 669, 7037),
             256: (0.0766, 691, 9010), 512: (0.0702, 688, 9806)}  # fmt: skip
"""Leaderboard v3, Llama-3.1-8B-Instruct, lm-arena-chat, bf16, one H100, by max_num_seqs: J/token, W, tokens/s."""


# ---------------------------------------------------------------- taking a sitting in


def take(source: Path, target: Path, first_is_warm_up: bool) -> None:
    """Summary and counter samples of a folder, small."""
    target.mkdir(parents=True, exist_ok=True)
    if (source / "study.json").exists():
        shutil.copyfile(source / "results.csv", target / "results.csv")
        return
    (target / "energy.jsonl.gz").write_bytes(gzip.compress((source / "energy.jsonl").read_bytes(), mtime=0))
    summary = json.loads((source / "summary.json").read_text())
    if (source / "run.json").exists():
        shutil.copyfile(source / "run.json", target / "run.json")
    else:
        summary = settled(summary, counter(target), first_is_warm_up)
    (target / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")


def settled(summary: dict[str, Any], series: list[EnergySeries], first_is_warm_up: bool) -> dict[str, Any]:
    """A sitting's cells with the joules that the counter told only later, and each first repeat set aside if asked."""
    late: list[str] = []
    for cell in summary["cells"]:
        if first_is_warm_up:
            cell["warm_up"], cell["full"] = cell["full"][:1], cell["full"][1:]
        for part in cell["full"] + cell["prefill"]:
            if part["joules"] is None and (found := joules_of(part, series)) is not None:
                part["joules"], part["u_joules"] = found
                part["watts"] = found[0] / part["seconds"]
                late.append(f"{cell['input_tokens']}x{cell['output_tokens']}@{cell['batch']}")
        cell.update(means(cell))
    summary["taken"] = {
        "warm_up": "the first repeat of every cell" if first_is_warm_up else None,
        "joules_from_energy_jsonl": late,
    }
    return summary


def means(cell: dict[str, Any]) -> dict[str, float | None]:
    """A cell's own means, over its repeats as they are now; named as h200_studies.py names them."""
    size = cell["batch"] * cell["output_tokens"]
    known = [one for one in cell["full"] if one["joules"] is not None]
    each = [one["joules"] / one["batches"] / size for one in known]
    prefill = [one["joules"] / one["batches"] for one in cell["prefill"] if one["joules"] is not None]
    return {
        "joules_per_output_token": mean(each),
        "spread": spread(each),
        "output_tokens_per_s": mean([one["batches"] * size / one["seconds"] for one in cell["full"]]),
        "mean_w": mean([one["watts"] for one in known]),
        "batch_s": mean([one["seconds"] / one["batches"] for one in cell["full"]]),
        "prefill_joules_per_batch": mean(prefill),
    }


def counter(folder: Path) -> list[EnergySeries]:
    lines = gzip.decompress((folder / "energy.jsonl.gz").read_bytes()).splitlines()
    samples = [msgspec.json.decode(line, type=EnergySample) for line in lines]
    return [on_its_own_clock(one) for one in series_by_domain(samples).values()]


def joules_of(part: dict[str, Any], series: list[EnergySeries]) -> tuple[float, float] | None:
    """(joules, bound of their error) of a window, all GPUs together; None when the counter does not cover it."""
    found = [
        (one.energy_mj(part["start_ns"], part["end_ns"]), one.u_mj(part["start_ns"], part["end_ns"])) for one in series
    ]
    if any(energy is None or u is None for energy, u in found):
        return None
    return sum(energy or 0.0 for energy, _ in found) / 1e3, sum(u or 0.0 for _, u in found) / 1e3


# ---------------------------------------------------------------- what was taken in


@cache
def sitting(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / "frameworks" / name / "summary.json").read_text())
    return found


@cache
def online(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """(summary, run) of an online run."""
    folder = FOLDER / "online" / name
    return json.loads((folder / "summary.json").read_text()), json.loads((folder / "run.json").read_text())


@cache
def rows(names: tuple[str, ...] = MAIN) -> tuple[Row, ...]:
    return tuple(row for name in names for row in h200_report.rows_of(sitting(name), f"{name}/"))


@cache
def cells(names: tuple[str, ...] = MAIN) -> dict[tuple[str, str, int], Group]:
    """(server, workload, batch) -> its repeats."""
    return {(g.key[0], g.key[2], g.key[3] or 0): g for g in groups(rows(names))}


def per_token(server: str, workload: str, batch: int) -> list[float]:
    found = cells().get((server, workload, batch))
    return found.values("joules_per_output_token") if found else []


def batches_of(workload: str, servers: Iterable[str]) -> list[int]:
    return sorted({b for s, w, b in cells() if w == workload and s in set(servers)})


def saved(base: Sequence[float], other: Sequence[float]) -> Interval | None:
    return reduction(base, other) if base and other else None


# ---------------------------------------------------------------- words


def mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None


def spread(values: Sequence[float]) -> float | None:
    return (max(values) - min(values)) / fmean(values) if len(values) > 1 else None


def sig(value: float | None, digits: int = 3) -> str:
    """Three significant digits, never an exponent."""
    if value is None:
        return "-"
    if value == 0:
        return "0"
    rounded = float(f"{value:.{digits - 1}e}")
    places = max(0, digits - 1 - int(np.floor(np.log10(abs(rounded)))))
    return f"{rounded:,.{places}f}"


def plus_minus(values: Sequence[float]) -> str:
    """Mean ± half of the 95 % interval, as many digits as the mean; one repeat has none."""
    if not values:
        return "-"
    found = interval(values)
    told = sig(found.mean)
    if found.high is None:
        return f"{told} (one repeat)"
    half, digits = found.high - found.mean, len(told.partition(".")[2])
    while half and not round(half, digits):
        digits += 1
    return f"{found.mean:,.{digits}f} ± {half:.{digits}f}"


def percents(found: Interval | None, sign: int = 1) -> str:
    """A reduction in per cent; with sign -1 the change that it is."""
    if found is None:
        return "-"
    ends = sorted(sign * 100 * end for end in (found.low, found.high) if end is not None)
    plus = "+" if sign < 0 else ""
    told = f"{sign * 100 * found.mean:{plus}.1f} %"
    return (told + (f" [{ends[0]:{plus}.1f}, {ends[1]:{plus}.1f}]" if ends else "")).replace("-", "−")


def percent(value: float | None, signed: bool = False) -> str:
    return "-" if value is None else f"{100 * value:{'+' if signed else ''}.1f} %".replace("-", "−")


def table(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


# ---------------------------------------------------------------- tables


def frameworks() -> str:
    def line(batch: int) -> list[str]:
        return [str(batch), *(plus_minus(per_token(name, SHAPE, batch)) for name in FRAMEWORKS)]

    return table(["batch", *(NAMES[name] for name in FRAMEWORKS)], map(line, batches_of(SHAPE, FRAMEWORKS)))


def power() -> str:
    def told(server: str, batch: int) -> str:
        g = cells().get((server, SHAPE, batch))
        return f"{g.mean('mean_watts'):.0f} W, {sig(g.mean('output_tokens_per_s'))}/s" if g else "-"

    body = ([str(b), *(told(name, b) for name in FRAMEWORKS)] for b in batches_of(SHAPE, FRAMEWORKS))
    return table(["batch", *(NAMES[name] for name in FRAMEWORKS)], body)


PAIRS = (("hf-eager", "vllm-graphs"), ("hf-eager", "hf-compile"), ("vllm-eager", "vllm-graphs"))


def paper_saved(base: str, other: str, batch: int) -> float | None:
    b, x = A100[base].get(batch), A100[other].get(batch)
    return 1 - x / b if b and x else None


def reductions() -> str:
    head = ["batch"]
    for base, other in PAIRS:
        head += [f"{NAMES[other]}, against {NAMES[base]}", "paper, A100"]
    body = []
    for batch in batches_of(SHAPE, FRAMEWORKS):
        line = [str(batch)]
        for base, other in PAIRS:
            line.append(percents(saved(per_token(base, SHAPE, batch), per_token(other, SHAPE, batch))))
            line.append(percent(paper_saved(base, other, batch)))
        if any(told != "-" for told in line[1:]):
            body.append(line)
    return table(head, body)


def headline() -> str:
    """From the unoptimized baseline to the best configuration."""
    batches = batches_of(SHAPE, ["hf-eager"])
    best = min((k for k in cells() if k[1] == SHAPE and k[0] in FRAMEWORKS), key=lambda k: fmean(per_token(*k)))
    least = min(batches, key=lambda b: fmean(per_token("hf-eager", SHAPE, b)))
    told = f"{NAMES[best[0]]}, batch {best[2]}"
    bases = [(1, "one request at a time"), (8, "batch 8"), (least, f"its own best batch, {least}")]
    body = [
        [f"transformers eager, {what}", told, percents(saved(per_token("hf-eager", SHAPE, b), per_token(*best)))]
        for b, what in bases
    ]
    return table(["from", "to", "less energy [95 %]"], body)


def shapes() -> str:
    body = []
    for workload in ("128x32", "2048x128", "128x512"):
        for batch in batches_of(workload, ["hf-eager", "vllm-graphs"]):
            eager, graphs = (per_token(name, workload, batch) for name in ("hf-eager", "vllm-graphs"))
            body.append(
                [
                    workload.replace("x", " in, ") + " out",
                    str(batch),
                    plus_minus(eager),
                    plus_minus(graphs),
                    percents(saved(eager, graphs)),
                    *(prefill_share(name, workload, batch) for name in ("hf-eager", "vllm-graphs")),
                ]
            )
    head = ["tokens", "batch", NAMES["hf-eager"], NAMES["vllm-graphs"], "vLLM saves [95 %]"]
    return table([*head, "prefill's share, transformers", "vLLM"], body)


def prefill_share(server: str, workload: str, batch: int) -> str:
    g = cells().get((server, workload, batch))
    if g is None:
        return "-"
    return percent((g.mean("prefill_joules") or 0) / (g.mean("measured_joules") or 1))


def fp8() -> str:
    other = "vllm-graphs-quantization=fp8"
    body = []
    for batch in batches_of(SHAPE, [other]):
        base, x = (per_token(name, SHAPE, batch) for name in ("vllm-graphs", other))
        speed = [cells()[name, SHAPE, batch].mean("output_tokens_per_s") or 0 for name in ("vllm-graphs", other)]
        watts = [cells()[name, SHAPE, batch].mean("mean_watts") or 0 for name in ("vllm-graphs", other)]
        body.append(
            [
                str(batch),
                plus_minus(base),
                plus_minus(x),
                percents(saved(base, x)),
                f"{watts[0]:.0f}, {watts[1]:.0f}",
                percent(speed[1] / speed[0] - 1, signed=True),
            ]
        )
    return table(["batch", "bf16", "FP8", "FP8 saves [95 %]", "W", "tokens/s"], body)


def tensor_parallel() -> str:
    other = "vllm-graphs-tp2"
    body = []
    for batch in batches_of(SHAPE, [other]):
        one, two = (per_token(name, SHAPE, batch) for name in ("vllm-graphs", other))
        times = [cells()[name, SHAPE, batch].values("e2e_p50_s") for name in ("vllm-graphs", other)]
        paper = TP_KWH[2][batch] / TP_KWH[1][batch] - 1 if batch in TP_KWH[2] else None
        latency = percent(TP_AT_1[2][1], signed=True) if batch == 1 else "-"
        body.append(
            [
                str(batch),
                plus_minus(one),
                plus_minus(two),
                percents(saved(one, two), -1),
                percent(paper, signed=True),
                percents(saved(*times), -1),
                latency,
            ]
        )
    return table(["batch", "1 GPU", "2 GPUs", "energy [95 %]", "paper", "time of a batch [95 %]", "paper"], body)


def four_gpus() -> str:
    other = "vllm-graphs-tp2"
    energy = saved(per_token("vllm-graphs", SHAPE, 1), per_token(other, SHAPE, 1))
    times = saved(*(cells()[name, SHAPE, 1].values("e2e_p50_s") for name in ("vllm-graphs", other)))
    told = {
        2: (percents(energy, -1), percents(times, -1)),
        4: ("not run: no host with four GPUs at hand", "not run"),
    }
    body = [
        [str(n), told[n][0], percent(TP_AT_1[n][0], True), told[n][1], percent(TP_AT_1[n][1], True)] for n in (2, 4)
    ]
    return table(["GPUs, batch 1, against 1 GPU", "energy", "paper", "latency", "paper"], body)


def simulated_rows() -> list[dict[str, str]]:
    import csv

    with (FOLDER / "tensor-parallel-simulated/results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def four_simulated() -> str:
    found = simulated_rows()
    assert all(row["simulated"] == "True" for row in found), "the table says simulated"

    def values(server: str, batch: int, field: str) -> list[float]:
        return [float(r[field]) for r in found if r["server"] == server and int(r["batch"]) == batch]

    body = []
    for batch in sorted({int(row["batch"]) for row in found}):
        line = [str(batch)]
        for field in ("joules_per_output_token", "e2e_p50_s"):
            base, two, four = (values(f"tp{n}", batch, field) for n in (1, 2, 4))
            line += [sig(fmean(base)), *(percent(fmean(one) / fmean(base) - 1, True) for one in (two, four))]
        body.append(line)
    return table(["batch, SIMULATED", "J/token, 1 GPU", "2", "4", "latency s, 1 GPU", "2", "4"], body)


def online_table() -> str:
    body = []
    for name in ONLINE:
        summary, run = online(name)
        energy, tokens, done = summary["energy"], summary["tokens"], summary["requests"]["completed"]
        steady = energy["steady"]["joules_per_output_token"] if energy["steady"] else None
        measured = energy["measured_joules"]
        body.append(
            [
                f"{run['config']['rps']:g}/s" if run["config"]["arrival"] == "poisson" else "all at once",
                str(done),
                f"{tokens['input'] / done:,.0f}, {tokens['output'] / done:,.0f}",
                sig(measured / tokens["output"]),
                sig(steady),
                sig(measured / (tokens["input"] + tokens["output"])),
                percent(energy["idle_joules"] / measured),
                f"{energy['mean_watts']:.0f}",
                f"{tokens['output_per_s']:,.0f}",
                *(sig(1e3 * summary[key]["p50"]) for key in ("ttft_s", "tpot_s")),
                sig(summary["e2e_s"]["p50"]),
            ]
        )
    head = ["arrivals", "requests", "mean tokens in, out", "J/output token", "in steady state", "J/token, in and out"]
    more = ["idle's share", "W", "tokens/s out", "TTFT p50 ms", "TPOT p50 ms", "E2E p50 s"]
    return table(head + more, body)


def online_paper() -> str:
    """The sign turned, so that more energy is positive as in the other tables of changes."""
    return table(["batch", *map(str, ONLINE_SAVED)], [["paper", *(percent(-x, True) for x in ONLINE_SAVED.values())]])


# ---------------------------------------------------------------- the case study


def transformers_profile() -> EnergyProfile:
    """Every measured size of generate() as a cell: whole answers, and prefill alone as one of one output token."""
    found: list[Cell] = []
    for name in ("hf-eager", "hf-eager-lengths"):
        for cell in sitting(name)["cells"]:
            found += filter(None, [_cell(cell, 1, cell["prefill"]), _cell(cell, cell["output_tokens"], cell["full"])])
    ordered = sorted(found, key=lambda cell: (_size(cell), -cell.repeats))
    kept = [next(same) for _, same in groupby(ordered, key=_size)]  # measured twice: the one with more repeats
    how = "whole batches of equal requests, in-process; measured by benchmarks/h200_studies.py"
    stage = sitting("hf-eager")["stages"]["hf-eager"]
    return EnergyProfile(
        gpu="h200",
        engine="transformers-5.17-eager",
        model="llama-3.1-8b",
        simulated=False,
        idle_w=stage["resident_w"],
        provenance={
            "how": how,
            "transformers": stage["transformers"],
            "torch": stage["torch"],
            "weights": "random",
            "energy": sitting("hf-eager")["energy"]["domains"],
            "made_by": "benchmarks/h200_results.py from docs/results/h200-2026/frameworks/hf-eager*",
            "left_out": f"windows whose bound of error is above {MOST_BOUND:.0%}",
        },
        cells=tuple(kept),
    )


def _size(cell: Cell) -> tuple[int, int, int]:
    return cell.input, cell.output, cell.batch


def _cell(cell: dict[str, Any], output: int, parts: list[dict[str, Any]]) -> Cell | None:
    known = [p for p in parts if p["joules"] is not None and p["u_joules"] <= MOST_BOUND * p["joules"]]
    if not known:
        return None
    each = [part["joules"] / part["batches"] / cell["batch"] for part in known]
    return Cell(
        input=cell["input_tokens"],
        output=output,
        batch=cell["batch"],
        joules_per_request=round(fmean(each), 6),
        stderr=round(stdev(each) / len(each) ** 0.5, 6) if len(each) > 1 else None,
        repeats=len(each),
        requests=sum(part["batches"] for part in known) * cell["batch"],
        duration_s=round(sum(part["seconds"] for part in known), 3),
        settled=False,
    )


COEFFICIENTS = ("request", "input_token", "input_token_squared", "step", "output_token", "context_token")
RESAMPLES = 400


@dataclass(frozen=True)
class Case:
    """A trace at a batch. The model is linear: joules of a request = coefficients · what the mean request needs."""

    trace: str
    batch: int
    requests: int
    needs: Floats
    needs_rounded_up: Floats
    """The same with lengths at the paper's edges."""
    vllm_interpolated: float
    dense: float
    sparse: float
    sparse_rounded_up: float


@cache
def cases() -> tuple[Case, ...]:
    found = []
    for trace in TRACES:
        bins = json.loads((ROOT / f"profiles/workloads/{trace}.json").read_text())
        pairs = count_pairs(length_chunks(trace))
        found += [_case(trace, bins["count"], pairs, batch) for batch in CASE_BATCHES]
    return tuple(found)


def _case(trace: str, requests: int, pairs: CountedPairs, batch: int) -> Case:
    hardware, model = read_hardware("h200"), read_model("llama-3.1-8b")
    drawn = int(pairs.counts.sum())
    rounded, _ = ceiling_pairs(pairs)
    dense, sparse = (one.joules / drawn for one in ideal(pairs, hardware, model))
    interpolated, _ = surface(read_energy_profile(VLLM_PROFILE), batch).total(pairs)
    least = ideal(rounded, hardware, model)[1].joules / drawn
    needs = [needs_of(one, batch) for one in (pairs, rounded)]
    return Case(trace, batch, requests, *needs, interpolated / drawn, dense, sparse, least)


def needs_of(pairs: CountedPairs, batch: int) -> Floats:
    """[6]: means over the requests of what each coefficient of the two-phase model is multiplied by."""
    n, o = pairs.inputs.astype(np.float64), pairs.outputs.astype(np.float64)
    units = (TwoPhase(**{name: float(name == one) for name in COEFFICIENTS}, rms=0.0) for one in COEFFICIENTS)
    return np.array([unit.joules(n, o, batch) @ pairs.counts for unit in units]) / pairs.counts.sum()


def coefficients(fit: TwoPhase) -> Floats:
    return np.array([getattr(fit, name) for name in COEFFICIENTS])


@cache
def fits() -> tuple[TwoPhase, TwoPhase]:
    """Of transformers and of vLLM."""
    eager, vllm = (fit_two_phase(p.cells) for p in (transformers_profile(), read_energy_profile(VLLM_PROFILE)))
    assert eager and vllm
    return eager, vllm


@cache
def resampled() -> tuple[Floats, Floats]:
    """[RESAMPLES, 6] of each: the fit to as many cells, drawn with replacement: what their choice leaves open."""
    rng = np.random.default_rng(0)

    def one(cells: Sequence[Cell]) -> Floats:
        while (fit := fit_two_phase([cells[i] for i in rng.integers(len(cells), size=len(cells))])) is None:
            pass
        return coefficients(fit)

    eager, vllm = transformers_profile().cells, read_energy_profile(VLLM_PROFILE).cells
    return np.array([one(eager) for _ in range(RESAMPLES)]), np.array([one(vllm) for _ in range(RESAMPLES)])


def case_saved(base: Floats, other: Floats) -> str:
    """1 - vLLM with the second needs / transformers with the first; 95 % of the resampled fits."""
    eager, vllm = map(coefficients, fits())
    draws = 1 - resampled()[1] @ other / (resampled()[0] @ base)
    low, high = np.percentile(draws, [2.5, 97.5])
    return percents(Interval(1 - float(vllm @ other / (eager @ base)), float(low), float(high), RESAMPLES))


def kwh(case: Case, joules_each: float) -> str:
    return sig(joules_each * case.requests / JOULES_PER_KWH)


def case_study() -> str:
    eager, vllm = map(coefficients, fits())
    body = []
    for c in cases():
        e, v = float(eager @ c.needs), float(vllm @ c.needs)
        body.append(
            [
                c.trace,
                f"{c.requests:,}",
                str(c.batch),
                kwh(c, e),
                kwh(c, v),
                case_saved(c.needs, c.needs),
                kwh(c, c.dense),
                kwh(c, c.sparse),
                percent(e / c.dense - 1, True),
                percent(v / c.dense - 1, True),
                percent(c.vllm_interpolated / v - 1, True),
            ]
        )
    head = ["trace", "requests", "batch", "transformers eager, kWh", "vLLM, kWh", "saved [95 %]", "ideal dense, kWh"]
    more = ["ideal sparse, kWh", "eager above dense", "vLLM above dense", "vLLM interpolated, against two-phase"]
    return table(head + more, body)


def table_4() -> str:
    """The paper's way: lengths rounded up, the sparse peak. Last, each trace with few in flight against many."""
    eager, vllm = map(coefficients, fits())
    body = []
    for trace, (above_eager, above_vllm, paper) in TABLE_4.items():
        few, many = (next(c for c in cases() if (c.trace, c.batch) == (trace, b)) for b in CASE_BATCHES)
        for base, other in ((few, few), (many, many), (few, many)):
            e, v = float(eager @ base.needs_rounded_up), float(vllm @ other.needs_rounded_up)
            least = base.sparse_rounded_up
            told = str(base.batch) if base is other else f"{base.batch} → {other.batch}"
            body.append(
                [
                    trace,
                    told,
                    f"{kwh(base, e)}, {kwh(base, v)}",
                    "{1:g}, {2:g}".format(*FIGURE_1[trace]),
                    percent(e / least - 1, True),
                    percent(above_eager, True),
                    percent(v / least - 1, True),
                    percent(above_vllm, True),
                    case_saved(base.needs_rounded_up, other.needs_rounded_up),
                    percent(paper),
                ]
            )
    head = ["trace", "batch", "kWh: eager, vLLM", "paper", "eager above ideal", "paper", "vLLM above ideal", "paper"]
    return table([*head, "saved [95 %]", "paper"], body)


def profile_fit() -> str:
    told = [
        [label, *(f"{getattr(fit, name):.3g}" for name in COEFFICIENTS), percent(fit.rms), str(count)]
        for label, fit, count in zip(
            ("transformers, eager", "vLLM, CUDA graphs"),
            fits(),
            (len(transformers_profile().cells), len(read_energy_profile(VLLM_PROFILE).cells)),
            strict=True,
        )
    ]
    head = ["", "a0, J/request", "a1, J/input token", "a2, J/input token²", "c, J/step", "b, J/output token"]
    return table([*head, "k, J/context token", "rms", "cells"], told)


# ---------------------------------------------------------------- sanity


def sanity() -> str:
    everything = [(name, cell) for name in MAIN for cell in sitting(name)["cells"]]
    gpus = {name: max(1, sitting(name)["tensor_parallel"]) for name in MAIN}
    products = [abs(c["joules_per_output_token"] * c["output_tokens_per_s"] / c["mean_w"] - 1) for _, c in everything]
    products_online = [
        abs(
            s["energy"]["measured_joules"]
            / s["tokens"]["output"]
            * s["tokens"]["output_per_s"]
            / s["energy"]["mean_watts"]
            - 1
        )
        for s, _ in map(online, ONLINE)
    ]
    watts = [p["watts"] / gpus[name] for name, c in everything for p in c["full"] if p["watts"] is not None]
    watts += [s["energy"]["mean_watts"] for s, _ in map(online, ONLINE)]
    idle = [
        stage["resident_w"] / gpus[name]
        for name in MAIN
        for stage in sitting(name)["stages"].values()
        if stage["resident_w"]
    ]
    empty = [sitting(name)["no_context_w"] / gpus[name] for name in MAIN]
    limit = min(gpu["limit_w"] for name in MAIN for gpu in sitting(name)["gpus"])
    again = recount()
    between = earlier()
    body = [
        ["W = J/token × tokens/s, offline cells", f"furthest {percent(max(products))} off, of means of repeats"],
        ["the same, online runs", f"furthest {percent(max(products_online))} off, of windows that end apart"],
        ["lowest and highest W of a GPU", f"{min(watts):.0f}, {max(watts):.0f}"],
        ["idle W with the model resident; limit", f"{min(idle):.0f} to {max(idle):.0f}; {limit:.0f}"],
        ["idle W before a stage, nothing resident", f"{min(empty):.0f} to {max(empty):.0f}"],
        ["joules again, from the counter's samples", f"{again[0]} windows, furthest {percent(again[1])} off"],
        ["vLLM, CUDA graphs, on another card and day", f"{between[0]} batches, furthest {percent(between[1])} off"],
    ]
    return table(["check", "found"], body)


def recount() -> tuple[int, float]:
    """(windows, largest relative difference): the stored joules against those of the counter's samples."""
    differences = []
    for name in MAIN:
        series = counter(FOLDER / "frameworks" / name)
        for cell in sitting(name)["cells"]:
            for part in cell["full"] + cell["prefill"] + cell.get("warm_up", []):
                found = joules_of(part, series)
                if found and part["joules"] is not None:
                    differences.append(abs(found[0] / part["joules"] - 1))
    return len(differences), max(differences)


def earlier() -> tuple[int, float]:
    """(batches, largest relative difference) of vLLM with CUDA graphs between two cards."""
    then = cells(("earlier-card",))
    both = [key for key in then if key in cells() and key[0] == "vllm-graphs"]
    first = [fmean(then[key].values("joules_per_output_token")) for key in both]
    second = [fmean(per_token(*key)) for key in both]
    return len(both), max(abs(b / a - 1) for a, b in zip(first, second, strict=True))


def repeats() -> str:
    body = []
    for server in NAMES:
        mine = {key: g.values("joules_per_output_token") for key, g in cells().items() if key[0] == server}
        spreads = {key: apart for key, values in mine.items() if (apart := spread(values)) is not None}
        worst = max(spreads, key=lambda key: spreads[key])
        within = sum(apart <= REPEATS_WITHIN for apart in spreads.values())
        middle = float(np.median(list(spreads.values())))
        body.append(
            [
                NAMES[server],
                str(len(mine[worst])),
                f"{within} of {len(spreads)}",
                percent(middle),
                f"{percent(spreads[worst])} ({worst[1]}, batch {worst[2]})",
                waiting_w(server),
            ]
        )
    head = ["", "repeats", "cells within 3 %", "median", "furthest", "W of the time by which repeats differ"]
    return table(head, body)


def waiting_w(server: str) -> str:
    """Joules over seconds within cells, pooled: what a second cost that one repeat took longer than another.

    Slope of (J - mean of its cell) on (s - mean of its cell), per batch of requests; only where seconds differ by more
    than 3 %, in three cells or more. Warm-up repeats are repeats here.
    """
    x: list[float] = []
    y: list[float] = []
    differing = 0
    for name in MAIN:
        for cell in sitting(name)["cells"]:
            parts = [p for p in cell.get("warm_up", []) + cell["full"] if p["joules"] is not None]
            seconds = [p["seconds"] / p["batches"] for p in parts]
            if _server(name, cell) != server or (spread(seconds) or 0) <= REPEATS_WITHIN:
                continue
            differing += 1
            joules = [p["joules"] / p["batches"] for p in parts]
            x += [s - fmean(seconds) for s in seconds]
            y += [j - fmean(joules) for j in joules]
    if differing < 3:
        return "-"
    return f"{sum(a * b for a, b in zip(x, y, strict=True)) / sum(a * a for a in x):.0f}"


def _server(name: str, cell: dict[str, Any]) -> str:
    return h200_report.rows_of({**sitting(name), "cells": [cell]})[0].server


def ml_energy() -> str:
    body = []
    for batch, (joules, watts, speed) in ML_ENERGY.items():
        long = per_token("vllm-graphs", "128x512", batch)
        g = cells()["vllm-graphs", SHAPE, batch]
        body.append(
            [
                str(batch),
                sig(joules),
                plus_minus(per_token("vllm-graphs", SHAPE, batch)),
                plus_minus(long),
                f"{watts}, {g.mean('mean_watts'):.0f}",
                f"{speed:,}, {g.mean('output_tokens_per_s'):,.0f}",
            ]
        )
    head = ["batch", "ML.ENERGY, H100, chat", "here, H200, 512 in, 128 out", "here, 128 in, 512 out"]
    return table([*head, "W: H100, H200 (512x128)", "tokens/s: H100, H200"], body)


# ---------------------------------------------------------------- figures: SVG that reads on light and on dark

STYLE = """
text{font:12px system-ui,sans-serif;fill:#1f2328}.rule{stroke:#8c959f;stroke-width:1;opacity:.35}
.curve{stroke:var(--c);stroke-width:2;vector-effect:non-scaling-stroke;fill:none}
.dot{stroke:var(--c);stroke-width:7;stroke-linecap:round;vector-effect:non-scaling-stroke}
.plot,.plot svg{overflow:visible}
.s0{--c:#0969da}.s1{--c:#9a6700}.s2{--c:#1a7f37}.s3{--c:#cf222e}.s4{--c:#8250df}.s5{--c:#57606a}
@media (prefers-color-scheme:dark){text{fill:#e6edf3}
.s0{--c:#58a6ff}.s1{--c:#d29922}.s2{--c:#3fb950}.s3{--c:#ff7b72}.s4{--c:#d2a8ff}.s5{--c:#8b949e}}
"""
PLOT = (640, 280)
LEFT, TOP = 70, 46


@dataclass(frozen=True)
class Line:
    name: str
    x: list[float]
    y: list[float]
    ends: list[tuple[float, float] | None]

    @property
    def told(self) -> str:
        return ", ".join(f"{a:g}: {sig(b)}" for a, b in zip(self.x, self.y, strict=True))


def picture(title: str, x_name: str, lines: Sequence[Line], x: svg.Axis, y: svg.Axis) -> str:
    """One plot with its legend below, in a file of its own."""
    width, height = PLOT
    told = "; ".join(f"{one.name}: {one.told}" for one in lines)
    marks = [_marks(one, index, x, y, height) for index, one in enumerate(lines)]
    plot = svg.plot("figure", title, told, x, y, height, marks)
    inner = tag("svg", plot, x=LEFT, y=TOP, width=width, height=height + 30, overflow="visible")
    below = TOP + height + 50
    entries = [_entry(one.name, index, below) for index, one in enumerate(lines)]
    bottom = below + 20 * ((len(lines) + 1) // 2) + 6
    head = tag("text", title, x=LEFT, y=20)
    under = tag("text", x_name, x=LEFT + width, y=below - 14, text_anchor="end")
    return (
        tag(
            "svg",
            tag("style", Markup(STYLE)),
            head,
            inner,
            under,
            *entries,
            xmlns="http://www.w3.org/2000/svg",
            viewBox=f"0 0 {LEFT + width + 30} {bottom}",
            width=LEFT + width + 30,
            height=bottom,
        )
        + "\n"
    )


def _entry(name: str, index: int, below: float) -> Markup:
    across, down = LEFT + 320 * (index % 2), below + 20 * (index // 2) + 4
    dash = svg.DASHES[index % len(svg.DASHES)]
    piece = tag("line", x1=across, x2=across + 28, y1=down, y2=down, stroke_dasharray=dash, class_="curve")
    return tag("g", piece, tag("text", name, x=across + 36, y=down + 4), class_=f"s{index % 6}")


def _marks(line: Line, index: int, x: svg.Axis, y: svg.Axis, height: float) -> Markup:
    across, level = x.at(np.array(line.x)), y.at(np.array(line.y))
    down = height * (1 - level)
    path = "M" + "L".join(f"{a * svg.WIDTH:.1f} {d:.1f}" for a, d in zip(across, down, strict=True))
    curve = tag("path", d=path, class_="curve", stroke_dasharray=svg.DASHES[index % len(svg.DASHES)])
    whiskers = []
    for a, ends in zip(across, line.ends, strict=True):
        if ends:
            low, high = height * (1 - y.at(np.array(ends)))
            whiskers.append(tag("path", d=f"M{a * svg.WIDTH:.1f} {low:.1f}V{high:.1f}", class_="curve"))
    titles = [f"{line.name}, {a:g}: {sig(b)}" for a, b in zip(line.x, line.y, strict=True)]
    return tag("g", curve, *whiskers, svg.dots(across, level, height, titles, class_="dot"), class_=f"s{index % 6}")


def batch_axis(most: int = 512) -> svg.Axis:
    return svg.Axis(1, most, True, tuple((float(2**k), str(2**k)) for k in range(most.bit_length())))


def _line(name: str, batches: Sequence[int], of: Callable[[int], Interval | None]) -> Line:
    found = [(float(b), one) for b in batches if (one := of(b)) is not None]
    return Line(
        name,
        [b for b, _ in found],
        [one.mean for _, one in found],
        [(one.low, one.high) if one.low is not None and one.high is not None else None for _, one in found],
    )


def frameworks_figure() -> str:
    chosen = (*FRAMEWORKS, "vllm-graphs-quantization=fp8")

    def of(name: str) -> Callable[[int], Interval | None]:
        return lambda b: interval(values) if (values := per_token(name, SHAPE, b)) else None

    lines = [_line(NAMES[name], batches_of(SHAPE, [name]), of(name)) for name in chosen]
    lines = [Line(n.name, n.x, n.y, [(max(e[0], 0.05), e[1]) if e else None for e in n.ends]) for n in lines]
    y = svg.log_axis(0.05, 10, told_joules)
    return picture("J per output token, 512 in, 128 out; bars: 95 % of the repeats", "batch", lines, batch_axis(), y)


def _share_axis(low: int, high: int, step: int) -> svg.Axis:
    ticks = tuple((float(v), f"{v} %".replace("-", "−")) for v in range(low, high + 1, step))
    return svg.Axis(low, high, False, ticks)


def reductions_figure() -> str:
    def here(base: str, other: str) -> Callable[[int], Interval | None]:
        return lambda b: hundred(saved(per_token(base, SHAPE, b), per_token(other, SHAPE, b)))

    def paper(base: str, other: str) -> Callable[[int], Interval | None]:
        return lambda b: Interval(100 * s, None, None, 1) if (s := paper_saved(base, other, b)) is not None else None

    every = batches_of(SHAPE, FRAMEWORKS)
    short = {name: NAMES[name].replace(",", "").replace("CUDA ", "") for name in FRAMEWORKS}
    lines = []
    for base, other in PAIRS:
        lines.append(_line(f"{short[other]} against {short[base]}", every, here(base, other)))
        lines.append(_line("the same, paper's A100, digitised", every, paper(base, other)))
    return picture("Less energy per output token", "batch", lines, batch_axis(), _share_axis(-40, 80, 20))


def hundred(found: Interval | None) -> Interval | None:
    if found is None:
        return None
    ends = [100 * end if end is not None else None for end in (found.low, found.high)]
    return Interval(100 * found.mean, ends[0], ends[1], found.count)


def tensor_parallel_figure() -> str:
    other = "vllm-graphs-tp2"
    batches = batches_of(SHAPE, [other])

    def change(found: Interval | None) -> Interval | None:
        if found is None or found.low is None or found.high is None:
            return None
        return Interval(-100 * found.mean, -100 * found.high, -100 * found.low, found.count)

    def energy(b: int) -> Interval | None:
        return change(saved(per_token("vllm-graphs", SHAPE, b), per_token(other, SHAPE, b)))

    def latency(b: int) -> Interval | None:
        return change(saved(*(cells()[name, SHAPE, b].values("e2e_p50_s") for name in ("vllm-graphs", other))))

    def paper(b: int) -> Interval | None:
        return Interval(100 * (TP_KWH[2][b] / TP_KWH[1][b] - 1), None, None, 1) if b in TP_KWH[2] else None

    lines = [
        _line("energy per token, here", batches, energy),
        _line("energy, paper's Figure 6, digitised", batches, paper),
        _line("time of a batch, here", batches, latency),
    ]
    return picture("Two GPUs against one", "batch", lines, batch_axis(), _share_axis(-60, 40, 20))


def case_figure() -> str:
    """J per request of each trace, at both batches: eager, vLLM, ideal."""
    places = [float(i + 1) for i in range(len(TRACES))]
    x = svg.Axis(0.6, len(TRACES) + 0.4, False, tuple(zip(places, TRACES, strict=True)))
    eager, vllm = map(coefficients, fits())
    lines = []
    for batch in CASE_BATCHES:
        mine = [c for c in cases() if c.batch == batch]
        lines.append(
            Line(
                f"transformers eager, batch {batch}", places, [float(eager @ c.needs) for c in mine], [None] * len(mine)
            )
        )
        lines.append(Line(f"vLLM, batch {batch}", places, [float(vllm @ c.needs) for c in mine], [None] * len(mine)))
    ideal_line = [c.dense for c in cases() if c.batch == CASE_BATCHES[0]]
    lines.append(Line("ideal, dense peak", places, ideal_line, [None] * len(places)))
    y = svg.log_axis(1, 500, told_joules)
    return picture("J per request, estimated (two-phase)", "", lines, x, y)


# ---------------------------------------------------------------- all of it

TABLES: dict[str, Callable[[], str]] = {
    "headline": headline,
    "frameworks": frameworks,
    "power": power,
    "reductions": reductions,
    "shapes": shapes,
    "fp8": fp8,
    "tensor-parallel": tensor_parallel,
    "four-gpus": four_gpus,
    "four-gpus-simulated": four_simulated,
    "online": online_table,
    "online-paper": online_paper,
    "case-study": case_study,
    "table-4": table_4,
    "profile-fit": profile_fit,
    "sanity": sanity,
    "repeats": repeats,
    "ml-energy": ml_energy,
}
FIGURES: dict[str, Callable[[], str]] = {
    "frameworks": frameworks_figure,
    "reductions": reductions_figure,
    "tensor-parallel": tensor_parallel_figure,
    "case-study": case_figure,
}


def filled(document: str) -> str:
    """The document with every table between its markers. KeyError for a marker that no table has."""
    parts = document.split("<!-- begin ")
    kept = [parts[0]]
    for part in parts[1:]:
        name, _, rest = part.partition(" -->")
        end = f"<!-- end {name} -->"
        kept.append(f"{name} -->\n\n{TABLES[name]()}\n\n{end}{rest.partition(end)[2]}")
    return "<!-- begin ".join(kept)


def report() -> str:
    told = (
        "Llama-3.1-8B shape on H200s. Offline, in-process, random weights, fixed lengths; GPU energy by its own "
        "counter. Each run is whole batches."
    )
    return render("Frameworks by batch", told, rows(), "hf-eager", {}, {}, 0)


def outputs() -> dict[Path, str]:
    """File -> what is in it; a function of the committed data alone."""
    found = {FOLDER / f"figures/{name}.svg": draw() for name, draw in FIGURES.items()}
    found[FOLDER / "frameworks/results.csv"] = h200_report.csv_of([*rows(), *rows(("hf-eager-lengths",))])
    found[FOLDER / "frameworks/report.html"] = report()
    found[PROFILE] = energy_profile_json(transformers_profile()).decode()
    found[DOCUMENT] = filled(DOCUMENT.read_text())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="take FOLDER TARGET")
    parser.add_argument("--first-repeat-is-warm-up", action="store_true")
    options = parser.parse_args()
    match options.words:
        case []:
            for path, text in outputs().items():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
                print(path.relative_to(ROOT))
        case ["take", source, target]:
            take(Path(source), Path(target), options.first_repeat_is_warm_up)
        case _:
            parser.error("expected nothing, or take FOLDER TARGET")


if __name__ == "__main__":
    main()
