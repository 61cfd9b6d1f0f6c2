#!/usr/bin/env python3
"""Everything of docs/results.md that was measured, again from docs/results/h200-2026:

    python -m benchmarks.paper

writes the tables between the markers of docs/results.md, results.csv, report.html, the figures, and the energy profile
of transformers. ingest.py puts measurements there.
"""

import csv
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from benchmarks.paper import decoding, offline_table
from benchmarks.paper.case_study import (
    CASE_BATCHES,
    COEFFICIENTS,
    TRACES,
    VLLM_PROFILE,
    Case,
    case_saved,
    cases,
    coefficients,
    fits,
    transformers_cells,
    transformers_profile,
)
from benchmarks.paper.engine_options import TABLES as KNOB_TABLES
from benchmarks.paper.ingest import FOLDER, counter, joules_of, online, sitting, spread
from benchmarks.paper.offline_results import (
    MAIN,
    NAMES,
    SHAPE,
    batches_of,
    cells,
    per_token,
    percent,
    percents,
    plus_minus,
    rows,
    saved,
    sig,
    table,
)
from benchmarks.paper.plots import Line, alone, batch_axis, by_batch, picture, scaled, share_axis
from benchmarks.paper.serving import FIGURES as ONLINE_FIGURES
from benchmarks.paper.serving import TABLES as ONLINE_TABLES
from benchmarks.paper.serving import beside_figure_9
from benchmarks.paper.serving import outputs as online_outputs
from loadgen.energy_model.estimate import JOULES_PER_KWH
from loadgen.energy_model.profiles import energy_profile_json, read_energy_profile
from loadgen.report import svg
from loadgen.report.format import joules as told_joules
from loadgen.report.study_page import render_study_page
from loadgen.stats.intervals import Interval, interval

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs/results.md"
PROFILE = ROOT / "profiles/energy/h200-transformers-5.17-eager-llama-3.1-8b.json"

FRAMEWORKS = tuple(NAMES)[:4]
ONLINE = ("rps-2", "rps-12", "rps-16", "rps-32", "offline")
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
"""In the text, tensor parallelism at batch 1: change of energy, change of latency."""
GAIN_A100 = {"hf-compile": 0.2990, "vllm-graphs": 0.2547}
"""In the text: torch.compile against eager, CUDA graphs in vLLM against eager; on the A100."""
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


def agreement() -> str:
    """Each of the paper's claims that was measured here."""

    def here(base: str, other: str, *batches: int) -> str:
        told = ((b, percents(saved(per_token(base, SHAPE, b), per_token(other, SHAPE, b)))) for b in batches)
        return "; ".join(f"batch {b}: {found}" for b, found in told)

    def paper(base: str, other: str, *batches: int) -> str:
        return "; ".join(f"batch {b}: {percent(paper_saved(base, other, b))}" for b in batches)

    def batched(of: Callable[[int], str]) -> str:
        return "; ".join(f"batch {b}: {of(b)}" for b in (1, 8, 128))

    energy, time = tp_saved(1)
    few, many = (next(c for c in cases() if (c.trace, c.batch) == ("burstgpt", batch)) for batch in CASE_BATCHES)
    equal, unlike = (percents(case_saved(few.needs_rounded_up, c.needs_rounded_up)) for c in (few, many))
    vllm = float(coefficients(fits()[1]) @ many.needs_rounded_up)
    above = percent(vllm / many.sparse_rounded_up - 1, True)
    body = [
        [
            "vLLM with CUDA graphs saves, against eager PyTorch (A100, digitised)",
            paper("hf-eager", "vllm-graphs", 1, 8, 64),
            here("hf-eager", "vllm-graphs", 1, 8, 64),
        ],
        ["compiling saves (A100)", percent(GAIN_A100["hf-compile"]), here("hf-eager", "hf-compile", 1, 8, 32)],
        [
            "CUDA graphs in vLLM save (A100)",
            percent(GAIN_A100["vllm-graphs"]),
            here("vllm-eager", "vllm-graphs", 1, 8, 128),
        ],
        [
            "two GPUs, batch 1: energy, latency",
            f"{percent(TP_AT_1[2][0], True)}, {percent(TP_AT_1[2][1], True)}",
            f"{percents(energy, -1)}, {percents(time, -1)}",
        ],
        [
            "a draft model guessing 4 tokens, against greedy (A6000, digitised)",
            batched(lambda b: percent(decoding.paper_change(*decoding.SPECULATIVE_KWH.values(), b), True)),
            "0.7 accepted: " + batched(lambda b: percents(decoding.draft_change(b), -1)),
        ],
        [
            "experts (OLMoE-1B-7B) against dense (OLMo-1B) (digitised)",
            batched(lambda b: percent(decoding.paper_change(*decoding.EXPERTS_KWH.values(), b), True)),
            batched(lambda b: percents(decoding.experts_change(b), -1)),
        ],
        [
            "online against offline with as many in flight, per token",
            "; ".join(f"batch {batch}: {percent(-ONLINE_SAVED[batch], True)}" for batch in (8, 128)),
            beside_figure_9(),
        ],
        [
            "BurstGPT, vLLM saves (estimate)",
            percent(TABLE_4["burstgpt"][2]),
            f"both at 8: {equal}; 8 against 64: {unlike}",
        ],
        [
            "BurstGPT, vLLM above the ideal, sparse peak (estimate)",
            percent(TABLE_4["burstgpt"][1], True),
            f"at 64: {above}",
        ],
    ]
    return table(["claim", "paper", "here [95 %]"], body)


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


TP2 = "vllm-graphs-tp2"


def tp_saved(batch: int) -> tuple[Interval | None, Interval | None]:
    """(energy per token, time of a batch) that two GPUs save."""
    one, two = (cells()[name, SHAPE, batch] for name in ("vllm-graphs", TP2))
    fields = ("joules_per_output_token", "e2e_p50_s")
    energy, time = (saved(one.values(field), two.values(field)) for field in fields)
    return energy, time


def tensor_parallel() -> str:
    body = []
    for batch in batches_of(SHAPE, [TP2]):
        energy, time = tp_saved(batch)
        paper = TP_KWH[2][batch] / TP_KWH[1][batch] - 1 if batch in TP_KWH[2] else None
        latency = TP_AT_1[2][1] if batch == 1 else None
        line = [str(batch), *(plus_minus(per_token(name, SHAPE, batch)) for name in ("vllm-graphs", TP2))]
        body.append([*line, percents(energy, -1), percent(paper, True), percents(time, -1), percent(latency, True)])
    return table(["batch", "1 GPU", "2 GPUs", "energy [95 %]", "paper", "time of a batch [95 %]", "paper"], body)


def four_gpus() -> str:
    energy, time = tp_saved(1)
    told = {
        2: (percents(energy, -1), percents(time, -1)),
        4: ("not run: no host with four GPUs at hand", "not run"),
    }
    body = [
        [str(n), told[n][0], percent(TP_AT_1[n][0], True), told[n][1], percent(TP_AT_1[n][1], True)] for n in (2, 4)
    ]
    return table(["GPUs, batch 1, against 1 GPU", "energy", "paper", "latency", "paper"], body)


def simulated_rows() -> list[dict[str, str]]:
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


def per_token_online(summary: dict[str, Any]) -> float:
    """Measured joules, idle included, over prompt and output tokens."""
    tokens = summary["tokens"]
    return float(summary["energy"]["measured_joules"] / (tokens["input"] + tokens["output"]))


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
                sig(per_token_online(summary)),
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
                percents(case_saved(c.needs, c.needs)),
                kwh(c, c.dense),
                kwh(c, c.sparse),
                percent(e / c.dense - 1, True),
                percent(v / c.dense - 1, True),
                percent(c.eager_interpolated / e - 1, True),
                percent(c.vllm_interpolated / v - 1, True),
            ]
        )
    head = ["trace", "requests", "batch", "transformers eager, kWh", "vLLM, kWh", "saved [95 %]", "ideal dense, kWh"]
    more = [
        "ideal sparse, kWh",
        "eager above dense",
        "vLLM above dense",
        "interpolated against two-phase: eager",
        "vLLM",
    ]
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
                    percents(case_saved(base.needs_rounded_up, other.needs_rounded_up)),
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
            (len(transformers_cells()), len(read_energy_profile(VLLM_PROFILE).cells)),
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
    body = [
        ["W = J/token × tokens/s, offline cells", f"furthest {percent(max(products))} off, of means of repeats"],
        ["the same, online runs", f"furthest {percent(max(products_online))} off, of windows that end apart"],
        ["lowest and highest W of a GPU", f"{min(watts):.0f}, {max(watts):.0f}"],
        ["idle W with the model resident; limit", f"{min(idle):.0f} to {max(idle):.0f}; {limit:.0f}"],
        ["idle W before a stage, nothing resident", f"{min(empty):.0f} to {max(empty):.0f}"],
        ["joules again, from the counter's samples", f"{again[0]} windows, furthest {percent(again[1])} off"],
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


def repeats() -> str:
    """Within a sitting, and of means between sittings, which had other cards and other hosts."""
    body = []
    for server in NAMES:
        mine = by_sitting(server)
        spreads = {key: apart for key, values in mine.items() if (apart := spread(values)) is not None}
        worst = max(spreads, key=lambda key: spreads[key])
        within = sum(apart <= REPEATS_WITHIN for apart in spreads.values())
        body.append(
            [
                NAMES[server],
                f"{within} of {len(spreads)}",
                percent(float(np.median(list(spreads.values())))),
                f"{percent(spreads[worst])} ({worst[1]}, batch {worst[2]})",
                between(mine),
                waiting_w(server),
            ]
        )
    head = ["", "cells within 3 %", "median", "furthest", "means of sittings, furthest apart"]
    return table([*head, "W of the time by which repeats differ"], body)


def by_sitting(server: str) -> dict[tuple[str, str, int], list[float]]:
    """(sitting, lengths, batch) -> J per output token of its repeats."""
    return {
        (f"{name} {model}", workload, batch): group.values("joules_per_output_token")
        for name in (*MAIN, "earlier-card")
        for model in sorted({row.model for row in rows((name,))})
        for (one, workload, batch), group in cells(model, (name,)).items()
        if one == server
    }


def between(mine: dict[tuple[str, str, int], list[float]]) -> str:
    means: dict[tuple[str, str, int], list[float]] = {}
    for (name, workload, batch), values in mine.items():
        means.setdefault((name.split()[1], workload, batch), []).append(fmean(values))
    apart = {key: found for key, values in means.items() if (found := spread(values)) is not None}
    if not apart:
        return "-"
    worst = max(apart, key=lambda key: apart[key])
    return f"{percent(apart[worst])} of {len(apart)} cells ({worst[1]}, batch {worst[2]})"


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
    return offline_table.rows_of({**sitting(name), "cells": [cell]})[0].server


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


# ---------------------------------------------------------------- how it was measured


def commands() -> str:
    """The command of every sitting, in the order in which they began."""
    ordered = sorted((*MAIN, "earlier-card"), key=lambda name: sitting(name)["started_wall_s"])
    lines = (f"{name:<{max(map(len, ordered))}}  {command(sitting(name)['argv'])}" for name in ordered)
    return "```\n" + "\n".join(lines) + "\n```"


def command(argv: Sequence[str]) -> str:
    """Options of measure_offline.py as a shell would take them; of one given twice, the last."""
    given: dict[str, str] = {}
    for word, after in zip(argv, [*argv[1:], "--"], strict=True):
        if word.startswith("--") and not after.startswith("--"):
            given[word] = after
    told = (word for word in given.items() if word[0] != "--budget-s" and word != ("--window-s", "2"))
    return " ".join(f"{option} {shlex.quote(value)}" for option, value in told)


# ---------------------------------------------------------------- figures


def frameworks_figure() -> str:
    def of(name: str) -> Callable[[int], Interval | None]:
        return lambda batch: interval(values) if (values := per_token(name, SHAPE, batch)) else None

    shown = (*FRAMEWORKS, "vllm-graphs-quantization=fp8")
    lines = [
        Line(NAMES[name], by_batch(batches_of(SHAPE, [name]), of(name)), index, index)
        for index, name in enumerate(shown)
    ]
    y = svg.log_axis(0.05, 10, told_joules)
    return picture("J per output token, 512 in, 128 out; bars: 95 % of the repeats", "batch", lines, batch_axis(), y)


def reductions_figure() -> str:
    def here(base: str, other: str) -> Callable[[int], Interval | None]:
        return lambda batch: scaled(saved(per_token(base, SHAPE, batch), per_token(other, SHAPE, batch)), 100)

    def paper(base: str, other: str) -> Callable[[int], Interval | None]:
        return lambda batch: None if (found := paper_saved(base, other, batch)) is None else alone(100 * found)

    every = batches_of(SHAPE, FRAMEWORKS)
    short = {name: NAMES[name].replace(",", "").replace("CUDA ", "") for name in FRAMEWORKS}
    lines = []
    for index, (base, other) in enumerate(PAIRS):
        colour = (0, 3, 2)[index]
        lines.append(Line(f"{short[other]} against {short[base]}", by_batch(every, here(base, other)), colour))
        lines.append(Line("the same, paper's A100, digitised", by_batch(every, paper(base, other)), colour, 2))
    title = "Less energy per output token; bars: 95 %, cut at the frame"
    return picture(title, "batch", lines, batch_axis(), share_axis(-40, 80))


def tensor_parallel_figure() -> str:
    batches = batches_of(SHAPE, [TP2])
    paper = [(float(b), alone(100 * (joules / TP_KWH[1][b] - 1))) for b, joules in TP_KWH[2].items()]
    lines = [
        Line("energy per token, here", by_batch(batches, lambda b: scaled(tp_saved(b)[0], -100)), 0),
        Line("energy, paper's Figure 6, digitised", paper, 0, 2),
        Line("time of a batch, here", by_batch(batches, lambda b: scaled(tp_saved(b)[1], -100)), 2),
        Line("latency, paper's text", [(1.0, alone(100 * TP_AT_1[2][1]))], 2, joined=False),
    ]
    return picture("Two GPUs against one; bars: 95 %", "batch", lines, batch_axis(), share_axis(-60, 40))


def case_figure() -> str:
    """J per request of each trace, at both batches, and the ideal at the dense peak."""
    x = svg.Axis(0.6, len(TRACES) + 0.4, False, tuple((float(i + 1), name) for i, name in enumerate(TRACES)))
    eager, vllm = map(coefficients, fits())
    lines = []
    for index, batch in enumerate(CASE_BATCHES):
        mine = [c for c in cases() if c.batch == batch]
        for fit, name, colour in ((eager, "transformers eager", index), (vllm, "vLLM", index + 2)):
            points = [(i + 0.8 + 0.1 * colour, alone(float(fit @ c.needs))) for i, c in enumerate(mine)]
            lines.append(Line(f"{name}, batch {batch}", points, colour, joined=False))
    least = [(i + 1.2, alone(c.dense)) for i, c in enumerate(c for c in cases() if c.batch == CASE_BATCHES[0])]
    lines.append(Line("ideal, dense peak", least, 5, joined=False))
    y = svg.log_axis(1, 500, told_joules)
    return picture("J per request, estimated (two-phase)", "", lines, x, y)


# ---------------------------------------------------------------- all of it

TABLES: dict[str, Callable[[], str]] = {
    "agreement": agreement,
    "headline": headline,
    "frameworks": frameworks,
    "power": power,
    "reductions": reductions,
    "shapes": shapes,
    "fp8": fp8,
    "tensor-parallel": tensor_parallel,
    **decoding.TABLES,
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
    "commands": commands,
    **ONLINE_TABLES,
    **KNOB_TABLES,
}
FIGURES: dict[str, Callable[[], str]] = {
    **decoding.FIGURES,
    "frameworks": frameworks_figure,
    "reductions": reductions_figure,
    "tensor-parallel": tensor_parallel_figure,
    "case-study": case_figure,
    **ONLINE_FIGURES,
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
        "counter. Each run is whole batches. Not valid: a run whose counter may be off by more than 10 % at the worst."
    )
    return render_study_page("Frameworks by batch", told, rows(), "hf-eager", {}, {}, 0)


def outputs() -> dict[Path, str]:
    """File -> what is in it; a function of the committed data alone."""
    found = {FOLDER / f"figures/{name}.svg": draw() for name, draw in FIGURES.items()}
    found[FOLDER / "frameworks/results.csv"] = offline_table.csv_of(rows())
    found[FOLDER / "frameworks/report.html"] = report()
    found[PROFILE] = energy_profile_json(transformers_profile()).decode()
    found |= online_outputs()
    found[DOCUMENT] = filled(DOCUMENT.read_text())
    return found


def main() -> None:
    for path, text in outputs().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
