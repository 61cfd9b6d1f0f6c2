"""The cells of the sessions in docs/results/h200-2026/offline."""

from collections.abc import Iterable, Sequence
from functools import cache

from benchmarks.paper import offline_table
from benchmarks.paper.ingest import session
from loadgen.results.study_table import Group, Row, groups
from loadgen.stats.intervals import Interval, reduction

MAIN = (
    *("hf-eager", "hf-eager-2", "hf-eager-3", "hf-eager-shapes", "hf-eager-shapes-2"),
    *("hf-eager-lengths", "hf-eager-lengths-512", "hf-eager-lengths-64", "hf-eager-tasks", "hf-eager-tasks-2"),
    *("hf-eager-top-p", "hf-eager-beam", "hf-compile", "vllm-eager", "vllm-graphs", "vllm-graphs-tasks"),
    *("vllm-graphs-fp8", "vllm-graphs-tp2", "vllm-graphs-draft", "vllm-graphs-draft-async", "olmo-1b", "olmoe-1b-7b"),
)
"""Sessions whose cells are compared; a cell measured in several of them is pooled."""
EARLIER = "card-352953eb"
"""The session on the first card, a day earlier, which only shows how well sessions agree."""
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


def saved(base: Sequence[float], variant: Sequence[float]) -> Interval | None:
    return reduction(base, variant) if base and variant else None
