"""The cells of the sessions in docs/results/h200-2026/offline, and how the tables of docs/results format numbers."""

from collections.abc import Iterable, Sequence
from functools import cache

import numpy as np

from benchmarks.paper import offline_table
from benchmarks.paper.ingest import session
from loadgen.results.study_table import Group, Row, groups
from loadgen.stats.intervals import Interval, interval, reduction

MAIN = (
    *("hf-eager", "hf-eager-2", "hf-eager-3", "hf-eager-shapes", "hf-eager-shapes-2"),
    *("hf-eager-lengths", "hf-eager-lengths-512", "hf-eager-lengths-64", "hf-eager-tasks", "hf-eager-tasks-2"),
    *("hf-eager-top-p", "hf-eager-beam", "hf-compile", "vllm-eager", "vllm-graphs", "vllm-graphs-tasks"),
    *("vllm-graphs-fp8", "vllm-graphs-tp2", "vllm-graphs-draft", "vllm-graphs-draft-async", "olmo-1b", "olmoe-1b-7b"),
)
"""Sessions whose cells are compared; a cell that several measured is pooled."""
EARLIER = "card-352953eb"
"""The session on the first card, a day earlier: it only shows how far sessions agree."""
NAMES = {
    "hf-eager": "transformers, eager",
    "hf-compile": "transformers, compiled",
    "vllm-eager": "vLLM, eager",
    "vllm-graphs": "vLLM, CUDA graphs",
    "vllm-graphs-quantization=fp8": "vLLM, CUDA graphs, FP8",
    "vllm-graphs-tp2": "vLLM, CUDA graphs, 2 GPUs",
    "vllm-graphs-draft=0.7": "vLLM, draft model",
    "vllm-graphs-draft=0.7-async_scheduling=True": "vLLM, draft model, asynchronous",
    "hf-eager-temperature=0.7-top_p=0.9": "transformers, sampled",
    "hf-eager-num_beams=4": "transformers, 4 beams",
}
LLAMA = "llama-3.1-8b"
SHAPE = "512x128"


@cache
def rows(names: tuple[str, ...] = MAIN) -> tuple[Row, ...]:
    return tuple(row for name in names for row in offline_table.rows_of(session(name), f"{name}/"))


@cache
def cells(model: str = LLAMA, names: tuple[str, ...] = MAIN) -> dict[tuple[str, str, int], Group]:
    """Return {(server, workload, batch): its repeats}."""
    return {(g.key[0], g.key[2], g.key[3] or 0): g for g in groups(rows(names)) if g.key[1] == model}


def per_token(server: str, workload: str, batch: int, model: str = LLAMA) -> list[float]:
    """Return J per output token of each repeat; empty where the cell was not measured."""
    group = cells(model).get((server, workload, batch))
    return group.values("joules_per_output_token") if group else []


def batches_of(workload: str, servers: Iterable[str], model: str = LLAMA) -> list[int]:
    return sorted({b for s, w, b in cells(model) if w == workload and s in set(servers)})


def saved(base: Sequence[float], other: Sequence[float]) -> Interval | None:
    return reduction(base, other) if base and other else None


def sig(value: float | None, digits: int = 3) -> str:
    """Return `value` with three significant digits, never an exponent."""
    if value is None:
        return "-"
    if value == 0:
        return "0"
    rounded = float(f"{value:.{digits - 1}e}")
    places = max(0, digits - 1 - int(np.floor(np.log10(abs(rounded)))))
    return f"{rounded:,.{places}f}"


def plus_minus(values: Sequence[float]) -> str:
    """Return mean ± half of the 95 % interval, with as many digits as the mean; one repeat has no interval."""
    return in_words(interval(values)) if values else "-"


def in_words(measured: Interval) -> str:
    mean = sig(measured.mean)
    if measured.low is None or measured.high is None:
        return f"{mean} (one repeat)"
    half, digits = (measured.high - measured.low) / 2, len(mean.partition(".")[2])
    while half and not round(half, digits):
        digits += 1
    return f"{measured.mean:,.{digits}f} ± {half:.{digits}f}"


def percents(reduction: Interval | None, sign: int = 1) -> str:
    """Return a reduction in per cent with its interval; with sign -1 the change."""
    if reduction is None:
        return "-"
    ends = sorted(sign * 100 * end for end in (reduction.low, reduction.high) if end is not None)
    plus = "+" if sign < 0 else ""
    mean = f"{sign * 100 * reduction.mean:{plus}.1f} %"
    return (mean + (f" [{ends[0]:{plus}.1f}, {ends[1]:{plus}.1f}]" if ends else "")).replace("-", "−")


def percent(value: float | None, signed: bool = False) -> str:
    return "-" if value is None else f"{100 * value:{'+' if signed else ''}.1f} %".replace("-", "−")


def table(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
