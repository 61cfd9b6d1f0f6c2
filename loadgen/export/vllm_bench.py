"""A run as the result of `vllm bench serve`, so that what reads those files reads this one.

The keys are those of vLLM 0.32, vllm/benchmarks/serve.py. By that format's convention the lists have an entry for each
request, and a request that failed has zeros there and its error's text. `generated_texts` is left out: a run folder
keeps no answers unless asked to.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from loadgen.results.metrics import came_in_one_piece
from loadgen.units import NS_PER_S

if TYPE_CHECKING:
    from loadgen.record import RequestRecord
    from loadgen.results.run_folder import RunResult
    from loadgen.results.summary import Distribution

BACKENDS = {"chat": "openai-chat", "completions": "openai", "embeddings": "openai-embeddings", "rerank": "vllm-rerank"}
"""vLLM's name of the API that takes the requests."""
_PERCENTILES = {"p75": "p75", "p90": "p90", "p95": "p95", "p99": "p99", "p99_9": "p99.9"}


def vllm_result(result: RunResult, *, detailed: bool) -> dict[str, Any]:
    """Return the result; `detailed` adds the lists that `vllm bench serve --save-detailed` keeps."""
    summary, info = result.summary, result.info
    assert summary is not None
    tokens, energy, config = summary.tokens, summary.energy, info.config
    backend = BACKENDS.get(str(config.get("endpoint")), str(config.get("endpoint")))
    started_s = ((info.start_ns or info.anchor.monotonic_ns) + info.anchor.offset_ns) / 1e9
    input_per_s, output_per_s = tokens.input_per_s, tokens.output_per_s
    made: dict[str, Any] = {
        "date": datetime.fromtimestamp(started_s, UTC).strftime("%Y%m%d-%H%M%S"),
        "endpoint_type": backend,
        "backend": backend,
        "label": None,
        "model_id": info.server.get("model"),
        "tokenizer_id": config.get("tokenizer") or info.server.get("model"),
        "num_prompts": summary.requests.scheduled,
        "loadgen_version": info.loadgen_version,
        "loadgen_verdict": summary.verdict.status,
        "measured_joules": energy.measured_joules,
        "joules_per_output_token": energy.joules_per_output_token,
        "host_joules": energy.host.measured_joules if energy.host else None,
        "request_rate": info.requested_rps if info.requested_rps is not None else "inf",
        "burstiness": config.get("burstiness") or 1.0,
        "max_concurrency": config.get("max_concurrency"),
        "duration": summary.duration_s,
        "completed": summary.requests.completed,
        "failed": summary.requests.failed,
        "total_input_tokens": tokens.input,
        "total_output_tokens": tokens.output,
        "request_throughput": summary.requests.completed / summary.duration_s if summary.duration_s else None,
        "request_goodput": summary.goodput.rps if summary.goodput else None,
        "output_throughput": output_per_s,
        "total_token_throughput": None
        if None in (input_per_s, output_per_s)
        else (input_per_s or 0) + (output_per_s or 0),
        **_peaks([record for record in result.records if record.ok]),
    }
    latencies: dict[str, Distribution] = {
        "ttft": summary.ttft_s, "tpot": summary.tpot_s, "itl": summary.itl_s, "e2el": summary.e2e_s,
    }  # fmt: skip
    for name, spread in latencies.items():
        made |= {
            f"mean_{name}_ms": _ms(spread.mean),
            f"median_{name}_ms": _ms(spread.p50),
            f"std_{name}_ms": _ms(spread.std),
        }
        made |= {f"{word}_{name}_ms": _ms(getattr(spread, key)) for key, word in _PERCENTILES.items()}
    return made | (_lists(result.records) if detailed else {})


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1000


def _peaks(done: list[RequestRecord]) -> dict[str, Any]:
    """Return the most tokens and the most concurrent requests in one of the seconds after the first request was sent,
    of completed requests: one token for each chunk, as vLLM counts them."""
    spans = [(r.sent_ns, r.finished_ns) for r in done if r.sent_ns is not None and r.finished_ns is not None]
    if not spans:
        return {"max_output_tokens_per_s": None, "max_concurrent_requests": None}
    begin_ns = min(sent_ns for sent_ns, _ in spans)
    seconds = (np.array(spans, dtype=np.int64) - begin_ns) // NS_PER_S
    steps = np.zeros(int(seconds.max()) + 2, dtype=np.int64)
    np.add.at(steps, seconds[:, 0], 1)
    np.add.at(steps, seconds[:, 1] + 1, -1)
    chunks = np.zeros(len(steps), dtype=np.int64)
    for record in done:
        np.add.at(chunks, (np.asarray(record.chunk_ns, dtype=np.int64) - begin_ns) // NS_PER_S, 1)
    return {
        "max_output_tokens_per_s": float(chunks.max()) if chunks.any() else None,
        "max_concurrent_requests": int(np.cumsum(steps).max()),
    }


def _lists(records: list[RequestRecord]) -> dict[str, list[Any]]:
    def seconds(ns: float | None, record: RequestRecord) -> float:
        return ns / NS_PER_S if record.ok and ns is not None else 0.0

    def gaps(record: RequestRecord) -> list[float]:
        if not record.ok or came_in_one_piece(record):
            return []
        made: list[float] = (np.diff(np.asarray(record.chunk_ns, dtype=np.int64)) / NS_PER_S).tolist()
        return made

    return {
        "input_lens": [record.input_tokens or 0 for record in records],
        "output_lens": [(record.output_tokens or 0) if record.ok else 0 for record in records],
        "ttfts": [seconds(record.ttft_ns, record) for record in records],
        "itls": [gaps(record) for record in records],
        "latencies": [seconds(record.e2e_ns, record) for record in records],
        "start_times": [
            (record.sent_ns if record.sent_ns is not None else record.scheduled_ns) / NS_PER_S for record in records
        ],
        "errors": ["" if record.ok else f"{record.error}: {record.detail or ''}" for record in records],
    }
